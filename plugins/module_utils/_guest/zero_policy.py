# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where zeros reach the free blocks of a disk, and how many may be written (pure)."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.filesystem import Mount

MIB = 1 << 20

#: A file's data goes to free blocks, as it is: tried in the tests of this collection.
FILLABLE = ("ext2", "ext3", "ext4", "xfs")

_COMPRESSES = "compresses zeros, or drops them, so they need not reach its free blocks"
_LOG = "writes everything to new places and moves it later"
#: Refused unless forced, with what is special about them.
UNSUITABLE = {
    "bcachefs": _COMPRESSES,
    "btrfs": _COMPRESSES,
    "f2fs": f"{_LOG}, and may compress it",
    "nilfs2": f"{_LOG}, and keeps what was there as checkpoints",
    "zfs": _COMPRESSES,
}

#: The guest's own reserve where the user says none: the larger of these.
RESERVE_DIVISOR = 20
RESERVE_BYTES = 256 * MIB

#: What one write takes at most. Free space and limits are looked at before each.
STEP_BYTES = 4 * MIB
#: Written past the cache, lengths are multiples of this.
_BLOCK_BYTES = 4096
#: Room for what the file system itself needs to keep account of a step.
SLACK_BYTES = MIB


@dataclasses.dataclass(frozen=True)
class Layer:
    """A block device that a file system lies on, directly or below others.

    :param name: the kernel's, such as ``sda1`` or ``dm-0``.
    :param dm_uuid: of the device mapper, such as ``CRYPT-LUKS2-…``; empty for others.
    """

    name: str
    dm_uuid: str = ""


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Why a file system is not filled.

    :param final: not even with ``force``.
    """

    reason: str
    final: bool


def refusal(mount: Mount, layers: t.Sequence[Layer]) -> Refusal | None:
    """Whether zeros in a file of this file system become zeros on the host's disk.

    :param layers: the block devices under it; none for a file system that has no disk.
    """
    if mount.read_only:
        return Refusal("is mounted read-only", final=True)
    if not layers and mount.type not in UNSUITABLE:
        return Refusal(f"({mount.type}) is on no disk of this guest", final=True)
    for refused in map(_layer_refusal, layers):
        if refused is not None:
            return refused
    if mount.type in UNSUITABLE:
        return Refusal(f"({mount.type}) {UNSUITABLE[mount.type]}", final=False)
    if mount.type not in FILLABLE:
        return Refusal(f"({mount.type}) was never tried", final=False)
    return None


def _layer_refusal(layer: Layer) -> Refusal | None:
    if layer.dm_uuid.startswith("CRYPT-"):
        return Refusal(
            f"is encrypted ({layer.name}): zeros would reach the host as random data, which takes "
            "space there and never gives it back",
            final=True,
        )
    if layer.dm_uuid.startswith("VDO-"):
        return Refusal(f"is on a VDO volume ({layer.name}), which drops zeros", final=True)
    if layer.dm_uuid.endswith("-tpool"):
        return Refusal(
            f"is on a thin pool of the guest ({layer.name}), which zeros would fill", final=False
        )
    return None


def reserve(total_bytes: int, wanted: int | None) -> int:
    """What has to stay free in the file system, in bytes."""
    if wanted is not None:
        return wanted
    return max(total_bytes // RESERVE_DIVISOR, RESERVE_BYTES)


def planned(*, free_bytes: int, keep_free_bytes: int, budget_bytes: int) -> int:
    """What would be written to a file system that has so much free now."""
    return max(0, min(free_bytes - keep_free_bytes - SLACK_BYTES, budget_bytes))


def step(*, free_bytes: int, keep_free_bytes: int, budget_bytes: int) -> tuple[int, str]:
    """How many bytes to write next; if none, why: ``budget`` or ``reserve``."""
    if budget_bytes < _BLOCK_BYTES:
        return 0, "budget"
    room = free_bytes - keep_free_bytes - SLACK_BYTES
    if room < _BLOCK_BYTES:
        return 0, "reserve"
    size = min(STEP_BYTES, budget_bytes, room)
    return size - size % _BLOCK_BYTES, ""
