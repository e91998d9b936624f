# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role virtio_scsi refuses before it talks to a guest, and what it does with a guest that
came up and misses something; guests that run are in tests/live.

The domains have no system.  Nobody answers for them, so a play that goes on where it should stop
fails as well, but in other words.  In the last test stand-ins answer for hypervisor and guest.
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


def test_a_guest_that_came_up_without_a_file_system_gets_its_old_bus_back(tmp_path):
    """This tests what the role asks for; that domain_disk_bus does it is in tests/live."""
    name = NAMES[0]
    part = {"name": name, "changed": True, "active": True, "findings": []}
    calm = {"changed": False, "stale_grub_cfg": [], "initramfs_stale": False, "files": []}
    hypervisor = Guest(
        tmp_path / "hypervisor",
        {
            "domain_disk_bus": [
                {"changed": False, "domains": [{"name": name, "recovered": ""}]},
                {"changed": True, "domains": [part]},
                {"changed": True, "domains": [part]},
                {"changed": True},
            ]
        },
    )
    guest = Guest(
        tmp_path / "guest",
        {
            "linux_guest_info": {"initramfs": {"virtio_scsi": True, "path": "/boot/initrd"}},
            "linux_guest_device_names": [
                {**calm, "mounted": mounted("/", "/mnt")},
                {**calm, "mounted": mounted("/", "/mnt")},
                {**calm, "mounted": mounted("/")},
            ],
            "command": {"changed": False, "rc": 0, "stdout": ""},
            "ping": {"ping": "pong"},
        },
    )
    hosts = {
        "hypervisor": {"ansible_python_interpreter": str(hypervisor.python)},
        name: {"ansible_python_interpreter": str(guest.python), "kvm_host": "hypervisor"},
    }
    for each in hosts.values():
        each.update(ansible_connection="local", ansible_remote_tmp=str(tmp_path / "tmp"))
    inventory = {
        "kvm_hosts": {"hosts": {"hypervisor": hosts["hypervisor"]}},
        "kvm_linux_guests": {"hosts": {name: hosts[name]}},
        "kvm_windows_guests": {},
    }
    given = {
        "virtio_scsi_async_seconds": 0,
        "__virtio_scsi_mount_delay": 0,
        "virtio_scsi_boot_timeout": 7,
    }
    done = run_playbook(
        tmp_path, "thinvirt.kvm.virtio_scsi", inventory, "-e", json.dumps(given), patience=240
    )
    output = " ".join(done.stdout.split())
    assert done.returncode == 2, done.stdout
    assert f"{name} came up on virtio-scsi, but not with the file systems that it had" in output
    assert "it runs on its old bus again. Missing: /mnt." in output
    asked = [arguments for module, arguments in hypervisor.calls if module == "domain_disk_bus"]
    assert [(each.get("state"), each["domains"]) for each in asked] == [
        ("recovered", [name]),
        (None, [name]),
        (None, [name]),
        ("restored", [name]),
    ]
    assert [each.get("power") for each in asked] == [None, "cycle", "cycle", "cycle"]
    assert asked[-1]["boot_timeout"] == 7
