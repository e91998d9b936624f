# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""When storage will be full, from what was free in earlier reports (pure)."""

from __future__ import annotations

import dataclasses
import datetime
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError

#: Fewer points, or points of less than a day, say nothing: every night's backup would be a trend.
MIN_POINTS = 3
MIN_SPAN = datetime.timedelta(days=1)
_DAY = datetime.timedelta(days=1)
#: Beyond ten years a straight line says nothing, and its figures are hard to read.
_MAX_DAYS = 3650.0


@dataclasses.dataclass(frozen=True)
class Report:
    """What was free at a time, in bytes: by mount point, and by the name of a storage pool."""

    taken_at: datetime.datetime
    file_systems: t.Mapping[str, int]
    pools: t.Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class History:
    """Earlier reports, and the time of this one."""

    now: datetime.datetime
    earlier: tuple[Report, ...] = ()

    def of_file_system(self, mount_point: str, free_bytes: int) -> float | None:
        """Days until the file system mounted there is full; see :func:`days_until_full`.

        :param free_bytes: now.
        """
        return self._days(free_bytes, lambda report: report.file_systems.get(mount_point))

    def of_pool(self, name: str, free_bytes: int) -> float | None:
        """The same of a storage pool that lies on no file system of this host."""
        return self._days(free_bytes, lambda report: report.pools.get(name))

    def _days(self, free_bytes: int, of: t.Callable[[Report], int | None]) -> float | None:
        points = [(self.now, free_bytes)]
        for report in self.earlier:
            free = of(report)
            if free is not None and report.taken_at < self.now:
                points.append((report.taken_at, free))
        return days_until_full(points)


def parse_reports(given: t.Sequence[t.Any]) -> tuple[Report, ...]:
    """The user's earlier reports; whole results of the module are as good as parts of them.

    :raises RefusedError: one has no time, or its lists are not as they should be.
    """
    return tuple(_report(number, one) for number, one in enumerate(given, 1))


def parse_time(text: t.Any) -> datetime.datetime | None:
    """A time in ISO 8601; without a zone it is UTC.  None if it is no time."""
    if not isinstance(text, str):
        return None
    try:
        # Python before 3.11 does not know the Z
        time = datetime.datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError:
        return None
    return time.replace(tzinfo=time.tzinfo or datetime.timezone.utc)


def written(time: datetime.datetime) -> str:
    """A time as ``taken_at`` has it: UTC, to the second."""
    return time.astimezone(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def days_until_full(points: t.Iterable[tuple[datetime.datetime, int]]) -> float | None:
    """Days from the last point on, if what is free goes on shrinking as it did.

    A straight line by least squares.

    :param points: time and free bytes, in any order.
    :returns: None if nothing shrinks, if that would take more than ten years, or if there are too
        few points, or too close together, to tell.
    """
    known = sorted(dict(points).items())
    if len(known) < MIN_POINTS or known[-1][0] - known[0][0] < MIN_SPAN:
        return None
    days = [(time - known[0][0]) / _DAY for time, _free in known]
    free = [float(bytes_) for _time, bytes_ in known]
    mean_day, mean_free = sum(days) / len(days), sum(free) / len(free)
    spread = sum((day - mean_day) ** 2 for day in days)
    slope = sum((d - mean_day) * (f - mean_free) for d, f in zip(days, free)) / spread
    if slope >= 0:
        return None
    left = free[-1] / -slope
    return round(left, 1) if left <= _MAX_DAYS else None


def _report(number: int, given: t.Any) -> Report:
    what = f"Report {number} in earlier"
    taken_at = parse_time(given.get("taken_at")) if isinstance(given, dict) else None
    if taken_at is None:
        raise RefusedError(
            f"{what} has no taken_at such as 2026-11-25T04:00:00Z; nothing was looked at.",
            remedy="Give results of this module, or their taken_at and file_systems.",
        )
    return Report(
        taken_at,
        file_systems=_free(what, given.get("file_systems"), "file_systems", "mount_point"),
        pools=_free(what, given.get("pools"), "pools", "name"),
    )


def _free(what: str, given: t.Any, of: str, key: str) -> dict[str, int]:
    found = {}
    for entry in [] if given is None else given if isinstance(given, list) else [None]:
        fields = entry if isinstance(entry, dict) else {}
        name = fields.get(key)
        try:
            free = int(fields["free_bytes"])
        except (KeyError, TypeError, ValueError, OverflowError):
            free = -1
        if free < 0 or not isinstance(name, str):
            raise RefusedError(
                f"{what} has an entry in {of} without {key} and free_bytes; nothing was looked at.",
                remedy="Give results of this module, or their taken_at and file_systems.",
            )
        found[name] = free
    return found
