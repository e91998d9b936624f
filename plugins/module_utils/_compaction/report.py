# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``domain_compact`` returns."""

from __future__ import annotations

import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._compaction.outcome import (
    DiskOutcome,
    Outcome,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import restart
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import compact_report
from ansible_collections.thinvirt.kvm.plugins.module_utils._plan import Change, diff

Result = dict[str, t.Any]


def result(outcomes: t.Sequence[Outcome], *, check_mode: bool) -> Result:
    """The module's answer: ``changed``, ``diff``, ``freed_bytes``, ``summary`` and ``domains``."""
    return {
        "changed": any(outcome.changed for outcome in outcomes),
        "freed_bytes": sum(map(_freed_bytes, outcomes)),
        "summary": [line for o in outcomes for line in _lines(o, check_mode=check_mode)],
        "domains": [_entry(outcome) for outcome in outcomes],
        "diff": diff(change for outcome in outcomes for change in _changes(outcome)),
    }


def _freed_bytes(outcome: Outcome) -> int:
    done = (disk.outcome for disk in outcome.disks)
    freed = sum(image.freed_bytes for image in done if image is not None and image.changed)
    return freed + (outcome.trimmed_bytes or 0)


def _entry(outcome: Outcome) -> Result:
    entry: Result = {
        "name": outcome.guest.name,
        "uuid": outcome.guest.uuid,
        "status": outcome.status,
        "reason": outcome.reason,
        "changed": outcome.changed,
        "freed_bytes": _freed_bytes(outcome),
        "recovered": " ".join(_recovered(outcome)),
        "disks": [
            {"target": disk.target, **compact_report.entry(disk.path, _image(disk)), **_live(disk)}
            for disk in outcome.disks
        ],
    }
    if outcome.trimmed_bytes is not None:
        entry["trimmed_bytes"] = outcome.trimmed_bytes
    if outcome.downtime_seconds is not None:
        entry["downtime_seconds"] = round(outcome.downtime_seconds, 1)
    if outcome.error is not None:
        entry["error"] = outcome.error.result()
    return entry


def _recovered(outcome: Outcome) -> list[str]:
    return [
        *outcome.recovered,
        *([outcome.restarted or restart.STARTED] if outcome.forgotten else []),
    ]


def _live(disk: DiskOutcome) -> Result:
    if disk.live is None:
        return {}
    return {
        "stall_seconds": round(disk.live.stall_seconds, 3),
        "overlay_bytes": disk.live.overlay_bytes,
    }


def _image(disk: DiskOutcome) -> t.Any:
    return disk.outcome if disk.error is None else disk.error


def _lines(outcome: Outcome, *, check_mode: bool) -> list[str]:
    name = outcome.guest.name
    lines = [f"{name}: failed. {outcome.error}"] if outcome.error else []
    if not check_mode:
        lines += [f"{name}: {sentence}" for sentence in _recovered(outcome)]
    if outcome.trimmed_bytes:
        lines.append(f"{name}: the guest's trim freed {outcome.trimmed_bytes / 2**20:.1f} MiB")
    if outcome.reason:
        lines.append(f"{name}: {outcome.status}. {outcome.reason}")
    return lines + [
        f"{name}/{disk.target}: {compact_report.line(_image(disk), check_mode=check_mode)}"
        for disk in outcome.disks
    ]


def _changes(outcome: Outcome) -> t.Iterator[Change]:
    for disk in outcome.disks:
        if disk.outcome is not None and not isinstance(disk.outcome, ThinvirtError):
            yield from compact_report.changes(f"{outcome.guest.name}/{disk.target}", disk.outcome)
