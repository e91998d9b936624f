# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""domain_compact with power=live, on domains whose processors stand still: what writes is QEMU.

Blocks are counted with stat, content is read with qemu-io, XML is read with virsh.
"""

from __future__ import annotations

import os
import re

import pytest
from image_lab import qemu_io
from lab import Disk, GuestSpec
from support import run_module

MIB = 1 << 20
DEVICE = "scsi0-0-0-0"


@pytest.fixture
def domain(lab):
    """Start domains without a system: 32 MiB of zeros and 4 MiB of sevens on their disk."""
    guests = []

    def domain(name="live", *, file_format="qcow2", **attributes):
        disk = Disk("sda", "scsi", size_bytes=128 * MIB, format=file_format, **attributes)
        guest = lab.create(GuestSpec(name, memory_mib=64, disks=(disk,)))
        guests.append(guest)
        fill(guest, file_format)
        lab.virsh("start", guest.name, "--paused")
        return guest

    yield domain
    for guest in guests:
        guest.destroy()
        lab.virsh("undefine", guest.name, "--managed-save", "--snapshots-metadata")


def fill(guest, file_format="qcow2"):
    commands = ("write -P 0 0 32M", "write -P 7 32M 4M")
    if file_format == "raw":
        qemu_io(guest.disk("sda").path, *commands, file_format="raw")
    else:
        qemu_io(guest.disk("sda").path, *commands)


def compact(lab, *names, **arguments):
    given = {"power": "live", "min_free_bytes": 0, "trim": False, **arguments}
    return run_module("domain_compact", uri=lab.uri, domains=list(names), **given)


def blocks(guest):
    return os.stat(guest.disk("sda").path).st_blocks * 512


def files(guest):
    folder = guest.disk("sda").path.parent
    return sorted(name for name in os.listdir(folder) if guest.name in name)


def without_numbers(xml):
    """QEMU numbers the files that it opens; nothing else may differ."""
    return re.sub(r" index='\d+'", "", xml)


def test_check_then_run_then_again(lab, domain):
    guest = domain()
    live, configured, before = guest.xml(), guest.xml(inactive=True), blocks(guest)
    status = os.stat(guest.disk("sda").path)
    checked = compact(lab, guest.name, check=True)
    assert checked["changed"]
    assert (blocks(guest), files(guest)) == (before, ["live-sda.qcow2"])

    real = compact(lab, guest.name)
    assert real["changed"], real
    (disk,) = real["domains"][0]["disks"]
    assert disk["method"] == "live"
    assert disk["compared"]
    assert real["freed_bytes"] == before - blocks(guest) >= 31 * MIB
    assert files(guest) == ["live-sda.qcow2"]
    assert guest.xml(inactive=True) == configured
    assert without_numbers(guest.xml()) == without_numbers(live)
    after = os.stat(guest.disk("sda").path)
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        status.st_mode,
        status.st_uid,
        status.st_gid,
    )
    assert 0 < disk["stall_seconds"] < 5

    again = compact(lab, guest.name)
    assert not again["changed"]
    guest.destroy()
    qemu_io(guest.disk("sda").path, "read -P 0 0 32M", "read -P 7 32M 4M", "read -P 0 36M 92M")
