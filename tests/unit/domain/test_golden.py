# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Domains of many makes before and after a change of bus or machine type.

The inputs are written in the manner of what virt-install, virt-manager, oVirt, OpenStack, virt-v2v,
Vagrant, exports of Proxmox and so on leave behind; they are nobody's files.  What must hold for any
of them is checked with another XML library than the one under test.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import policy, xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware import disk_bus, machine_xml
from lxml import etree

GOLDEN = Path(__file__).parent / "golden"
CASES = yaml.safe_load((GOLDEN / "cases.yml").read_text(encoding="utf-8"))
MOVES = [name for name, case in CASES.items() if "bus" in case]
# What changes hands when a disk gets another bus; all else of a device stays.
PLACE = ("driver", "target", "address", "boot", "geometry", "transient")
ONLY_SOMEWHERE = ("wwn", "vendor", "product", "acpi")


def read(name, which):
    return (GOLDEN / f"{name}.{which}.xml").read_text(encoding="utf-8")


def chosen(name):
    domain = xml.parse_domain(read(name, "in"))
    return [disk.target for disk in policy.choose_disks(domain, CASES[name].get("disks", []))]


def changed(name):
    if "machine" in CASES[name]:
        return machine_xml.with_machine(read(name, "in"), CASES[name]["machine"])
    return disk_bus.move_disks(read(name, "in"), chosen(name), CASES[name]["bus"]).xml


def disks_by_source(tree):
    """The disks of a domain by the text of their source, or by name without one."""
    found = {}
    for disk in tree.findall("devices/disk"):
        source = disk.find("source")
        key = disk.find("target").get("dev") if source is None else ET.tostring(source).strip()
        assert key not in found
        found[key] = disk
    return found


def others(tree):
    """Everything that is neither a disk nor a place of disks, without boot orders, as text."""
    for parent in tree.iter():
        for child in list(parent):
            if child.tag in ("boot", "disk") or (
                child.tag == "controller" and child.get("type") in ("scsi", "sata")
            ):
                parent.remove(child)
    return sorted(ET.canonicalize(ET.tostring(child), strip_text=True) for child in tree)


def what_stays(disk):
    """The children of a disk that no bus has a say in."""
    kept = [child for child in disk if child.tag not in (*PLACE, *ONLY_SOMEWHERE)]
    return [ET.tostring(child).strip() for child in kept]


def test_there_are_enough_of_them():
    assert len({read(name, "in") for name in CASES}) >= 40
    on_disk = {path.name.split(".")[0] for path in GOLDEN.glob("*.xml")}
    assert on_disk == {name.split(".")[0] for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_out_of_in(name):
    assert changed(name).strip() == read(name, "out").strip()


@pytest.fixture(scope="module")
def schema() -> etree.RelaxNG:
    """What libvirt itself holds a domain against, as it came with its library."""
    return etree.RelaxNG(file="/usr/share/libvirt/schemas/domain.rng")


@pytest.mark.parametrize("which", ["in", "out"])
def test_they_are_valid(schema, which):
    for path in sorted(GOLDEN.glob(f"*.{which}.xml")):
        assert schema.validate(etree.parse(path)), (path.name, schema.error_log)


@pytest.mark.parametrize("name", MOVES)
def test_no_two_in_one_place(name):
    tree = ET.fromstring(changed(name))
    names = [target.get("dev") for target in tree.findall("devices/disk/target")]
    places = [
        (device.find("target").get("bus") if device.tag == "disk" else "scsi", *sorted(a.items()))
        for device in tree.find("devices")
        if device.tag in ("disk", "hostdev")
        for a in device.findall("address[@type='drive']")
    ]
    pci = [
        tuple(address.get(part) for part in ("domain", "bus", "slot", "function"))
        for device in tree.find("devices")
        for address in device.findall("address[@type='pci']")
    ]
    orders = [boot.get("order") for boot in tree.iter("boot") if boot.get("order")]
    for values in (names, places, pci, orders):
        assert max(Counter(values).values(), default=1) == 1
    assert not (orders and tree.findall("os/boot"))


@pytest.mark.parametrize("name", MOVES)
def test_each_chosen_disk_is_there_and_nothing_else_has_changed(name):
    before, after = ET.fromstring(read(name, "in")), ET.fromstring(changed(name))
    bus = CASES[name]["bus"]
    models = {
        controller.get("index"): controller.get("model")
        for controller in after.findall("devices/controller[@type='scsi']")
    }
    was, is_now = disks_by_source(before), disks_by_source(after)
    assert set(was) == set(is_now)
    for key, disk in was.items():
        now = is_now[key]
        if disk.find("target").get("dev") not in chosen(name):
            for boot in [*disk.findall("boot"), *now.findall("boot")]:
                (disk if boot in list(disk) else now).remove(boot)
            assert ET.canonicalize(ET.tostring(disk), strip_text=True) == ET.canonicalize(
                ET.tostring(now), strip_text=True
            )
            continue
        assert now.find("target").get("bus") == bus
        address = now.find("address")
        if bus == "virtio":
            assert address is None
        else:
            assert address.get("type") == "drive"
            assert bus != "scsi" or models[address.get("controller")].startswith("virtio-")
        kept = [child for child in disk if child.tag not in (*PLACE, *ONLY_SOMEWHERE)]
        assert [ET.tostring(child).strip() for child in kept] == [
            ET.tostring(child).strip()
            for child in now
            if child.tag not in (*PLACE, *ONLY_SOMEWHERE)
        ]
        assert [b.get("order") for b in disk.findall("boot")] in (
            [],
            [b.get("order") for b in now.findall("boot")],
        )
    assert others(before) == others(after)


@pytest.mark.parametrize("name", MOVES)
def test_a_second_time_nothing_changes(name):
    moved = disk_bus.move_disks(read(name, "in"), chosen(name), CASES[name]["bus"])
    targets = {disk.target_before: disk.target for disk in moved.disks}
    again = [targets.get(target, target) for target in chosen(name)]
    assert disk_bus.move_disks(moved.xml, again, CASES[name]["bus"]) == disk_bus.Moved(
        moved.xml, (), (), ()
    )
