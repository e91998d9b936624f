# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A verified copy of an image that nobody writes to, and the name that it gets.

Used for images under a guest's overlay, and for those of domains that are shut off and move.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    RefusedError,
    ReportedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.attributes import (
    copy_attributes,
    new_file_like,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact_outcome import (
    Outcome,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact_policy import (
    Facts,
    Request,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact_rewrite import Rewrite
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.files import (
    OpenImage,
    open_image,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.header import read_open_header
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import (
    Identity,
    Journal,
    Part,
    Record,
    open_journal,
    peek,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_img import QemuImg
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.recover import refuse_live
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.replace import (
    NewCopy,
    Source,
    Stages,
    identity_at,
    verified_copy,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.files import Files
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.durable import sync_folder
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown


class Dropped(Exception):  # noqa: N818 (no error: the image is not worth it after all)
    """The copy would save too little; it is gone again."""


def copied(
    image: OpenImage,
    facts: Facts,
    stack: contextlib.ExitStack,
    *,
    new: str,
    request: Request,
    bandwidth_bytes: int,
    journal: Journal,
    record: Record,
    tool: QemuImg,
    stages: Stages,
    outcome: Outcome,
) -> tuple[NewCopy, Record]:
    """Make and verify a copy; it goes with ``stack`` unless it gets a name.

    :param new: the name that it is to get.
    :param bandwidth_bytes: a second; 0 for as much as there is.
    :param record: of the whole run, for which the copy is a part.
    :returns: the copy, and the record as it is to be from now on.
    :raises Dropped: it saves less than is worth it.
    :raises ThinvirtError: it could not be made, or is not like its source.
    """
    rewrite = Rewrite(
        image,
        facts,
        request,
        zeros=lambda _enough: 0,
        journal=journal,
        tool=tool,
        stages=stages,
        keep=stack,
    )
    plan = rewrite.plan()
    rewrite.refuse_too_little_space(plan.needed_bytes, folder=os.path.dirname(new))
    sparse = "preallocation" not in plan.copy.options
    copy, part = stack.enter_context(
        verified_copy(
            Source(image.path, image.fd, plan.spec),
            new,
            copy=dataclasses.replace(plan.copy, bandwidth_bytes=bandwidth_bytes),
            min_free_bytes=request.min_free_bytes,
            journal=Part(journal, record),
            tool=tool,
            stages=stages,
            finish=rewrite.thin if sparse else None,
        )
    )
    outcome.compared = True
    allocated = os.fstat(image.fd).st_blocks * 512
    saved = allocated - (copy.usage.allocated_bytes or 0)
    enough = request.threshold(allocated)
    asked_for = request.force or request.moves(image.path) or not (plan.keeps_form or plan.denser)
    if saved < enough and not asked_for:
        outcome.reclaimable_bytes = saved
        outcome.reason = (
            f"The copy was {saved} bytes smaller, less than the {enough} worth it; it was dropped."
        )
        raise Dropped
    copy_attributes(image.fd, copy.fd)
    os.fsync(copy.fd)
    record = dataclasses.replace(
        record,
        source=Identity.of(os.fstat(image.fd)),
        temp=part.temp,
        copy=Identity.of(os.fstat(copy.fd)),
    )
    return copy, record


def make_overlay(
    tool: QemuImg, path: str, *, like: str, below: str, image_format: str, size_bytes: int = 0
) -> None:
    """Make an empty overlay; on the disk, with its name, when it returns.

    :param like: the image whose size, owner, mode, ACL and label it gets.
    :param below: the file that it lies on.
    :param size_bytes: that the guest is to see; 0 for that of ``like``.
    """
    with open_image(like) as image:
        header = read_open_header(image, path=image.path, image_format=image_format)
        fd = new_file_like(image.fd, path)
        try:
            tool.create_overlay(
                fd,
                size_bytes=size_bytes or header.virtual_size_bytes,
                backing=below,
                backing_format=image_format,
            )
            copy_attributes(image.fd, fd)
            os.fsync(fd)
        finally:
            os.close(fd)
    sync_folder(os.path.dirname(path))


def refuse_taken_place(files: Files) -> None:
    """Refuse to move an image to where something is already, or another run at work.

    :raises RefusedError: there is; nothing was changed.
    """
    if not files.moves:
        return
    if os.path.lexists(files.new):
        raise RefusedError(
            f"{shown(files.new)} exists already; nothing was changed.",
            remedy="Move it away, or name another dest_dir.",
        )
    refuse_live(files.new, peek(files.new))


@contextlib.contextmanager
def pointer(files: Files, journal: Journal) -> t.Iterator[Journal | None]:
    """The journal beside the copy of an image that moves, locked; None for one that does not.

    :param journal: of the image, where the run is written down already.
    :raises ThinvirtError: there is one in use, or it can't be made; nothing was changed.
    """
    if not files.moves:
        yield None
        return
    with contextlib.ExitStack() as stack:
        try:
            beside = stack.enter_context(open_journal(files.new))
            refuse_live(files.new, beside.left)
        except ReportedError:
            journal.clear()
            raise
        yield beside


def name_elsewhere(files: Files, copy: NewCopy) -> None:
    """Give a copy its name in another folder, where nothing must be lost by that.

    :raises RefusedError: something has the name by now.
    """
    try:
        os.link(copy.name, files.new, follow_symlinks=False)
    except FileExistsError as error:
        raise RefusedError(
            f"{shown(files.new)} was made by somebody else meanwhile; it was left as it is.",
            remedy="Move it away, or name another dest_dir.",
        ) from error
    except OSError:  # no links here
        if identity_at(files.new) is not None:
            raise
        os.rename(copy.name, files.new)
    else:
        os.unlink(copy.name)
    sync_folder(os.path.dirname(files.new))
