# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads what ``thin_info`` has returned for each host.

A host's answer is foreign input. One that has not the shape that it should have makes that host
one that could not be read: it must not keep the others out of the report.
"""

from __future__ import annotations

import datetime
import math
import typing as t
from collections import abc

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.module_utils._findings import SEVERITIES
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import encodable, shown
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report.model import (
    VERDICTS,
    Disk,
    Domain,
    FileSystem,
    FindingRow,
    Fleet,
    Host,
    Pool,
)

#: Longer than any name or message is; a hostile host must not flood the report.
MAX_TEXT = 4096
MAX_ENTRIES = 100_000
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_NOT_RUN = "It has no result: the audit was not run on it."


class ShapeError(ThinvirtError):
    """An answer is not what ``thin_info`` returns; the message names the key."""


class Entry:
    """Typed access to one dictionary of an answer.

    :param where: its place, such as ``domains[3].disks[0]``, for messages.
    :raises ShapeError: it is no dictionary; so do all methods on a value of another type.
    """

    def __init__(self, value: t.Any, where: str) -> None:
        if not isinstance(value, abc.Mapping):
            raise ShapeError(f"{where or 'The result'} is not a dictionary.")
        self._value = value
        self._where = where

    def _name(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key

    def text(self, key: str) -> str:
        """A string; empty if there is none."""
        value = self._value.get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise ShapeError(f"{self._name(key)} is not a string.")
        text = encodable(value)
        return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"

    def optional_text(self, key: str) -> str | None:
        """A string, or None if there is none."""
        return None if self._value.get(key) is None else self.text(key)

    def integer(self, key: str) -> int | None:
        """A number of bytes or things, or None."""
        value = self._value.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
            raise ShapeError(f"{self._name(key)} is not a whole number from 0 on.")
        return int(value)

    def number(self, key: str) -> float | None:
        """A number from 0 on, or None."""
        value = self._value.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ShapeError(f"{self._name(key)} is not a number.")
        if not math.isfinite(value) or value < 0:
            raise ShapeError(f"{self._name(key)} is not a number from 0 on.")
        return float(value)

    def boolean(self, key: str) -> bool | None:
        """True, False, or None if there is neither."""
        value = self._value.get(key)
        if value is not None and not isinstance(value, bool):
            raise ShapeError(f"{self._name(key)} is neither true nor false.")
        return value

    def time(self, key: str) -> str | None:
        """A time in UTC as ``thin_info`` writes it, or None."""
        value = self.optional_text(key)
        if value is None:
            return None
        try:
            moment = datetime.datetime.strptime(value, _TIME)  # noqa: DTZ007 - the Z is UTC
        except ValueError:
            raise ShapeError(
                f"{self._name(key)} is not a time such as 2026-11-25T04:00:00Z."
            ) from None
        # strptime takes 2026-1-5 as well, and times are compared as text.
        return moment.strftime(_TIME)

    def choice(self, key: str, choices: t.Sequence[str]) -> str:
        """One of some words."""
        value = self.text(key)
        if value not in choices:
            raise ShapeError(f"{self._name(key)} is none of {', '.join(choices)}.")
        return value

    def entries(self, key: str) -> list[Entry]:
        """A list of dictionaries; empty if there is none."""
        value = self._value.get(key)
        if value is None:
            return []
        if not isinstance(value, (list, tuple)):
            raise ShapeError(f"{self._name(key)} is not a list.")
        if len(value) > MAX_ENTRIES:
            raise ShapeError(f"{self._name(key)} has more than {MAX_ENTRIES} entries.")
        return [Entry(item, f"{self._name(key)}[{i}]") for i, item in enumerate(value)]

    def entry(self, key: str) -> Entry | None:
        """A dictionary, or None."""
        value = self._value.get(key)
        return None if value is None else Entry(value, self._name(key))

    def plain(self, key: str) -> t.Any:
        """A number, a string, or a flat dictionary of such; None if there is none."""
        value = self._value.get(key)
        if isinstance(value, abc.Mapping):
            inner = Entry(value, self._name(key))
            return {encodable(str(name)): inner.plain_scalar(name) for name in value}
        return self.plain_scalar(key)

    def plain_scalar(self, key: str) -> t.Any:
        """A number, a string, true, false or None."""
        value = self._value.get(key)
        if value is None or isinstance(value, bool):
            return value
        return self.text(key) if isinstance(value, str) else self.number(key)

    def __contains__(self, key: str) -> bool:
        return self._value.get(key) is not None


def read_fleet(results: t.Mapping[str, t.Any]) -> Fleet:
    """What is known of all hosts, in the order of their names."""
    parts = [_read_host(encodable(str(name)), results[name]) for name in sorted(results)]
    return Fleet(
        hosts=tuple(host for part in parts for host in part.hosts),
        domains=tuple(domain for part in parts for domain in part.domains),
        disks=tuple(disk for part in parts for disk in part.disks),
        file_systems=tuple(system for part in parts for system in part.file_systems),
        pools=tuple(pool for part in parts for pool in part.pools),
        findings=tuple(finding for part in parts for finding in part.findings),
    )


def _read_host(name: str, result: t.Any) -> Fleet:
    try:
        answer = Entry(result, "")
        if "unreachable" in answer and result["unreachable"]:
            return _unread(name, "unreachable", answer.text("msg") or "It could not be reached.")
        if "domains" not in answer:
            return _unread(name, "failed", answer.text("msg") or _NOT_RUN)
        return _rows(name, answer, failed=bool(result.get("failed")))
    except ShapeError as error:
        return _unread(name, "failed", f"Its result is not one of thin_info. {error}")


def _unread(name: str, status: str, msg: str) -> Fleet:
    return Fleet((Host(name, status, msg),), (), (), (), (), ())


def _rows(name: str, answer: Entry, *, failed: bool) -> Fleet:
    taken_at = answer.time("taken_at")
    given = answer.entries("domains")
    domains = [_domain(name, entry) for entry in given]
    partly = failed or any(domain.error for domain in domains)
    msg = answer.text("msg") if partly else ""
    if partly and not msg:
        unread = [shown(domain.domain) for domain in domains if domain.error]
        msg = f"Domains that could not be read: {', '.join(unread)}."
    # Findings stand in the domains as well; thin_info lists all of them from 0.2.0 on.
    found = (
        answer.entries("findings")
        if "findings" in answer
        else [finding for entry in given for finding in entry.entries("findings")]
    )
    return Fleet(
        hosts=(Host(name, "partly" if partly else "read", msg, taken_at),),
        domains=tuple(domains),
        disks=tuple(
            _disk(name, domain.domain, disk)
            for domain, entry in zip(domains, given)
            for disk in entry.entries("disks")
        ),
        file_systems=tuple(
            _file_system(name, taken_at, system) for system in answer.entries("file_systems")
        ),
        pools=tuple(_pool(name, pool) for pool in answer.entries("pools")),
        findings=tuple(_finding(name, finding) for finding in found),
    )


def _domain(host: str, entry: Entry) -> Domain:
    error = entry.entry("error")
    return Domain(
        host=host,
        domain=entry.text("name"),
        uuid=entry.text("uuid"),
        active=entry.boolean("active"),
        machine=entry.text("machine"),
        error=error.text("msg") or "It could not be read." if error else "",
    )


def _disk(host: str, domain: str, entry: Entry) -> Disk:
    return Disk(
        host=host,
        domain=domain,
        target=entry.text("target"),
        verdict=entry.choice("verdict", VERDICTS),
        broken_link=entry.text("broken_link"),
        reason=entry.text("reason"),
        remedy=entry.text("remedy"),
        promised_bytes=entry.integer("promised_bytes"),
        allocated_bytes=entry.integer("allocated_bytes"),
        guest_used_bytes=entry.integer("guest_used_bytes"),
        reclaimable_bytes=entry.integer("reclaimable_bytes"),
        reclaimable_estimate=entry.text("reclaimable_estimate"),
        length_bytes=entry.integer("length_bytes"),
        bus=entry.text("bus"),
        format=entry.text("format"),
        source_type=entry.text("source_type"),
        path=entry.text("path"),
        mount_point=entry.optional_text("mount_point"),
        fragmentation=entry.plain("fragmentation"),
    )


def _file_system(host: str, taken_at: str | None, entry: Entry) -> FileSystem:
    return FileSystem(
        host=host,
        mount_point=entry.text("mount_point"),
        source=entry.text("source"),
        type=entry.text("type"),
        total_bytes=entry.integer("total_bytes"),
        free_bytes=entry.integer("free_bytes"),
        disks=entry.integer("disks"),
        promised_bytes=entry.integer("promised_bytes"),
        allocated_bytes=entry.integer("allocated_bytes"),
        guest_used_bytes=entry.integer("guest_used_bytes"),
        reclaimable_bytes=entry.integer("reclaimable_bytes"),
        overcommit_ratio=entry.number("overcommit_ratio"),
        days_until_full=entry.number("days_until_full"),
        taken_at=taken_at,
    )


def _pool(host: str, entry: Entry) -> Pool:
    return Pool(
        host=host,
        pool=entry.text("name"),
        path=entry.text("path"),
        mount_point=entry.optional_text("mount_point"),
        total_bytes=entry.integer("total_bytes"),
        free_bytes=entry.integer("free_bytes"),
        promised_bytes=entry.integer("promised_bytes"),
        allocated_bytes=entry.integer("allocated_bytes"),
        overcommit_ratio=entry.number("overcommit_ratio"),
        days_until_full=entry.number("days_until_full"),
    )


def _finding(host: str, entry: Entry) -> FindingRow:
    return FindingRow(
        host=host,
        domain=entry.text("domain"),
        disk=entry.text("disk"),
        severity=entry.choice("severity", SEVERITIES),
        id=entry.text("id"),
        reason=entry.text("reason"),
        remedy=entry.text("remedy"),
    )
