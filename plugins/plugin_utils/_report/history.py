# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Earlier reports: how much each file system had free, and when."""

from __future__ import annotations

import json
import os
import stat
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report.document import KIND
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report.model import (
    FileSystem,
    HistoryPoint,
)
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report.reading import (
    Entry,
    ShapeError,
)

#: A report of 1,000 disks has 1 MB.
MAX_FILE_BYTES = 64 << 20
MAX_FILES = 1000
#: For each file system; a year of days. Reports hand their history on, and must not grow for ever.
MAX_POINTS = 366


def merge(points: t.Iterable[HistoryPoint], systems: t.Iterable[FileSystem]) -> list[HistoryPoint]:
    """The newest :data:`MAX_POINTS` of each file system before this report, the oldest first.

    Points of the time of this report or later are left out: they are this report itself, read
    again, or come from a clock that is wrong.
    """
    now = {(system.host, system.mount_point): system.taken_at for system in systems}
    of_system: dict[tuple[str, str], dict[str, HistoryPoint]] = {}
    for point in sorted(points):
        key = (point.host, point.mount_point)
        taken_at = now.get(key)
        if taken_at is None or point.taken_at < taken_at:
            of_system.setdefault(key, {})[point.taken_at] = point
    return sorted(
        point for series in of_system.values() for point in list(series.values())[-MAX_POINTS:]
    )


def read(paths: t.Iterable[str]) -> tuple[list[HistoryPoint], list[str]]:
    """The points of these reports, and a warning for each file that is none.

    :param paths: reports, or folders with reports in them. What does not exist is passed over:
        before the first report there is no earlier one.
    """
    points: list[HistoryPoint] = []
    warnings: list[str] = []

    def warn(error: ThinvirtError) -> None:
        warnings.append(f"{error} The report has no history of it.")

    for path in paths:
        try:
            files = _files(path)
        except ThinvirtError as error:
            warn(error)
            continue
        for name, asked_for in files:
            try:
                points += _points(name, asked_for=asked_for)
            except ThinvirtError as error:
                warn(error)
    return points, warnings


def _files(path: str) -> list[tuple[str, bool]]:
    """The files, each with whether it was named itself."""
    if not os.path.isdir(path):
        return [(path, True)] if os.path.lexists(path) else []
    try:
        names = sorted(name for name in os.listdir(path) if name.endswith(".json"))
    except OSError as error:
        raise failure(path, "read", error) from error
    # Names of reports that are kept hold their time, so that the last are the newest.
    return [(os.path.join(path, name), False) for name in names[-MAX_FILES:]]


def _points(path: str, *, asked_for: bool) -> list[HistoryPoint]:
    try:
        document = json.loads(_text(path))
        entry = Entry(document, "")
        if entry.plain_scalar("kind") != KIND:
            if asked_for:
                raise ShapeError("It has another kind of content.")
            return []
        return _systems(entry) + [_point(point) for point in entry.entries("history")]
    except (ShapeError, ValueError, RecursionError) as error:
        raise ThinvirtError(f"{shown(path)} is not a report of this collection. {error}") from error


def _text(path: str) -> str:
    try:
        # A FIFO must not hold the run up.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
                raise ShapeError(f"It is no plain file of at most {MAX_FILE_BYTES} bytes.")
            with open(fd, encoding="utf-8", closefd=False) as file:
                return file.read(MAX_FILE_BYTES)
        finally:
            os.close(fd)
    except OSError as error:
        raise failure(path, "read", error) from error


def _systems(report: Entry) -> list[HistoryPoint]:
    return [
        _point(system)
        for system in report.entries("file_systems")
        if "taken_at" in system and "free_bytes" in system
    ]


def _point(entry: Entry) -> HistoryPoint:
    taken_at, free_bytes = entry.time("taken_at"), entry.integer("free_bytes")
    if taken_at is None or free_bytes is None:
        raise ShapeError("A point of its history has no time or no free bytes.")
    return HistoryPoint(
        taken_at=taken_at,
        host=entry.text("host"),
        mount_point=entry.text("mount_point"),
        free_bytes=free_bytes,
        total_bytes=entry.integer("total_bytes"),
    )
