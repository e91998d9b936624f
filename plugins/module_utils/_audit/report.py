# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an audit returns: an entry for each domain, sums for each file system, and lines to read."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._audit import storage_checks
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.forecast import History, written
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.image_checks import reclaimable
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.model import (
    BackingFile,
    DiskAudit,
    DomainAudit,
    FileKey,
    Image,
    Link,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.pools import PoolSums
from ansible_collections.thinvirt.kvm.plugins.module_utils._findings import Finding
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.filesystem import FileSystem
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import (
    encodable,
    shown,
)

Result = dict[str, t.Any]
_GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Survey:
    """A host's whole audit.

    :param systems: file systems, by mount point.
    :param pools: storage pools, by name.
    """

    domains: t.Sequence[DomainAudit]
    systems: t.Sequence[Sums]
    pools: t.Sequence[PoolSums]
    history: History


@dataclasses.dataclass
class Sums:
    """What the images on one file system promise and take, each file counted once, in bytes.

    :param allocated_bytes: backing and data files included, which promise nothing themselves.
    :param reclaimable_bytes: of the disks of which that is known; None if there is none.
    :param guest_used_bytes: likewise.
    """

    file_system: FileSystem
    promised_bytes: int = 0
    allocated_bytes: int = 0
    reclaimable_bytes: int | None = None
    guest_used_bytes: int | None = None
    _promised: set[FileKey] = dataclasses.field(default_factory=set)
    _allocated: set[FileKey] = dataclasses.field(default_factory=set)

    def promise(self, disk: DiskAudit) -> None:
        image = disk.image
        if image.key is None or image.key in self._promised:
            return
        self._promised.add(image.key)
        self.promised_bytes += image.promised_bytes or 0
        self.reclaimable_bytes = _plus(self.reclaimable_bytes, reclaimable(disk)[0])
        self.guest_used_bytes = _plus(self.guest_used_bytes, disk.guest_used_bytes)

    def allocate(self, key: FileKey | None, allocated_bytes: int | None) -> None:
        if key is not None and key not in self._allocated:
            self._allocated.add(key)
            self.allocated_bytes += allocated_bytes or 0

    @property
    def disks(self) -> int:
        return len(self._promised)

    @property
    def overcommit_ratio(self) -> float | None:
        """Promises over the room for them, taken or free; above 1 the guests can fill it."""
        room = self.allocated_bytes + self.file_system.free_bytes
        return round(self.promised_bytes / room, 3) if room else None


def sum_up(domains: t.Iterable[DomainAudit]) -> list[Sums]:
    """The sums of each file system, sorted by mount point."""
    by_device: dict[str, Sums] = {}

    def sums_of(system: FileSystem) -> Sums:
        return by_device.setdefault(system.device, Sums(system))

    for disk in (disk for domain in domains for disk in domain.disks):
        image = disk.image
        if image.file_system is not None:
            sums_of(image.file_system).promise(disk)
            sums_of(image.file_system).allocate(image.key, image.allocated_bytes)
        for below in _files_below(image):
            if below.file_system is not None:
                sums_of(below.file_system).allocate(below.key, below.allocated_bytes)
    return sorted(by_device.values(), key=lambda sums: sums.file_system.mount_point)


def _plus(one: int | None, other: int | None) -> int | None:
    return other if one is None else one + (other or 0)


def _files_below(image: Image) -> tuple[BackingFile, ...]:
    return image.backing if image.data_file is None else (*image.backing, image.data_file)


def result(survey: Survey) -> Result:
    """What the module returns, as its documentation describes it."""
    of_domains = [finding for domain in survey.domains for finding in findings_of(domain)]
    of_storage = storage_findings(survey)
    return {
        "taken_at": written(survey.history.now),
        "summary": summary(survey.domains, survey.systems, of_storage),
        "domains": [domain_result(domain) for domain in survey.domains],
        "file_systems": [file_system_result(sums, survey.history) for sums in survey.systems],
        "pools": [_pool_result(sums, survey.history) for sums in survey.pools],
        "findings": [vars(finding).copy() for finding in (*of_storage, *of_domains)],
    }


def storage_findings(survey: Survey) -> list[Finding]:
    """What is to be said of file systems, and of pools that lie on none of them."""
    found: list[Finding] = []
    for sums in survey.systems:
        system = sums.file_system
        found += storage_checks.findings(
            system.mount_point,
            total_bytes=system.total_bytes,
            free_bytes=system.free_bytes,
            overcommit_ratio=sums.overcommit_ratio,
            days_until_full=survey.history.of_file_system(system.mount_point, system.free_bytes),
        )
    for pool in survey.pools:
        if pool.file_system is None:
            found += storage_checks.findings(
                f"storage pool {pool.pool.name}",
                total_bytes=pool.total_bytes,
                free_bytes=pool.free_bytes,
                overcommit_ratio=pool.overcommit_ratio,
                days_until_full=survey.history.of_pool(pool.pool.name, pool.free_bytes),
            )
    return found


def domain_result(domain: DomainAudit) -> Result:
    """The domain's entry in the module's ``domains``."""
    entry: Result = {"name": domain.name, "uuid": domain.uuid, "active": domain.active}
    if domain.error is not None:
        return {**entry, "error": domain.error.result()}
    return {
        **entry,
        "machine": domain.machine,
        "agent_channel": domain.agent_channel,
        "agent_connected": domain.agent_connected,
        "disks": [_disk_result(disk) for disk in domain.disks],
        "guest_file_systems": None
        if domain.guest_file_systems is None
        else [
            {**vars(system), "targets": list(system.targets)}
            for system in domain.guest_file_systems
        ],
        "findings": [vars(finding).copy() for finding in findings_of(domain)],
    }


def findings_of(domain: DomainAudit) -> list[Finding]:
    """All findings of a domain, those of its disks included."""
    return [*domain.findings, *(f for disk in domain.disks for f in disk.findings)]


def file_system_result(sums: Sums, history: History) -> Result:
    """The entry of a file system in the module's ``file_systems``."""
    system = sums.file_system
    figures = dataclasses.asdict(system)
    return {
        **{name: encodable(v) if isinstance(v, str) else v for name, v in figures.items()},
        "disks": sums.disks,
        "promised_bytes": sums.promised_bytes,
        "allocated_bytes": sums.allocated_bytes,
        "overcommit_ratio": sums.overcommit_ratio,
        "reclaimable_bytes": sums.reclaimable_bytes,
        "guest_used_bytes": sums.guest_used_bytes,
        "days_until_full": history.of_file_system(system.mount_point, system.free_bytes),
    }


def _pool_result(sums: PoolSums, history: History) -> Result:
    """The entry of a storage pool in the module's ``pools``."""
    name, place = sums.pool.name, sums.mount_point
    return {
        "name": name,
        "type": sums.pool.kind,
        "path": encodable(sums.pool.path),
        "mount_point": None if place is None else encodable(place),
        "promised_bytes": sums.promised_bytes,
        "allocated_bytes": sums.allocated_bytes,
        "total_bytes": sums.total_bytes,
        "free_bytes": sums.free_bytes,
        "overcommit_ratio": sums.overcommit_ratio,
        "days_until_full": history.of_pool(name, sums.free_bytes)
        if place is None
        else history.of_file_system(place, sums.free_bytes),
    }


def summary(
    domains: t.Sequence[DomainAudit],
    systems: t.Iterable[Sums],
    of_storage: t.Iterable[Finding] = (),
) -> list[str]:
    """For people: what is broken or unknown, then what works, then the file systems."""
    lines = [
        f"{shown(domain.name)}: {domain.error}" for domain in domains if domain.error is not None
    ]
    all_findings = [*of_storage, *(f for domain in domains for f in findings_of(domain))]
    lines += [
        f"{_where(finding)}: {finding.severity} {finding.id}. {finding.reason} {finding.remedy}"
        for severity in ("error", "warning")
        for finding in all_findings
        if finding.severity == severity
    ]
    verdicts = [disk.verdict for domain in domains for disk in domain.disks]
    lines.append(
        f"{len(verdicts)} disks: {verdicts.count('works')} give space back, "
        f"{verdicts.count('broken')} do not, {verdicts.count('unknown')} unknown."
    )
    return [*lines, *map(_file_system_line, systems)]


def _where(finding: Finding) -> str:
    domain = shown(finding.domain) or "storage"
    return f"{domain}/{shown(finding.disk)}" if finding.disk else domain


def _file_system_line(sums: Sums) -> str:
    system = sums.file_system
    return (
        f"{shown(system.mount_point)} ({system.type}): {sums.promised_bytes / _GIB:.1f} GiB "
        f"promised, {sums.allocated_bytes / _GIB:.1f} GiB allocated, "
        f"{system.free_bytes / _GIB:.1f} GiB free."
    )


def _disk_result(disk: DiskAudit) -> Result:
    image, culprit = disk.image, disk.culprit
    could_return, estimate = reclaimable(disk)
    return {
        "target": disk.disk.target,
        "bus": disk.disk.bus,
        "source_type": disk.disk.source_type,
        "path": encodable(image.path),
        "format": image.format,
        "promised_bytes": image.promised_bytes,
        "allocated_bytes": image.occupied_bytes,
        "length_bytes": image.length_bytes,
        "reclaimable_bytes": could_return,
        "reclaimable_estimate": estimate,
        "guest_used_bytes": disk.guest_used_bytes,
        "fragmentation": {
            "file_extents": image.file_extents,
            "fragmented_clusters": image.measured.fragmented_clusters if image.measured else None,
        },
        "mount_point": encodable(image.file_system.mount_point) if image.file_system else None,
        "backing_chain": [encodable(backing.path) for backing in image.backing],
        "verdict": disk.verdict,
        "broken_link": culprit.name if culprit else "",
        "reason": culprit.reason if culprit else "",
        "remedy": culprit.remedy if culprit else "",
        "chain": [_link_result(link) for link in disk.links],
        "live": vars(disk.live).copy() if disk.live else None,
        "configured": vars(disk.configured).copy() if disk.configured else None,
        "findings": [vars(finding).copy() for finding in disk.findings],
    }


def _link_result(link: Link) -> Result:
    return {
        "link": link.name,
        "value": link.value,
        "state": link.state,
        "reason": link.reason,
        "remedy": link.remedy,
    }
