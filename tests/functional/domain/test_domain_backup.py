# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""domain_backup on domains without a system: paused ones count as running.

Copies are compared with qemu-img, jobs are looked for with virsh, files with os.listdir.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from backup_lab import assert_nothing_left, assert_whole, backup, entry, versions
from compact_lab import answer, start, wait_for
from image_lab import qemu_io, run
from lab import Disk, GuestSpec
from support import assert_explains

MIB = 1 << 20


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "backup"
    path.mkdir()
    return path


@pytest.fixture
def domain(lab):
    """Define domains without a system, two disks with data each; a function of the name."""
    guests = []

    def domain(name="b-off", *, second="raw", data_mib=8):
        disks = (
            Disk("sda", "scsi", size_bytes=64 * MIB),
            Disk("vdb", "virtio", size_bytes=64 * MIB, format=second),
        )
        guest = lab.create(GuestSpec(name, memory_mib=64, disks=disks))
        guests.append(guest)
        path = guest.disk("sda").path
        source = path.parent / "random"
        source.write_bytes(os.urandom(data_mib * MIB))
        qemu_io(path, f"write -s {source} 0 {data_mib}M")
        if second == "raw":
            with open(guest.disk("vdb").path, "r+b") as file:
                file.write(os.urandom(MIB))
        source.unlink()
        return guest

    yield domain
    for guest in guests:
        guest.destroy()
        lab.virsh("undefine", guest.name, "--managed-save", "--checkpoints-metadata")


def assert_same(version, guest):
    """The copies hold what the disks hold; qemu-img reads both."""
    for disk in guest.spec.disks:
        copy = Path(version, f"{disk.target}.qcow2")
        formats = ("-f", "qcow2", "-F", disk.format, "-U")
        run("qemu-img", "compare", *formats, copy, disk.path)


@pytest.mark.parametrize("running", [True, False])
def test_check_then_run_then_again(lab, domain, folder, running):
    guest = domain()
    if running:
        lab.virsh("start", guest.name, "--paused")
    checked = backup(lab, folder, guest.name, check=True)
    assert checked["changed"]
    assert os.listdir(folder) == []

    made = entry(backup(lab, folder, guest.name))
    assert made["changed"]
    assert made["consistency"] == ("crash" if running else "off")
    assert [disk["compared"] for disk in made["disks"]] == [True, True]
    manifest = assert_whole(made["version"])
    assert manifest["uuid"] == made["uuid"]
    assert_same(made["version"], guest)
    assert os.stat(made["version"]).st_mode & 0o777 == 0o700
    assert_nothing_left(lab, guest, folder)
    info = json.loads(run("qemu-img", "info", "--output=json", Path(made["version"], "sda.qcow2")))
    assert info["cluster-size"] == 2 * MIB
    assert info["format-specific"]["data"]["compression-type"] == "zstd"

    again = entry(backup(lab, folder, guest.name))
    assert again["changed"] is running
    assert len(versions(folder, guest.name)) == (2 if running else 1)
    if not running:
        assert again["status"] == "unchanged"
        assert not backup(lab, folder, guest.name, check=True)["changed"]
        qemu_io(guest.disk("sda").path, "write -P 9 0 1M")
        assert entry(backup(lab, folder, guest.name))["changed"]
