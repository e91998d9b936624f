# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Watch what images allocate and what their file systems have left, twice a second."""

from __future__ import annotations

import dataclasses
import os
import time
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._audit import growth
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.model import (
    DiskAudit,
    DomainAudit,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.select import is_glob, select
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import NotFoundError
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.extents import (
    STAT_BLOCK_BYTES,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.filesystem import FileSystem
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown

_INTERVAL_SECONDS = 0.5


def only_disks(domains: t.Sequence[DomainAudit], patterns: t.Sequence[str]) -> list[DomainAudit]:
    """The same domains with only the disks that are meant; with no patterns all.

    :raises NotFoundError: a pattern that is no glob means nothing.
    """
    if not patterns:
        return list(domains)
    chosen = select(patterns, sorted({disk.disk.target for of in domains for disk in of.disks}))
    for pattern, targets in chosen.items():
        if not targets and not is_glob(pattern):
            raise NotFoundError(
                f"None of these domains has a disk {shown(pattern)} that is written."
            )
    wanted = set().union(*chosen.values())
    return [
        dataclasses.replace(of, disks=tuple(d for d in of.disks if d.disk.target in wanted))
        for of in domains
    ]


@dataclasses.dataclass
class _Disk:
    target: str
    path: str
    mount_point: str | None
    before: int = 0
    peak: int = 0
    now: int = 0


@dataclasses.dataclass
class _System:
    of: FileSystem
    free: int
    least: int


class Watch:
    """The files of some domains. Only names that the audit could read are watched.

    :param min_free_bytes: a file system with less than this is near its end.
    """

    def __init__(self, domains: t.Sequence[DomainAudit], *, min_free_bytes: int) -> None:
        self._domains = domains
        self._min_free = min_free_bytes
        self._systems: dict[str, _System] = {}
        self._disks: dict[str, list[_Disk]] = {}
        for domain in domains:
            self._disks[domain.name] = [self._add(disk) for disk in domain.disks]
        self._sample()
        for disk in self._all_disks():
            disk.before = disk.now

    def run(self, seconds: float) -> float:
        """Look until one file system is near its end; returns the seconds that it took."""
        started = time.monotonic()
        while not self.near and time.monotonic() - started < seconds:
            time.sleep(_INTERVAL_SECONDS)
            self._sample()
        return time.monotonic() - started

    @property
    def near(self) -> bool:
        """Whether a file system has, or had for a moment, less left than it should."""
        return any(system.least < self._min_free for system in self._systems.values())

    def domain_results(self) -> list[dict[str, t.Any]]:
        """What became of each domain's disks, and what its guest may write from now on."""
        budgets = growth.budgets(self._domains, min_free_bytes=self._min_free)
        return [
            {
                "name": domain.name,
                "uuid": domain.uuid,
                "active": domain.active,
                **dataclasses.asdict(budgets[domain.name]),
                "near": any(self._is_near(disk) for disk in self._disks[domain.name]),
                "disks": [_disk_result(disk) for disk in self._disks[domain.name]],
            }
            for domain in self._domains
        ]

    def file_system_results(self) -> list[dict[str, t.Any]]:
        return [
            {
                "mount_point": system.of.mount_point,
                "device": system.of.device,
                "free_bytes": system.free,
                "least_free_bytes": system.least,
                "near": system.least < self._min_free,
            }
            for system in sorted(self._systems.values(), key=lambda each: each.of.mount_point)
        ]

    def _add(self, disk: DiskAudit) -> _Disk:
        holder = disk.image.data_file or disk.image
        system = growth.file_system(disk)
        if system is None:
            return _Disk(disk.disk.target, "", None)
        found = _System(system, system.free_bytes, system.free_bytes)
        self._systems.setdefault(system.mount_point, found)
        return _Disk(disk.disk.target, os.path.realpath(holder.path), system.mount_point)

    def _all_disks(self) -> t.Iterator[_Disk]:
        for disks in self._disks.values():
            yield from disks

    def _is_near(self, disk: _Disk) -> bool:
        if disk.mount_point is None:
            return False
        return self._systems[disk.mount_point].least < self._min_free

    def _sample(self) -> None:
        for disk in self._all_disks():
            try:
                disk.now = os.stat(disk.path).st_blocks * STAT_BLOCK_BYTES if disk.path else 0
            except OSError:
                continue  # replaced or removed meanwhile: the last figure stands
            disk.peak = max(disk.peak, disk.now)
        for system in self._systems.values():
            try:
                figures = os.statvfs(system.of.mount_point)
            except OSError:
                continue
            system.free = figures.f_bavail * figures.f_frsize
            system.least = min(system.least, system.free)


def _disk_result(disk: _Disk) -> dict[str, t.Any]:
    known = disk.mount_point is not None
    return {
        "target": disk.target,
        "mount_point": disk.mount_point,
        "allocated_before_bytes": disk.before if known else None,
        "allocated_peak_bytes": disk.peak if known else None,
        "allocated_after_bytes": disk.now if known else None,
    }
