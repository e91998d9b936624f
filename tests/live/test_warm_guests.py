# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests that are restored from one save, side by side, are guests of their own.

See tools/lab/warm.py. That one starts by a cold boot later is seen in test_domain_compact, which
shuts one down.
"""

from __future__ import annotations

import os
import subprocess
import time
from xml.etree import ElementTree

import pytest
from lab import Disk, GuestSpec

MIB = 1 << 20
DISKS = (
    Disk("sda", root=True, discard="unmap"),
    Disk("sdb", serial="data", size_bytes=512 * MIB, discard="unmap", detect_zeroes="unmap"),
    Disk("vdb", "virtio", serial="more", size_bytes=64 * MIB, format="raw"),
)
DEVICE = "/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_data"
WASTE_MIB = 16
DRAW = "for n in $(seq 500); do read uuid </proc/sys/kernel/random/uuid; echo $uuid; done"


@pytest.fixture(scope="module")
def twins(lab):
    names = ("w-castor", "w-pollux")
    try:
        yield [lab.warm(GuestSpec(name, disks=DISKS)) for name in names]
    finally:
        for name in names:
            lab.forget(name)


def test_each_has_an_identity_of_its_own(lab, twins):
    assert len({lab.virsh("domuuid", guest.name) for guest in twins}) == 2
    # Both have the same generator in their memory: with the same key the same numbers would come,
    # though not at the same time.
    drawn = [set(guest.run("sh", "-c", DRAW).stdout.split()) for guest in twins]
    assert [len(numbers) for numbers in drawn] == [500, 500]
    assert not drawn[0] & drawn[1]


def test_the_clock_is_right(twins):
    """That of the save is an hour slow. What a busy machine needs to set it and to ask is less."""
    for guest in twins:
        before = time.time()
        clock = float(guest.run("date", "+%s.%N").stdout)
        assert before - 300 < clock < time.time() + 1


def test_it_is_a_domain_like_any_other(lab, twins):
    for guest in twins:
        said = {line.partition(":")[0]: line.split()[-1] for line in info(lab, guest)}
        assert (said["State"], said["Persistent"], said["Managed save"]) == ("running", "yes", "no")
        running, configured = (disks_of(guest.xml(inactive=way)) for way in (False, True))
        assert running == configured
        assert [disk["target"]["dev"] for disk in configured] == ["sda", "sdb", "vdb"]
        for disk, asked in zip(configured, guest.spec.disks, strict=True):
            assert disk["source"]["file"] == str(asked.path)
            assert disk["driver"].get("discard") == asked.discard
            assert disk["driver"].get("detect_zeroes") == asked.detect_zeroes
        assert "backing" not in image_info(guest.disk("sda").path)


def info(lab, guest):
    return lab.virsh("dominfo", guest.name).splitlines()


def disks_of(xml):
    """What was asked for, and where it hangs; not what only a running domain has."""
    disks = ElementTree.fromstring(xml).findall("devices/disk")
    kept = ("driver", "source", "target", "address")
    found = [{tag: dict(disk.find(tag).attrib) for tag in kept} for disk in disks]
    for disk in found:
        disk["source"].pop("index", None)
    return found


def image_info(path):
    argv = ["qemu-img", "info", "-U", path]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def test_each_has_its_own_disks(twins):
    for guest in twins:
        said = guest.run("lsblk", "-dbno", "SIZE,SERIAL").stdout.split("\n")
        disks = {line.split()[1]: int(line.split()[0]) for line in said if line}
        assert (disks["data"], disks["more"]) == (512 * MIB, 64 * MIB)
        guest.run("sh", "-euc", f"echo {guest.name} >/mine; sync")
        guest.run("mkfs.ext4", "-q", "-E", "nodiscard", DEVICE)
        guest.run("mount", DEVICE, "/mnt")
        for folder in ("/mnt", "/"):
            waste = f"{folder}/waste"
            guest.run("dd", "if=/dev/urandom", f"of={waste}", "bs=1M", f"count={WASTE_MIB}")
            guest.run("sh", "-euc", f"sync; rm {waste}; sync")
    assert [guest.run("cat", "/mine").stdout.strip() for guest in twins] == [
        guest.name for guest in twins
    ]
    for guest in twins:
        for folder, target in (("/mnt", "sdb"), ("/", "sda")):
            before = blocks(guest, target)
            guest.run("fstrim", folder)
            assert before - blocks(guest, target) >= (WASTE_MIB - 2) * MIB
        guest.run("umount", "/mnt")
        assert guest.run("e2fsck", "-f", "-n", DEVICE).rc == 0


def blocks(guest, target):
    return os.stat(guest.disk(target).path).st_blocks * 512


def test_its_images_are_sound(lab, twins):
    for guest in twins:
        guest.run("sh", "-euc", "echo new >/new; sync")
        lab.virsh("suspend", guest.name)  # QEMU writes all that it has
        try:
            for target in ("sda", "sdb"):
                argv = ["qemu-img", "check", "-U", "-q", "-f", "qcow2", guest.disk(target).path]
                subprocess.run(argv, check=True)
        finally:
            lab.virsh("resume", guest.name)
