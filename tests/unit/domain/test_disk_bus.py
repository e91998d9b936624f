# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a bus does not take, and what a guest boots from afterwards."""

from __future__ import annotations

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware import boot, disk_bus

DOMAIN = """<domain type='kvm'>
  <name>web1</name>
  <os>
    <type arch='{arch}' machine='{machine}'>hvm</type>
    <boot dev='hd'/>
  </os>
  <devices>
    {disks}
  </devices>
</domain>"""


def domain(*disks, machine="pc-i440fx-7.2", arch="x86_64"):
    return DOMAIN.format(arch=arch, machine=machine, disks="\n    ".join(disks))


def disk(target, bus, inner="", *, device="disk", kind="file"):
    return (
        f"<disk type='{kind}' device='{device}'><source file='/i/{target}'/>"
        f"<target dev='{target}' bus='{bus}'/>{inner}</disk>"
    )


@pytest.mark.parametrize(
    ("what", "bus", "words"),
    [
        (domain(disk("vda", "virtio"), machine="pc-q35-7.2"), "ide", "has no ide"),
        (domain(disk("vda", "virtio"), machine="virt-7.2", arch="aarch64"), "sata", "aarch64"),
        (domain(disk("vda", "fdc", device="floppy")), "scsi", "floppy"),
        (domain(disk("vda", "ide", device="cdrom")), "virtio", "CD drive"),
        (domain(disk("vda", "scsi", device="lun")), "virtio", "SCSI commands"),
        (domain(disk("vda", "scsi", device="lun")), "sata", "SCSI commands"),
        (domain(disk("vda", "virtio", kind="vhostuser")), "scsi", "virtio-blk by its nature"),
        (domain(disk("vda", "virtio", "<readonly/>")), "ide", "read-only"),
        (domain(disk("vda", "virtio", "<readonly/>")), "sata", "read-only"),
        (
            domain(disk("vda", "virtio", "<blockio logical_block_size='4096'/>")),
            "sata",
            "its partitions would be lost",
        ),
        (domain(disk("vda", "virtio", f"<serial>{'x' * 37}</serial>")), "scsi", "serial"),
        (
            domain(disk("vda", "virtio"), *(disk(f"hd{x}", "ide") for x in "abcd")),
            "ide",
            "no room for more than 4",
        ),
    ],
)
def test_refusals(what, bus, words):
    with pytest.raises(RefusedError, match=words) as caught:
        disk_bus.move_disks(what, ["vda"], bus)
    assert "nothing was changed" in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("inner", "bus"),
    [
        ("<readonly/>", "scsi"),
        ("<blockio logical_block_size='512'/>", "sata"),
        (f"<serial>{'x' * 36}</serial>", "scsi"),
        (f"<serial>{'x' * 37}</serial>", "ide"),
    ],
)
def test_what_is_just_allowed(inner, bus):
    assert disk_bus.move_disks(domain(disk("vda", "virtio", inner)), ["vda"], bus).disks


@pytest.mark.parametrize(
    ("name", "index"),
    [("vda", 0), ("sdz", 25), ("hdaa", 26), ("xvdb", 1), ("sdzz", 701), ("vdaaa", 702)],
)
def test_names_of_disks(name, index):
    assert boot.disk_index(name) == index
    assert boot.disk_name(name[: -len(name.lstrip("xvshd"))], index) == name


@pytest.mark.parametrize("name", ["", "sd", "vda1", "disk0", "sdA"])
def test_names_that_tell_no_place(name):
    assert boot.disk_index(name) == -1


@pytest.mark.parametrize(
    ("targets", "kept"),
    [
        (["vdb virtio", "vda virtio"], ["vda", "vdb"]),
        (["sdb scsi", "vda virtio", "sda scsi"], ["sda", "sdb", "vda"]),
        (["hda ide", "sda sata", "hdb ide"], ["hda", "hdb", "sda"]),
        (["sdc scsi", "sda sata", "sdb scsi"], ["sdb", "sdc", "sda"]),
    ],
)
def test_order_in_which_libvirt_keeps_disks(targets, kept):
    """As libvirt 9.0 printed them after each of these was defined."""
    tree = xml.parse_tree(domain(*(disk(*each.split()) for each in targets)))
    assert [xml.target_of(each) for each in boot.libvirt_order(tree)] == kept


def test_a_controller_of_other_hardware_is_not_taken_for_virtio_scsi():
    text = domain(disk("sda", "scsi"), "<controller type='scsi' index='0' model='lsilogic'/>")
    moved = disk_bus.move_disks(text, ["sda"], "scsi")
    assert moved.controllers == ("scsi 1 (virtio-scsi)",)
    assert moved.disks[0].place == "1:0:0:0"


def test_a_disk_that_was_first_stays_first_to_boot():
    text = domain(
        disk("vda", "virtio"),
        disk("sda", "scsi"),
        "<controller type='scsi' index='0' model='virtio-scsi'/>",
    )
    moved = disk_bus.move_disks(text, ["vda"], "scsi")
    assert moved.boot_orders == ("sdb",)
    tree = xml.parse_tree(moved.xml)
    assert not tree.findall("os/boot")
    assert [xml.target_of(b.getparent()) for b in tree.findall("devices/disk/boot")] == ["sdb"]
