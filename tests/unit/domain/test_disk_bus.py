# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a bus does not take, and what a guest boots from afterwards."""

from __future__ import annotations

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware import (
    boot,
    disk_bus,
    disk_bus_advice,
)

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


def dropped(moved):
    return [{each.setting: each.value for each in disk.dropped} for disk in moved.disks]


def test_only_the_controller_that_is_added_first_takes_settings_over_and_from_one_disk():
    drivers = [f"<driver name='qemu' type='raw' queues='{n}'/>" for n in range(2, 10)]
    disks = [disk(f"vd{x}", "virtio", each) for x, each in zip("abcdefgh", drivers, strict=True)]
    moved = disk_bus.move_disks(domain(*disks), [f"vd{x}" for x in "abcdefgh"], "scsi")
    assert [each.carried for each in moved.disks] == [("queues",)] + [()] * 7
    assert dropped(moved) == [{}] + [{"driver/@queues": str(n)} for n in range(3, 10)]
    controllers = xml.parse_tree(moved.xml).findall("devices/controller[@type='scsi']")
    assert [each.get("index") for each in controllers] == ["0", "1"]
    assert [dict(each.attrib) for one in controllers for each in one] == [{"queues": "2"}]


def test_a_model_that_the_controller_has_is_not_lost():
    text = domain(disk("vda", "virtio")).replace("device='disk'", "device='disk' model='virtio-{}'")
    same = disk_bus.move_disks(text.format("transitional"), ["vda"], "scsi")
    assert (same.disks[0].carried, dropped(same)) == (("model",), [{}])
    assert same.controllers == ("scsi 0 (virtio-transitional)",)


@pytest.mark.parametrize(
    ("before", "bus", "inner", "named"),
    [
        ("scsi", "sata", "<transient shareBacking='yes'/>", {"transient/@shareBacking": "yes"}),
        ("virtio", "scsi", "<transient shareBacking='yes'/>", {}),
        (
            "virtio",
            "scsi",
            "<driver name='qemu'><iothreads><iothread id='2'/></iothreads></driver>",
            {"driver/iothreads": ""},
        ),
    ],
)
def test_what_the_new_bus_does_not_know_is_named_and_gone(before, bus, inner, named):
    moved = disk_bus.move_disks(domain(disk("sdx", before, inner)), ["sdx"], bus)
    assert dropped(moved) == [named]
    kept = xml.parse_tree(moved.xml).find("devices/disk")
    for name in named:
        path, _at, attribute = name.partition("/@")
        found = kept.find(path)
        assert attribute not in found.attrib if attribute else found is None


@pytest.mark.parametrize(("bus", "cut"), [("scsi", False), ("sata", True)])
@pytest.mark.parametrize("length", [20, 21])
def test_a_serial_number_that_is_cut(bus, cut, length):
    text = domain(disk("vda", "virtio", f"<serial>{'x' * length}</serial>"))
    found = disk_bus_advice.findings(disk_bus.move_disks(text, ["vda"], bus))
    assert ("serial-cut" in [each.id for each in found]) is (cut and length > 20)
