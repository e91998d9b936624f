# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook reclaim, and guests that can't be trimmed: this one has no system and no agent."""

from __future__ import annotations

import json

import pytest
from lab import Disk, GuestSpec
from support import run_playbook

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


@pytest.mark.parametrize(
    ("filled", "ok"),
    [
        ({"zero_fill_complete": True}, True),
        ({"zero_fill_complete": False}, False),
        ({"zero_fill_complete": True, "kvm_host": "another"}, False),
    ],
)
def test_a_guest_that_was_filled_need_not_trim(lab, mute, tmp_path, filled, ok):
    hypervisor = {
        "ansible_connection": "local",
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_remote_tmp": str(tmp_path / "ansible-tmp"),
        "ansible_async_dir": str(tmp_path / "ansible-async"),
    }
    # What the role zero_fill leaves behind; the play of the hypervisor reads it.
    member = {"kvm_host": "hypervisor", "zero_fill_result": {"domain": mute}} | filled
    inventory = {
        "kvm_hosts": {"hosts": {"hypervisor": hypervisor}},
        "kvm_linux_guests": {"hosts": {"member": member}},
    }
    given = {"thinvirt_uri": lab.uri, "thinvirt_domains": [mute]}
    extra = ("-e", json.dumps(given))
    done = run_playbook(tmp_path, "thinvirt.kvm.reclaim", inventory, *extra)
    output = done.stdout + done.stderr
    assert (done.returncode == 0) is ok, output
    assert "Start qemu-guest-agent" in output  # it is told in either case
    assert "Compact what is worth it" in output
    assert ok or "Fail for the guests that could not be trimmed" in output
