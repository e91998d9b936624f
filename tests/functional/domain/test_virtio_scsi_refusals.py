# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role virtio_scsi refuses before it talks to a guest, what it does in check mode, with a
guest that was moved already, and with one that came up and misses something; guests that run are in
tests/live.

The domains have no system.  Nobody answers for them, so a play that goes on where it should stop
fails as well, but in other words.  In the last tests stand-ins answer for hypervisor and guest.
"""

from __future__ import annotations

import json
import re
import subprocess

import pytest
from linux_stand_in import Guest
from support import run_playbook

NAMES = ("v-one", "v-two")
#: A Python that is killed, as by the kernel for want of memory, when it runs a module for the first
#: time.
KILLED_ONCE = """#!/bin/sh
case "$*" in *AnsiballZ_domain_disk_bus.py*)
    if mkdir "{folder}/killed" 2>/dev/null; then kill -KILL $$; fi;;
esac
exec /usr/bin/python3 "$@"
"""


@pytest.fixture
def before(lab, tmp_path):
    """Two domains on virtio-blk that can discard; their configuration."""
    for name in NAMES:
        disk = tmp_path / f"{name}.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "1M"], check=True)
        text = f"""
        <domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory>
          <os><type arch='x86_64' machine='pc'>hvm</type></os>
          <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
            <source file='{disk}'/><target dev='vda' bus='virtio'/></disk></devices></domain>"""
        (tmp_path / "d.xml").write_text(text)
        lab.virsh("define", str(tmp_path / "d.xml"))
    yield configured(lab)
    for name in NAMES:
        lab.virsh("undefine", name)


def configured(lab):
    return [lab.virsh("dumpxml", name, "--inactive") for name in NAMES]


@pytest.fixture
def play(lab, tmp_path):
    """Run the playbook on both; what it printed, as one line."""

    def play(*, python="/usr/bin/python3", **variables):
        hypervisor = {
            "ansible_connection": "local",
            "ansible_python_interpreter": python,
            "ansible_remote_tmp": str(tmp_path / "tmp"),
            "thinvirt_uri": lab.uri,
        }
        guest = {"ansible_connection": "community.libvirt.libvirt_qemu", "kvm_host": "hypervisor"}
        inventory = {
            "kvm_hosts": {"hosts": {"hypervisor": hypervisor}},
            "kvm_linux_guests": {"hosts": dict.fromkeys(NAMES, guest)},
            "kvm_windows_guests": {},
        }
        # Nothing is known of the guests' Python, as hypervisors are no place to look for it.
        given = {
            "virtio_scsi_state_dir": str(tmp_path / "state"),
            "virtio_scsi_poll_seconds": 1,
            **variables,
        }
        extra = ("-e", json.dumps(given))
        done = run_playbook(tmp_path, "thinvirt.kvm.virtio_scsi", inventory, *extra)
        assert done.returncode == 2, done.stdout
        assert "changed=0" in done.stdout
        return " ".join(done.stdout.split())

    return play


def test_disks_that_need_not_be_moved(lab, before, play):
    output = play()
    for name in NAMES:
        assert re.search(rf'"msg": "{name}: [^"]* Nothing was changed\. Set discard with', output)
    assert configured(lab) == before


def test_who_has_another_reason_gets_further(lab, before, play):
    output = play(virtio_scsi_force=True)
    assert "thinvirt.kvm.configure" not in output
    for name in NAMES:
        assert f"{name} is off, so the guest cannot be prepared; nothing was changed" in output
    assert configured(lab) == before


def test_guests_of_which_nobody_knows_whether_they_need_to_be_recovered(
    lab, before, play, tmp_path
):
    """The call for all of them is killed: none of them may be taken for one that needs nothing."""
    python = tmp_path / "python"
    python.write_text(KILLED_ONCE.format(folder=tmp_path))
    python.chmod(0o755)
    output = play(python=str(python), virtio_scsi_force=True)
    assert (tmp_path / "killed").is_dir()
    assert "is off" not in output
    for name in NAMES:
        assert f"{name}: The call on hypervisor for all its guests failed" in output
    assert configured(lab) == before


def mounted(*mount_points):
    return [{"uuid": f"uuid-of-{each}", "mount_point": each} for each in mount_points]


NAME = NAMES[0]
PART = {"name": NAME, "changed": True, "active": True, "findings": []}
CALM = {"changed": False, "stale_grub_cfg": [], "initramfs_stale": False, "files": []}
INITRAMFS = {"virtio_scsi": True, "path": "/boot/initrd", "generator": "initramfs-tools"}
NOTHING_LEFT = {"changed": False, "domains": [{"name": NAME, "recovered": ""}]}


class Played:
    """A run of the playbook in which stand-ins answer for a hypervisor and a guest of it."""

    def __init__(self, folder, bus, names, *options):
        answers = {
            "linux_guest_info": {"initramfs": INITRAMFS},
            "linux_guest_device_names": names,
            "command": {"changed": False, "rc": 0, "stdout": ""},
            "ping": {"ping": "pong"},
        }
        self.hypervisor = Guest(folder / "hypervisor", {"domain_disk_bus": bus})
        self.guest = Guest(folder / "guest", answers)
        local = {"ansible_connection": "local", "ansible_remote_tmp": str(folder / "tmp")}
        hypervisor = {**local, "ansible_python_interpreter": str(self.hypervisor.python)}
        guest = {**local, "ansible_python_interpreter": str(self.guest.python)}
        inventory = {
            "kvm_hosts": {"hosts": {"hypervisor": hypervisor}},
            "kvm_linux_guests": {"hosts": {NAME: {**guest, "kvm_host": "hypervisor"}}},
            "kvm_windows_guests": {},
        }
        given = {
            "virtio_scsi_async_seconds": 0,
            "__virtio_scsi_mount_delay": 0,
            "virtio_scsi_boot_timeout": 7,
        }
        extra = ("-e", json.dumps(given))
        done = run_playbook(
            folder, "thinvirt.kvm.virtio_scsi", inventory, *extra, *options, patience=240
        )
        self.rc, self.output = done.returncode, " ".join(done.stdout.split())
        self.asked = [
            (given.get("state"), given.get("power"))
            for module, given in self.hypervisor.calls
            if module == "domain_disk_bus" and given["domains"] == [NAME]
        ]


def test_check_mode_asks_for_all_of_it_and_has_nothing_done(tmp_path):
    """That the modules change nothing then: tests/functional, for a guest's files tests/live."""
    names = {
        **CALM,
        "changed": True,
        "mkconfig": "grub-mkconfig",
        "stale_grub_cfg": ["/boot/grub/grub.cfg"],
        "initramfs_stale": True,
        "mounted": mounted("/"),
    }
    moving = {"changed": True, "domains": [PART]}
    played = Played(tmp_path, [NOTHING_LEFT, moving, moving], names, "--check")
    assert played.rc == 0, played.output
    assert played.asked == [("recovered", None), (None, "cycle"), (None, "cycle")]
    assert "linux_guest_device_names" in [name for name, _given in played.guest.calls]
    assert played.hypervisor.done == played.guest.done == []


def test_a_guest_that_was_moved_is_left_alone(tmp_path):
    part = {**PART, "changed": False}
    played = Played(tmp_path, [NOTHING_LEFT, {"changed": False, "domains": [part]}], CALM)
    assert played.rc == 0, played.output
    assert played.asked == [("recovered", None), (None, "cycle")]
    assert played.hypervisor.done == ["domain_disk_bus"], "to recover what a killed run has left"
    assert played.guest.calls == []
    assert f"{NAME} : ok=" in played.output
    assert "changed=0" in played.output


def test_a_guest_that_came_up_without_a_file_system_gets_its_old_bus_back(tmp_path):
    """This tests what the role asks for; that domain_disk_bus does it is in tests/live."""
    moving = {"changed": True, "domains": [PART]}
    names = [{**CALM, "mounted": each} for each in (mounted("/", "/mnt"),) * 2 + (mounted("/"),)]
    played = Played(tmp_path, [NOTHING_LEFT, moving, moving, {"changed": True}], names)
    assert played.rc == 2, played.output
    assert f"{NAME} came up on virtio-scsi, but not with the file systems that" in played.output
    assert "it runs on its old bus again. Missing: /mnt." in played.output
    assert played.asked == [
        ("recovered", None),
        (None, "cycle"),
        (None, "cycle"),
        ("restored", "cycle"),
    ]
    assert played.hypervisor.calls[-1][1]["boot_timeout"] == 7
