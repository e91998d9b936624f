# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of the page: which columns, and how a value is shown and sorted."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._findings import SEVERITIES
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report import units
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report.document import Document
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report.model import STATUSES, VERDICTS
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report.work import (
    STATUSES as WORK_STATUSES,
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell.

    :param text: shown as it is, and searched.
    :param order: what it is sorted by, if not by its text; None sorts last in both directions.
    :param badge: the class that colours it, or empty.
    """

    text: str
    order: float | None = None
    badge: str = ""


@dataclasses.dataclass(frozen=True)
class Kind:
    """How values of a column are shown.

    :param look: the class of its cells. ``number`` is sorted by number, the largest first.
    """

    cell: t.Callable[[t.Any], Cell]
    look: str


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    :param key: the key of the row.
    :param minor: left out on a phone.
    """

    key: str
    title: str
    kind: Kind
    minor: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the page.

    :param id: its name in the page.
    :param caption: what it holds, for those who do not see it.
    :param choices: a column's key and its values, for a filter; the key is empty without one.
    """

    id: str
    caption: str
    columns: tuple[Column, ...]
    rows: list[list[Cell]]
    choices: tuple[str, tuple[str, ...]] = ("", ())


def _numeric(write: t.Callable[[t.Any], str]) -> Kind:
    return Kind(lambda value: Cell(write(value), order=value), "number")


def _ranked(words: t.Sequence[str]) -> Kind:
    """Words that have an order of their own, such as severities."""
    return Kind(lambda word: Cell(word, order=words.index(word), badge=word), "short")


NAME = Kind(lambda value: Cell(shown(value or "")), "name")
TAG = Kind(lambda value: Cell(shown(value or "")), "tag")
WORDS = Kind(lambda value: Cell(shown(value or "")), "words")
SHORT = Kind(lambda value: Cell(shown(value or "")), "short")
SIZE = _numeric(units.size)
COUNT = _numeric(lambda value: units.UNKNOWN if value is None else f"{value:,}")
RATIO = _numeric(units.ratio)
DAYS = _numeric(units.days)
TIME = Kind(lambda value: Cell(units.moment(value)), "short")
VERDICT = _ranked(VERDICTS)
STATUS = _ranked(STATUSES)
WORK_STATUS = _ranked(WORK_STATUSES)
SEVERITY = _ranked(tuple(reversed(SEVERITIES)))


def make(
    name: str,
    caption: str,
    columns: tuple[Column, ...],
    rows: t.Iterable[Document],
    choices: tuple[str, tuple[str, ...]] = ("", ()),
) -> Table:
    """A table of these rows of the document."""
    cells = [[column.kind.cell(row[column.key]) for column in columns] for row in rows]
    return Table(id=name, caption=caption, columns=columns, rows=cells, choices=choices)


DISKS = (
    Column("host", "Host", NAME),
    Column("domain", "Domain", NAME),
    Column("target", "Disk", TAG),
    Column("verdict", "Gives space back", VERDICT),
    Column("reclaimable_bytes", "Could come back", SIZE),
    Column("promised_bytes", "Promised", SIZE),
    Column("allocated_bytes", "Allocated", SIZE),
    Column("guest_used_bytes", "Used by guest", SIZE),
    Column("bus", "Bus", SHORT, minor=True),
    Column("format", "Format", SHORT, minor=True),
    Column("path", "Path", NAME, minor=True),
)
FILE_SYSTEMS = (
    Column("host", "Host", NAME),
    Column("mount_point", "Mount point", NAME),
    Column("type", "Type", SHORT, minor=True),
    Column("total_bytes", "Size", SIZE),
    Column("free_bytes", "Free", SIZE),
    Column("days_until_full", "Full in", DAYS),
    Column("promised_bytes", "Promised", SIZE),
    Column("allocated_bytes", "Allocated", SIZE),
    Column("guest_used_bytes", "Used by guests", SIZE),
    Column("reclaimable_bytes", "Could come back", SIZE),
    Column("overcommit_ratio", "Overcommit", RATIO),
    Column("disks", "Disks", COUNT, minor=True),
)
FINDINGS = (
    Column("severity", "Severity", SEVERITY),
    Column("host", "Host", NAME),
    Column("domain", "Domain", NAME),
    Column("disk", "Disk", TAG),
    Column("reason", "What is the case", WORDS),
    Column("remedy", "What to do", WORDS),
    Column("id", "Name", NAME, minor=True),
)
HOSTS = (
    Column("host", "Host", NAME),
    Column("status", "Read", STATUS),
    Column("taken_at", "At", TIME),
    Column("domains", "Domains", COUNT),
    Column("disks", "Disks", COUNT),
    Column("disks_broken", "Broken disks", COUNT),
    Column("promised_bytes", "Promised", SIZE),
    Column("allocated_bytes", "Allocated", SIZE),
    Column("free_bytes", "Free", SIZE),
    Column("reclaimable_bytes", "Could come back", SIZE),
)
POOLS = (
    Column("host", "Host", NAME),
    Column("pool", "Pool", NAME),
    Column("path", "Path", NAME, minor=True),
    Column("total_bytes", "Size", SIZE),
    Column("free_bytes", "Free", SIZE),
    Column("days_until_full", "Full in", DAYS),
    Column("promised_bytes", "Promised", SIZE),
    Column("allocated_bytes", "Allocated", SIZE),
    Column("overcommit_ratio", "Overcommit", RATIO),
)
WORTH = (
    Column("reclaimable_bytes", "Could come back", SIZE),
    Column("host", "Host", NAME),
    Column("domain", "Domain", NAME),
    Column("target", "Disk", TAG),
    Column("allocated_bytes", "Of allocated", SIZE),
    Column("estimate", "Known from", SHORT, minor=True),
    Column("action", "What to do", WORDS),
)
WORK = (
    Column("status", "Outcome", WORK_STATUS),
    Column("host", "Host", NAME),
    Column("domain", "Domain", NAME),
    Column("disk", "Disk", TAG),
    Column("action", "Action", SHORT),
    Column("freed_bytes", "Came back", SIZE),
    Column("reason", "Why", WORDS),
)
