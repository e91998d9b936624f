# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the disks of an audit promise and take in each storage pool (pure)."""

from __future__ import annotations

import dataclasses
import os
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.model import (
    DiskAudit,
    DomainAudit,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.storage_pool import StoragePool
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.filesystem import FileSystem


@dataclasses.dataclass
class PoolSums:
    """What disks promise and take in a pool, each file counted once, in bytes.

    :param folders: the pool's folder as it is spelled, and without symlinks.
    :param file_system: what the folder lies on; None for a pool of no folder.
    """

    pool: StoragePool
    folders: frozenset[str]
    file_system: FileSystem | None
    promised_bytes: int = 0
    _counted: dict[t.Any, int] = dataclasses.field(default_factory=dict)
    _promised: set[t.Any] = dataclasses.field(default_factory=set)

    def add(self, disk: DiskAudit) -> None:
        """A disk that lies in this pool."""
        image = disk.image
        # A disk elsewhere, or one that could not be read, has nothing but its name.
        key = image.key or (disk.disk.pool, disk.disk.volume, image.path)
        if key not in self._promised:
            self._promised.add(key)
            self.promised_bytes += image.promised_bytes or 0

    def take(self, key: t.Any, allocated_bytes: int | None) -> None:
        if key is not None:
            self._counted.setdefault(key, allocated_bytes or 0)

    @property
    def allocated_bytes(self) -> int:
        """What the disks take; in a pool without files what libvirt counts, whoever takes it."""
        if self.file_system is None:
            return self.pool.allocated_bytes
        return sum(self._counted.values())

    @property
    def total_bytes(self) -> int:
        return self.file_system.total_bytes if self.file_system else self.pool.total_bytes

    @property
    def free_bytes(self) -> int:
        return self.file_system.free_bytes if self.file_system else self.pool.free_bytes

    @property
    def mount_point(self) -> str | None:
        return self.file_system.mount_point if self.file_system else None

    @property
    def overcommit_ratio(self) -> float | None:
        """Promises over the room for them, taken or free; above 1 the guests can fill it."""
        room = self.allocated_bytes + self.free_bytes
        return round(self.promised_bytes / room, 3) if room > 0 else None


def sum_up(pools: t.Sequence[PoolSums], domains: t.Iterable[DomainAudit]) -> None:
    """Add each disk to the pool that it lies in, by the pool's name or by its folder."""
    by_name = {sums.pool.name: sums for sums in pools}
    by_folder = {folder: sums for sums in pools for folder in sums.folders}

    def of(path: str) -> PoolSums | None:
        return by_folder.get(os.path.dirname(path)) if path else None

    for disk in (disk for domain in domains for disk in domain.disks):
        image = disk.image
        sums = by_name.get(disk.disk.pool) or of(image.path) or of(image.real_path)
        if sums is not None:
            sums.add(disk)
            sums.take(image.key, image.allocated_bytes)
        below = image.backing if image.data_file is None else (*image.backing, image.data_file)
        for file in below:
            its_sums = of(file.path)
            if its_sums is not None:
                its_sums.take(file.key, file.allocated_bytes)
