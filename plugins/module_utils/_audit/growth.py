# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much images can grow when their guests write zeros, and how much of that is safe (pure)."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.model import (
    DiskAudit,
    DomainAudit,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.filesystem import FileSystem

#: Writing over what is allocated already takes no space on these; others may copy on write.
_WRITES_IN_PLACE = ("ext2", "ext3", "ext4")
#: This part of a budget is left for the images' own tables and for others.
_HEADROOM_DIVISOR = 16


@dataclasses.dataclass(frozen=True)
class Budget:
    """What the guest of one domain may write.

    :param zeros_are_free: QEMU turns zeros into holes on all its disks now, so nothing grows.
    :param growth_bytes: the most that its images can grow; None if that can't be told.
    :param fits: what is free takes that growth, so a guest may write without a limit.
    :param budget_bytes: how many bytes of zeros may be written.
    """

    zeros_are_free: bool
    growth_bytes: int | None
    fits: bool
    budget_bytes: int


def budgets(domains: t.Sequence[DomainAudit], *, min_free_bytes: int) -> dict[str, Budget]:
    """A budget for each domain by its name, as if all of them wrote at once.

    What a file system has free, but for ``min_free_bytes``, is shared by those that can grow there.
    """
    writers: dict[str, int] = {}
    for domain in domains:
        for system in _growth_by_system(domain):
            writers[system] = writers.get(system, 0) + 1
    return {
        domain.name: _budget(domain, writers=writers, min_free_bytes=min_free_bytes)
        for domain in domains
    }


def _budget(domain: DomainAudit, *, writers: dict[str, int], min_free_bytes: int) -> Budget:
    growing = [disk for disk in domain.disks if not zeros_are_free(disk)]
    growths = [disk_growth(disk) for disk in growing]
    known = [growth for growth in growths if growth is not None]
    # More than all its disks hold cannot be written.
    budget = sum(disk.image.promised_bytes or 0 for disk in domain.disks)
    fits = len(known) == len(growths)
    systems = {
        system.device: system for disk in growing if (system := file_system(disk)) is not None
    }
    for device, growth in _growth_by_system(domain).items():
        usable = max(0, systems[device].free_bytes - min_free_bytes)
        share = (usable - usable // _HEADROOM_DIVISOR) // writers[device]
        # It fits whatever is written; or as much as fits may be written, which grows by less.
        if growth is None or growth > share:
            budget = min(budget, share)
            fits = False
    return Budget(
        zeros_are_free=not growing,
        growth_bytes=sum(known) if len(known) == len(growths) else None,
        fits=fits,
        budget_bytes=budget,
    )


def _growth_by_system(domain: DomainAudit) -> dict[str, int | None]:
    """Growth of the domain's images by the device number of their file system; None: unknown."""
    sums: dict[str, int | None] = {}
    for disk in domain.disks:
        system = file_system(disk)
        if system is None or zeros_are_free(disk):
            continue
        growth, before = disk_growth(disk), sums.get(system.device, 0)
        sums[system.device] = None if growth is None or before is None else before + growth
    return sums


def file_system(disk: DiskAudit) -> FileSystem | None:
    """Where new data of the disk goes: that of its data file, if it has one."""
    holder = disk.image.data_file or disk.image
    return holder.file_system


def zeros_are_free(disk: DiskAudit) -> bool:
    """Whether QEMU makes holes of the zeros that the guest writes from now on.

    How discards come from the guest, by its bus and machine, makes no difference to that.
    """
    if disk.live is None or disk.live.detect_zeroes != "unmap":
        return False
    below = [link for link in disk.links if link.name in ("discard", "format", "storage")]
    return all(link.state == "works" for link in below)


def disk_growth(disk: DiskAudit) -> int | None:
    """The most that an image grows, in bytes; None if it can't be told.

    A block device has its space already, or is a thin one that does not tell.
    """
    image = disk.image
    system = file_system(disk)
    if image.promised_bytes is None or image.allocated_bytes is None or system is None:
        return None
    snapshots = image.qcow2 is not None and image.qcow2.snapshot_count > 0
    if snapshots or system.type not in _WRITES_IN_PLACE:
        return image.promised_bytes
    return max(0, image.promised_bytes - image.allocated_bytes)
