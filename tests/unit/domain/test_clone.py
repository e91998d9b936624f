# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""New domains like old ones: golden files, and what must hold of any, by another XML library."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._backup.clone import (
    CopiedDisk,
    cloned_xml,
    dropped_disks,
)

DATA = Path(__file__).parent / "clone"
ORIGINAL = (DATA / "original.xml").read_text(encoding="utf-8")
DISKS = {
    "sda": CopiedDisk("/new/web2-sda.qcow2", "qcow2"),
    "vdb": CopiedDisk("/new/web2-vdb.raw", "raw"),
}
UUID = "11111111-2222-4333-8444-555555555555"


@pytest.mark.parametrize(
    ("golden", "arguments"),
    [
        ("new", {}),
        ("in-its-place", {"uuid": UUID, "keep_macs": True, "nvram": "/new/web2-nvram.fd"}),
    ],
)
def test_golden(golden, arguments):
    made = cloned_xml(ORIGINAL, name="web2", disks=DISKS, **arguments)
    assert made + "\n" == (DATA / f"{golden}.xml").read_text(encoding="utf-8")


def test_nothing_of_the_old_one_can_be_written_to():
    text = cloned_xml(ORIGINAL, name="web2", disks=DISKS)
    tree = ET.fromstring(text)
    for source in tree.findall("devices/disk/source"):
        assert source.get("file").startswith("/new/web2-")
    for unique in ("web1", "/dev/vg", "52:54:00:12:34:56", "f4e2b079", "pool/img", "vnet7"):
        assert unique not in text
    assert [disk.find("target").get("dev") for disk in tree.findall("devices/disk")] == [
        *("sda", "vdb", "sdd")
    ]


def test_what_a_guest_finds_its_hardware_by_stays():
    tree = ET.fromstring(cloned_xml(ORIGINAL, name="web2", disks=DISKS))
    disk = tree.find("devices/disk")
    assert disk.findtext("serial") == "S3CR1AL"
    assert disk.find("boot").get("order") == "1"
    assert disk.find("driver").attrib == {
        "name": "qemu",
        "type": "qcow2",
        "cache": "none",
        "io": "native",
    }


def test_what_is_left_out_is_told():
    assert dropped_disks(ORIGINAL, DISKS) == ["vdc"]
    assert dropped_disks(ORIGINAL, {}) == ["sda", "vdb", "vdc"]


def test_names_are_text_not_xml():
    name = "a<b>&\"'"
    tree = ET.fromstring(cloned_xml(ORIGINAL, name=name, disks={"sda": CopiedDisk(name, "raw")}))
    assert tree.findtext("name") == name
    assert tree.find("devices/disk/source").get("file") == name
