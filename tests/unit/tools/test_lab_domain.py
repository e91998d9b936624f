# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's domain XML, for each choice that a guest's specification offers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from lab import Disk, GuestSpec, domain_xml
from lab.domain import Boot

BOOT = Boot(Path("/k"), Path("/i"), Path("/log"))


def build(*disks, boot=BOOT, **spec):
    return ET.fromstring(domain_xml(GuestSpec("g", disks=disks, **spec), boot))


@pytest.mark.parametrize(
    ("disk", "expected"),
    [
        (Disk("sda", "scsi", Path("/d")), {"name": "qemu", "type": "qcow2"}),
        (
            Disk("vda", "virtio", Path("/d"), discard="unmap"),
            {"name": "qemu", "type": "qcow2", "discard": "unmap"},
        ),
        (
            Disk("hda", "ide", Path("/d"), format="raw", discard="ignore", detect_zeroes="on"),
            {"name": "qemu", "type": "raw", "discard": "ignore", "detect_zeroes": "on"},
        ),
    ],
)
def test_driver_has_only_what_was_asked_for(disk, expected):
    assert build(disk).find("devices/disk/driver").attrib == expected


def test_disk_says_where_and_how_the_guest_sees_it():
    found = build(Disk("sdb", "scsi", Path("/d"), serial="x", readonly=True)).find("devices/disk")
    assert found.find("source").attrib == {"file": "/d"}
    assert found.find("target").attrib == {"dev": "sdb", "bus": "scsi"}
    assert found.findtext("serial") == "x"
    assert found.find("readonly") is not None


def test_disks_keep_their_order():
    domain = build(*(Disk(target, "scsi", Path("/d")) for target in ("sdc", "sda", "sdb")))
    assert [t.get("dev") for t in domain.findall("devices/disk/target")] == ["sdc", "sda", "sdb"]


@pytest.mark.parametrize(("bus", "count"), [("scsi", 1), ("virtio", 0), ("ide", 0)])
def test_scsi_controller_only_where_needed(bus, count):
    domain = build(Disk("xda", bus, Path("/d")))
    assert len(domain.findall("devices/controller[@model='virtio-scsi']")) == count


@pytest.mark.parametrize(("kvm", "type_"), [(False, "qemu"), (True, "kvm")])
def test_accelerator(kvm, type_):
    assert build(boot=dataclasses.replace(BOOT, kvm=kvm)).get("type") == type_


def test_machine_and_size():
    domain = build(machine="pc-i440fx-3.1", memory_mib=300, vcpus=2)
    assert domain.find("os/type").get("machine") == "pc-i440fx-3.1"
    assert (domain.findtext("memory"), domain.find("memory").get("unit")) == ("300", "MiB")
    assert domain.findtext("vcpu") == "2"


def test_text_is_escaped():
    assert (
        build(Disk("sda", path=Path("/a&b'<"))).find("devices/disk/source").get("file") == "/a&b'<"
    )


def test_a_disk_without_an_image_is_an_error():
    with pytest.raises(ValueError, match="sda has no path"):
        build(Disk("sda"))
