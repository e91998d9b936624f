# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook reclaim, and guests that can't be trimmed: this one has no system and no agent."""

from __future__ import annotations

import json
import os

import pytest
from image_lab import qemu_io
from lab import Disk, GuestSpec
from support import run_playbook

MIB = 1 << 20
NAME = "t-reclaim"


@pytest.fixture(scope="module")
def mute(lab):
    """The name of a guest that runs, and can't be trimmed."""
    disk = Disk("sda", "scsi", size_bytes=1 << 20, discard="unmap")
    guest = lab.create(GuestSpec(NAME, machine="pc", memory_mib=64, disks=(disk,)))
    try:
        guest.start()
        yield guest.name
    finally:
        guest.destroy()
        lab.virsh("undefine", guest.name)


@pytest.fixture
def waste(lab):
    """A domain that is off, whose image holds 16 MiB of zeros."""
    guest = lab.create(GuestSpec("t-waste", disks=(Disk("sda", size_bytes=64 * MIB),)))
    qemu_io(guest.disk("sda").path, "write -P 0 0 16M")
    yield guest
    lab.virsh("undefine", guest.name)


def reclaim(lab, folder, members, *domains, **variables):
    """Run it with this machine as the hypervisor; the return code, and what it said."""
    local = {
        "ansible_connection": "local",
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_remote_tmp": str(folder / "ansible-tmp"),
        "ansible_async_dir": str(folder / "ansible-async"),
    }
    common = local | {"kvm_host": "hypervisor"}
    guests = {name: common | member for name, member in members.items()}
    inventory = {
        "kvm_hosts": {"hosts": {"hypervisor": local}},
        "kvm_linux_guests": {"hosts": guests},
    }
    given = {"thinvirt_uri": lab.uri, "thinvirt_domains": domains} | variables
    done = run_playbook(folder, "thinvirt.kvm.reclaim", inventory, "-e", json.dumps(given))
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize(
    ("filled", "ok"),
    [
        ({"zero_fill_complete": True}, True),
        ({"zero_fill_complete": False}, False),
        ({"zero_fill_complete": True, "kvm_host": "another"}, False),
    ],
)
@pytest.mark.slow("a whole playbook each")
def test_a_guest_that_was_filled_need_not_trim(lab, mute, tmp_path, filled, ok):
    # What the role zero_fill leaves behind; the play of the hypervisor reads it.
    member = {"zero_fill_result": {"domain": mute}} | filled
    rc, output = reclaim(lab, tmp_path, {"member": member}, mute)
    assert (rc == 0) is ok, output
    assert "Start qemu-guest-agent" in output  # it is told in either case
    assert "Compact what is worth it" in output
    assert ok or "TASK [thinvirt.kvm.compact_images : Fail for what could not be done]" in output


@pytest.mark.slow("a whole playbook")
def test_compaction_follows_although_no_guest_was_filled(lab, mute, waste, tmp_path):
    """Ansible ends where all hosts of a play have failed, or are out of reach."""
    path = waste.disk("sda").path
    assert os.stat(path).st_blocks * 512 > 16 * MIB
    away = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    members = {
        "refused": {"kvm_domain": waste.name},
        "unreachable": {"kvm_domain": mute, "zero_fill_accept_growth": True, **away},
    }
    given = {"thinvirt_zero_fill": True, "compact_images_min_free_bytes": 0}
    rc, output = reclaim(lab, tmp_path, members, waste.name, **given)
    assert rc != 0
    assert f"{waste.name} is off. Nothing was written." in output
    assert "unreachable=1" in output
    assert os.stat(path).st_blocks * 512 < MIB, output
