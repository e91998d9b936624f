# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What earlier reports say of free space, in the shape of ``thin_info``'s ``earlier`` (pure)."""

from __future__ import annotations

import datetime
import typing as t

#: Enough to see where it goes, and few enough to be sent to each host.
MAX_TIMES = 60


def by_host(reports: t.Iterable[t.Any]) -> dict[str, list[dict[str, t.Any]]]:
    """For each host its earlier figures, the oldest first.

    :param reports: documents that ``thin_report`` wrote as JSON.  What is in them that is no such
        figure is passed over: a forecast is no reason for an audit to fail.
    """
    figures: dict[str, dict[str, dict[str, int]]] = {}
    for report in reports:
        for key in ("history", "file_systems"):
            for point in _points(report, key):
                host, taken_at, mount_point, free_bytes = point
                of_time = figures.setdefault(host, {}).setdefault(taken_at, {})
                of_time[mount_point] = free_bytes
    return {
        host: [
            {
                "taken_at": taken_at,
                "file_systems": [
                    {"mount_point": mount_point, "free_bytes": free_bytes}
                    for mount_point, free_bytes in sorted(times[taken_at].items())
                ],
            }
            for taken_at in sorted(times)[-MAX_TIMES:]
        ]
        for host, times in figures.items()
    }


def _points(report: t.Any, key: str) -> t.Iterator[tuple[str, str, str, int]]:
    entries = report.get(key) if isinstance(report, dict) else None
    for entry in entries if isinstance(entries, list) else ():
        fields = entry if isinstance(entry, dict) else {}
        host, mount_point = fields.get("host"), fields.get("mount_point")
        taken_at, free_bytes = fields.get("taken_at"), fields.get("free_bytes")
        if (
            isinstance(host, str)
            and isinstance(mount_point, str)
            and isinstance(taken_at, str)
            and isinstance(free_bytes, int)
            and free_bytes >= 0
            and _is_time(taken_at)
        ):
            yield host, taken_at, mount_point, int(free_bytes)


def _is_time(text: str) -> bool:
    try:
        datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ")  # noqa: DTZ007 - the Z is UTC
    except ValueError:
        return False
    return True
