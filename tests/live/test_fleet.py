# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run against hypervisors of three generations, one host at a time, where much goes wrong.

One host is down, on one a guest hangs, on one a disk can't be compacted.  Each of these fails its
batch as a whole and comes before one that has to be done; blocks are counted from outside.

In full (THINVIRT_STORM=full) each has a guest with a system that trims, and the one that hangs has
an agent that stands still; else there is nothing that has to boot.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import json
import os
import re
import shutil
import subprocess
import typing as t
from pathlib import Path

import pytest
from compact_lab import allocated, assert_same, sha256, wait_for
from conftest import LABS
from fleet_lab import Ssh
from image_lab import qemu_io, run
from lab import Disk, Guest, GuestSpec, LabError
from lab.cache import CACHE
from lab.debian_root import SUITES, debian_root
from lab.hypervisor import Hypervisor
from lab.image import guest_image
from prometheus_client.parser import text_string_to_metric_families
from support import run_playbook

pytestmark = [
    pytest.mark.storm,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes namespaces of other releases"),
]

FULL = os.environ.get("THINVIRT_STORM") == "full"
MIB = 1 << 20
DOWN, HUNG, REFUSED, GOOD = "down", *SUITES
#: What the generations are, the least that README promises first: libvirt, QEMU, Python.
GENERATIONS = {
    "bullseye": ("7.0.", "5.2.", "3.9."),
    "bookworm": ("9.0.", "7.2.", "3.11."),
    "trixie": ("11.3.", "10.0.", "3.13."),
}


@dataclasses.dataclass
class Fleet:
    """The hypervisors by name, the guests on each, and how Ansible reaches them."""

    hypervisors: dict[str, Hypervisor]
    guests: dict[tuple[str, str], Guest]
    inventory: dict[str, t.Any]

    def path(self, host: str, domain: str) -> Path:
        """The image of a domain's disk, as this machine has it."""
        (disk,) = self.guests[host, domain].spec.disks
        return self.hypervisors[host].outside(disk.path)

    def allocated(self) -> dict[tuple[str, str], int]:
        """Blocks of every image, by du."""
        return {key: allocated(self.path(*key)) for key in self.guests}


@pytest.fixture(scope="module")
def folder():
    """Not one of pytest's, which keeps them: guests are large."""
    LABS.mkdir(parents=True, exist_ok=True)
    for old in LABS.glob("fleet-*"):  # of killed sessions; what ran there went with them
        if not Path("/proc", old.name.removeprefix("fleet-")).exists():
            shutil.rmtree(old)
    folder = LABS / f"fleet-{os.getpid()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def fleet(folder):
    with concurrent.futures.ThreadPoolExecutor() as pool:
        guest = pool.submit(guest_image, CACHE)
        list(pool.map(lambda suite: debian_root(CACHE, suite), SUITES))
        guest.result()
    ssh = Ssh(folder / "ssh")
    hypervisors = {suite: Hypervisor(suite, folder / suite) for suite in SUITES}
    try:
        with ssh.down() as down:
            hosts = {DOWN: down}
            for name, hypervisor in hypervisors.items():
                hypervisor.start()
                hosts[name] = ssh.host(hypervisor)
            guests = populate(hypervisors)
            yield Fleet(hypervisors, guests, {"kvm_hosts": {"hosts": hosts}})
    finally:
        for hypervisor in hypervisors.values():
            hypervisor.clean()
        ssh.close()


def populate(hypervisors: dict[str, Hypervisor]) -> dict[tuple[str, str], Guest]:
    """Domains that are off and hold zeros, on each; one whose disk is refused; one that hangs."""
    small = (Disk("sda", size_bytes=128 * MIB, discard="unmap"),)
    guests = {
        (host, "off"): hypervisor.create(GuestSpec("off", disks=small))
        for host, hypervisor in hypervisors.items()
    }
    guests[REFUSED, "kept"] = hypervisors[REFUSED].create(GuestSpec("kept", disks=small))
    for (host, _domain), guest in guests.items():
        path = hypervisors[host].outside(guest.disk("sda").path)
        qemu_io(path, "write -P 7 0 8M", "write -P 0 8M 64M")
    kept = hypervisors[REFUSED].outside(guests[REFUSED, "kept"].disk("sda").path)
    run("qemu-img", "snapshot", "-c", "before-upgrade", kept)
    if FULL:
        with_systems(hypervisors, guests)
    else:
        hung = GuestSpec("web", memory_mib=64, disks=small)
        guests[HUNG, "web"] = hypervisors[HUNG].create(hung)
        guests[HUNG, "web"].start()
        hypervisors[HUNG].virsh("suspend", "web")
    return guests


def with_systems(hypervisors: dict[str, Hypervisor], guests: dict[tuple[str, str], Guest]) -> None:
    """A guest on each that has deleted 200 MiB; on one its agent stands still from then on."""
    disks = (Disk("sda", root=True, discard="unmap"),)
    for host, hypervisor in hypervisors.items():
        guests[host, "web"] = hypervisor.create(GuestSpec("web", disks=disks))
        guests[host, "web"].start()
    write = "head -c 200M /dev/urandom >/waste; sync; rm /waste; sync"
    for host in hypervisors:
        guests[host, "web"].wait_for_agent(timeout=400)
    for host in hypervisors:
        guests[host, "web"].run("sh", "-c", write, timeout=200)
    hung = guests[HUNG, "web"]
    hung.run("systemd-run", "--on-active=1", "sh", "-c", "kill -STOP $(pidof qemu-ga)")

    def stands_still() -> bool:
        try:
            hung.agent("guest-ping", timeout=2)
        except LabError:
            return True
        return False

    wait_for(stands_still)


def test_they_are_what_they_are_said_to_be(fleet):
    for name, (libvirt, qemu, python) in GENERATIONS.items():
        hypervisor = fleet.hypervisors[name]
        assert f" {libvirt}" in hypervisor.run("libvirtd", "--version")
        assert f"version {qemu}" in hypervisor.run("qemu-system-x86_64", "--version")
        assert f"Python {python}" in hypervisor.run("python3", "--version")
        # Each has its own processes, and none of this machine's.
        assert hypervisor.run("cat", "/proc/1/comm") == "bash\n"
        assert hypervisor.run("uname", "-n") == f"{name}\n"


@pytest.fixture(scope="module")
def ran(fleet, folder):
    """Blocks before and after one run of reclaim with its report, and what it left."""
    kept = sha256(fleet.path(REFUSED, "kept"))
    before = fleet.allocated()
    given = {
        "thinvirt_serial": 1,
        "thinvirt_report": True,
        "compact_images_method": "rewrite",
        "compact_images_min_reclaim_bytes": MIB,
        "compact_images_min_free_bytes": 0,
        "compact_images_poll_seconds": 1,
        "compact_images_metrics_dir": "/mnt",
        "thin_report_metrics_dir": "/mnt",
    }
    done = run_playbook(
        folder,
        "thinvirt.kvm.reclaim",
        fleet.inventory,
        *("-e", json.dumps(given)),
        callback="ansible.posix.json",
        patience=600,
    )
    assert "Traceback" not in done.stdout + done.stderr
    after = fleet.allocated()
    assert sha256(fleet.path(REFUSED, "kept")) == kept
    report = json.loads((folder / "thinvirt-report" / "report.json").read_text())
    return Ran(done, json.loads(done.stdout), before, after, report)


@dataclasses.dataclass
class Ran:
    """A run."""

    process: subprocess.CompletedProcess[str]
    output: dict[str, t.Any]
    before: dict[tuple[str, str], int]
    after: dict[tuple[str, str], int]
    report: dict[str, t.Any]

    def freed(self, host: str, domain: str) -> int:
        return self.before[host, domain] - self.after[host, domain]

    def work(self, status: str) -> dict[tuple[str, str, str], dict[str, t.Any]]:
        return {
            (row["host"], row["domain"], row["disk"]): row
            for row in self.report["work"]
            if row["status"] == status
        }


def test_the_others_work_is_done(fleet, ran):
    for host in SUITES:
        assert ran.freed(host, "off") >= 63 * MIB, ran.process.stdout
        run("qemu-img", "check", "-q", fleet.path(host, "off"))
    assert ran.after[REFUSED, "kept"] == ran.before[REFUSED, "kept"]
    assert ran.freed(HUNG, "web") <= 0  # it may write, but trims nothing
    if FULL:
        for host in (REFUSED, GOOD):
            assert ran.freed(host, "web") >= 190 * MIB


def test_it_fails_for_those_where_something_failed(ran):
    assert ran.process.returncode == 2
    stats = ran.output["stats"]
    assert {host: bool(stats[host]["failures"]) for host in stats} == {
        DOWN: True, HUNG: True, REFUSED: True, GOOD: False
    }  # fmt: skip


def test_one_host_after_the_other(ran):
    """When the tasks of each host began and ended, by Ansible's own clock."""
    spans = []
    for play in ran.output["plays"]:
        if play["play"]["name"] == "Give back the space that guests no longer use":
            (host,) = {host for task in play["tasks"] for host in task["hosts"]}
            times = [task["task"]["duration"] for task in play["tasks"]]
            spans.append((min(one["start"] for one in times), max(one["end"] for one in times)))
            spans[-1] += (host,)
    assert [host for _start, _end, host in spans] == [DOWN, *SUITES]
    for (_start, end, _one), (start, _end, _other) in itertools.pairwise(spans):
        assert end <= start


def test_the_report_tells_all(folder, ran):
    statuses = {host["host"]: host["status"] for host in ran.report["hosts"]}
    assert statuses == {DOWN: "unreachable", **dict.fromkeys(SUITES, "read")}

    failed = ran.work("failed")
    assert set(failed) == {(DOWN, "", ""), (HUNG, "web", ""), (REFUSED, "kept", "sda")}
    assert "timed out" in failed[DOWN, "", ""]["reason"].lower()
    # The guest that hangs, and what to do about it.
    assert re.search(r"did not answer|paused|not running", failed[HUNG, "web", ""]["reason"])
    refused = failed[REFUSED, "kept", "sda"]["reason"]
    assert "internal snapshot" in refused
    assert "Delete them" in refused

    done = ran.work("done")
    expected = {(host, "off", "sda") for host in SUITES}
    if FULL:
        expected |= {(host, "web", "sda") for host in (REFUSED, GOOD)}
    assert set(done) == expected
    for host, domain, disk in expected:
        assert done[host, domain, disk]["freed_bytes"] == pytest.approx(
            ran.freed(host, domain), abs=0 if domain == "off" else 4 * MIB
        )
    freed = sum(row["freed_bytes"] for row in done.values())
    assert ran.report["summary"]["freed_bytes"] == freed

    found = {(row["host"], row["domain"], row["id"]) for row in ran.report["findings"]}
    assert (REFUSED, "kept", "internal-snapshots") in found
    page = (folder / "thinvirt-report" / "report.html").read_text()
    for words in ("kept", "internal snapshot", DOWN, "unreachable", *SUITES):
        assert words in page


def test_prometheus_knows_what_came_back(fleet, ran):
    for host in SUITES:
        text = (fleet.hypervisors[host].mnt / "thinvirt.prom").read_text()
        (counted,) = (
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "thinvirt_domain_freed_bytes_total"
            and sample.labels["domain"] == "off"
        )
        assert counted == ran.freed(host, "off")


def test_running_disks_are_compacted_in_every_generation(fleet, folder, ran):
    """The chain swap, with the oldest libvirt and QEMU that we promise and with new ones."""
    assert ran.process.returncode == 2  # after the run, whose guests these would not be
    disks = (Disk("sda", size_bytes=128 * MIB, discard="unmap"),)
    before = {}
    for host, hypervisor in fleet.hypervisors.items():
        guest = hypervisor.create(GuestSpec("busy", memory_mib=64, disks=disks))
        path = hypervisor.outside(guest.disk("sda").path)
        qemu_io(path, "write -P 7 0 8M", "write -P 0 8M 64M")
        shutil.copyfile(path, folder / f"{host}.qcow2")
        guest.start()
        before[path] = allocated(path), folder / f"{host}.qcow2", guest
    inventory = {"kvm_hosts": {"hosts": dict(fleet.inventory["kvm_hosts"]["hosts"])}}
    del inventory["kvm_hosts"]["hosts"][DOWN]
    given = {
        "thinvirt_domains": ["busy"],
        "compact_images_power": "live",
        "compact_images_min_reclaim_bytes": MIB,
        "compact_images_min_free_bytes": 0,
        "compact_images_poll_seconds": 1,
    }
    options = ("-e", json.dumps(given))
    done = run_playbook(folder, "thinvirt.kvm.compact", inventory, *options, patience=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for path, (size, copy, guest) in before.items():
        assert guest.state() == "running"
        assert size - allocated(path) >= 63 * MIB
        assert "backingStore" not in guest.xml() or "<backingStore/>" in guest.xml()
        guest.destroy()
        assert_same(path, copy)
