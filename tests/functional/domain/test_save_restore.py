# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""apply=save_restore against a real libvirt and QEMU, on guests that have no system and are paused.

A guest that is resumed is paused again; one that was booted anew would run. So its state tells
whether its memory was kept. Guests that work and write are in tests/live.
"""

from __future__ import annotations

import os
import signal
import subprocess
from xml.etree import ElementTree

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._discard import save_restore
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import Hypervisor
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from lab import Disk, GuestSpec
from libvirtd import kill_libvirtd, libvirtd_pid, start_libvirtd
from save_lab import (
    AFTER,
    MOMENTS,
    NAMESPACE,
    arguments,
    assert_nothing_left,
    kill_at,
    other_setting,
    restart_libvirtd,
)
from support import assert_explains, run_module

MIB = 1 << 20


@pytest.fixture
def guest(lab):
    disks = (Disk("sda", "scsi", size_bytes=MIB), Disk("vda", "virtio", size_bytes=MIB))
    guest = lab.create(GuestSpec("f-s-r", memory_mib=64, disks=disks))
    lab.virsh("start", guest.name, "--paused")
    yield guest
    guest.destroy()
    lab.virsh("undefine", guest.name, "--managed-save")


def run(lab, guest, **more):
    return run_module("domain_discard", **arguments(lab, guest, **more))


def test_check_then_run_then_again(lab, guest):
    before = guest.xml(), guest.xml(inactive=True)
    checked = run(lab, guest, check=True)
    assert checked["domains"][0]["actions"] == ["configured", "saved", "restored"]
    assert "pause_seconds" not in checked["domains"][0]
    assert (guest.xml(), guest.xml(inactive=True)) == before
    real = run(lab, guest)
    assert real["diff"] == checked["diff"]
    (entry,) = real["domains"]
    assert entry["actions"] == checked["domains"][0]["actions"]
    assert entry["pause_seconds"] > 0
    assert "clock_set" not in entry  # a paused guest has no time
    assert not entry["restart_required"]
    assert guest.xml().count("discard='unmap'") == 2
    assert guest.xml(inactive=True).count("discard='unmap'") == 2
    assert guest.state() == "paused"
    assert_nothing_left(lab, guest)
    assert not run(lab, guest)["changed"]


def test_what_else_is_configured_goes_on_waiting(lab, guest):
    lab.virsh("setvcpus", guest.name, "3", "--config", "--maximum")
    run(lab, guest)
    assert "discard='unmap'" in guest.xml()
    assert ">1</vcpu>" in guest.xml()
    assert ">3</vcpu>" in guest.xml(inactive=True)


@pytest.mark.parametrize(("call", "delay"), MOMENTS)
def test_killed(lab, guest, call, delay):
    given = kill_at(lab, guest, call, delay)
    assert NAMESPACE in guest.xml(inactive=True)
    result = run_module("domain_discard", **given)
    assert not result["failed"], result
    assert result["domains"][0]["actions"][0] == "recovered"
    assert f"detect_zeroes='{given['detect_zeroes']}'" in guest.xml()
    assert guest.state() == "paused"
    assert_nothing_left(lab, guest)
    assert not run_module("domain_discard", **given)["changed"]


def test_killed_and_started_by_hand(lab, guest):
    given = kill_at(lab, guest, "managedSaveDefineXML", AFTER)
    assert guest.state() == "shut off"
    lab.virsh("start", guest.name)
    assert guest.state() == "paused"
    result = run_module("domain_discard", **given)
    assert result["domains"][0]["actions"] == ["recovered"]
    assert_nothing_left(lab, guest)


#: libvirtd died while QEMU had written all: QEMU saves no more until its guest has run, and libvirt
#: does not resume one that was paused on purpose. One that ran, it does.
PAUSED_FOR_GOOD = "paused due to previous migration"


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.2, 0.5])
@pytest.mark.slow("a libvirtd that was killed may be busy with the guest for good")
def test_libvirtd_is_killed_meanwhile(lab, guest, delay):
    given = arguments(lab, guest, detect_zeroes=other_setting(guest), timeout=40)
    thread = restart_libvirtd(lab, guest, delay=delay)
    run_module("domain_discard", patience=400, **given)
    thread.join()
    again = run_module("domain_discard", patience=400, **given)
    if "libvirt was busy" in again.get("msg", ""):
        assert "pid='0'" in status_file(lab, guest).read_text()
        forget_start(lab, guest)
        again = run_module("domain_discard", **given)
    if PAUSED_FOR_GOOD in again.get("msg", ""):
        assert "nothing was changed" in again["msg"]
        lab.virsh("resume", guest.name)
        lab.virsh("suspend", guest.name)
        again = run_module("domain_discard", **given)
    assert not again["failed"], again["msg"]
    assert f"detect_zeroes='{given['detect_zeroes']}'" in guest.xml()
    assert guest.state() == "paused"
    assert_nothing_left(lab, guest)


def status_file(lab, guest):
    """What libvirtd knows of a guest that runs, for the next libvirtd."""
    return lab.state / "run" / "qemu" / f"{guest.name}.xml"


def forget_start(lab, guest):
    """Do what the message tells."""
    kill_libvirtd(lab)
    status_file(lab, guest).unlink()
    start_libvirtd(lab)


@pytest.mark.slow("libvirt lets everybody wait 30 s for a job that nobody ends")
def test_libvirtd_was_killed_before_it_started_qemu(lab, guest):
    """The same as made by chance above: with libvirt 9.0, once in ten runs on a machine at work."""
    given = kill_at(lab, guest, "managedSaveDefineXML", AFTER)
    lab.virsh("start", guest.name)
    path = status_file(lab, guest)
    kill_libvirtd(lab)
    status = ElementTree.fromstring(path.read_text())
    os.kill(int(status.get("pid")), signal.SIGKILL)
    status.set("pid", "0")
    status.set("state", "paused")
    status.set("reason", "starting up")
    for vcpu in status.find("vcpus"):
        status.find("vcpus").remove(vcpu)
    job = {"type": "none", "async": "start", "flags": "0x0", "asyncStarted": "1795967457157"}
    status.append(ElementTree.Element("job", job))
    path.write_text(ElementTree.tostring(status, encoding="unicode"))
    start_libvirtd(lab)
    result = run_module("domain_discard", timeout=1, **given)
    assert_explains(result, guest.name, "libvirt was busy", f"/run/libvirt/qemu/{guest.name}.xml")
    forget_start(lab, guest)
    assert not run_module("domain_discard", **given)["failed"]
    assert_nothing_left(lab, guest)


def test_a_domain_that_does_not_fit_is_refused(lab, guest):
    """The folder is a small tmpfs in the namespace of the lab's libvirtd, and nowhere else."""
    folder = "/var/lib/libvirt/qemu/save"
    inside = ("nsenter", "--target", str(libvirtd_pid(lab)), "--mount")
    subprocess.run([*inside, "mount", "-t", "tmpfs", "-o", "size=64m", "t", folder], check=True)
    try:
        for check in (True, False):
            before = guest.xml(inactive=True), guest.xml()
            wanted = arguments(lab, guest, detect_zeroes=other_setting(guest))
            result = run_module("domain_discard", check=check, **wanted)
            assert_explains(result, "320 MiB", folder, "64 MiB free", "nothing was changed")
            assert not result["changed"]
            assert (guest.xml(inactive=True), guest.xml()) == before
    finally:
        subprocess.run([*inside, "umount", folder], check=True)


def assert_refused(lab, guest, *words):
    for check in (True, False):
        before = guest.xml(inactive=True), guest.xml()
        result = run(lab, guest, check=check)
        assert_explains(result, *words, "nothing was changed")
        assert not result["changed"]
        assert (guest.xml(inactive=True), guest.xml()) == before


def test_a_block_job_is_refused(lab, guest, tmp_path):
    lab.virsh("blockcopy", guest.name, "sda", str(tmp_path / "copy.qcow2"), "--transient-job")
    try:
        assert_refused(lab, guest, "block job on sda")
    finally:
        lab.virsh("blockjob", guest.name, "sda", "--abort")


def test_what_cannot_be_migrated_is_refused(lab, guest, tmp_path):
    """A shared folder: no machine has to have a device to give away, and all are found alike."""
    guest.destroy()
    folder = f"<filesystem type='mount'><source dir='{tmp_path}'/><target dir='t'/></filesystem>"
    text = guest.xml(inactive=True).replace("</devices>", f"{folder}</devices>")
    (tmp_path / "x.xml").write_text(text)
    lab.virsh("define", str(tmp_path / "x.xml"))
    lab.virsh("start", guest.name, "--paused")
    assert_refused(lab, guest, "a shared folder", "power_cycle")


def test_an_older_saved_state_is_refused(lab, guest):
    """One that was restored by its file's name is still there, and a start would resume it."""
    lab.virsh("managedsave", guest.name)
    lab.virsh("restore", f"/var/lib/libvirt/qemu/save/{guest.name}.save", "--paused")
    assert "yes" in lab.virsh("dominfo", guest.name).split("Managed save:")[1].split()[0]
    assert_refused(lab, guest, "an older saved state", "managedsave-remove")


def test_a_transient_guest_is_refused(lab, guest, tmp_path):
    (tmp_path / "x.xml").write_text(guest.xml(inactive=True))
    lab.virsh("undefine", guest.name)
    try:
        before = guest.xml()
        for check in (True, False):
            result = run(lab, guest, check=check)
            assert_explains(result, "transient", "nothing was changed")
            assert not result["changed"]
        # Undefined after it was planned for: libvirt would forget it, memory and all.
        with Hypervisor(lab.uri, local_only=True) as hypervisor:
            (domain,) = hypervisor.guests([guest.name])
            live = domain.live_xml()
            with pytest.raises(RefusedError, match="would forget it once it is saved"):
                save_restore.refuse(hypervisor, domain, xml.parse_domain(live), live)
        assert guest.xml() == before
    finally:
        lab.virsh("define", str(tmp_path / "x.xml"))


def test_what_only_a_start_tells_the_guest_is_refused(lab, guest):
    before = guest.xml(inactive=True)
    result = run(lab, guest, disks=["sda"], rotation_rate=1)
    assert_explains(result, "read by the guest when it starts", "power_cycle")
    assert guest.xml(inactive=True) == before


EMULATOR = """#!/bin/sh
# Stands for a QEMU that does not take the new settings when a guest is restored. It waits for
# libvirt, which quotes only one that ends after it had opened its monitor.
case "$*" in *'"detect-zeroes":"on"'*) sleep 3; echo "no detect-zeroes here" >&2; exit 1;; esac
exec {} "$@"
"""


@pytest.mark.slow("a QEMU fails twice, and libvirt waits for it")
def test_a_failed_restore_falls_back_to_the_old_settings(lab, guest, tmp_path):
    guest.destroy()
    emulator = ElementTree.fromstring(guest.xml()).findtext("devices/emulator")
    wrapper = lab.state / "tmp" / "emulator"
    wrapper.write_text(EMULATOR.format(emulator))
    wrapper.chmod(0o755)
    (tmp_path / "x.xml").write_text(guest.xml(inactive=True).replace(emulator, str(wrapper)))
    lab.virsh("define", str(tmp_path / "x.xml"))
    lab.virsh("start", guest.name, "--paused")
    result = run(lab, guest, detect_zeroes="on")
    assert_explains(
        result, "could not be restored with its new", "restored with its old ones", "no detect-ze"
    )
    assert result["changed"]
    (entry,) = result["domains"]
    assert entry["actions"] == ["configured", "saved", "restored"]
    assert entry["restart_required"]
    assert entry["pause_seconds"] > 0
    assert "detect_zeroes" not in guest.xml()
    assert guest.state() == "paused"
    assert_nothing_left(lab, guest)

    # Killed before it could fall back, the next run does.
    given = kill_at(lab, guest, "create", 0, detect_zeroes="on")
    result = run_module("domain_discard", **given | {"apply": "config"})
    assert result["domains"][0]["actions"] == ["recovered"]
    assert result["domains"][0]["restart_required"]
    assert "detect_zeroes" not in guest.xml()
    assert guest.state() == "paused"
    assert_nothing_left(lab, guest)
