# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A note beside a copy, ``COPY.thinvirt.json``: of what it is one, and with which options.

It tells the next run that the copy is up to date, and that it is ours to replace or remove: only
while the copy is as it was when it was made.  It is written just before the copy gets its name, and
so it names the copy that had the name before as well.  What it says is believed only if we wrote
it: others may write to the folder too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import stat
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import (
    Identity,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.durable import (
    sync_folder,
    write_whole,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure

SUFFIX = ".thinvirt.json"
_MAX_BYTES = 64 * 1024


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What is known of a copy.

    :param src: the image's path, symlinks resolved.
    :param sources: the image as it was copied, and the files that it depends on.
    :param options: what the copy was made with.
    :param copy: the copy as it was left.
    :param previous: the copy that had the name before, as it was left; None if there was none.
    :param created: UTC, such as ``20261124T204455Z``.
    :param number: higher than that of every copy that lay in the folder then; 0 if not said.
    :param pending: the new copy never got the name: a run was killed just before.
    """

    src: str
    sources: t.Sequence[Identity]
    options: t.Mapping[str, t.Any]
    copy: Identity
    previous: Identity | None
    created: str
    number: int = 0
    pending: bool = False

    def is_of(
        self, src: str, sources: t.Sequence[Identity], options: t.Mapping[str, t.Any]
    ) -> bool:
        """Whether a new copy would be the same."""
        same = (self.src, dict(self.options)) == (src, dict(options))
        same = same and list(map(_lasting, self.sources)) == list(map(_lasting, sources))
        return same and not self.pending


def _lasting(file: Identity) -> Identity:
    """What stays the same over a reboot: LVM, NFS and btrfs may get another device number."""
    return dataclasses.replace(file, dev=0)


def read_manifest(copy: str) -> Manifest | None:
    """The manifest of a copy; None without one of ours that fits the file as it is now."""
    try:
        fd = os.open(copy + SUFFIX, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if not _is_ours(os.fstat(fd)):
            raise TypeError("Somebody else wrote it.")
        fields = json.loads(os.read(fd, _MAX_BYTES))
        files = {
            name: Identity(**fields[name]) if fields[name] else None
            for name in ("copy", "previous")
        }
        sources = tuple(Identity(**source) for source in fields["sources"])
        manifest = Manifest(**{**fields, **files, "sources": sources, "pending": False})
        texts = isinstance(manifest.options, dict) and isinstance(manifest.created, str)
        if not texts or not isinstance(manifest.number, int):
            raise TypeError("It was changed by hand.")
        now = _lasting(Identity.of(os.lstat(copy)))
    except (ValueError, TypeError, KeyError, RecursionError, OSError):
        return None
    finally:
        os.close(fd)
    if now == _lasting(manifest.copy):
        return manifest
    if manifest.previous is not None and now == _lasting(manifest.previous):
        return dataclasses.replace(manifest, pending=True)
    return None


def _is_ours(status: os.stat_result) -> bool:
    return (
        stat.S_ISREG(status.st_mode)
        and status.st_uid == os.geteuid()
        and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )


def write_manifest(copy: str, manifest: Manifest) -> None:
    """Write the manifest of a copy, whole or not at all.

    :raises ThinvirtError: it can't be written.
    """
    write_whole(copy + SUFFIX, json.dumps(dataclasses.asdict(manifest), indent=2) + "\n")


def highest_number(folder: str) -> int:
    """The highest number of a copy in a folder; 0 without any copies."""
    with os.scandir(folder) as entries:
        notes = [entry.path for entry in entries if entry.name.endswith(SUFFIX)]
    manifests = (read_manifest(path[: -len(SUFFIX)]) for path in notes)
    return max((each.number for each in manifests if each is not None), default=0)


def remove_orphan(copy: str) -> None:
    """Remove the manifest of a copy that never got its name."""
    path = copy + SUFFIX
    with contextlib.suppress(OSError):
        if not os.path.lexists(copy) and _is_ours(os.lstat(path)):
            os.unlink(path)


def remove_with_manifest(copy: str) -> None:
    """Remove a copy that is ours, and then its manifest.

    :raises ThinvirtError: the kernel refuses.
    """
    try:
        os.unlink(copy)
        os.unlink(copy + SUFFIX)
        sync_folder(os.path.dirname(copy))
    except OSError as error:
        raise failure(copy, "removed", error) from error
