# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report as one document: what report.json holds, and what the page and the CSV files show.

It is made of the answers alone and has no clock: the same answers give the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._findings import SEVERITIES
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report.model import (
    VERDICTS,
    Disk,
    FileSystem,
    Fleet,
    HistoryPoint,
)
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report.work import Work

#: By this, earlier reports are told from other JSON.
KIND = "thinvirt.kvm.thin_report"
#: Raised when a key changes its meaning or goes; new keys leave it alone.
VERSION = 1
SCHEMA_FILE = "report.schema.json"

Document = dict[str, t.Any]


def build(
    fleet: Fleet, *, title: str, history: t.Iterable[HistoryPoint], work: Work | None = None
) -> Document:
    """The document, in the shape that docs/report.schema.json describes."""
    done = work or Work()
    return {
        "$schema": SCHEMA_FILE,
        "kind": KIND,
        "version": VERSION,
        "title": title,
        "taken_at": fleet.taken_at,
        "summary": {**summary(fleet), **work_sums(done)},
        "hosts": [
            {**dataclasses.asdict(host), **host_sums(fleet, host.host)} for host in fleet.hosts
        ],
        "domains": [dataclasses.asdict(domain) for domain in fleet.domains],
        "disks": [dataclasses.asdict(disk) for disk in worth_first(fleet.disks)],
        "file_systems": [dataclasses.asdict(system) for system in fullest_first(fleet)],
        "pools": [dataclasses.asdict(pool) for pool in fleet.pools],
        "findings": [
            dataclasses.asdict(finding)
            for finding in sorted(
                fleet.findings, key=lambda finding: -SEVERITIES.index(finding.severity)
            )
        ],
        "work": [dataclasses.asdict(row) for row in done.rows],
        "history": [dataclasses.asdict(point) for point in history],
    }


def to_json(document: Document) -> str:
    """The text of report.json."""
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def worth_first(disks: t.Iterable[Disk]) -> list[Disk]:
    """Those that would give back most first; those of which nobody knows last."""
    return sorted(
        disks,
        key=lambda disk: -1 if disk.reclaimable_bytes is None else disk.reclaimable_bytes,
        reverse=True,
    )


def fullest_first(fleet: Fleet) -> list[FileSystem]:
    """By the share that is free, the smallest first; unknown ones last."""

    def free_share(system: FileSystem) -> float:
        if system.free_bytes is None or not system.total_bytes:
            return 2.0
        return system.free_bytes / system.total_bytes

    return sorted(fleet.file_systems, key=free_share)


def summary(fleet: Fleet) -> Document:
    """The figures of the whole fleet.

    Storage that two domains share counts once.  A sum leaves out what is not known; how many
    disks it is of stands beside it.
    """
    disks = _distinct(fleet.disks)
    return {
        "hosts": len(fleet.hosts),
        "hosts_unread": sum(host.status in ("unreachable", "failed") for host in fleet.hosts),
        "domains": len(fleet.domains),
        "domains_unread": sum(bool(domain.error) for domain in fleet.domains),
        "disks": len(disks),
        **{f"disks_{verdict}": _count(disks, verdict) for verdict in VERDICTS},
        "promised_bytes": _sum(system.promised_bytes for system in fleet.file_systems),
        "allocated_bytes": _sum(system.allocated_bytes for system in fleet.file_systems),
        "free_bytes": _sum(system.free_bytes for system in fleet.file_systems),
        "guest_used_bytes": _sum(disk.guest_used_bytes for disk in disks),
        "guest_used_disks": sum(disk.guest_used_bytes is not None for disk in disks),
        "reclaimable_bytes": _sum(disk.reclaimable_bytes for disk in disks),
        "reclaimable_disks": sum(disk.reclaimable_bytes is not None for disk in disks),
        **{
            f"findings_{severity}": sum(row.severity == severity for row in fleet.findings)
            for severity in reversed(SEVERITIES)
        },
    }


def work_sums(work: Work) -> Document:
    """What was done before the report, in figures."""
    return {
        "freed_bytes": work.freed_bytes,
        "work_failed": sum(row.status == "failed" for row in work.rows),
    }


def host_sums(fleet: Fleet, host: str) -> Document:
    """A host's disks and file systems; block devices are in no file system, and in no sum of it."""
    disks = _distinct(disk for disk in fleet.disks if disk.host == host)
    systems = [system for system in fleet.file_systems if system.host == host]
    return {
        "domains": sum(domain.host == host for domain in fleet.domains),
        "disks": len(disks),
        "disks_broken": _count(disks, "broken"),
        "file_systems": len(systems),
        "total_bytes": _sum(system.total_bytes for system in systems),
        "free_bytes": _sum(system.free_bytes for system in systems),
        "promised_bytes": _sum(system.promised_bytes for system in systems),
        "allocated_bytes": _sum(system.allocated_bytes for system in systems),
        "reclaimable_bytes": _sum(disk.reclaimable_bytes for disk in disks),
    }


def _distinct(disks: t.Iterable[Disk]) -> list[Disk]:
    return list({disk.storage: disk for disk in disks}.values())


def _count(disks: t.Iterable[Disk], verdict: str) -> int:
    return sum(disk.verdict == verdict for disk in disks)


def _sum(figures: t.Iterable[int | None]) -> int | None:
    known = [figure for figure in figures if figure is not None]
    return sum(known) if known else None
