# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest goes from bus to bus and to a newer machine, back, and is rebuilt; it boots each time."""

from __future__ import annotations

import os
import re

import pytest
from lab import Disk, GuestSpec
from support import run_module

MIB = 1 << 20
NAME = "bus"
NEW = "bus-new"


@pytest.fixture
def guest(lab):
    """A guest on ide with an old machine type; its disks pass discards on."""
    guest = lab.create(
        GuestSpec(
            NAME,
            machine="pc-i440fx-3.1",
            disks=(
                Disk("hda", "ide", root=True, discard="unmap", serial="ROOT"),
                Disk("hdb", "ide", discard="unmap", serial="DATA"),
            ),
        )
    )
    # libvirt orders the controllers that it added itself anew when it reads what it has printed
    path = lab.state / "tmp" / "bus.xml"
    path.write_text(dump(lab, NAME))
    lab.virsh("define", str(path))
    yield guest
    for name in (NAME, NEW):
        if name in lab.virsh("list", "--all", "--name").split():
            lab.guest(name).destroy()
            lab.virsh("undefine", name)


def dump(lab, name):
    return lab.virsh("dumpxml", name, "--inactive", "--security-info")


def way_to(guest, source):
    """Where the kernel found the disk of a file system: the devices on the way to it."""
    device = guest.run("findmnt", "-no", "SOURCE", source).stdout.strip()
    return guest.run("readlink", "-f", f"/sys/class/block/{os.path.basename(device)}").stdout


WAYS = {"ide": r"/ata\d+/host", "scsi": r"/virtio\d+/host", "virtio": r"/virtio\d+/block/"}


def boot(guest, bus):
    """Boot; both disks are on this bus, and all that was written is there."""
    guest.start()
    return came_up(guest, bus)


def came_up(guest, bus):
    guest.wait_for_agent(timeout=300)
    guest.run("mount", "LABEL=data", "/mnt")
    for place in ("/", "/mnt"):
        assert re.search(WAYS[bus], way_to(guest, place))
    guest.run("sha256sum", "--check", "--quiet", "/mnt/sums")
    return [guest.run("findmnt", "-no", "UUID", place).stdout for place in ("/", "/mnt")]


def power_off(guest):
    """All is on the disk; an orderly shutdown is not what is tested, and takes longer."""
    guest.run("umount", "/mnt")
    guest.run("sync")
    guest.destroy()


def prepare(guest):
    """A file system on the second disk, a file on each, and their checksums."""
    guest.start()
    guest.wait_for_agent(timeout=300)
    script = (
        "disk=$(lsblk -dnpo NAME,SERIAL | awk '$2 == \"DATA\" {print $1}')\n"
        "mkfs.ext4 -q -L data $disk && mount $disk /mnt\n"
        "for f in /root/keep /mnt/keep; do dd if=/dev/urandom of=$f bs=1M count=8; done\n"
        "sha256sum /root/keep /mnt/keep > /mnt/sums && sync"
    )
    guest.run("/bin/sh", "-ec", script)
    assert re.search(WAYS["ide"], way_to(guest, "/mnt"))
    return [guest.run("findmnt", "-no", "UUID", place).stdout for place in ("/", "/mnt")]


def trim_in_vain_or_not(guest, path):
    """Write 100 MiB, delete and trim them; fstrim's answer and what the host has got back."""
    guest.run(
        "/bin/sh", "-ec", "dd if=/dev/urandom of=/mnt/x bs=1M count=100; sync; rm /mnt/x; sync"
    )
    before = os.stat(path).st_blocks * 512
    trimmed = guest.run("fstrim", "/mnt", check=False)
    guest.run("sync")
    return trimmed, before - os.stat(path).st_blocks * 512


def test_from_bus_to_bus_and_to_a_newer_machine(lab, guest, tmp_path):
    """Each boot is half a minute: a configuration that is only to come back is not booted."""
    common = {"uri": lab.uri, "domains": [NAME], "state_dir": str(tmp_path / "state")}

    def bus(**arguments):
        result = run_module("domain_disk_bus", **common, **arguments)
        assert not result["failed"], result.get("msg")
        return result

    def machine(**arguments):
        result = run_module("domain_machine", patience=300, **common, **arguments)
        assert not result["failed"], result.get("msg")
        return result

    data = guest.disk("hdb").path
    identity = prepare(guest)
    power_off(guest)
    on_ide = dump(lab, NAME)

    assert bus(bus="scsi")["changed"]
    assert boot(guest, "scsi") == identity
    power_off(guest)
    assert bus(state="restored")["domains"][0]["identical"]
    assert dump(lab, NAME) == on_ide

    assert bus(bus="virtio")["changed"]
    on_virtio = dump(lab, NAME)
    assert boot(guest, "virtio") == identity
    trimmed, freed = trim_in_vain_or_not(guest, data)
    assert trimmed.rc != 0
    assert "not supported" in trimmed.stderr
    assert abs(freed) < MIB
    power_off(guest)

    assert machine(state="current")["changed"]
    raised = dump(lab, NAME)
    assert boot(guest, "virtio") == identity
    trimmed, freed = trim_in_vain_or_not(guest, data)
    assert trimmed.rc == 0
    assert freed >= 95 * MIB
    power_off(guest)

    assert bus(bus="scsi")["changed"]
    rebuilt_beside(lab, guest, identity, machine, tmp_path / "copies")
    power_off(guest)
    assert bus(state="restored")["changed"]
    assert dump(lab, NAME) == raised
    assert machine(state="restored")["changed"]
    assert dump(lab, NAME) == on_virtio


def rebuilt_beside(lab, guest, identity, machine, copies):
    """Both boot, each from disks of its own; the new one gets the same bus, and discards."""
    copies.mkdir()
    before = dump(lab, NAME)
    rebuild = {"name": NEW, "dest_dir": str(copies), "min_free_bytes": 0}
    assert machine(state="rebuilt", rebuild=rebuild)["changed"]
    new = lab.guest(NEW)
    guest.start()
    assert boot(new, "scsi") == identity
    new.run("touch", "/mnt/only-in-the-new-one")
    assert came_up(guest, "scsi") == identity
    assert guest.run("test", "-e", "/mnt/only-in-the-new-one", check=False).rc != 0
    (copy,) = copies.glob(f"{NEW}-sdb.*")
    _trimmed, freed = trim_in_vain_or_not(new, copy)
    assert freed >= 95 * MIB
    assert dump(lab, NAME) == before
