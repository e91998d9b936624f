# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""lsblk's tables of stacks that the lab does not have, in the forms of old and new util-linux."""

from __future__ import annotations

import json

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest import collect, stack
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.filesystem import (
    parse_mountinfo,
)

GIB = 1 << 30


def entry(name, type_, discard_max=GIB, *children, kname=None, number="8:0", **more):
    return {
        "name": name,
        "kname": kname or name,
        "maj:min": number,
        "type": type_,
        "fstype": None,
        "uuid": None,
        "disc-gran": 4096 if discard_max else 0,
        "disc-max": discard_max,
        "size": 10 * GIB,
        "serial": None,
        **more,
        "children": list(children),
    }


def parsed(*entries):
    return stack.parse_lsblk(json.dumps({"blockdevices": entries}))


def test_both_spellings_of_numbers():
    """util-linux before 2.33 quotes them; 2.36 of Debian 11 and newer do not."""
    old = entry("sda", "disk", "1073741824", **{"disc-gran": " 4096", "size": "10737418240"})
    assert parsed(old) == parsed(entry("sda", "disk"))


@pytest.mark.parametrize("value", [None, -1, 1.5, "1G", True, [], 1 << 70, "9" * 30])
def test_nonsense_for_a_number_is_no_discard(value):
    assert parsed(entry("sda", "disk", value))["sda"].discard_max_bytes == 0


LUKS = entry("sda3_crypt", "crypt", 0, entry("vg-root", "lvm", 0, kname="dm-1"), kname="dm-0")
STACKS = {
    "LVM on LUKS stops at LUKS": (
        [entry("sda", "disk", GIB, entry("sda3", "part", GIB, LUKS))],
        "dm-1",
        ["dm-1", "dm-0", "sda3", "sda"],
        "dm-0",
    ),
    "multipath that stops": (
        [
            entry("sda", "disk", GIB, entry("mpatha", "mpath", 0, kname="dm-0")),
            entry("sdb", "disk", GIB, entry("mpatha", "mpath", 0, kname="dm-0")),
        ],
        "dm-0",
        ["dm-0", "sda", "sdb"],
        "dm-0",
    ),
    "multipath over paths that take none": (
        [
            entry("sda", "disk", 0, entry("mpatha", "mpath", 0, kname="dm-0")),
            entry("sdb", "disk", 0, entry("mpatha", "mpath", 0, kname="dm-0")),
        ],
        "dm-0",
        ["dm-0", "sda", "sdb"],
        "sda",
    ),
    "RAID 5": (
        [
            entry(f"sd{c}", "disk", GIB, entry("md0", "raid5", 0, entry("vg-x", "lvm", 0)))
            for c in "abc"
        ],
        "vg-x",
        ["vg-x", "md0", "sda", "sdb", "sdc"],
        "md0",
    ),
    "RAID 1 with one disk that takes them": (
        [
            entry("sda", "disk", GIB, entry("md0", "raid1", GIB)),
            entry("sdb", "disk", 0, entry("md0", "raid1", GIB)),
        ],
        "md0",
        ["md0", "sda", "sdb"],
        None,
    ),
    "a partition of a disk that takes none": (
        [entry("sda", "disk", 0, entry("sda1", "part", 0))],
        "sda1",
        ["sda1", "sda"],
        "sda",
    ),
}


@pytest.mark.parametrize(("entries", "top", "links", "culprit"), STACKS.values(), ids=STACKS)
def test_links_and_the_one_that_stops(entries, top, links, culprit):
    devices = parsed(*entries)
    assert [link.kname for link in stack.links(devices, top)] == links
    stopping = stack.stops(devices, top)
    assert (stopping.kname if stopping else None) == culprit


def nested(depth):
    inner = entry("d0", "lvm")
    for number in range(1, depth):
        inner = entry(f"d{number}", "lvm", GIB, inner)
    return {"blockdevices": [inner]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '{"blockdevices": [{"type": "disk"}]}',
        "[" * 100_000,
        json.dumps(nested(70)),
        json.dumps({"blockdevices": [entry(f"d{n}", "disk") for n in range(10_001)]}),
    ],
    ids=["nothing", "a list", "null", "no name", "endless", "too deep", "too many"],
)
def test_what_is_refused(text):
    with pytest.raises(ThinvirtError, match="lsblk"):
        stack.parse_lsblk(text)


def test_a_loop_of_devices_ends():
    devices = parsed(entry("a", "lvm", 0, entry("b", "lvm", 0, entry("a", "lvm", 0))))
    assert {link.kname for link in stack.links(devices, "a")} == {"a", "b"}
    assert stack.stops(devices, "a") is not None


MOUNTS = """\
20 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
21 20 8:1 /srv /bind ro,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
22 20 0:50 /@ /pool rw - btrfs /dev/mapper/pool rw,subvol=/@
23 20 0:51 /@home /home rw - btrfs /dev/mapper/pool rw,subvol=/@home
24 20 7:0 / /snap/x ro - squashfs /dev/loop0 ro
25 20 7:1 / /loop rw - ext4 /dev/loop1 rw
26 20 11:0 / /cd ro - iso9660 /dev/sr0 ro
27 20 252:0 / /z rw - ext4 /dev/zram0 rw
28 20 0:40 / /nfs rw - nfs4 h:/x rw
29 20 8:17 / /ro ro - xfs /dev/sdb1 ro
"""


def test_only_file_systems_on_disks_count_each_once():
    devices = parsed(
        entry("sda", "disk", GIB, entry("sda1", "part", number="8:1"), number="8:0"),
        entry(
            "sdb",
            "disk",
            GIB,
            entry("sdb1", "part", number="8:17"),
            entry("pool", "lvm", kname="dm-0", number="254:0", fstype="btrfs", uuid="u"),
            number="8:16",
        ),
        entry("sdc", "disk", number="8:32", fstype="btrfs", uuid="u"),
        entry("loop0", "loop", number="7:0"),
        entry("loop1", "loop", number="7:1"),
        entry("sr0", "rom", number="11:0"),
        entry("zram0", "disk", number="252:0"),
    )
    systems = collect.mounted(
        parse_mountinfo(MOUNTS).values(), devices, names={"/dev/mapper/pool": "dm-0"}
    )
    assert [(s.mount_points, s.devices, s.read_only) for s in systems] == [
        (("/", "/bind"), ("sda1",), False),
        (("/pool", "/home"), ("dm-0", "sdc"), False),
        (("/ro",), ("sdb1",), True),
    ]
    assert systems[0].options == ("rw", "relatime", "errors=remount-ro", "ro")
