# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an audit returns: an entry for each domain, sums for each file system, and lines to read."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.model import (
    BackingFile,
    DiskAudit,
    DomainAudit,
    FileKey,
    Image,
    Link,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._findings import Finding
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.filesystem import FileSystem
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import (
    encodable,
    shown,
)

Result = dict[str, t.Any]
_GIB = 1 << 30


@dataclasses.dataclass
class Sums:
    """What the images on one file system promise and take, each file counted once, in bytes.

    :param allocated_bytes: backing and data files included, which promise nothing themselves.
    """

    file_system: FileSystem
    promised_bytes: int = 0
    allocated_bytes: int = 0
    _promised: set[FileKey] = dataclasses.field(default_factory=set)
    _allocated: set[FileKey] = dataclasses.field(default_factory=set)

    def promise(self, image: Image) -> None:
        if image.key is not None and image.key not in self._promised:
            self._promised.add(image.key)
            self.promised_bytes += image.promised_bytes or 0

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

    for image in (disk.image for domain in domains for disk in domain.disks):
        if image.file_system is not None:
            sums_of(image.file_system).promise(image)
            sums_of(image.file_system).allocate(image.key, image.allocated_bytes)
        for below in _files_below(image):
            if below.file_system is not None:
                sums_of(below.file_system).allocate(below.key, below.allocated_bytes)
    return sorted(by_device.values(), key=lambda sums: sums.file_system.mount_point)


def _files_below(image: Image) -> tuple[BackingFile, ...]:
    return image.backing if image.data_file is None else (*image.backing, image.data_file)


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
        "findings": [finding.result() for finding in findings_of(domain)],
    }


def findings_of(domain: DomainAudit) -> list[Finding]:
    """All findings of a domain, those of its disks included."""
    return [*domain.findings, *(f for disk in domain.disks for f in disk.findings)]


def file_system_result(sums: Sums) -> Result:
    """The entry of a file system in the module's ``file_systems``."""
    system = dataclasses.asdict(sums.file_system)
    return {
        **{name: encodable(v) if isinstance(v, str) else v for name, v in system.items()},
        "disks": sums.disks,
        "promised_bytes": sums.promised_bytes,
        "allocated_bytes": sums.allocated_bytes,
        "overcommit_ratio": sums.overcommit_ratio,
    }


def summary(domains: t.Sequence[DomainAudit], systems: t.Iterable[Sums]) -> list[str]:
    """For people: what is broken or unknown, then what works, then the file systems."""
    lines = [
        f"{shown(domain.name)}: {domain.error}" for domain in domains if domain.error is not None
    ]
    lines += [
        f"{_where(finding)}: {finding.severity} {finding.id}. {finding.reason} {finding.remedy}"
        for severity in ("error", "warning")
        for domain in domains
        for finding in findings_of(domain)
        if finding.severity == severity
    ]
    verdicts = [disk.verdict for domain in domains for disk in domain.disks]
    lines.append(
        f"{len(verdicts)} disks: {verdicts.count('works')} give space back, "
        f"{verdicts.count('broken')} do not, {verdicts.count('unknown')} unknown."
    )
    return [*lines, *map(_file_system_line, systems)]


def _where(finding: Finding) -> str:
    domain = shown(finding.domain)
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
    return {
        "target": disk.disk.target,
        "bus": disk.disk.bus,
        "source_type": disk.disk.source_type,
        "path": encodable(image.path),
        "format": image.format,
        "promised_bytes": image.promised_bytes,
        "allocated_bytes": _occupied_bytes(image),
        "length_bytes": image.length_bytes,
        "mount_point": encodable(image.file_system.mount_point) if image.file_system else None,
        "backing_chain": [encodable(backing.path) for backing in image.backing],
        "verdict": disk.verdict,
        "broken_link": culprit.name if culprit else "",
        "reason": culprit.reason if culprit else "",
        "remedy": culprit.remedy if culprit else "",
        "chain": [_link_result(link) for link in disk.links],
        "live": dataclasses.asdict(disk.live) if disk.live else None,
        "configured": dataclasses.asdict(disk.configured) if disk.configured else None,
        "findings": [finding.result() for finding in disk.findings],
    }


def _occupied_bytes(image: Image) -> int | None:
    if image.data_file is None or image.allocated_bytes is None:
        return image.allocated_bytes
    return image.allocated_bytes + image.data_file.allocated_bytes


def _link_result(link: Link) -> Result:
    return {
        "link": link.name,
        "value": link.value,
        "state": link.state,
        "reason": link.reason,
        "remedy": link.remedy,
    }
