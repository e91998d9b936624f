# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read of the hosts' answers, and the document that is made of it."""

from __future__ import annotations

import copy
import dataclasses
import json

import fleet
import jsonschema
import pytest
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report import document, model, schema
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report.reading import read_fleet
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report.work import read_work
from fleet import GIB


def build(answers, history=(), work=None):
    return document.build(
        read_fleet(answers), title="Report", history=history, work=read_work(work or {})
    )


def host_of(answer):
    """The one host of a fleet, whose answer this is."""
    return read_fleet({"kvm1": answer}).hosts[0]


def test_a_fleet_is_flat_and_keeps_its_hosts() -> None:
    report = build(fleet.small())
    assert [(host["host"], host["status"]) for host in report["hosts"]] == [
        ("kvm1.example.com", "read"),
        ("kvm2.example.com", "read"),
        ("kvm3.example.com", "partly"),
        ("kvm4.example.com", "unreachable"),
        ("kvm5.example.com", "failed"),
    ]
    assert report["taken_at"] == fleet.TAKEN_AT
    assert {disk["domain"] for disk in report["disks"]} > set(fleet.HOSTILE)
    lost = next(domain for domain in report["domains"] if domain["error"])
    assert (lost["host"], lost["domain"]) == ("kvm3.example.com", "lost")


def test_the_schema_describes_the_document() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(schema.text()))
    validator = jsonschema.Draft202012Validator(json.loads(schema.text()))
    point = model.HistoryPoint("2026-11-24T04:00:00Z", "kvm1", "/srv", 5, 10)
    for answers in (fleet.small(), {}, {"kvm1": {"unreachable": True}}):
        validator.validate(build(answers, [point], fleet.work()))


def test_the_schema_has_each_key_and_no_other() -> None:
    described = json.loads(schema.text())["properties"]
    point = model.HistoryPoint("2026-11-24T04:00:00Z", "k", "/", 5, 10)
    report = build(fleet.small(), [point], fleet.work())
    assert described.keys() == report.keys()
    assert described["summary"]["properties"].keys() == report["summary"].keys()
    for table in ("hosts", "domains", "disks", "file_systems", "pools", "findings", "work"):
        item = described[table]["items"]
        assert item["properties"].keys() == report[table][0].keys()
        assert set(item["required"]) == report[table][0].keys()


@pytest.mark.parametrize("key", ["allocated_bytes", "verdict", "host"])
def test_the_schema_refuses_a_damaged_document(key: str) -> None:
    report = build(fleet.small())
    report["disks"][0][key] = ["x"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(report, json.loads(schema.text()))


def test_the_sums() -> None:
    web = fleet.domain(
        "web",
        fleet.disk(0, allocated_bytes=6 * GIB, reclaimable_bytes=2 * GIB, guest_used_bytes=4 * GIB),
    )
    db = fleet.domain(
        "db",
        fleet.disk(1, allocated_bytes=9 * GIB, reclaimable_bytes=None, guest_used_bytes=None),
        fleet.disk(2, allocated_bytes=1 * GIB, reclaimable_bytes=0, guest_used_bytes=GIB),
    )
    sums = build({"kvm1": fleet.answer(web, db), "kvm2": {"failed": True, "msg": "x"}})["summary"]
    assert sums == {
        "hosts": 2,
        "hosts_unread": 1,
        "domains": 2,
        "domains_unread": 0,
        "disks": 3,
        "disks_broken": 1,
        "disks_unknown": 0,
        "disks_works": 2,
        "promised_bytes": 150 * GIB,
        "allocated_bytes": 16 * GIB,
        "free_bytes": 4 * GIB,
        "guest_used_bytes": 5 * GIB,
        "guest_used_disks": 2,
        "reclaimable_bytes": 2 * GIB,
        "reclaimable_disks": 2,
        "findings_error": 1,
        "findings_warning": 0,
        "findings_info": 0,
        "freed_bytes": None,
        "work_failed": 0,
    }


def test_nothing_known_is_null_and_not_zero() -> None:
    sums = build({"kvm1": {"unreachable": True, "msg": "x"}})["summary"]
    assert sums["reclaimable_bytes"] is None
    assert sums["allocated_bytes"] is None


def test_storage_that_two_domains_share_counts_once() -> None:
    shared = fleet.disk(0)
    answer = fleet.answer(fleet.domain("a", shared), fleet.domain("b", shared))
    report = build({"kvm1": answer})
    assert len(report["disks"]) == 2
    assert report["summary"]["disks"] == 1
    assert report["summary"]["reclaimable_bytes"] == shared["reclaimable_bytes"]
    # The same path on another host is another disk.
    both = build({"kvm1": answer, "kvm2": answer})
    assert both["summary"]["disks"] == 2


def test_disks_worth_most_come_first_and_unknown_ones_last() -> None:
    sizes = [3, None, 9, 0, 5]
    domains = [
        fleet.domain(str(number), fleet.disk(number, reclaimable_bytes=size))
        for number, size in enumerate(sizes)
    ]
    report = build({"kvm1": fleet.answer(*domains)})
    assert [disk["reclaimable_bytes"] for disk in report["disks"]] == [9, 5, 3, 0, None]


def test_the_fullest_file_system_comes_first() -> None:
    answer = fleet.answer(fleet.domain("web", fleet.disk(0)))
    answer["file_systems"] = [
        fleet.file_system(mount_point=name, free_bytes=free, total_bytes=total)
        for name, free, total in (("/a", 50, 100), ("/b", 60, 1000), ("/c", None, 10))
    ]
    systems = build({"kvm1": answer})["file_systems"]
    assert [system["mount_point"] for system in systems] == ["/b", "/a", "/c"]


def test_the_order_of_hosts_does_not_matter() -> None:
    answers = fleet.small()
    turned = dict(reversed(answers.items()))
    assert document.to_json(build(answers)) == document.to_json(build(turned))


def test_an_answer_of_an_older_thin_info_is_read() -> None:
    answer = fleet.answer(fleet.domain("web", fleet.disk(2)))
    for key in ("taken_at", "findings", "pools"):
        del answer[key]
    for row in (*answer["domains"][0]["disks"], *answer["file_systems"]):
        for key in ("reclaimable_bytes", "guest_used_bytes"):
            del row[key]
    report = build({"kvm1": answer})
    assert report["hosts"][0]["status"] == "read"
    assert report["taken_at"] is None
    assert [row["id"] for row in report["findings"]] == ["discard-ignored"]
    assert report["disks"][0]["reclaimable_bytes"] is None


def test_a_host_that_was_not_audited_has_failed() -> None:
    for answer in ({}, {"skipped": True, "changed": False}, {"failed": True}):
        host = host_of(answer)
        assert host.status == "failed"
        assert "not run" in host.msg


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("domains",), "x", "domains is not a list"),
        (("domains", 0), "x", "domains[0] is not a dictionary"),
        (("domains", 0, "name"), 7, "domains[0].name is not a string"),
        (("domains", 0, "active"), "yes", "domains[0].active"),
        (("domains", 0, "error"), "x", "domains[0].error is not a dictionary"),
        (("domains", 0, "disks", 0, "verdict"), "fine", "verdict is none of broken"),
        (("domains", 0, "disks", 0, "allocated_bytes"), "1", "allocated_bytes"),
        (("domains", 0, "disks", 0, "allocated_bytes"), -1, "allocated_bytes"),
        (("domains", 0, "disks", 0, "allocated_bytes"), True, "allocated_bytes"),
        (("domains", 0, "disks", 0, "allocated_bytes"), 1 << 63, "allocated_bytes"),
        (("domains", 0, "disks", 0, "fragmentation"), {"a": []}, "fragmentation.a"),
        (("file_systems", 0, "days_until_full"), float("nan"), "days_until_full"),
        (("findings", 0, "severity"), "fatal", "severity is none of info"),
        (("taken_at",), "yesterday", "taken_at is not a time"),
        (("taken_at",), "2026-13-01T00:00:00Z", "taken_at is not a time"),
    ],
)
def test_a_host_whose_answer_has_another_shape_is_left_out_alone(place, value, words) -> None:
    good = fleet.answer(fleet.domain("web", fleet.disk(2)))
    bad = copy.deepcopy(good)
    target = bad
    for step in place[:-1]:
        target = target[step]
    target[place[-1]] = value
    read = read_fleet({"bad": bad, "good": good})
    assert [host.status for host in read.hosts] == ["failed", "read"]
    assert words in read.hosts[0].msg
    assert {disk.host for disk in read.disks} == {"good"}
    assert {finding.host for finding in read.findings} == {"good"}


def test_an_answer_that_is_none_is_a_failed_host() -> None:
    for answer in (None, [], "x", 7):
        assert host_of(answer).status == "failed"


def test_what_is_no_text_can_be_written() -> None:
    name = "a\udcff" * 5000
    report = build({name: fleet.answer(fleet.domain(name, fleet.disk(0)))})
    text = document.to_json(report)
    assert text.encode()
    assert all(len(domain["domain"]) <= 4096 for domain in json.loads(text)["domains"])


def test_domains_that_failed_make_the_host_read_in_part() -> None:
    lost = fleet.domain("lo\nst", error={"msg": "gone"})
    host = host_of(fleet.answer(lost))
    assert host.status == "partly"
    assert "lo\\nst" in host.msg


def test_rows_have_the_keys_of_their_tables() -> None:
    report = build(fleet.small())
    for table, row in (("disks", model.Disk), ("pools", model.Pool)):
        assert list(report[table][0]) == [field.name for field in dataclasses.fields(row)]
