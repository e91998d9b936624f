# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What became of an image that was to be made smaller."""

from __future__ import annotations

import dataclasses

from ansible_collections.thinvirt.kvm.plugins.module_utils._image.header import ImageHeader


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What an image promises and takes, in bytes."""

    virtual_size_bytes: int
    allocated_bytes: int
    length_bytes: int


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
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    moved_bytes: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def changed(self) -> bool:
        return self.method != "none"

    @property
    def freed_bytes(self) -> int:
        """Blocks that the host got back; negative where the user wished for a larger image."""
        return self.before.allocated_bytes - self.after.allocated_bytes


def sizes_of(header: ImageHeader) -> Sizes:
    """What an image takes, from its header and its file."""
    return Sizes(
        virtual_size_bytes=header.virtual_size_bytes,
        allocated_bytes=header.allocated_bytes or 0,
        length_bytes=header.length_bytes,
    )
