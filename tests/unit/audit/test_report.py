# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sums that count each file once, and lines that begin with what is worst."""

from __future__ import annotations

import datetime
import json

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit import report
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.forecast import History
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.model import (
    DiskAudit,
    DomainAudit,
    Image,
    Link,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import HypervisorError
from audit_parts import (
    GIB,
    IGNORE,
    UNMAP,
    audit_disk,
    audit_domain,
    backing,
    disk,
    domain,
    file_system,
    image,
    qcow2,
)

HISTORY = History(datetime.datetime(2026, 11, 25, 4, tzinfo=datetime.UTC))
BACKUP = file_system("/backup", free_bytes=GIB)


def figures(*domains):
    """(mount point, disks, promised, allocated) of each file system, in GiB."""
    return [
        (
            sums.file_system.mount_point,
            sums.disks,
            sums.promised_bytes / GIB,
            sums.allocated_bytes / GIB,
        )
        for sums in report.sum_up(domains)
    ]


def test_nothing_to_sum_up():
    assert figures() == []
    assert figures(audit_domain("empty")) == []


def test_several_disks_of_several_domains():
    domains = audit_domain("a", image(1), image(2)), audit_domain("b", image(3))
    assert figures(*domains) == [("/srv", 3, 30.0, 6.0)]


def test_an_image_that_two_domains_share_counts_once():
    other_name = image(1, path="/srv/hardlink.qcow2")
    domains = (
        audit_domain("a", image(1)),
        audit_domain("b", image(1)),
        audit_domain("c", other_name),
    )
    assert figures(*domains) == [("/srv", 1, 10.0, 2.0)]


def test_backing_files_promise_nothing_and_count_once():
    overlays = [image(number, backing=(backing(8), backing(9))) for number in (1, 2)]
    domains = [audit_domain(name, overlay) for name, overlay in zip("ab", overlays, strict=True)]
    assert figures(*domains) == [("/srv", 2, 20.0, 2 * 2.0 + 2 * 1.0)]


@pytest.mark.parametrize("order", [1, -1])
def test_a_disk_that_is_another_ones_backing_file(order):
    """Promised as a disk, and its blocks counted once, whichever is seen first."""
    golden = audit_domain("golden", image(8, allocated_bytes=GIB))
    clone = audit_domain("clone", image(1, backing=(backing(8),)))
    assert figures(*(golden, clone)[::order]) == [("/srv", 2, 20.0, 3.0)]


def test_file_systems_are_told_apart_and_sorted():
    elsewhere = image(2, key=(7, 2), file_system=BACKUP)
    clone = image(1, backing=(backing(3, key=(7, 3), file_system=BACKUP),))
    assert figures(audit_domain("a", clone, elsewhere)) == [
        ("/backup", 1, 10.0, 3.0),
        ("/srv", 1, 10.0, 2.0),
    ]


def test_one_file_system_seen_through_two_mounts():
    """A bind mount has another name and the same blocks."""
    bind = file_system("/bind", device=file_system().device)
    assert figures(audit_domain("a", image(1), image(2, file_system=bind))) == [
        ("/srv", 2, 20.0, 4.0)
    ]


def test_block_devices_and_unreadable_images_are_in_no_sum():
    device = image(2, file_system=None, block_device=True, allocated_bytes=None)
    golden_device = image(1, backing=(backing(9, file_system=None),))
    gone = Image("/srv/gone", "qcow2", error="It is gone.")
    assert figures(audit_domain("a", device, gone, Image("", "raw"), golden_device)) == [
        ("/srv", 1, 10.0, 2.0)
    ]


def test_a_size_that_could_not_be_read_adds_nothing():
    assert figures(audit_domain("a", image(1, promised_bytes=None))) == [("/srv", 1, 0.0, 2.0)]


@pytest.mark.parametrize(
    ("allocated", "free", "promised", "ratio"),
    [
        (2 * GIB, 50 * GIB, 10 * GIB, 0.192),
        (2 * GIB, 8 * GIB, 10 * GIB, 1.0),
        (GIB, 0, 10 * GIB, 10.0),
        (0, 0, 10 * GIB, None),
        (0, GIB, 0, 0.0),
    ],
)
def test_overcommit_ratio(allocated, free, promised, ratio):
    its_image = image(
        allocated_bytes=allocated,
        promised_bytes=promised,
        file_system=file_system(free_bytes=free),
    )
    (sums,) = report.sum_up([audit_domain("a", its_image)])
    assert sums.overcommit_ratio == ratio
    assert report.file_system_result(sums, HISTORY)["overcommit_ratio"] == ratio


def link(name, state):
    return Link(name, "x", state, reason=f"{name} is {state}.")


@pytest.mark.parametrize(
    ("states", "verdict", "culprit"),
    [
        (("works", "works"), "works", None),
        (("works", "unknown"), "unknown", "second"),
        (("unknown", "unknown"), "unknown", "first"),
        (("unknown", "broken"), "broken", "second"),
        (("broken", "broken"), "broken", "first"),
        ((), "works", None),
    ],
)
def test_verdict_and_culprit(states, verdict, culprit):
    links = tuple(map(link, ("first", "second"), states))
    audit = DiskAudit(disk(), None, UNMAP, image(), links, ())
    assert audit.verdict == verdict
    assert (audit.culprit.name if audit.culprit else None) == culprit


def many_findings():
    """A warning before an error before an info, and a domain that could not be read."""
    usb = disk("sda", "usb", settings=IGNORE)
    of = domain(usb, name="messy")
    audit = audit_disk(of, usb, image(qcow2=qcow2(snapshot_count=1)), configured=IGNORE)
    messy = DomainAudit("messy", of.uuid, False, disks=(audit,))
    error = HypervisorError("libvirt could not read the XML.", remedy="Look at its log.")
    return [messy, DomainAudit("vanished", of.uuid, False, error=error), audit_domain("z", image())]


def test_the_worst_comes_first():
    domains = many_findings()
    lines = report.summary(domains, report.sum_up(domains))
    assert [line.split(". ")[0] for line in lines] == [
        "vanished: libvirt could not read the XML",
        "messy/sda: error discard-ignored",
        "messy/sda: warning bus-not-verified",
        "2 disks: 1 give space back, 1 do not, 0 unknown.",
        "/srv (ext4): 10.0 GiB promised, 2.0 GiB allocated, 50.0 GiB free.",
    ]
    assert lines[0].endswith("Look at its log.")
    assert "Set discard with thinvirt.kvm.domain_discard" in lines[1]


def test_errors_of_every_domain_stand_before_the_first_warning():
    usb = disk("sda", "usb", settings=IGNORE)
    domains = [
        DomainAudit(
            name,
            "",
            False,
            disks=(audit_disk(domain(usb, name=name), usb, configured=IGNORE),),
        )
        for name in ("a", "b")
    ]
    lines = report.summary(domains, [])
    assert [line.split(" ")[:2] for line in lines[:-1]] == [
        ["a/sda:", "error"],
        ["b/sda:", "error"],
        ["a/sda:", "warning"],
        ["b/sda:", "warning"],
    ]


def test_the_entry_of_a_domain():
    messy, vanished, good = many_findings()
    assert report.domain_result(vanished) == {
        "name": "vanished",
        "uuid": vanished.uuid,
        "active": False,
        "error": {"msg": "libvirt could not read the XML. Look at its log."},
    }
    (entry,) = report.domain_result(messy)["disks"]
    assert (entry["verdict"], entry["broken_link"]) == ("broken", "discard")
    assert entry["reason"] == entry["chain"][2]["reason"] != ""
    assert entry["remedy"] == entry["chain"][2]["remedy"] != ""
    assert [found["id"] for found in entry["findings"]] == [
        "bus-not-verified",
        "discard-ignored",
        "internal-snapshots",
    ]
    assert report.domain_result(messy)["findings"] == entry["findings"]
    (entry,) = report.domain_result(good)["disks"]
    assert (entry["verdict"], entry["broken_link"], entry["reason"]) == ("works", "", "")
    assert (entry["live"], entry["configured"]["discard"]) == (None, "unmap")


def test_names_that_are_no_utf8_can_be_returned():
    strange = file_system("/mnt/\udcff\n", source="\udcfe")
    its_image = image(path="/srv/\udcff", file_system=strange, backing=(backing(2, path="\udcfd"),))
    audit = audit_domain("a", its_image)
    systems = report.sum_up([audit])
    results = [
        report.domain_result(audit),
        *(report.file_system_result(sums, HISTORY) for sums in systems),
    ]
    assert json.dumps(results, ensure_ascii=False).encode("utf-8")
    lines = report.summary([audit], systems)
    assert all(line.isprintable() for line in lines)
