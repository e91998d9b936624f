# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure parts of backups: jobs as XML, QEMU's folder, which disks, what is the same."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._backup import freeze, qemu_process
from ansible_collections.thinvirt.kvm.plugins.module_utils._backup import policy as backup_policy
from ansible_collections.thinvirt.kvm.plugins.module_utils._backup import xml as backup_xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    AgentError,
    HypervisorError,
    RefusedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import archive_manifest
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import Identity


def test_the_xml_of_a_job():
    made = backup_xml.backup_xml(
        socket="/q/a&b.sock", scratch={"sda": "/s/sda", "vdb": "/s/vdb"}, others=["sdc"]
    )
    assert made == (
        '<domainbackup mode="pull"><server transport="unix" socket="/q/a&amp;b.sock"/><disks>'
        '<disk name="sda" backup="yes" type="file" exportname="sda"><scratch file="/s/sda"/></disk>'
        '<disk name="vdb" backup="yes" type="file" exportname="vdb"><scratch file="/s/vdb"/></disk>'
        '<disk name="sdc" backup="no"/></disks></domainbackup>'
    )
    job = backup_xml.parse_job(made)
    assert job == backup_xml.Job("pull", "/q/a&b.sock", ("/s/sda", "/s/vdb"))
    assert job.lies_in("/s")
    assert not job.lies_in("/")


@pytest.mark.parametrize(
    "text",
    [
        "<domainbackup><disks><disk><target file='/s/a'/></disk></disks></domainbackup>",
        "<domainbackup><disks><disk><scratch dev='/dev/x'/></disk></disks></domainbackup>",
        "<domainbackup mode='pull'/>",
    ],
)
def test_jobs_of_others_do_not_lie_in_our_folder(text):
    assert not backup_xml.parse_job(text).lies_in("/s/.thinvirt-backup-u")


def test_a_job_that_cannot_be_parsed():
    with pytest.raises(HypervisorError):
        backup_xml.parse_job("<")


@pytest.mark.parametrize(
    ("value", "folder"),
    [
        (
            '{"qom-type":"secret","id":"masterKey0","file":"/l/domain-1-a/master-key.aes"}',
            "/l/domain-1-a",
        ),
        ("secret,id=masterKey0,format=raw,file=/l/domain-1-a,,b/master-key.aes", "/l/domain-1-a,b"),
        ('{"file":"relative/master-key.aes"}', ""),
        ('{"file":["master-key.aes"]}', ""),
        ("secret,id=x,file=/tmp/other", ""),
    ],
)
def test_the_folder_that_libvirt_made_for_a_qemu(value, folder):
    assert qemu_process.own_folder(["qemu", "-object", value, "-S"]) == folder
    assert qemu_process.own_folder(["qemu", "-name", value]) == ""


UUID = "f4e2b079-09dd-4204-b81e-9bec7bc31162"


def impostor(uuid=UUID):
    """A process that looks like a domain's QEMU."""
    key = '{"file":"/l/domain-1-a/master-key.aes"}'
    sleep = "import time; print(flush=True); time.sleep(60)"
    argv = ["python3", "-c", sleep, "-object", key, "-uuid", uuid]
    return subprocess.Popen(argv, stdout=subprocess.PIPE)


def test_a_second_process_that_looks_like_it_is_a_reason_to_refuse():
    with pytest.raises(HypervisorError, match="cannot be seen"):
        qemu_process.qemu_of(UUID, "web1")
    one, two = impostor(), impostor()
    try:
        for process in (one, two):
            process.stdout.readline()
        with pytest.raises(RefusedError, match=f"{one.pid}.*{two.pid}|{two.pid}.*{one.pid}"):
            qemu_process.qemu_of(UUID, "web1")
        two.kill()
        two.wait()
        found = qemu_process.qemu_of(UUID, "web1")
        assert found == qemu_process.QemuProcess(
            one.pid, os.geteuid(), os.getegid(), "/l/domain-1-a"
        )
    finally:
        for process in (one, two):
            process.kill()
            process.wait()
            process.stdout.close()


class Agent:
    """Answers as a guest agent does; an exception is raised."""

    name = "web1"
    uuid = UUID
    uri = "test:///default"

    def __init__(self, **answers):
        self.answers = {"guest-ping": {}, "guest-fsfreeze-status": "thawed", **answers}
        self.asked: list[str] = []

    def agent(self, command, arguments, *, timeout):
        assert arguments == {}
        assert 0 < timeout <= 60
        self.asked.append(command.removeprefix("guest-fsfreeze-"))
        answer = self.answers.get(command, 3)
        if isinstance(answer, Exception):
            raise answer
        return answer

    active = True

    def is_active(self):
        if isinstance(self.active, Exception):
            raise self.active
        return self.active

    def is_lost(self):
        return False


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(freeze, "_THAW_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(freeze, "_THAW_SECONDS", 0.1)


def run_frozen(guest, quiesce="auto", connected=True, body=lambda: None):
    with freeze.frozen(
        guest, quiesce=quiesce, connected=connected, note=lambda: guest.asked.append("noted")
    ) as state:
        body()
    return state


def test_it_is_noted_before_it_is_frozen_and_thawed_in_the_end():
    guest = Agent()
    state = run_frozen(guest, body=lambda: guest.asked.append("copy"))
    assert (state.state, state.filesystems) == ("frozen", 3)
    assert guest.asked == ["guest-ping", "status", "noted", "freeze", "copy", "thaw"]


def test_it_is_thawed_whatever_goes_wrong():
    guest = Agent()

    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_frozen(guest, body=fail)
    assert guest.asked[-1] == "thaw"


HUNG = AgentError("It hangs.")


@pytest.mark.parametrize(
    ("answers", "connected", "state", "asked"),
    [
        ({}, False, "no_agent", []),
        ({"guest-ping": HUNG}, True, "no_agent", ["guest-ping"]),
        (
            {"guest-fsfreeze-freeze": HUNG},
            True,
            "failed",
            ["guest-ping", "status", "noted", "freeze", "thaw", "thaw"],
        ),
        (
            {"guest-fsfreeze-freeze": "many"},
            True,
            "failed",
            ["guest-ping", "status", "noted", "freeze", "thaw", "thaw"],
        ),
    ],
)
def test_without_an_agent_it_goes_on_unless_it_is_required(answers, connected, state, asked):
    guest = Agent(**answers)
    done = run_frozen(guest, connected=connected)
    assert (done.state, bool(done.error), guest.asked) == (state, True, asked)
    guest = Agent(**answers)
    with pytest.raises(AgentError):
        run_frozen(guest, quiesce="required", connected=connected)
    assert ("noted" not in guest.asked) or guest.asked[-1] == "thaw"


def test_nobody_is_asked_if_nobody_wants_it():
    guest = Agent()
    assert run_frozen(guest, quiesce="off").state == "off"
    assert guest.asked == []


def test_somebody_elses_freeze_is_left_alone():
    guest = Agent(**{"guest-fsfreeze-status": "frozen"})
    with pytest.raises(RefusedError, match="somebody else"):
        run_frozen(guest)
    assert "thaw" not in guest.asked


def test_a_guest_that_cannot_be_thawed_is_told():
    guest = Agent(**{"guest-fsfreeze-thaw": HUNG})
    with pytest.raises(freeze.ThawError, match="may be frozen") as raised:
        run_frozen(guest)
    assert "virsh domfsthaw web1" in str(raised.value)
    assert guest.asked.count("thaw") > 1


def test_a_guest_that_is_gone_needs_no_thaw():
    guest = Agent(**{"guest-fsfreeze-thaw": HUNG})

    def power_off():
        guest.active = False

    assert run_frozen(guest, body=power_off).state == "frozen"
    assert guest.asked.count("thaw") == 1


def test_a_guest_that_libvirt_cannot_tell_of_may_be_frozen():
    guest = Agent(**{"guest-fsfreeze-thaw": HUNG})

    def daemon_goes():
        guest.active = HypervisorError("It went away.")

    with pytest.raises(freeze.ThawError, match="may be frozen"):
        run_frozen(guest, body=daemon_goes)


@pytest.mark.parametrize(
    ("answers", "called"), [({}, False), ({"guest-fsfreeze-thaw": HUNG}, True)]
)
def test_what_waits_for_our_death_thaws_where_we_can_not(monkeypatch, tmp_path, answers, called):
    virsh = tmp_path / "virsh"
    virsh.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/called\n')
    virsh.chmod(0o755)
    monkeypatch.setattr(freeze.shutil, "which", lambda _name, **_more: str(virsh))
    with contextlib.suppress(freeze.ThawError):
        run_frozen(Agent(**answers))
    assert (tmp_path / "called").exists() is called
    if called:
        asked = (tmp_path / "called").read_text()
        assert asked == f"--connect {Agent.uri} domfsthaw {UUID}\n"


def disk(target="vda", **changes) -> xml.Disk:
    fields = {
        "bus": "virtio",
        "device": "disk",
        "source_type": "file",
        "path": f"/i/{target}.qcow2",
        "pool": "",
        "volume": "",
        "format": "qcow2",
        "readonly": False,
        "shareable": False,
        "controller": None,
        "settings": xml.DiskSettings(),
    }
    return xml.Disk(target=target, **{**fields, **changes})


def domain(*disks: xml.Disk) -> xml.Domain:
    return xml.Domain("web1", UUID, "kvm", "x86_64", "q35", disks, {}, True, True)


def test_every_disk_that_a_guest_writes_is_backed_up():
    disks = [
        disk("vda"),
        disk("vdb", source_type="network", path=""),
        disk("vdc", readonly=True),
        disk("sda", device="cdrom"),
        disk("sdb", device="lun"),
    ]
    chosen = backup_policy.choose_disks(domain(*disks), [])
    assert [found.target for found in chosen] == ["vda", "vdb"]
    chosen = backup_policy.choose_disks(domain(*disks), ["vdc"])
    assert [found.target for found in chosen] == ["vdc"]


@pytest.mark.parametrize(
    ("changes", "running", "words"),
    [
        ({"target": "../x"}, True, "cannot be the name of a file"),
        ({"device": "lun"}, True, "is a lun"),
        ({"shareable": True}, True, "would tear the copy"),
        ({"source_type": "network", "path": ""}, False, "while the domain is shut off"),
        ({"format": "vmdk"}, False, "format vmdk"),
    ],
)
def test_disks_that_are_refused(changes, running, words):
    refused = disk(**changes)
    paths = {refused.target: refused.path}
    with pytest.raises(RefusedError, match=words):
        backup_policy.refuse_disks(domain(refused), [refused], paths, running=running)
    if "target" not in changes and "device" not in changes:
        backup_policy.refuse_disks(domain(refused), [refused], paths, running=not running)


def test_disks_that_were_plugged_in_are_part_of_the_configuration():
    old = "<domain><name>a</name><devices><disk><target dev='vda'/></disk></devices></domain>"
    live = old.replace(
        "</devices>", "<disk><source file='/x'/><target dev='vdb'/></disk></devices>"
    )
    assert backup_policy.with_plugged_disks(old, old) is old
    made = xml.parse_domain(backup_policy.with_plugged_disks(old, live))
    assert [(found.target, found.path) for found in made.disks] == [("vda", ""), ("vdb", "/x")]


FILE = Identity(1, 2, 3, 4)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"sources": {"vda": [dataclasses.replace(FILE, dev=9)]}}, True),
        ({"sources": {"vda": [dataclasses.replace(FILE, mtime_ns=5)]}}, False),
        ({"sources": {"vda": [FILE, FILE]}}, False),
        ({"sources": {"vda": ()}}, False),
        ({"sources": {"vda": [FILE], "vdb": [FILE]}}, False),
        ({"configuration": "<other/>"}, False),
        ({"options": {"format": "qcow2"}}, False),
        ({"nvram_changed": True}, False),
    ],
)
def test_when_a_new_version_would_be_the_same(changes, same):
    options = {"format": "qcow2", "cluster_size": "2097152"}
    stored = archive_manifest.StoredDisk("vda", "vda.qcow2", "qcow2", 1, "/i", options, (FILE,))
    manifest = archive_manifest.Manifest(
        *("t", "web1", UUID, "off", {}, "<xml/>", False, "", {}), disks=[stored], files=[]
    )
    given = {
        "configuration": "<xml/>",
        "options": options,
        "sources": {"vda": [FILE]},
        "nvram_changed": False,
    }
    assert backup_policy.is_same(manifest, **{**given, **changes}) is same
    unknown = dataclasses.replace(manifest, disks=[dataclasses.replace(stored, sources=())])
    assert not backup_policy.is_same(unknown, **{**given, "sources": {"vda": ()}})


@pytest.mark.parametrize(("said", "offers"), [("yes", True), ("no", False), (None, None)])
def test_what_a_host_says_of_backups(said, offers):
    backup = f"<backup supported='{said}'/>" if said else ""
    text = f"<domainCapabilities><features>{backup}</features></domainCapabilities>"
    assert xml.offers_backup(text) is offers
