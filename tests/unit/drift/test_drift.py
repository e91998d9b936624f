# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a check fails for, and its JUnit file: read back by junitparser."""

from __future__ import annotations

import json
import os
import re

import junitparser
import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.thinvirt.kvm.plugins.filter.thin_drift import thin_drift
from ansible_collections.thinvirt.kvm.plugins.filter.thin_junit import thin_junit
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._drift.earlier import (
    MAX_TIMES,
    by_host,
)
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._drift.old_reports import read
from lxml import etree
from metrics_parts import HOSTILE_NAMES, audit, disk, domain, finding

UNREACHABLE = {"unreachable": True, "msg": "Failed to connect to the host via ssh."}
#: One of each kind; h3 has nothing wrong.
FLEET = {
    "h1": audit(
        domain("web", disk("vda", findings=[finding("discard-ignored", disk="vda")]), disk("vdb")),
        domain("db", findings=[finding("agent-missing", "warning", domain="db")]),
        {"name": "lost", "uuid": "u", "active": False, "error": {"msg": "No such domain."}},
        findings=[finding("file-system-full", "warning"), finding("something", "info")],
    ),
    "h2": UNREACHABLE,
    "h3": audit(domain("fine", disk())),
}


def ids(**arguments):
    return [(row["host"], row["id"]) for row in thin_drift(FLEET, **arguments)]


NOT_READ = [("h1", "domain-not-read"), ("h2", "host-not-read")]
ERRORS = [*NOT_READ, ("h1", "discard-ignored")]
WARNINGS = [*ERRORS, ("h1", "file-system-full"), ("h1", "agent-missing")]


@pytest.mark.parametrize(
    ("fail_on", "expected"), [("never", NOT_READ), ("error", ERRORS), ("warning", WARNINGS)]
)
def test_the_worst_come_first(fail_on, expected):
    assert ids(fail_on=fail_on) == expected


def test_a_line_has_all_that_a_person_needs():
    lines = {row["id"]: row["line"] for row in thin_drift(FLEET)}
    assert lines["discard-ignored"] == (
        "h1/web/vda: error discard-ignored. There is discard-ignored. Mend discard-ignored."
    )
    assert lines["host-not-read"].startswith("h2: error host-not-read. Failed to connect")
    assert lines["domain-not-read"] == "h1/lost: error domain-not-read. No such domain."


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_line_is_one_line_and_printable(name):
    bad = finding("x", domain=name, disk=name, reason=name, remedy=name)
    (row,) = thin_drift({"h": audit(domain(name, findings=[bad]))})
    assert row["line"].isprintable()
    assert row["domain"] == name


def test_findings_that_stand_twice_count_once():
    """thin_info lists those of domains at the top, too."""
    one = finding("a", domain="web")
    result = audit(domain("web", findings=[one]), findings=[one])
    assert len(thin_drift({"h": result})) == 1


def test_a_host_that_failed_as_a_whole():
    failed = {"h": {"failed": True, "msg": "libvirt does not answer."}, "new": {}}
    rows = thin_drift(failed, fail_on="never")
    assert [(row["host"], row["reason"]) for row in rows] == [
        ("h", "libvirt does not answer."),
        ("new", "It was not audited."),
    ]
    # and one that says so although its domains could be read
    (row,) = thin_drift({"h": audit(domain("a", disk()), failed=True, msg="Why.")})
    assert (row["id"], row["reason"]) == ("host-not-read", "Why.")


@pytest.mark.parametrize("filter_", [thin_drift, thin_junit])
@pytest.mark.parametrize(
    ("hosts", "arguments", "words"),
    [
        ({"h": "text"}, {}, "The result of h is not one of thinvirt.kvm.thin_info"),
        ({"h": {"domains": [7]}}, {}, "The result of h"),
        ({"h": audit(findings=[finding("a", "dire")])}, {}, "The result of h"),
        ({}, {"fail_on": "info"}, "fail_on must be one of error, warning, never"),
    ],
)
def test_what_is_no_audit_is_refused(filter_, hosts, arguments, words):
    if filter_ is thin_junit and not hosts:
        hosts = {"h": audit()}
    with pytest.raises(AnsibleFilterError) as caught:
        filter_(hosts, **arguments)
    assert words in str(caught.value)


def suites(hosts=None, **arguments):
    text = thin_junit(FLEET if hosts is None else hosts, **arguments)
    return junitparser.JUnitXml.fromstring(text.encode())


def verdicts(suite):
    """What each case of a suite came to: the kinds and types of its results."""
    return {
        (case.classname, case.name): [
            (type(result).__name__, result.type) for result in case.result
        ]
        for case in suite
    }


def test_junit_has_a_case_for_each_domain_and_disk():
    h1, h2, h3 = suites()
    assert verdicts(h1) == {
        ("h1", "configuration"): [("Failure", "file-system-full")],
        ("h1.web", "configuration"): [],
        ("h1.web", "vda"): [("Failure", "discard-ignored")],
        ("h1.web", "vdb"): [],
        ("h1.db", "configuration"): [("Failure", "agent-missing")],
        ("h1.lost", "configuration"): [("Error", "domain-not-read")],
    }
    assert verdicts(h2) == {("h2", "configuration"): [("Error", "host-not-read")]}
    assert verdicts(h3) == {
        ("h3", "configuration"): [],
        ("h3.fine", "configuration"): [],
        ("h3.fine", "vda"): [],
    }
    counted = [(suite.name, suite.tests, suite.failures, suite.errors) for suite in (h1, h2, h3)]
    assert counted == [("h1", 6, 3, 1), ("h2", 1, 0, 1), ("h3", 3, 0, 0)]
    assert h1.timestamp == "2026-11-25T04:00:00"
    assert (suites().tests, suites().failures, suites().errors) == (10, 3, 2)


def test_junit_fails_for_what_the_run_fails_for():
    h1, h2, _h3 = suites(fail_on="error")
    assert (h1.failures, h1.errors, h2.errors) == (1, 1, 1)
    h1, h2, _h3 = suites(fail_on="never")
    assert (h1.failures, h1.errors, h2.errors) == (0, 1, 1)
    (vda,) = (case for case in h1 if case.name == "vda")
    assert vda.system_out == (
        "h1/web/vda: error discard-ignored. There is discard-ignored. Mend discard-ignored."
    )


def test_junit_has_one_failure_with_all_findings_of_a_disk():
    found = [finding(name, "warning", disk="vda") for name in "ba"] + [finding("c", disk="vda")]
    (suite,) = suites({"h": audit(domain("web", disk(findings=found)))})
    (failure,) = next(case for case in suite if case.name == "vda").result
    assert (failure.type, failure.message) == ("c", "c: There is c.")
    assert [line.split(" ")[2] for line in failure.text.splitlines()] == ["c.", "a.", "b."]


def test_junit_tells_what_is_no_failure_beside_what_is_one():
    found = [finding("a", "warning", disk="vda"), finding("c", disk="vda")]
    (suite,) = suites({"h": audit(domain("web", disk(findings=found)))}, fail_on="error")
    vda = next(case for case in suite if case.name == "vda")
    assert [failure.type for failure in vda.result] == ["c"]
    assert vda.system_out == "h/web/vda: warning a. There is a. Mend a."


@pytest.mark.parametrize("name", [*filter(None, HOSTILE_NAMES), "\x00\x0b\ufffe\ud800", "]]>&"])
def test_junit_takes_any_name(name):
    bad = finding("x", domain=name, disk=name, reason=name, remedy=name)
    given = {name: audit(domain(name, disk(name, findings=[bad]), findings=[bad]))}
    text = thin_junit(given)
    (suite,) = junitparser.JUnitXml.fromstring(text.encode())
    assert (suite.tests, suite.failures) == (3, 1)
    if name.isprintable():
        assert {case.classname for case in suite} == {name, f"{name}.{name}"}
    root = etree.fromstring(text.encode())
    assert {element.tag for element in root.iter()} == {
        "testsuites", "testsuite", "testcase", "failure"
    }  # fmt: skip


def test_junit_has_only_what_jenkins_knows():
    """What junit-10.xsd of its xUnit plugin allows, and asks for, of the elements that are used."""
    allowed = {
        "testsuites": ({"name", "time", "tests", "failures", "errors"}, set()),
        "testsuite": (
            {"name", "tests", "failures", "errors", "skipped", "timestamp", "hostname"},
            {"name", "tests", "failures", "errors"},
        ),
        "testcase": ({"name", "classname", "time", "group"}, {"name"}),
        "failure": ({"type", "message"}, set()),
        "error": ({"type", "message"}, set()),
        "system-out": (set(), set()),
    }
    inside = {
        "testsuites": {"testsuite"},
        "testsuite": {"testcase"},
        "testcase": {"failure", "error", "system-out"},
    }
    root = etree.fromstring(thin_junit(FLEET, fail_on="error").encode())
    assert root.tag == "testsuites"
    for element in root.iter():
        known, needed = allowed[element.tag]
        assert needed <= set(element.attrib) <= known
        assert {child.tag for child in element} <= inside.get(element.tag, set())


def report(**values):
    system = {
        "host": "h1",
        "taken_at": "2026-11-25T04:00:00Z",
        "mount_point": "/srv",
        "free_bytes": 50,
    }
    return {"kind": "thinvirt.kvm.thin_report", "file_systems": [{**system, **values}]}


def test_earlier_figures_by_host():
    old = {"host": "h1", "taken_at": "2026-11-24T04:00:00Z", "mount_point": "/", "free_bytes": 7}
    other = report(host="h2")["file_systems"]
    newest = {**report(), "history": [old, {**old, "mount_point": "/srv"}]}
    newest["file_systems"] += other
    figures = by_host([newest, report(free_bytes=51)])
    assert figures["h1"] == [
        {
            "taken_at": "2026-11-24T04:00:00Z",
            "file_systems": [
                {"mount_point": "/", "free_bytes": 7},
                {"mount_point": "/srv", "free_bytes": 7},
            ],
        },
        {
            "taken_at": "2026-11-25T04:00:00Z",
            "file_systems": [{"mount_point": "/srv", "free_bytes": 51}],
        },
    ]
    assert len(figures["h2"]) == 1


def test_only_the_newest_are_sent_to_hosts():
    points = [
        report(taken_at=f"2026-{month:02}-{day:02}T00:00:00Z")
        for month in range(1, 12)
        for day in range(1, 29)
    ]
    figures = by_host(points)["h1"]
    assert len(figures) == MAX_TIMES
    assert figures[-1]["taken_at"] == "2026-11-28T00:00:00Z"


@pytest.mark.parametrize(
    "wrong",
    [
        None, [], "text", {}, {"file_systems": 7}, {"file_systems": [7]},
        report(taken_at="yesterday"), report(taken_at=7), report(free_bytes=-1),
        report(free_bytes="7"), report(host=None), report(mount_point=["/"]),
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_figure_is_passed_over(wrong):
    assert by_host([wrong, report()]) == by_host([report()])


def test_reports_are_found_in_folders_and_by_name(tmp_path):
    folder = tmp_path / "history"
    folder.mkdir()
    for day in range(1, 6):
        (folder / f"2026110{day}T000000Z.json").write_text(json.dumps(report(free_bytes=day)))
    (folder / "20261109T000000Z.json").write_text('{"half')
    (folder / "20261109T000001Z.json").mkdir()
    os.mkfifo(folder / "20261109T000002Z.json")
    large = folder / "20261109T000003Z.json"
    large.write_text("{}")
    os.truncate(large, 1 << 30)  # sparse
    (folder / "notes.txt").write_text("mine")
    (tmp_path / "report.json").write_text(json.dumps(report(free_bytes=50)))
    places = [str(tmp_path / "report.json"), str(folder), str(tmp_path / "nothing")]
    reports, unreadable = read(places, newest=6)
    assert [each["file_systems"][0]["free_bytes"] for each in reports] == [50, 4, 5]
    assert [re.search(r"\w+\.json", line)[0] for line in unreadable] == [
        f"20261109T00000{n}Z.json" for n in range(4)
    ]
    assert "more than" in unreadable[-1]
