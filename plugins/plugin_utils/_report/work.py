# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was done before the report: rows of the results of ``domain_trim`` and ``domain_compact``.

They are read with the same suspicion as the audits (see :mod:`_report.reading`).
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import encodable
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report.reading import Entry, ShapeError

ACTIONS = ("trim", "compact")
#: How it ended, what somebody has to look at first.
STATUSES = ("failed", "done", "skipped")


@dataclasses.dataclass(frozen=True)
class WorkRow:
    """What became of a disk, of a domain (no disk) or of a host (neither).

    :param action: one of :data:`ACTIONS`.
    :param status: one of :data:`STATUSES`.
    :param freed_bytes: blocks that the host got back; None where nothing was done.
    :param reason: why it failed, with the remedy, or was left out; or what was done.
    """

    host: str
    domain: str
    disk: str
    action: str
    status: str
    freed_bytes: int | None
    reason: str


@dataclasses.dataclass(frozen=True)
class Work:
    """The rows, what failed first, and what all of it gave back; None if nothing was asked for."""

    rows: tuple[WorkRow, ...] = ()
    freed_bytes: int | None = None


def read_work(results: t.Mapping[str, t.Any]) -> Work:
    """What was done on all hosts.

    :param results: by the hosts' names a dictionary with the result of each action.
    """
    rows: list[WorkRow] = []
    freed: list[int] = []
    for name in sorted(results):
        host = encodable(str(name))
        of_host: list[WorkRow] = []
        for action in ACTIONS:
            try:
                answer = Entry(results[name], "").entry(action)
                if answer is not None:
                    of_host += _rows(host, action, answer)
                    freed.append(answer.integer("freed_bytes") or 0)
            except ShapeError as error:
                msg = f"Its result is not one of domain_{action}. {error}"
                of_host.append(WorkRow(host, "", "", action, "failed", None, msg))
        rows += _telling(of_host)
    rows.sort(key=lambda row: (STATUSES.index(row.status), -(row.freed_bytes or 0)))
    return Work(tuple(rows), sum(freed) if freed else None)


def _telling(rows: t.Sequence[WorkRow]) -> t.Iterator[WorkRow]:
    """Without domains that one action has left to the other, as a trim does those that are off."""
    seen = {row.domain for row in rows if row.disk or row.status == "failed"}
    for row in rows:
        if row.status != "skipped" or row.disk or row.domain not in seen:
            yield row


def _rows(host: str, action: str, answer: Entry) -> list[WorkRow]:
    if "domains" not in answer:
        if not (answer.boolean("failed") or answer.boolean("unreachable")):
            return []  # it was not asked for
        msg = answer.text("msg") or "It could not be reached."
        return [WorkRow(host, "", "", action, "failed", None, msg)]
    return [
        WorkRow(host, domain.text("name"), disk, action, status, freed, reason)
        for domain in answer.entries("domains")
        for disk, status, freed, reason in _of_domain(action, domain)
    ]


_Outcome = tuple[str, str, "int | None", str]


def _of_domain(action: str, domain: Entry) -> t.Iterator[_Outcome]:
    error = domain.entry("error")
    if error is not None:
        yield "", "failed", None, error.text("msg")
    elif action == "trim" and domain.text("status") != "trimmed":
        yield "", "skipped", None, domain.text("reason")
        return
    elif domain.text("status") == "skipped":
        yield "", "skipped", None, domain.text("reason")
    for disk in domain.entries("disks"):
        yield _of_disk(action, disk)


def _of_disk(action: str, disk: Entry) -> _Outcome:
    error, target, freed = disk.entry("error"), disk.text("target"), disk.integer("freed_bytes")
    if error is not None:
        return target, "failed", None, error.text("msg")
    if action == "trim":
        return target, "done", freed, ""
    if disk.boolean("changed"):
        return target, "done", freed, disk.text("reason")
    return target, "skipped", None, disk.text("reason")
