# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``domain_backup`` returns."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._backup.work import (
    DiskOutcome,
    Outcome,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import encodable, shown

Result = dict[str, t.Any]
_MIB = 1 << 20


def result(outcomes: t.Sequence[Outcome], *, check_mode: bool) -> Result:
    """The module's answer: ``changed``, ``diff``, ``summary`` and ``domains``."""
    removed = [path for outcome in outcomes for path in outcome.removed]
    return {
        "changed": any(outcome.changed for outcome in outcomes),
        "summary": [_line(outcome, check_mode=check_mode) for outcome in outcomes],
        "domains": [_entry(outcome) for outcome in outcomes],
        "diff": {
            "before": {"versions": sorted(map(encodable, removed))},
            "after": {
                "versions": sorted(
                    _new_version(outcome, check_mode=check_mode)
                    for outcome in outcomes
                    if _is_new(outcome, check_mode=check_mode)
                )
            },
        },
    }


def _is_new(outcome: Outcome, *, check_mode: bool) -> bool:
    made = check_mode or bool(outcome.version)
    return outcome.changed and outcome.status != "unchanged" and made


def _new_version(outcome: Outcome, *, check_mode: bool) -> str:
    if check_mode:
        return f"a new one of {outcome.guest.name}"
    return encodable(outcome.version)


def _entry(outcome: Outcome) -> Result:
    entry: Result = {
        "name": outcome.guest.name,
        "uuid": outcome.guest.uuid,
        "status": outcome.status,
        "reason": outcome.reason,
        "running": outcome.running,
        "changed": outcome.changed,
        "version": encodable(outcome.version),
        "consistency": outcome.consistency,
        "freeze": {**dataclasses.asdict(outcome.freeze), "seconds": _rounded(outcome.freeze)},
        "disks": [_disk(disk) for disk in outcome.disks],
        "left_out": outcome.left_out,
        "removed": [encodable(path) for path in outcome.removed],
        "recovered": outcome.recovered,
        "seconds": {stage: round(took, 2) for stage, took in outcome.seconds.items()},
        "moved_bytes": dict(outcome.moved_bytes),
    }
    if outcome.error is not None:
        entry["error"] = outcome.error.result()
    return entry


def _rounded(freeze: t.Any) -> float:
    return round(float(freeze.seconds), 3)


def _disk(disk: DiskOutcome) -> Result:
    return {**dataclasses.asdict(disk), "path": encodable(disk.path)}


def _line(outcome: Outcome, *, check_mode: bool) -> str:
    name = shown(outcome.guest.name)
    if outcome.error is not None:
        return f"{name}: failed. {outcome.error}"
    more = f" {len(outcome.removed)} old versions removed." if outcome.removed else ""
    plain = ", ".join(disk.target for disk in outcome.disks if disk.plain_text)
    if plain:
        more = f" Encrypted, and copied as plain text: {plain}.{more}"
    if outcome.left_out:
        left = ", ".join(disk["target"] for disk in outcome.left_out)
        more = f" Not copied, as a device of the host: {left}.{more}"
    if outcome.status in ("skipped", "unchanged"):
        return f"{name}: {outcome.status}. {outcome.reason}{more}"
    disks = ", ".join(disk.target for disk in outcome.disks)
    if check_mode:
        size = sum(disk.allocated_bytes for disk in outcome.disks) / _MIB
        return f"{name}: {disks} to be copied, {size:.1f} MiB before compression.{more}"
    size = sum(disk.copy_bytes for disk in outcome.disks) / _MIB
    how = {
        "off": "shut off",
        "frozen": "running, its file systems at rest",
        "crash": "as after a power failure",
    }[outcome.consistency]
    return f"{name}: {disks} ({how}) copied to {shown(outcome.version)}, {size:.1f} MiB.{more}"
