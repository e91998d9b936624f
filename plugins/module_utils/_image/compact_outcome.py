# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What became of an image that was to be made smaller."""

from __future__ import annotations

import contextlib
import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._image.header import ImageHeader
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.extents import shared_bytes
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.filesystem import (
    Free,
    free_now,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What an image promises and takes, in bytes.

    :param shared_bytes: of the allocated ones, those that other files have too.
    """

    virtual_size_bytes: int
    allocated_bytes: int
    length_bytes: int
    shared_bytes: int = 0

    @property
    def own_bytes(self) -> int:
        """What the host would have back without this file."""
        return max(0, self.allocated_bytes - self.shared_bytes)


@dataclasses.dataclass
class Outcome:
    """What became of one image; in check mode, what would.

    :param path: the image's own name, symlinks resolved.
    :param method: what was done: ``punch``, ``rewrite``, ``trim``, or ``none``.
    :param reason: why that, or why nothing, one sentence.
    :param reclaimable_bytes: what was found that could come back, before anything was done;
        None where only a copy would tell.
    :param recovered: what a killed run had left and what was done about it; empty if nothing.
    :param kept: path of the original, if it was kept.
    :param moved_bytes: by stage, as far as that can be told.
    :param compared: the copy was compared with its source.
    :param moved_to: path of the new image, if it lies in another folder.
    :param free_before_bytes: free space of the file system, the second witness; None if it was not
        looked at, and in check mode.
    """

    path: str
    before: Sizes
    after: Sizes
    method: str = "none"
    reason: str = ""
    reclaimable_bytes: int | None = None
    recovered: str = ""
    kept: str = ""
    compared: bool = False
    moved_to: str = ""
    free_before_bytes: int | None = None
    free_after_bytes: int | None = None
    #: The blocks of a file don't tell, and the file system does.
    believes_witness: bool = False
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    moved_bytes: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def changed(self) -> bool:
        return self.method != "none"

    @property
    def freed_bytes(self) -> int:
        """Blocks that the host got back; negative where it is fuller than before.

        That is where the user wished for a larger image, has the original kept, or consents to make
        an image that shares blocks with others one that doesn't.
        """
        kept = self.before.own_bytes if self.kept else 0
        freed = self.before.own_bytes - self.after.own_bytes - kept
        before, after = self.free_before_bytes, self.free_after_bytes
        if not self.believes_witness or before is None or after is None:
            return freed
        return min(freed, max(0, after - before)) if freed > 0 else freed

    @contextlib.contextmanager
    def witnessed(self, folder: str) -> t.Iterator[None]:
        """Have the file system say before and after how much is free, whatever others do to it."""
        before = free_now(folder)
        try:
            yield
        finally:
            self.witness(before, free_now(folder))

    def witness(self, before: Free | None, after: Free | None) -> None:
        """Note what was free; an original that is still open has its blocks."""
        self.free_before_bytes = before.size_bytes if before else None
        self.free_after_bytes = after.size_bytes if after else None
        self.believes_witness = after is not None and after.frees_whole_extents


def sizes_of(header: ImageHeader, fd: int) -> Sizes:
    """What an image takes, from its header and its open file.

    :raises ThinvirtError: the file can't be read.
    """
    try:
        shared = 0 if header.block_device else shared_bytes(fd, flush=True)
    except OSError as error:
        raise failure(header.path, "read", error) from error
    return sizes_with(header, shared_bytes=shared)


def sizes_with(header: ImageHeader, *, shared_bytes: int) -> Sizes:
    """The same where it is known already what the image shares."""
    return Sizes(
        virtual_size_bytes=header.virtual_size_bytes,
        allocated_bytes=header.allocated_bytes or 0,
        length_bytes=header.length_bytes,
        shared_bytes=shared_bytes,
    )
