# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is trimmed, when, and what is counted, with guests played by small classes."""

from __future__ import annotations

import os
import re
import threading
import time

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._discard import trim
from ansible_collections.thinvirt.kvm.plugins.module_utils._discard.trim import DiskTrim
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.agent import MountTrim
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    AgentError,
    HypervisorError,
    RefusedError,
)
from audit_parts import IGNORE, disk, domain

KIB = 1024


class Hypervisor:
    def disk_path(self, its_disk):
        return its_disk.path


class Guest:
    """A running guest with one disk in a file, and what it does when it trims."""

    def __init__(self, name, path, action=None, *, discard="unmap"):
        self.name, self.uuid = name, f"uuid of {name}"
        self.asked = []
        self._action = action
        self._xml = (
            f"<domain><name>{name}</name><devices><disk type='file'>"
            f"<driver type='raw' discard='{discard}'/><source file='{path}'/>"
            "<target dev='vda' bus='virtio'/></disk></devices></domain>"
        )

    def is_active(self):
        return True

    def live_xml(self):
        return self._xml

    def capacity_bytes(self, target):
        assert target == "vda"
        return 0

    def agent(self, command, arguments, *, timeout):
        self.asked.append((command, dict(arguments), timeout))
        if command == "guest-get-osinfo":
            raise AgentError("This agent is too old to know it.")
        if command == "guest-fstrim" and self._action:
            self._action()
        return {"paths": []}


@pytest.fixture
def file(tmp_path):
    """Make a file of so many KiB of data."""

    def file(name, kib=64):
        path = tmp_path / name
        path.write_bytes(os.urandom(kib * KIB))
        with open(path) as opened:
            os.fsync(opened.fileno())
        return path

    return file


def trim_all(*guests, check_mode=False, parallel=2):
    return trim.trim_all(
        Hypervisor(),
        guests,
        minimum_bytes=7,
        timeout=5,
        parallel=parallel,
        untrimmed_min_bytes=0,
        check_mode=check_mode,
    )


def test_the_agent_is_asked_once_and_told_the_limits(file):
    guest = Guest("a", file("a"))
    (outcome,) = trim_all(guest)
    assert outcome.status == "trimmed"
    assert guest.asked == [
        ("guest-ping", {}, 10),
        ("guest-get-osinfo", {}, 10),
        ("guest-fstrim", {"minimum": 7}, 5),
        ("guest-get-fsinfo", {}, 10),
    ]


def test_check_mode_only_pings(file):
    guest = Guest("a", file("a"))
    (outcome,) = trim_all(guest, check_mode=True)
    assert (outcome.status, outcome.freed_bytes) == ("would_trim", 0)
    assert [command for command, *_others in guest.asked] == ["guest-ping", "guest-get-osinfo"]


@pytest.mark.parametrize("check_mode", [False, True])
def test_a_guest_whose_discards_are_dropped_is_not_asked_anything(file, check_mode):
    guest = Guest("a", file("a"), discard="ignore")
    (outcome,) = trim_all(guest, check_mode=check_mode)
    assert outcome.status == "failed"
    assert isinstance(outcome.error, RefusedError)
    assert guest.asked == []


def test_guests_trim_at_the_same_time(file):
    both = threading.Barrier(2)
    guests = [Guest(name, file(name), lambda: both.wait(10)) for name in "ab"]
    assert [outcome.status for outcome in trim_all(*guests, parallel=2)] == ["trimmed"] * 2


@pytest.mark.parametrize("parallel", [1, 2, 5])
def test_no_more_than_asked_trim_at_the_same_time(file, parallel):
    lock, running, most = threading.Lock(), [], []

    def action():
        with lock:
            running.append(1)
            most.append(len(running))
        time.sleep(0.05)
        with lock:
            running.pop()

    guests = [Guest(f"g{number}", file(f"g{number}"), action) for number in range(8)]
    outcomes = trim_all(*guests, parallel=parallel)
    assert max(most) == parallel
    assert [outcome.guest.name for outcome in outcomes] == [guest.name for guest in guests]


def mount(path, error=""):
    return MountTrim(path, None, error)


@pytest.mark.parametrize(
    ("mounts", "words"),
    [
        ([mount("C:\\", "No.")], r"trimmed nothing.*C:\\: No\.$"),
        ([mount("C:\\", "No."), mount("D:\\", "Never.")], r"C:\\: No\. .*1 more\.$"),
        ([mount("C:\\", "No."), mount("D:\\")], None),
        ([mount("C:\\")], None),
        ([], None),
    ],
)
def test_a_guest_that_trimmed_nothing_has_failed(mounts, words):
    if words is None:
        trim.fail_if_all_failed("desk", mounts)
    else:
        with pytest.raises(AgentError) as caught:
            trim.fail_if_all_failed("desk", mounts)
        assert re.search(words, caught.value.message)
        assert caught.value.remedy


def fail(error):
    def action():
        raise error

    return action


def test_one_that_fails_is_alone_with_it(file):
    path = file("b")
    guests = [
        Guest("a", file("a"), fail(AgentError("It hangs."))),
        Guest("b", path, lambda: os.truncate(path, 0)),
        Guest("c", "/nowhere/gone"),
        Guest("d", file("d"), fail(HypervisorError("It is gone."))),
    ]
    outcomes = trim_all(*guests)
    assert [outcome.status for outcome in outcomes] == ["failed", "trimmed", "failed", "failed"]
    assert outcomes[1].freed_bytes == 64 * KIB
    assert [outcome.line() for outcome in outcomes] == [
        "a: failed. It hangs.",
        "b: 0.1 MiB freed",
        "c: failed. /nowhere/gone does not exist.",
        "d: failed. It is gone.",
    ]
    assert "guest-fstrim" not in [
        asked[0] for asked in guests[2].asked
    ]  # what cannot be measured is not trimmed


def test_what_a_failed_guest_has_freed_is_measured(file):
    path = file("a")

    def action():
        os.truncate(path, 0)
        raise AgentError("It hangs.")

    (outcome,) = trim_all(Guest("a", path, action))
    assert (outcome.status, outcome.freed_bytes) == ("failed", 64 * KIB)
    assert outcome.result()["error"] == {"msg": "It hangs."}


def test_an_image_that_vanishes_while_its_guest_trims(file):
    path = file("a")
    (outcome,) = trim_all(Guest("a", path, lambda: os.unlink(path)))
    assert outcome.status == "failed"
    assert "does not exist" in outcome.line()
    assert outcome.freed_bytes == 0


@pytest.mark.parametrize(
    ("before", "after", "freed"),
    [(100, 60, 40), (60, 100, 0), (60, 60, 0), (None, None, None), (60, None, None)],
)
def test_freed_bytes_of_a_disk(before, after, freed):
    assert DiskTrim("vda", "/srv/x", before, after).freed_bytes == freed


def test_a_disk_that_guests_share_is_counted_once(file):
    """Both measure it while one of them trims: the host gained it only once."""
    path, both = file("shared"), threading.Barrier(2)

    def frees():
        both.wait(10)
        os.truncate(path, 0)
        both.wait(10)

    def looks_on():
        both.wait(10)
        both.wait(10)

    outcomes = trim_all(Guest("a", path, frees), Guest("b", path, looks_on))
    assert [outcome.freed_bytes for outcome in outcomes] == [64 * KIB] * 2
    assert trim.freed_bytes(outcomes) == 64 * KIB


@pytest.mark.parametrize(
    ("measured", "freed"),
    [
        ([(100, 60), (100, 60)], 40),  # both saw the same
        ([(100, 60), (100, 80)], 40),  # one saw the beginning of it
        ([(100, 60), (60, 30)], 70),  # one after the other
        ([(100, 90), (150, 140)], 20),  # and it grew in between
        ([(60, 100), (60, 100)], 0),
        ([(60, 100), (100, 70)], 30),
        ([(None, None), (None, None)], 0),
    ],
)
def test_what_guests_measured_of_the_same_disk(measured, freed):
    outcomes = [
        trim.Outcome(Guest("a", "/srv/x"), disks=(DiskTrim("vda", "/srv/x", before, after),))
        for before, after in measured
    ]
    assert trim.freed_bytes(outcomes) == freed
    assert trim.freed_bytes(reversed(outcomes)) == freed


def test_what_is_freed_in_all(file):
    paths = [file(f"{number}", 16 * (number + 1)) for number in range(3)]
    guests = [
        Guest(f"g{number}", path, lambda path=path: os.truncate(path, 0))
        for number, path in enumerate(paths)
    ]
    outcomes = trim_all(*guests, Guest("last", paths[0]), parallel=1)
    assert trim.freed_bytes(outcomes) == (16 + 32 + 48) * KIB
    assert trim.freed_bytes([]) == 0


READ_ONLY = disk("sda", "scsi", readonly=True)
NETWORK = disk("vdb", source_type="network", path="")


@pytest.mark.parametrize(
    ("disks", "words"),
    [
        ((), "no writable disk"),
        ((READ_ONLY, NETWORK), "no writable disk"),
        ((disk(settings=IGNORE),), "drops all discards"),
        ((disk(settings=IGNORE), READ_ONLY, NETWORK), "drops all discards"),
    ],
)
def test_what_would_free_nothing_is_refused(disks, words):
    with pytest.raises(RefusedError, match=words) as caught:
        trim.refuse_useless(domain(*disks))
    assert "the guest was not asked to trim" in str(caught.value)
    assert caught.value.remedy


def test_one_disk_that_passes_discards_is_enough_and_the_others_are_named():
    live = domain(disk("vda"), disk("vdb", settings=IGNORE), disk("vdc", settings=IGNORE))
    trim.refuse_useless(live)
    found = trim.dropped_discards(live)
    assert [(finding.id, finding.disk) for finding in found] == [
        ("discard-ignored", "vdb"),
        ("discard-ignored", "vdc"),
    ]


def test_disks_whose_data_is_elsewhere_are_not_measured(file):
    """A volume of an rbd pool has no path on this host."""
    guest = Guest("a", file("a"))
    volume = "<disk type='volume'><driver discard='unmap'/><source pool='p' volume='v'/></disk>"
    guest._xml = guest._xml.replace("</devices>", f"{volume}</devices>")
    assert len(xml.parse_domain(guest._xml).disks) == 2
    (outcome,) = trim_all(guest)
    assert outcome.status == "trimmed"
    assert [its_disk.target for its_disk in outcome.disks] == ["vda"]
