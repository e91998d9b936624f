# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a report is made of: rows about a fleet, flat, each with the host that it comes from.

Names of fields are those that ``thin_info`` returns, and those of report.json and the CSV files.
None is a figure that nobody knows, never a zero.
"""

from __future__ import annotations

import dataclasses
import typing as t

#: How much of a host is known, the worst first.
STATUSES = ("unreachable", "failed", "partly", "read")
VERDICTS = ("broken", "unknown", "works")


@dataclasses.dataclass(frozen=True)
class Host:
    """A host of the inventory.

    :param status: one of :data:`STATUSES`; ``partly`` if some of its domains could not be read.
    :param msg: why it could not be read, or not all of it; otherwise empty.
    :param taken_at: when it was read, ISO 8601 in UTC.
    """

    host: str
    status: str
    msg: str = ""
    taken_at: str | None = None


@dataclasses.dataclass(frozen=True)
class Domain:
    """A domain; with an error nothing is known of its disks."""

    host: str
    domain: str
    uuid: str
    active: bool | None
    machine: str
    error: str


@dataclasses.dataclass(frozen=True)
class Disk:
    """A disk of a domain.

    :param fragmentation: as ``image_info`` names it; only report.json has it.
    """

    host: str
    domain: str
    target: str
    verdict: str
    broken_link: str
    reason: str
    remedy: str
    promised_bytes: int | None
    allocated_bytes: int | None
    guest_used_bytes: int | None
    reclaimable_bytes: int | None
    reclaimable_estimate: str
    length_bytes: int | None
    bus: str
    format: str
    source_type: str
    path: str
    mount_point: str | None
    fragmentation: t.Any

    @property
    def storage(self) -> tuple[str, ...]:
        """Tells storage that two domains share from two disks."""
        return (self.host, self.path) if self.path else (self.host, self.domain, self.target)


@dataclasses.dataclass(frozen=True)
class FileSystem:
    """A file system that holds images; a file that two domains share counts once."""

    host: str
    mount_point: str
    source: str
    type: str
    total_bytes: int | None
    free_bytes: int | None
    disks: int | None
    promised_bytes: int | None
    allocated_bytes: int | None
    guest_used_bytes: int | None
    reclaimable_bytes: int | None
    overcommit_ratio: float | None
    days_until_full: float | None
    taken_at: str | None


@dataclasses.dataclass(frozen=True)
class Pool:
    """A storage pool of libvirt."""

    host: str
    pool: str
    path: str
    mount_point: str | None
    total_bytes: int | None
    free_bytes: int | None
    promised_bytes: int | None
    allocated_bytes: int | None
    overcommit_ratio: float | None
    days_until_full: float | None


@dataclasses.dataclass(frozen=True)
class FindingRow:
    """A finding of ``thin_info``, with its host."""

    host: str
    domain: str
    disk: str
    severity: str
    id: str
    reason: str
    remedy: str


@dataclasses.dataclass(frozen=True, order=True)
class HistoryPoint:
    """What a file system had free at some time, from an earlier report."""

    taken_at: str
    host: str
    mount_point: str
    free_bytes: int
    total_bytes: int | None = dataclasses.field(compare=False)


@dataclasses.dataclass(frozen=True)
class Fleet:
    """All hosts, and what was read of them."""

    hosts: tuple[Host, ...]
    domains: tuple[Domain, ...]
    disks: tuple[Disk, ...]
    file_systems: tuple[FileSystem, ...]
    pools: tuple[Pool, ...]
    findings: tuple[FindingRow, ...]

    @property
    def taken_at(self) -> str | None:
        """When the last of the hosts was read; ISO 8601 in UTC sorts as text."""
        return max((host.taken_at for host in self.hosts if host.taken_at), default=None)
