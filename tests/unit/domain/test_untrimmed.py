# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""When a trim has left too much behind, from what agents answer and libvirt's XML."""

from __future__ import annotations

import copy

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._discard import untrimmed
from ansible_collections.thinvirt.kvm.plugins.module_utils._discard.untrimmed import Address

MIB = 1 << 20
GIB = 1 << 30
XML = """\
<domain><devices>
<controller type='scsi' index='0' model='virtio-scsi'>
 <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></controller>
<disk type='file'><target dev='sda' bus='scsi'/>
 <address type='drive' controller='0' bus='0' target='0' unit='0'/></disk>
<disk type='file'><target dev='sdb' bus='scsi'/>
 <address type='drive' controller='0' bus='0' target='0' unit='1'/></disk>
<disk type='file'><target dev='vda' bus='virtio'/>
 <address type='pci' domain='0x0000' bus='0x04' slot='0x0a' function='0x0'/></disk>
<disk type='file'><target dev='sdc' bus='scsi'/>
 <address type='drive' controller='7' bus='0' target='0' unit='0'/></disk>
</devices></domain>
"""
ADDRESSES = {
    Address((0, 1, 0, 0), (0, 0, 0)): "sda",
    Address((0, 1, 0, 0), (0, 0, 1)): "sdb",
    Address((0, 4, 10, 0)): "vda",
}


def scsi(unit, bus=1):
    controller = {"bus": bus, "slot": 0, "domain": 0, "function": 0}
    disk = {"bus-type": "scsi", "bus": 0, "unit": unit, "target": 0, "pci-controller": controller}
    return {**disk, "dev": "/dev/sda", "serial": "0QEMU_QEMU_HARDDISK_x"}


VIRTIO = {
    "bus-type": "virtio",
    "bus": 0,
    "unit": 0,
    "target": 0,
    "pci-controller": {"bus": 4, "slot": 10, "domain": 0, "function": 0},
}


def fs(name, used, *disks, mountpoint="/srv", total=10 * GIB, type_="ext4"):
    """As QEMU's agent 7.2 answers."""
    return {
        "name": name,
        "mountpoint": mountpoint,
        "type": type_,
        "total-bytes": total,
        "used-bytes": used,
        "disk": list(disks),
    }


def find(allocated, *answer, min_bytes=0, capacity=0):
    disks = {target: untrimmed.Held(size, capacity) for target, size in allocated.items()}
    systems = untrimmed.parse_fsinfo(list(answer))
    return untrimmed.find(disks, systems, ADDRESSES, min_bytes=min_bytes)


def test_addresses():
    """A controller that has no PCI address, and a disk that hangs on none, are left out."""
    assert untrimmed.disk_addresses(XML) == ADDRESSES


def test_what_is_left_behind():
    (one,) = find({"sda": 5 * GIB, "sdb": GIB}, fs("sda1", GIB, scsi(0)), fs("sdb", GIB, scsi(1)))
    assert (one.targets, one.mount_points, one.types) == (("sda",), ("/srv",), ("ext4",))
    assert (one.allocated_bytes, one.used_bytes, one.excess_bytes) == (5 * GIB, GIB, 4 * GIB)
    finding = one.finding("web1")
    assert (finding.id, finding.domain, finding.disk) == ("untrimmed", "web1", "sda")
    assert "5120 MiB" in finding.reason
    assert "1024 MiB" in finding.reason


@pytest.mark.parametrize(
    ("excess", "min_bytes", "reported"),
    [
        (GIB, 0, False),  # a tenth of 10 GiB
        (GIB + 1, 0, True),
        (2 * GIB, 2 * GIB, False),
        (2 * GIB + 1, 2 * GIB, True),
        (-GIB, 0, False),
    ],
)
def test_the_threshold(excess, min_bytes, reported):
    answer = fs("vda", 2 * GIB, VIRTIO)
    assert bool(find({"vda": 2 * GIB + excess}, answer, min_bytes=min_bytes)) is reported


def test_what_lies_beside_the_file_systems_may_be_full():
    """ext4 in LUKS on 512 MiB, as Debian 12 makes it: 56 MiB of headers and tables, no file."""
    luks = fs("dm-1", 0, scsi(0), total=425 * MIB)
    assert find({"sda": 56 * MIB}, luks, capacity=512 * MIB) == ()
    (one,) = find({"sda": 130 * MIB}, luks, capacity=512 * MIB)
    assert (one.outside_bytes, one.excess_bytes) == (87 * MIB, 43 * MIB)
    assert "87 MiB" in one.finding("web1").reason
    # two disks of a volume group, and one that promises more than there is
    two = fs("dm-0", 0, scsi(0), scsi(1), total=900 * MIB)
    (one,) = find({"sda": 512 * MIB, "sdb": 0}, two, capacity=512 * MIB)
    assert one.outside_bytes == 124 * MIB
    (one,) = find({"sda": 512 * MIB}, fs("dm-2", 0, scsi(0), total=GIB), capacity=512 * MIB)
    assert one.outside_bytes == 0


def test_file_systems_of_a_disk_are_added_up():
    two = (fs("sda1", 2 * GIB, scsi(0)), fs("sda2", 2 * GIB, scsi(0), mountpoint="/x"))
    assert find({"sda": 5 * GIB}, *two) == ()
    (one,) = find({"sda": 7 * GIB}, *two)
    assert one.mount_points == ("/srv", "/x")


def test_one_that_is_mounted_twice_counts_once():
    again = fs("sda1", 4 * GIB, scsi(0), mountpoint="/bind")
    (one,) = find({"sda": 8 * GIB}, fs("sda1", 4 * GIB, scsi(0)), again)
    assert one.used_bytes == 4 * GIB


def test_a_volume_group_over_two_disks_is_one_sum():
    spanning = fs("dm-0", 2 * GIB, scsi(0), scsi(1))
    other = fs("sdb1", 2 * GIB, scsi(1))
    assert find({"sda": 4 * GIB, "sdb": GIB}, spanning, other) == ()
    (one,) = find({"sda": 8 * GIB, "sdb": GIB}, other, spanning)
    assert one.targets == ("sda", "sdb")
    more = fs("dm-1", 0, scsi(1), VIRTIO)
    (one,) = find({"sda": 8 * GIB, "sdb": GIB, "vda": GIB}, spanning, more, other)
    assert one.targets == ("sda", "sdb", "vda")
    # the discards of one are dropped by the host, or its blocks can't be counted
    assert find({"sda": 8 * GIB}, spanning, other) == ()


def test_disks_of_which_nothing_is_known():
    assert find({"sda": 9 * GIB}) == ()  # no file system is mounted there
    assert find({"sda": 9 * GIB}, fs("sda", 0, scsi(0, bus=2))) == ()
    assert find({"sda": 9 * GIB}, fs("dm-0", 0, scsi(0), {"bus-type": "unknown"})) == ()
    assert find({"sda": 9 * GIB}, fs("tmpfs", 0)) == ()


def broken(path, value):
    entry = copy.deepcopy(fs("sda", 0, scsi(0)))
    place = entry
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return entry


@pytest.mark.parametrize("value", [None, -1, True, "1", 1 << 70, [], {}])
@pytest.mark.parametrize(
    "path",
    [
        ("name",),
        ("used-bytes",),
        ("total-bytes",),
        ("disk",),
        ("disk", 0),
        ("disk", 0, "unit"),
        ("disk", 0, "pci-controller"),
        ("disk", 0, "pci-controller", "slot"),
    ],
)
def test_hostile_answers(path, value):
    if path == ("name",) and value == "1":
        pytest.skip("a name like another")
    assert find({"sda": 9 * GIB}, broken(path, value)) == ()


@pytest.mark.parametrize("answer", [None, {}, "x", [1, None, []]])
def test_no_answer(answer):
    assert untrimmed.parse_fsinfo(answer) == ()
