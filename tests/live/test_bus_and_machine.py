# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest goes from bus to bus and to a newer machine, and is rebuilt; four boots prove it."""

from __future__ import annotations

import hashlib
import os
import re

import pytest
from image_lab import run
from lab import Disk, GuestSpec
from support import run_module

MIB, GIB = 1 << 20, 1 << 30
DATA_UUID = "7468696e-7669-7274-8000-6b766d000001"
NAME = "bus"
NEW = "bus-new"


@pytest.fixture
def guest(lab, tmp_path):
    """A guest on ide with an old machine type; its disks pass discards on."""
    data = file_system(tmp_path)
    guest = lab.create(
        GuestSpec(
            NAME,
            machine="pc-i440fx-3.1",
            disks=(
                Disk("hda", "ide", root=True, discard="unmap", serial="ROOT"),
                Disk("hdb", "ide", discard="unmap", serial="DATA", path=data),
            ),
        )
    )
    # libvirt orders the controllers that it added itself anew when it reads what it has printed
    path = lab.state / "tmp" / "bus.xml"
    path.write_text(dump(lab, NAME))
    lab.virsh("define", str(path))
    yield guest
    for name in (NAME, NEW):
        lab.forget(name)


def file_system(folder):
    """An image with a file system, made on the host: a file in it, and its checksum."""
    content = folder / "content"
    content.mkdir()
    kept = os.urandom(8 * MIB)
    (content / "keep").write_bytes(kept)
    (content / "sums").write_text(f"{hashlib.sha256(kept).hexdigest()}  /mnt/keep\n")
    raw, image = folder / "data.raw", folder / "data.qcow2"
    with raw.open("wb") as file:
        file.truncate(GIB)
    run("mke2fs", "-q", "-t", "ext4", "-L", "data", "-U", DATA_UUID, "-d", content, raw)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image)
    raw.unlink()
    return image


def dump(lab, name):
    return lab.virsh("dumpxml", name, "--inactive", "--security-info")


def way_to(guest, source):
    """Where the kernel found the disk of a file system: the devices on the way to it."""
    device = guest.run("findmnt", "-no", "SOURCE", source).stdout.strip()
    return guest.run("readlink", "-f", f"/sys/class/block/{os.path.basename(device)}").stdout


WAYS = {"scsi": r"/virtio\d+/host", "virtio": r"/virtio\d+/block/"}


def boot(guest, bus):
    """Boot; both disks are on this bus, and all that was written is there."""
    guest.start()
    guest.wait_for_agent(timeout=300)
    guest.run("mount", f"UUID={DATA_UUID}", "/mnt")
    for place in ("/", "/mnt"):
        assert re.search(WAYS[bus], way_to(guest, place))
    guest.run("sha256sum", "--check", "--quiet", "/mnt/sums")
    return guest.run("findmnt", "-no", "UUID", "/").stdout


def power_off(guest):
    """All is on the disk; an orderly shutdown is not what is tested, and takes longer."""
    guest.run("umount", "/mnt")
    guest.run("sync")
    guest.destroy()


def write_on_the_root(guest):
    """What the later boots have to find there as well."""
    write = "dd if=/dev/urandom of=/root/keep bs=1M count=8; sha256sum /root/keep >>/mnt/sums; sync"
    guest.run("/bin/sh", "-ec", write)


def trim_in_vain_or_not(guest, path):
    """Write 100 MiB, delete and trim them; fstrim's answer and what the host has got back."""
    guest.run(
        "/bin/sh", "-ec", "dd if=/dev/urandom of=/mnt/x bs=1M count=100; sync; rm /mnt/x; sync"
    )
    before = os.stat(path).st_blocks * 512
    trimmed = guest.run("fstrim", "/mnt", check=False)
    guest.run("sync")
    return trimmed, before - os.stat(path).st_blocks * 512


@pytest.mark.slow("four boots")
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
    on_ide = dump(lab, NAME)

    assert bus(bus="scsi")["changed"]
    identity = boot(guest, "scsi")
    write_on_the_root(guest)
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
    assert bus(state="restored")["changed"]
    assert dump(lab, NAME) == raised
    assert machine(state="restored")["changed"]
    assert dump(lab, NAME) == on_virtio


def rebuilt_beside(lab, guest, identity, machine, copies):
    """The new one boots from disks of its own, and gets the same bus, and discards.

    The old one is not booted again: what it consists of is as it was.
    """
    copies.mkdir()
    before, held = dump(lab, NAME), checksums(guest)
    rebuild = {"name": NEW, "dest_dir": str(copies), "min_free_bytes": 0}
    assert machine(state="rebuilt", rebuild=rebuild)["changed"]
    new = lab.guest(NEW)
    assert boot(new, "scsi") == identity
    (copy,) = copies.glob(f"{NEW}-sdb.*")
    _trimmed, freed = trim_in_vain_or_not(new, copy)
    assert freed >= 95 * MIB
    assert dump(lab, NAME) == before
    assert checksums(guest) == held


def checksums(guest):
    """Of the files of a guest's disks."""
    return [run("sha256sum", disk.path) for disk in guest.spec.disks]
