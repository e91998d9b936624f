# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which machine type a domain gets, and what is said about it."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware import (
    compare,
    machine_types,
    machine_xml,
    rebuild_xml,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware.machine_types import Offer

GOLDEN = Path(__file__).parent / "golden"
DOMAIN = """<domain type='kvm'><name>web1</name><uuid>u</uuid>
<os><type arch='x86_64' machine='{}'>hvm</type></os>
<devices><disk type='file' device='disk'><target dev='vda' bus='virtio'/></disk></devices>
</domain>"""


def domain(machine):
    return xml.parse_domain(DOMAIN.format(machine))


def golden(name):
    return (GOLDEN / f"{name}.in.xml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("own", "newest", "known", "chosen"),
    [
        ("pc-i440fx-3.1", "pc-i440fx-7.2", True, "pc-i440fx-7.2"),
        ("pc-i440fx-7.2", "pc-i440fx-7.2", True, "pc-i440fx-7.2"),
        ("pc-i440fx-9.0", "pc-i440fx-7.2", False, "pc-i440fx-9.0"),
        ("pc-q35-rhel8.0.0", "pc-q35-rhel9.4.0", True, "pc-q35-rhel9.4.0"),
        ("pc-i440fx-rhel7.6.0", "pc-i440fx-rhel7.6.0", True, "pc-i440fx-rhel7.6.0"),
        ("rhel6.5.0", "pc-i440fx-rhel7.6.0", False, "pc-i440fx-rhel7.6.0"),
        ("pc-i440fx-bionic", "pc-i440fx-7.2", False, "pc-i440fx-7.2"),
        ("pc-q35-rhel8.0.0", "pc-q35-7.2", True, "pc-q35-rhel8.0.0"),
        ("pc-q35-rhel8.0.0", "pc-q35-7.2", False, "pc-q35-7.2"),
        ("pc-q35-5.0", "", True, "pc-q35-5.0"),
        ("virt-6.2", "", True, "virt-6.2"),
        ("s390-ccw-virtio-4.2", "", True, "s390-ccw-virtio-4.2"),
        ("pseries-3.1", "", True, "pseries-3.1"),
        ("isapc", "", True, "isapc"),
    ],
)
def test_the_newest_of_the_family(own, newest, known, chosen):
    choice = machine_types.choose(domain(own), Offer(newest, known))
    assert choice.machine == chosen
    assert choice.reason


@pytest.mark.parametrize(
    ("own", "wanted", "words"),
    [
        ("pc-i440fx-3.1", "pc-q35-7.2", "another kind of machine"),
        ("pc-q35-7.2", "pc-i440fx-7.2", "another kind of machine"),
        ("pc-q35-7.2", "pc-q35-6.2", "is older than"),
        ("virt-6.2", "virt-7.2", "another kind of machine"),
    ],
)
def test_named_and_refused(own, wanted, words):
    with pytest.raises(RefusedError, match=words):
        machine_types.choose(domain(own), Offer("pc-q35-7.2", True), wanted=wanted)


def test_named_and_taken():
    offer = Offer("pc-q35-7.2", True)
    assert machine_types.choose(domain("pc-q35-3.1"), offer, wanted="pc-q35-5.2").machine == (
        "pc-q35-5.2"
    )


@pytest.mark.parametrize(
    ("own", "offer", "ids"),
    [
        ("pc-i440fx-3.1", Offer("pc-i440fx-7.2", True), ["machine-too-old"]),
        ("pc-i440fx-4.0", Offer("pc-i440fx-7.2", True), []),
        ("pc-1.0", Offer("x", False), ["machine-too-old", "machine-unknown-here"]),
        ("pc-q35-7.2", Offer("x", True, True), ["machine-deprecated"]),
        ("virt-7.2", Offer("", True), ["machine-left-alone"]),
    ],
)
def test_costs(own, offer, ids):
    found = machine_types.costs(domain(own), offer)
    assert [finding.id for finding in found] == ids
    assert all(finding.domain == "web1" for finding in found)


def test_where_the_newest_is_too_old_the_bus_is_the_way_out():
    (finding,) = machine_types.costs(
        domain("pc-i440fx-rhel7.0.0"), Offer("pc-i440fx-rhel7.6.0", True)
    )
    assert "domain_disk_bus" in finding.remedy
    (finding,) = machine_types.costs(domain("pc-i440fx-3.1"), Offer("pc-i440fx-7.2", True))
    assert "can stay where they are" in finding.remedy


@pytest.mark.parametrize(
    ("name", "machine", "ids"),
    [
        ("win11-uefi-tpm", "pc-q35-7.2", ["windows-activation"]),
        ("virt-manager-i440fx-virtio", "pc-i440fx-7.2", []),
        ("q35-2.10-machine", "pc-q35-7.2", ["network-names"]),
        ("q35-2.10-machine", "pc-q35-6.1", ["network-names"]),
        ("q35-2.10-machine", "pc-q35-6.0", []),
        ("pci-passthrough", "pc-q35-7.2", ["windows-activation", "network-names"]),
        ("pci-passthrough", "pc-q35-4.2", []),
    ],
)
def test_consequences(name, machine, ids):
    choice = machine_types.Choice(machine, "")
    text = golden(name)
    found = machine_types.consequences(xml.parse_domain(text), xml.parse_tree(text), choice)
    assert [finding.id for finding in found] == ids


@pytest.mark.parametrize(
    ("arch", "name", "deprecated"),
    [
        ("x86_64", "pc-q35-2.4", True),
        ("x86_64", "pc-q35-7.2", False),
        ("x86_64", "pc-q35-99", False),
        ("i686", "pc-q35-2.4", False),
    ],
)
def test_a_machine_is_deprecated_if_the_host_says_so_of_itself(arch, name, deprecated):
    capabilities = """<capabilities><guest><arch name='x86_64'>
      <machine>pc-q35-7.2</machine>
      <domain type='kvm'><machine deprecated='yes'>pc-q35-2.4</machine></domain>
    </arch></guest></capabilities>"""
    assert machine_types.is_deprecated(capabilities, arch, name) is deprecated


def address_of(text, xpath):
    return xml.parse_tree(text).find(f"devices/{xpath}/address[@type='pci']")


@pytest.mark.parametrize(("name", "of_host"), [("pci-passthrough", 2), ("sriov-and-virtiofs", 1)])
def test_addresses_on_the_host_stay(name, of_host):
    text = golden(name)

    def refusal(new):
        return "any" if xml.parse_tree(new).findall("devices/*/address[@type='pci']") else ""

    after = machine_xml.with_fewest_dropped(text, "pc-q35-7.2", refusal=refusal)
    tree = xml.parse_tree(after.xml)
    assert not tree.findall("devices/*/address[@type='pci']")
    assert len(tree.findall("devices/*/source/address")) == of_host
    before = xml.parse_tree(text).findall("devices/*/address[@type='pci']")
    assert len(set(after.devices)) == len(before) > 3
    assert tree.find("os/type").get("machine") == "pc-q35-7.2"


@pytest.mark.parametrize("in_the_way", ["disk", "interface", "memballoon", "controller"])
def test_only_addresses_that_are_in_the_way_are_dropped(in_the_way):
    """A stand-in for libvirt, which has nothing against these machines."""
    text = golden("boot-order-per-device")
    assert address_of(text, in_the_way) is not None
    count = len(xml.parse_tree(text).findall(f"devices/{in_the_way}/address[@type='pci']"))

    def refusal(new):
        return "taken" if address_of(new, in_the_way) is not None else ""

    found = machine_xml.with_fewest_dropped(text, "pc-q35-7.2", refusal=refusal)
    assert len(found.devices) == count
    assert all(device.startswith(in_the_way.partition("[")[0]) for device in found.devices)
    for element in (tree := xml.parse_tree(text)).findall(f"devices/{in_the_way}"):
        for address in element.findall("address[@type='pci']"):
            element.remove(address)
    tree.find("os/type").set("machine", "pc-q35-7.2")
    assert compare.fingerprint(found.xml) == compare.fingerprint(xml.serialize(tree))


def test_what_others_hang_on_keeps_its_address_first():
    """A device is on a bus by the number of the controller that has that place."""
    text = golden("boot-order-per-device")

    def refusal(new):
        tree = xml.parse_tree(new)
        with_place = {
            controller.get("index")
            for controller in tree.findall("devices/controller[@type='pci']")
            if controller.find("address") is not None or controller.get("index") == "0"
        }
        buses = {
            str(int(address.get("bus"), 0))
            for address in tree.findall("devices/*/address[@type='pci']")
        }
        return "taken" if buses - with_place or address_of(new, "memballoon") is not None else ""

    found = machine_xml.with_fewest_dropped(text, "pc-q35-7.2", refusal=refusal)
    assert [each.partition(" ")[0] for each in found.devices] == ["memballoon"]


def test_what_is_refused_without_addresses_too():
    text = golden("boot-order-per-device")
    assert machine_xml.with_fewest_dropped(text, "pc-q35-99", refusal=lambda _new: "no") is None


def test_a_domain_is_kept_as_it_was_given_or_not():
    text = golden("boot-order-per-device")
    other = text.replace('cache="none"', 'cache="none"').replace(
        "52:54:00:1a:2b:07", "52:54:00:1a:2b:ff"
    )
    assert compare.is_kept(text, text)
    assert not compare.is_kept(text, other)
    dropped = machine_xml.with_fewest_dropped(
        text, "pc-q35-6.2", refusal=lambda new: "" if 'type="pci" domain' not in new else "no"
    ).xml
    assert compare.is_kept(dropped, text)
    assert not compare.is_kept(text, dropped)
    extra = text.replace("<memballoon", '<controller type="pci" index="30" model="x"/><memballoon')
    assert compare.is_kept(text, extra)
    extra = text.replace("<memballoon", '<controller type="scsi" index="3"/><memballoon')
    assert not compare.is_kept(text, extra)


def test_a_rebuilt_domain_is_another_one():
    text = golden("win11-uefi-tpm")
    identity = rebuild_xml.Identity(
        name="new",
        uuid="11111111-2222-3333-4444-555555555555",
        genid="x",
        macs=("52:54:00:00:00:01",),
        paths={"sda": "/new/new-sda.qcow2"},
        nvram="/new/new_VARS.fd",
    )
    new = rebuild_xml.rebuilt(text, identity, machine="pc-q35-7.2")
    old_tree, tree = xml.parse_tree(text), xml.parse_tree(new)
    assert rebuild_xml.rebuilt_of(new) == old_tree.findtext("uuid")
    assert (tree.findtext("name"), tree.findtext("uuid")) == ("new", identity.uuid)
    assert tree.find("os/type").get("machine") == "pc-q35-7.2"
    assert tree.findtext("os/nvram") == "/new/new_VARS.fd"
    assert tree.find("os/nvram").get("template")
    assert tree.find("devices/disk/source").attrib == {"file": "/new/new-sda.qcow2"}
    assert tree.findall("devices/disk/source")[1].get("file").endswith("virtio-win.iso")
    assert tree.find("devices/interface/mac").get("address") == "52:54:00:00:00:01"
    assert [finding.id for finding in rebuild_xml.shared(text, "new")] == ["tpm-state"]
    assert [finding.id for finding in rebuild_xml.shared(golden("pci-passthrough"), "new")] == [
        "shared-with-old"
    ]


def test_nothing_of_the_old_one_is_left_in_a_rebuilt_domain():
    note = "<t:restart xmlns:t='https://github.com/thinvirt/thinvirt.kvm/restart' process='1 b 2'/>"
    text = f"""<domain type='kvm'><name>old</name><uuid>o</uuid><genid>g</genid>
<metadata>{note}</metadata>
<sysinfo type='smbios'><system><entry name='uuid'>o</entry></system></sysinfo>
<os><type arch='x86_64' machine='pc-i440fx-3.1'>hvm</type></os>
<devices><disk type='block' device='disk'>
<source dev='/dev/x'><reservations managed='yes'/></source>
<backingStore type='file'><source file='/b'/></backingStore><target dev='vda' bus='virtio'/></disk>
<interface type='bridge'><mac address='52:54:00:00:00:09'/><source bridge='b'/>
<virtualport type='openvswitch'><parameters interfaceid='i'/></virtualport>
<target dev='vnet0'/></interface></devices></domain>"""
    identity = rebuild_xml.Identity(
        name="new", uuid="n", genid="h", macs=(), paths={"vda": "/new/a"}, nvram=""
    )
    tree = xml.parse_tree(rebuild_xml.rebuilt(text, identity, machine="pc-i440fx-7.2"))
    assert (tree.findtext("genid"), tree.findtext("sysinfo/system/entry")) == ("h", "n")
    assert [each.tag for each in tree.find("metadata")] == [f"{{{rebuild_xml.NAMESPACE}}}rebuilt"]
    disk = tree.find("devices/disk")
    assert (disk.get("type"), disk.find("source").attrib) == ("file", {"file": "/new/a"})
    assert len(disk.find("source")) == 0
    assert disk.find("backingStore") is None
    interface = tree.find("devices/interface")
    assert interface.find("mac").get("address") == "52:54:00:00:00:09"  # as asked
    assert not interface.find("virtualport/parameters").attrib
    assert interface.find("target") is None
