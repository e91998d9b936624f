# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Findings, each from the state that brings it about and absent from the one beside it."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest
import yaml
from ansible_collections.thinvirt.kvm.plugins.module_utils._findings import SEVERITIES
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest import checks, report
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest.model import (
    GuestState,
    Initramfs,
    MountedFileSystem,
    Timer,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest.stack import Device
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest.tables import (
    CronJob,
    CrypttabEntry,
    parse_fstab,
)
from ansible_collections.thinvirt.kvm.plugins.modules import linux_guest_info

GIB = 1 << 30
ROOT = pathlib.Path(__file__).resolve().parents[3]
DEBIAN = ("/sbin/fstrim", "--listed-in", "/etc/fstab:/proc/self/mountinfo", "--verbose")
ON = Timer(enablement="enabled", active=True, command=(DEBIAN,))
JOB = CronJob("/etc/cron.weekly/fstrim", 0, "fstrim -a")
OWN = CronJob("/var/spool/cron/crontabs/root", 2, "fstrim --all", own=True)


def disk(name="sda", discard_max=GIB, type_="disk", below=()):
    return Device(name, name, type_, "8:0", discard_max_bytes=discard_max, below=below)


def mounted(device="sda", *mount_points, options=("rw",), type_="ext4"):
    return MountedFileSystem(
        "/dev/" + device, type_, (device,), mount_points or ("/",), options, read_only=False
    )


GOOD = GuestState(
    kernel="6.1",
    devices={"sda": disk()},
    file_systems=(mounted(),),
    fstab=parse_fstab("LABEL=root / ext4 defaults 0 1"),
    timer=ON,
    agent_installed=True,
    agent_running=True,
    initramfs=Initramfs("initramfs-tools", "/boot/initrd.img-6.1", virtio_scsi=True),
)


def with_top(type_, **more):
    """Something on the disk that takes no discards, with the file system on it."""
    devices = {"sda": disk(), "top": disk("top", 0, type_, ("sda",))}
    return {"devices": devices, "file_systems": (mounted("top", "/srv"),), **more}


CASES = {
    "LUKS": (with_top("crypt", crypttab=(CrypttabEntry("top", False),)), "guest-discard-dm-crypt"),
    "LUKS not in crypttab": (with_top("crypt"), "guest-discard-dm-crypt"),
    "LUKS opened before": (
        with_top("crypt", crypttab=(CrypttabEntry("top", True),)),
        "guest-discard-dm-crypt-reopen",
    ),
    "LVM": (with_top("lvm"), "guest-discard-lvm"),
    "RAID 5": (with_top("raid5"), "guest-discard-md"),
    "RAID 1": (with_top("raid1"), "guest-discard-md"),
    "multipath": (with_top("mpath"), "guest-discard-multipath"),
    "bcache": (with_top("bcache"), "guest-discard-link"),
    "disk": ({"devices": {"sda": disk(discard_max=0)}}, "guest-discard-disk"),
    "switched off": (
        {"devices": {"sda": disk(discard_max=0)}, "hardware_max_bytes": {"sda": GIB}},
        "guest-discard-switched-off",
    ),
    "notrim": (
        {"fstab": parse_fstab("LABEL=root / ext4 X-fstrim.notrim 0 1")},
        "guest-mount-notrim",
    ),
    "nodiscard": ({"file_systems": (mounted(options=("nodiscard",)),)}, "guest-mount-nodiscard"),
    "nodiscard in fstab": (
        {"fstab": parse_fstab("LABEL=root / ext4 nodiscard 0 1")},
        "guest-mount-nodiscard",
    ),
    "not in fstab": ({"file_systems": (mounted("sda", "/srv"),)}, "guest-mount-not-in-fstab"),
    "masked": ({"timer": Timer("masked")}, "guest-timer-off"),
    "not started": ({"timer": dataclasses.replace(ON, active=False)}, "guest-timer-off"),
    "disabled": ({"timer": dataclasses.replace(ON, enablement="disabled")}, "guest-timer-off"),
    "timer and cron": ({"cron_jobs": (JOB,)}, "guest-cron-fstrim"),
    "OpenRC": ({"timer": None}, "guest-trim-not-scheduled"),
    "OpenRC, twice": ({"timer": None, "cron_jobs": (OWN, JOB)}, "guest-cron-fstrim"),
    "no agent": ({"agent_installed": False, "agent_running": False}, "guest-agent-missing"),
    "agent off": ({"agent_running": False}, "guest-agent-stopped"),
    "SELinux": ({"selinux_enforcing": True, "selinux_agent": False}, "guest-selinux-agent"),
    "hostonly": (
        {"initramfs": Initramfs("dracut", "/boot/initramfs-5.14.img", virtio_scsi=False)},
        "guest-initramfs-without-virtio-scsi",
    ),
    "no initramfs": ({"initramfs": Initramfs()}, "guest-initramfs-unknown"),
}
QUIET = {
    "as it should be": {},
    "root not in fstab": {"fstab": ()},
    "not in fstab and read-only": {
        "file_systems": (dataclasses.replace(mounted("sda", "/srv"), read_only=True),)
    },
    "all trimmed": {
        "file_systems": (mounted("sda", "/srv"),),
        "timer": dataclasses.replace(ON, command=(("/sbin/fstrim", "--all"),)),
    },
    "all trimmed, RHEL 8": {
        "file_systems": (mounted("sda", "/srv"),),
        "timer": dataclasses.replace(ON, command=(("/usr/sbin/fstrim", "-av"),)),
    },
    "static": {"timer": dataclasses.replace(ON, enablement="static")},
    "OpenRC with our job": {"timer": None, "cron_jobs": (OWN,)},
    "OpenRC with another job": {"timer": None, "cron_jobs": (JOB,)},
    "SELinux permissive": {"selinux_agent": False},
    "SELinux that lets it": {"selinux_enforcing": True, "selinux_agent": True},
    "SELinux without that boolean": {"selinux_enforcing": True},
}


def found(state, **more):
    return [finding.id for finding in checks.findings(dataclasses.replace(state, **more))]


@pytest.mark.parametrize(("state", "id_"), CASES.values(), ids=CASES)
def test_a_finding(state, id_):
    assert found(GOOD, **state) == [id_]


@pytest.mark.parametrize("state", QUIET.values(), ids=QUIET)
def test_none(state):
    assert found(GOOD, **state) == []


@pytest.mark.parametrize("timer", [Timer("disabled"), None])
@pytest.mark.parametrize(
    ("mounts", "severity"),
    [
        ([("rw",)], "warning"),
        ([("rw", "discard")], "info"),
        ([("rw", "discard=async")], "info"),
        ([("rw", "discard=sync"), ("discard",)], "info"),
        ([("rw", "discard"), ("rw",)], "warning"),
        ([("rw", "nodiscard")], "warning"),
        ([], "warning"),
    ],
)
def test_file_systems_that_are_mounted_with_discard(timer, mounts, severity):
    """What is deleted there comes back without fstrim."""
    systems = tuple(mounted("sda", "/", options=options) for options in mounts)
    state = dataclasses.replace(GOOD, timer=timer, file_systems=systems)
    found = {finding.id: finding for finding in checks.findings(state)}
    one = found["guest-timer-off" if timer else "guest-trim-not-scheduled"]
    assert one.severity == severity
    assert ("mounted with discard" in one.reason) == (severity == "info")


def test_what_takes_no_discards_gives_nothing_back_at_once():
    state = dataclasses.replace(GOOD, **with_top("crypt", timer=None))
    systems = tuple(dataclasses.replace(s, options=("discard",)) for s in state.file_systems)
    found = checks.findings(dataclasses.replace(state, file_systems=systems))
    assert {f.id: f.severity for f in found}["guest-trim-not-scheduled"] == "warning"


def test_cron_is_named_where_the_timer_is_off():
    (finding,) = checks.findings(dataclasses.replace(GOOD, timer=Timer(), cron_jobs=(JOB,)))
    assert (finding.id, finding.severity) == ("guest-timer-off", "info")
    assert JOB.path in finding.reason


def test_one_finding_for_one_link_and_the_worst_first():
    state = dataclasses.replace(
        GOOD,
        **with_top("crypt"),
        agent_running=False,
        initramfs=Initramfs(),
    )
    two = (mounted("top", "/srv"), mounted("top", "/evil\n\x1b[2J"))
    findings = checks.findings(dataclasses.replace(state, file_systems=two), domain="web1")
    assert [finding.severity for finding in findings] == ["error", "warning", "info"]
    assert {finding.domain for finding in findings} == {"web1"}
    assert r"/evil\n\x1b[2J" in findings[0].reason


def test_every_finding_is_documented_as_it_is():
    """In the module's notes, with its severity, and no other; each remedy's variable exists."""
    notes = " ".join(yaml.safe_load(linux_guest_info.DOCUMENTATION)["notes"])
    defaults = yaml.safe_load((ROOT / "roles/linux_guest/defaults/main.yml").read_text())
    documented = {word.strip("C(),") for word in notes.split() if word.startswith("C(guest-")}
    assert documented == {id_ for _state, id_ in CASES.values()}
    for state, _id in CASES.values():
        (finding,) = checks.findings(dataclasses.replace(GOOD, **state))
        assert finding.severity in SEVERITIES
        variables = [w.strip(":,.") for w in finding.remedy.split() if w.startswith("linux_guest_")]
        assert set(variables) <= defaults.keys()


@pytest.mark.parametrize(("state", "id_"), CASES.values(), ids=CASES)
def test_the_result_names_the_link(state, id_):
    state = dataclasses.replace(GOOD, **state)
    result = report.result(state, checks.findings(state))
    stopped = [system["stopped_by"] for system in result["file_systems"] if system["stopped_by"]]
    assert bool(stopped) is id_.startswith("guest-discard")
    assert result["summary"][0].startswith(result["findings"][0]["severity"])
