# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The CSV files: a table of the document each, for spreadsheets.

A spreadsheet takes a cell that begins with ``=`` for a formula, and a name of a domain may begin
with anything.  Such a cell gets an apostrophe in front, as OWASP recommends against CSV injection.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import typing as t

from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report import model
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report.document import (
    Document,
    host_sums,
)
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report.work import WorkRow

#: Spreadsheets take the wide forms, which Japanese keyboards type, for the same.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001

_ROWS = {
    "hosts": model.Host,
    "domains": model.Domain,
    "disks": model.Disk,
    "file_systems": model.FileSystem,
    "pools": model.Pool,
    "findings": model.FindingRow,
    "work": WorkRow,
}
#: What has no place in one cell.
_LEFT_OUT = ("fragmentation",)


def texts(document: Document) -> dict[str, str]:
    """The text of each file by its name; without rows it has its header."""
    return {f"{table}.csv": _text(columns(table), document[table]) for table in _ROWS}


def columns(table: str) -> list[str]:
    """Names of the columns, those of the keys in report.json."""
    names = [field.name for field in dataclasses.fields(_ROWS[table])]
    if table == "hosts":
        names += host_sums(model.Fleet((), (), (), (), (), ()), "")
    return [name for name in names if name not in _LEFT_OUT]


def _text(names: list[str], rows: t.Iterable[Document]) -> str:
    target = io.StringIO(newline="")
    writer = csv.writer(target)  # CR LF, as RFC 4180 has it
    writer.writerow(names)
    writer.writerows([_cell(row[name]) for name in names] for row in rows)
    return target.getvalue()


def _cell(value: t.Any) -> t.Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA):
        return f"'{value}"
    return value
