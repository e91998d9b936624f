# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role thin_report and its playbooks, on hosts of libvirt's test driver and one that is down.

What they write is read by junitparser, prometheus_client and json; what they exit with is what CI
goes by.
"""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path

import junitparser
import pytest
from host_xml import disk, domain, host
from image_lab import create
from prometheus_client.parser import text_string_to_metric_families
from support import run_playbook

#: Names that Jinja, XML or a shell could take for something else.
HOSTILE = "{{ 7 * 7 }} <b>&\"'$(id)"
BAD_DISKS = "abcdefghijkl"
#: No module gets there, as a file or by a pipe: Ansible says UNREACHABLE.
DOWN = {"ansible_remote_tmp": "/proc/nowhere"}
LOST = """
- hosts: kvm_hosts
  gather_facts: false
  pre_tasks:
    - ansible.builtin.fail: {msg: lost}
      when: inventory_hostname == 'bad'
  roles: [thinvirt.kvm.thin_report]
"""
REFUSED = """
- hosts: kvm_hosts
  gather_facts: false
  serial: 1
  tasks: &refused
    - block:
        - ansible.builtin.include_role: {name: thinvirt.kvm.thin_report}
      rescue:
        - ansible.builtin.debug: {msg: "{{ which }}: {{ ansible_failed_result.msg }}"}
  vars: {which: serial}
- hosts: good
  gather_facts: false
  tasks: *refused
  vars: {which: history, thin_report_history_dir: /nowhere}
- hosts: good
  gather_facts: false
  tasks: *refused
  vars: {which: domains, thin_report_domains: [web]}
- hosts: good
  gather_facts: false
  tasks: *refused
  vars: {which: choice, thin_report_fail_on: info}
"""


class World:
    """A folder with hosts in it, and what a run leaves there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        good = disk("vda", create(folder / "good.qcow2"))
        bad = [
            disk(f"vd{letter}", create(folder / f"bad-{letter}.qcow2"), discard=None)
            for letter in BAD_DISKS
        ]
        uris = {
            "good": host(folder / "good.xml", domain("web", good)),
            "bad": host(folder / "bad.xml", domain(HOSTILE, *bad)),
            "deaf": f"test://{folder}/nothing.xml",
        }
        # The first is the one that is down: run_once begins with it.
        self.hosts = {"a-down": dict(DOWN)} | {
            name: {"thinvirt_uri": uri, "thin_report_uri": uri} for name, uri in uris.items()
        }
        for name, variables in self.hosts.items():
            (folder / "prom" / name).mkdir(parents=True)
            variables["thin_report_metrics_dir"] = str(folder / "prom" / name)

    def run(self, playbook, *options, hosts=None, **extra):
        common = {
            "ansible_connection": "local",
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_remote_tmp": str(self.folder / "tmp"),
        }
        of = {name: common | self.hosts[name] for name in hosts or self.hosts}
        inventory = {"kvm_hosts": {"hosts": of}}
        given = json.dumps(extra, default=str)
        return run_playbook(self.folder, playbook, inventory, *options, "-e", given, patience=300)

    def path(self, name):
        return self.folder / name

    def read(self, name):
        return (self.folder / name).read_text(encoding="utf-8")


def recap(done):
    """Counts by host, as Ansible prints them in the end."""
    return {
        line.split()[0]: {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", line)}
        for line in done.stdout.split("PLAY RECAP")[1].splitlines()[1:]
        if ":" in line
    }


def messages(done):
    """What the hosts failed with."""
    return dict(
        re.findall(
            r'fatal: \[([\w-]+)\]: FAILED! => \{"changed": false, "msg": (.*)\}', done.stdout
        )
    )


def free_bytes_are_falling(folder):
    """Reports of the last days, by which its file system fills up."""
    folder.mkdir()
    now = datetime.datetime.now(datetime.UTC)
    for days in range(6, 0, -1):
        taken_at = now - datetime.timedelta(days=days)
        system = {
            "host": "good",
            "taken_at": taken_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "mount_point": _mount_point(folder),
            "free_bytes": days << 50,  # far more than there is now
            "total_bytes": 1 << 60,
        }
        report = {"kind": "thinvirt.kvm.thin_report", "version": 1, "file_systems": [system]}
        name = taken_at.strftime("%Y%m%dT%H%M%SZ.json")
        (folder / name).write_text(json.dumps(report))


def _mount_point(path):
    return str(next(each for each in (path, *path.parents) if each.is_mount()))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("fleet"))


@pytest.fixture(scope="module")
def audited(world):
    """The playbook audit with all that it can write, on good and bad hosts, and how it ended."""
    free_bytes_are_falling(world.folder / "history")
    return world.run(
        "thinvirt.kvm.audit",
        thin_report_dir=world.path("report"),
        thin_report_history_dir=world.path("history"),
        thin_report_history_keep=3,
        thin_report_junit=world.path("junit.xml"),
        thin_report_fail_on="error",
    )


def test_it_fails_for_those_that_are_bad_and_only_for_them(audited):
    assert audited.returncode == 2, audited.stdout + audited.stderr
    counts = recap(audited)
    assert {name: each["failed"] for name, each in counts.items()} == {
        "a-down": 1, "bad": 1, "deaf": 1, "good": 0
    }  # fmt: skip
    said = messages(audited)
    lines = json.loads(f"[{said['bad']}]")[0].splitlines()
    assert lines[0].startswith(f"bad/{HOSTILE}/vda: error discard-ignored. ")
    assert (len(lines), lines[-1]) == (11, "and 2 more")
    assert "a-down: error host-not-read" in said["a-down"]
    assert "deaf: error host-not-read" in said["deaf"]
    assert "Traceback" not in audited.stdout + audited.stderr


def test_the_report_was_written_before_and_has_all_hosts(world, audited):
    assert audited.stdout.index("Write the reports") < audited.stdout.index("Fail for what")
    report = json.loads(world.read("report/report.json"))
    statuses = {each["host"]: each["status"] for each in report["hosts"]}
    assert statuses == {
        "a-down": "unreachable", "bad": "read", "deaf": "failed", "good": "read"
    }  # fmt: skip
    assert {each["domain"] for each in report["domains"]} == {"web", HOSTILE}
    assert "<b>&" not in world.read("report/report.html").replace("<b>&amp;", "")


def test_the_past_reaches_the_forecast(world, audited):
    """Only a host that was told of earlier figures knows when it will be full."""
    assert audited.returncode == 2
    systems = json.loads(world.read("report/report.json"))["file_systems"]
    until_full = {each["host"]: each["days_until_full"] for each in systems}
    assert until_full["bad"] is None
    assert 0 <= until_full["good"] < 6


def test_so_many_reports_are_kept(world, audited):
    assert audited.returncode == 2
    kept = sorted(path.name for path in (world.folder / "history").iterdir())
    assert len(kept) == 3
    taken_at = json.loads(world.read("report/report.json"))["taken_at"]
    assert kept[-1] == re.sub("[-:]", "", taken_at) + ".json"
    assert world.read(f"history/{kept[-1]}") == world.read("report/report.json")


def test_junit_has_them_all(world, audited):
    assert audited.returncode == 2
    suites = {
        each.name: each
        for each in junitparser.JUnitXml.fromstring(world.read("junit.xml").encode())
    }
    assert {name: (each.tests, each.failures, each.errors) for name, each in suites.items()} == {
        "a-down": (1, 0, 1),
        "deaf": (1, 0, 1),
        "bad": (2 + len(BAD_DISKS), len(BAD_DISKS), 0),
        "good": (3, 0, 0),
    }
    failed = next(case for case in suites["bad"] if case.result)
    assert (failed.classname, failed.name) == (f"bad.{HOSTILE}", "vda")
    assert failed.result[0].type == "discard-ignored"


def test_hosts_that_were_read_have_metrics(world, audited):
    assert audited.returncode == 2
    files = {path.parent.name: path.read_text() for path in world.folder.glob("prom/*/*")}
    assert set(files) == {"good", "bad"}
    broken = {
        sample.labels["domain"]: sample.value
        for text in files.values()
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("verdict") == "broken"
    }
    assert broken == {"web": 0, HOSTILE: 1}


def everything_in(folder):
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if not path.relative_to(folder).parts[0].startswith(("tmp", "inventory", "play"))
    }


def test_check_mode_writes_nothing(world, audited):
    assert audited.returncode == 2
    before = everything_in(world.folder)
    done = world.run(
        "thinvirt.kvm.audit",
        "--check",
        hosts=["good", "bad"],
        thin_report_dir=world.path("report"),
        thin_report_history_dir=world.path("elsewhere"),
        thin_report_junit=world.path("elsewhere.xml"),
        thin_report_fail_on="error",
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert [name for name, each in recap(done).items() if each["failed"]] == ["bad"]
    assert everything_in(world.folder) == before


def test_by_default_only_what_cannot_be_read_or_written_is_a_failure(world):
    """With the playbook report, which knows by itself where to write."""
    done = world.run(
        "thinvirt.kvm.report", hosts=["bad", "good"], thin_report_metrics_dir="/nowhere"
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert messages(done) == dict.fromkeys(("bad", "good"), '"/nowhere does not exist."')
    assert "discard-ignored" in done.stdout
    assert "discard-ignored" in world.read("thinvirt-report/report.html")


def test_a_host_that_the_play_has_lost_before_is_told(world):
    world.path("play-lost.yml").write_text(LOST)
    done = world.run(
        "play-lost.yml", hosts=["bad", "good"], thin_report_junit=world.path("lost.xml")
    )
    assert done.returncode == 2, done.stdout + done.stderr
    bad, good = junitparser.JUnitXml.fromstring(world.read("lost.xml").encode())
    assert (bad.name, bad.errors, good.errors) == ("bad", 1, 0)
    assert "before it was audited" in world.read("lost.xml")


def test_what_could_not_work_is_refused_before_anything_is_read(world):
    world.path("play-refused.yml").write_text(REFUSED)
    done = world.run("play-refused.yml", hosts=["good", "bad"])
    assert done.returncode == 0, done.stdout + done.stderr
    said = " ".join(done.stdout.split())
    for words in (
        "serial: The role thin_report writes one report of all hosts",
        "and this play works on 1 of 2 at a time",
        "history: thin_report_history_dir keeps",
        "domains: Metrics of some domains",
        "choice: Validation of arguments failed",
    ):
        assert words in said, words
    assert "Read every disk's chain" not in said
