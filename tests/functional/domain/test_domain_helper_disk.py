# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""domain_helper_disk against a real libvirt, without a guest; virsh tells what libvirt keeps."""

from __future__ import annotations

import os
import subprocess
from xml.etree import ElementTree as ET

import pytest
from support import assert_explains, run_module

MIB = 1 << 20


@pytest.fixture
def domain(lab, tmp_path):
    """A domain on ide that boots from its first disk, or from a CD."""
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "c.qcow2", "1G"], check=True
    )
    (tmp_path / "virtio-win.iso").write_bytes(bytes(MIB))
    text = f"""
    <domain type='qemu'><name>h-win</name><memory unit='MiB'>64</memory>
      <os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type><boot dev='hd'/></os>
      <devices>
        <disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
          <source file='{tmp_path}/c.qcow2'/><target dev='hda' bus='ide'/></disk>
        <disk type='file' device='cdrom'><target dev='hdc' bus='ide'/></disk>
      </devices></domain>"""
    (tmp_path / "d.xml").write_text(text)
    lab.virsh("define", str(tmp_path / "d.xml"))
    (tmp_path / "d.xml").write_text(dump(lab))
    lab.virsh("define", str(tmp_path / "d.xml"))
    yield "h-win"
    if lab.virsh("domstate", "h-win").strip() != "shut off":
        lab.virsh("destroy", "h-win")
    lab.virsh("undefine", "h-win", "--snapshots-metadata")


def dump(lab):
    return lab.virsh("dumpxml", "h-win", "--inactive", "--security-info")


def disks(lab):
    found = {}
    for disk in ET.fromstring(dump(lab)).findall("devices/disk"):
        source = disk.find("source")
        target = disk.find("target")
        found[target.get("dev")] = (
            target.get("bus"),
            disk.get("device"),
            source.get("file") if source is not None else None,
        )
    return found


@pytest.fixture
def helper(lab, domain):
    def helper(*, check=False, **arguments):
        return run_module(
            "domain_helper_disk", uri=lab.uri, domains=[domain], check=check, **arguments
        )

    return helper


def test_there_and_away(lab, tmp_path, helper):
    before, image = dump(lab), tmp_path / "h-win-thinvirt-helper.img"
    iso = str(tmp_path / "virtio-win.iso")
    checked = helper(iso=iso, check=True)
    assert checked["changed"]
    assert dump(lab) == before
    assert not image.exists()

    result = helper(iso=iso)
    assert not result["failed"], result["msg"]
    assert result["diff"] == checked["diff"]
    assert disks(lab) == {
        "hda": ("ide", "disk", str(tmp_path / "c.qcow2")),
        "hdc": ("ide", "cdrom", None),
        "sda": ("scsi", "disk", str(image)),
        "hdb": ("ide", "cdrom", iso),
    }
    tree = ET.fromstring(dump(lab))
    assert tree.find("devices/controller[@type='scsi']").get("model") == "virtio-scsi"
    assert [each.text for each in tree.iter("serial")] == ["thinvirt-helper"]
    status = os.stat(image)
    assert (status.st_size, status.st_blocks) == (64 * MIB, 0)
    lab.virsh("domxml-to-native", "qemu-argv", "--domain", "h-win")  # QEMU could start with it
    assert not helper(iso=iso)["changed"]
    assert not helper(iso=iso, check=True)["changed"]

    checked = helper(state="absent", check=True)
    assert checked["changed"]
    assert image.exists()
    result = helper(state="absent")
    assert result["diff"] == checked["diff"]
    assert disks(lab) == {
        "hda": ("ide", "disk", str(tmp_path / "c.qcow2")),
        "hdc": ("ide", "cdrom", None),
    }
    assert dump(lab) == before
    assert not image.exists()
    assert not helper(state="absent")["changed"]


def test_a_controller_in_use_and_the_boot_disk_stay(lab, tmp_path, helper):
    helper(iso=str(tmp_path / "virtio-win.iso"))
    moved = run_module(
        "domain_disk_bus",
        uri=lab.uri,
        domains=["h-win"],
        disks=["hda"],
        bus="scsi",
        state_dir=str(tmp_path / "state"),
    )
    assert not moved["failed"], moved["msg"]
    result = helper(state="absent")
    assert not result["failed"], result["msg"]
    tree = ET.fromstring(dump(lab))
    assert tree.find("devices/controller[@type='scsi']") is not None
    assert "ua-thinvirt" not in dump(lab)
    (boot,) = [disk for disk in tree.findall("devices/disk") if disk.find("boot") is not None]
    assert boot.find("source").get("file") == str(tmp_path / "c.qcow2")


def test_what_a_killed_run_has_left(lab, tmp_path, helper):
    """Its file without its device."""
    image = tmp_path / "h-win-thinvirt-helper.img"
    with open(image, "wb") as file:
        file.truncate(64 * MIB)
    assert helper(state="absent", check=True)["changed"]
    assert helper(state="absent")["changed"]
    assert not image.exists()
    with open(image, "wb") as file:
        file.truncate(64 * MIB)
    assert not helper()["failed"]
    assert disks(lab)["sda"][2] == str(image)


def test_another_file_of_that_name_is_not_touched(lab, tmp_path, helper):
    image = tmp_path / "h-win-thinvirt-helper.img"
    image.write_text("mine")
    before = dump(lab)
    for state in ("present", "absent"):
        result = helper(state=state)
        assert_explains(result, "h-win-thinvirt-helper.img", "nothing was changed")
    assert image.read_text() == "mine"
    assert dump(lab) == before


def test_refusals(lab, tmp_path, helper):
    assert_explains(helper(iso=str(tmp_path / "gone.iso")), "gone.iso")
    assert_explains(helper(iso=str(tmp_path)), "no absolute path of a file")
    lab.virsh("snapshot-create-as", "h-win", "old", "--disk-only")
    result = helper(iso=str(tmp_path / "virtio-win.iso"))
    assert_explains(result, "h-win", "snapshots")
    assert not (tmp_path / "h-win-thinvirt-helper.img").exists()
    lab.virsh("snapshot-delete", "h-win", "old", "--metadata")
    assert "thinvirt" not in dump(lab)


def test_a_machine_without_an_ide_controller(lab, tmp_path, helper):
    """libvirt adds the controller of the machine that the CD drive hangs on."""
    tree = ET.fromstring(dump(lab))
    devices = tree.find("devices")
    devices.remove(devices.find("disk[@device='cdrom']"))
    devices.remove(devices.find("controller[@type='ide']"))
    target = devices.find("disk/target")
    target.set("dev", "vda")
    target.set("bus", "virtio")
    devices.find("disk").remove(devices.find("disk/address"))
    (tmp_path / "d.xml").write_text(ET.tostring(tree, encoding="unicode"))
    lab.virsh("define", str(tmp_path / "d.xml"))
    iso = str(tmp_path / "virtio-win.iso")
    assert "type='ide'" not in dump(lab)
    result = helper(iso=iso)
    assert not result["failed"], result["msg"]
    assert {bus for bus, _device, _file in disks(lab).values()} == {"ide", "scsi", "virtio"}
    assert not helper(iso=iso)["changed"]
    assert not helper(state="absent")["failed"]
    assert list(disks(lab)) == ["vda"]
