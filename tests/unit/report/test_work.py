# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the report tells of the work that was done before."""

from __future__ import annotations

import fleet
import pytest
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report.work import read_work
from fleet import GIB, HOSTILE


def test_what_failed_comes_first_then_what_brought_most() -> None:
    work = read_work(fleet.work())
    told = [
        (row.host[:4], row.domain, row.disk, row.action, row.status, row.freed_bytes, row.reason)
        for row in work.rows
    ]
    assert told == [
        ("kvm1", "hung", "", "trim", "failed", None, "It is silent."),
        ("kvm1", "off", "vdb", "compact", "failed", None, "It has snapshots. Delete them."),
        ("kvm4", "", "", "trim", "failed", None, "No route."),
        ("kvm1", "off", "vda", "compact", "done", 5 * GIB, "Worth it."),
        ("kvm1", "web", "vda", "trim", "done", 3 * GIB, ""),
        ("kvm1", "web", "vdb", "trim", "done", 0, ""),
        # Of a domain that both have left alone both reasons are told.
        ("kvm1", HOSTILE[0], "", "trim", "skipped", None, HOSTILE[1]),
        ("kvm1", "off", "vdc", "compact", "skipped", None, "Too little."),
        ("kvm1", HOSTILE[0], "", "compact", "skipped", None, HOSTILE[1]),
    ]
    assert work.freed_bytes == 8 * GIB


def test_without_work_nothing_is_known() -> None:
    assert read_work({}).freed_bytes is None
    assert read_work({"kvm1": {}}).rows == ()


def test_a_host_that_could_do_nothing_has_freed_nothing() -> None:
    assert read_work({"kvm1": {"trim": {"failed": True, "msg": "x"}}}).freed_bytes == 0


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (["x"], "not a dictionary"),
        ({"trim": "x"}, "trim is not a dictionary"),
        ({"trim": {"domains": "x"}}, "domains is not a list"),
        ({"trim": {"domains": [{"name": 5}]}}, "domains[0].name is not a string"),
        ({"trim": {"domains": [], "freed_bytes": -1}}, "freed_bytes"),
    ],
)
def test_what_is_no_result_is_a_failure_of_its_host_alone(result, words) -> None:
    work = read_work({"bad": result, **fleet.work()})
    rows = [row for row in work.rows if row.host == "bad"]
    assert {row.status for row in rows} == {"failed"}
    assert words in rows[0].reason
    assert len(work.rows) == len(rows) + len(read_work(fleet.work()).rows)
