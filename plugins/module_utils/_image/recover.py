# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""End or undo what a killed run has left on an image, as its journal says."""

from __future__ import annotations

import os
import time

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    NotFoundError,
    RefusedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.files import open_image
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import (
    Identity,
    Journal,
    Record,
    is_temp_name,
    naming,
    overlaid,
    peek,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.locks import (
    other_writers,
    probe_locks,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.replace import (
    LEAVE_SECONDS,
    identity_at,
    remove_name,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.durable import sync_folder
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.holders import users_seen
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown


def recover(path: str, journal: Journal) -> str:
    """End or undo what a killed run has left.

    Only names that such a run makes are removed, only in the image's folder, only while the image
    itself has its name, and an original only as it was when it was copied.

    :returns: what was done, one sentence; empty if there was nothing to do.
    :raises RefusedError: it is not clear what to do; nothing was changed.
    """
    record = journal.left
    if record is None:
        journal.clear()
        return ""
    refuse_live(path, record)
    with naming(journal):
        done = _recover(path, record)
    journal.clear()
    return done


def refuse_part_of_chain(path: str) -> None:
    """Refuse an image or an overlay that a killed run on a running domain has left as it is now.

    :raises RefusedError: it is one, or another run is at work on it.
    """
    for image in filter(None, (path, overlaid(path))):
        refuse_live(image, peek(image))


def refuse_live(path: str, record: Record | None) -> None:
    """Refuse an image above which a domain may have an overlay, with writes that are not in it.

    :raises RefusedError: such an overlay is in its journal.
    """
    if record is None or record.live is None:
        return
    raise RefusedError(
        f"{shown(path)} was compacted while domain {record.live.domain} ran, and that run was "
        f"killed (process {record.pid}, {record.stage}); the guest's last writes may be in "
        f"{shown(record.live.second or record.live.overlay)}. Nothing was changed.",
        remedy="End or undo it with thinvirt.kvm.domain_compact and state=recovered.",
    )


def _recover(path: str, record: Record) -> str:
    folder = os.path.dirname(path)
    names = [record.temp] if record.temp else []
    if record.kept and not record.keep_original:
        names.append(record.kept)
    for name in names:
        if not is_temp_name(name, path):
            raise RefusedError(
                f"The journal of {shown(path)} names {shown(name)}, which is no copy of it; "
                "nothing was changed.",
                remedy="Look at both files, and remove the journal.",
            )
    now = identity_at(path)
    if now is None and record.source is not None:
        raise RefusedError(
            f"{shown(path)} is gone, and its journal names {' and '.join(map(shown, names))}; "
            "nothing was changed.",
            remedy="Give the right one of these its name, and remove the journal.",
        )
    for name in names:
        wait_until_free(os.path.join(folder, name))
    swapped = _refuse_changed(path, record, now=now)
    kept = os.path.join(folder, record.kept)
    if record.kept and _is_second_name(kept, path, record, now=now, swapped=swapped):
        # Also one that was to be kept: the run is undone, and the original has its own name.
        names.append(record.kept)
    try:
        sync_folder(folder)
        for name in names:
            remove_name(os.path.join(folder, name))
        sync_folder(folder)
    except OSError as error:
        raise failure(path, "recovered", error) from error
    begun = f"A run that was killed (process {record.pid}, {record.operation}, {record.stage})"
    if not names:
        return f"{begun} had left nothing to undo."
    return f"{begun} was {'finished' if swapped else 'undone'}."


def _is_second_name(
    kept: str, path: str, record: Record, *, now: Identity | None, swapped: bool
) -> bool:
    """Whether the original has its own name still, and this is just another one.

    :param swapped: the image is its copy now.
    :raises RefusedError: this is the only name of an original that must not go.
    """
    original = identity_at(kept)
    if original is None:
        return False
    if now is not None and original.ino == now.ino:
        return True
    if (swapped and original.is_still(record.source)) or (record.keep_original and not swapped):
        return False
    raise _undecided(kept, path)


def _refuse_changed(path: str, record: Record, *, now: Identity | None) -> bool:
    """Whether the image is its copy now.  What has the copy's first name is that, or the original.

    :raises RefusedError: it is something else, or was written to.
    """
    if record.copy is None or now is None or now.ino != record.copy.ino:
        return False
    if record.temp:
        temp = os.path.join(os.path.dirname(path), record.temp)
        left = identity_at(temp)
        if left is not None and left.ino != now.ino and not left.is_still(record.source):
            raise _undecided(temp, path)
    return True


def _undecided(kept: str, path: str) -> RefusedError:
    return RefusedError(
        f"{shown(kept)} is the original of {shown(path)}, and one of them was changed after a run "
        "that was killed; nothing was changed.",
        remedy="Decide which of the two is right, give it the image's name, and remove the journal "
        "and the other.",
    )


def wait_until_free(path: str) -> None:
    """Wait for who has a file, through QEMU or to write to it, that is to lose its name.

    A killed run's qemu-img ends at once.  A domain, or anybody else, may have opened the original
    just before it lost its name, and goes on with it: then its file must not go.

    :raises RefusedError: somebody still has.
    """
    deadline = time.monotonic() + LEAVE_SECONDS
    while True:
        try:
            with open_image(path) as image:
                locked = probe_locks(image.fd).used
                users = other_writers(image.fd) or (users_seen(image.fd) if locked else [])
        except NotFoundError:
            return
        if not locked and not users:
            return
        if time.monotonic() > deadline:
            raise RefusedError(
                f"{shown(path)}, which a killed run has left, is in use by "
                f"{', '.join(users) or 'somebody'}; nothing was changed.",
                remedy="End what uses it, such as a domain, keep this file, for it has the last "
                "writes, give it the image's name, and remove the journal.",
            )
        time.sleep(0.1)
