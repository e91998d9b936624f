# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a domain needs of the host to start, and whether there is enough memory."""

from __future__ import annotations

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import needs
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.needs import Memory

MIB = 1 << 20


def disk(inner, device="disk"):
    return f"<disk type='file' device='{device}'>{inner}<target dev='vda'/></disk>"


@pytest.mark.parametrize(
    ("devices", "found"),
    [
        (disk("<source file='/a.iso'/>", "cdrom"), [("file", "/a.iso")]),
        (disk("<source file='/a.iso' startupPolicy='optional'/>", "cdrom"), []),
        (disk("<source file='/a' startupPolicy='requisite'/>"), [("file", "/a")]),
        (disk("", "cdrom"), []),
        (
            disk("<source file='/a'/><backingStore><source file='/b'/></backingStore>"),
            [("file", "/a"), ("file", "/b")],
        ),
        (disk("<source file='/a'/><mirror><source file='/m'/></mirror>"), [("file", "/a")]),
        (disk("<source dev='/dev/vg/lv'/>"), [("file", "/dev/vg/lv")]),
        (disk("<source pool='p' volume='v/w'/>"), [("volume", "p/v/w")]),
        (disk("<source protocol='rbd' name='pool/image'/>"), []),
        ("<interface type='network'><source network='n'/></interface>", [("network", "n")]),
        ("<interface type='bridge'><source bridge='br0'/></interface>", [("link", "br0")]),
        ("<interface type='direct'><source dev='eth0'/></interface>", [("link", "eth0")]),
        ("<interface type='user'/>", []),
        (
            (
                "<hostdev type='pci'><source><address domain='0x0000' bus='0x0a' slot='0x1f' "
                "function='0x3'/></source></hostdev>"
            ),
            [("pci", "0000:0a:1f.3")],
        ),
        (
            (
                "<hostdev type='usb'><source><vendor id='0x1234'/><product id='0xBeef'/></source>"
                "</hostdev>"
            ),
            [("usb", "1234:beef")],
        ),
        (
            (
                "<hostdev type='usb'><source startupPolicy='optional'><vendor id='0x1234'/>"
                "<product id='0xbeef'/></source></hostdev>"
            ),
            [],
        ),
        (
            "<hostdev type='mdev'><source><address uuid='u-1'/></source></hostdev>",
            [("mdev", "u-1")],
        ),
        ("<filesystem><source dir='/srv'/></filesystem>", [("file", "/srv")]),
        ("<serial type='dev'><source path='/dev/ttyS0'/></serial>", [("file", "/dev/ttyS0")]),
        ("<serial type='file'><source path='/new.log'/></serial>", []),
        ("<emulator>/usr/bin/qemu</emulator>", [("file", "/usr/bin/qemu")]),
    ],
)
def test_what_it_needs(devices, found):
    text = f"<domain><devices>{devices}</devices></domain>"
    assert [(need.kind, need.name) for need in needs.needs_of(text)] == found


def test_what_boots_it_and_nothing_twice():
    text = """<domain><os><loader>/ovmf</loader><nvram template='/vars'>/made/by/libvirt</nvram>
      <kernel>/k</kernel><initrd>/k</initrd></os></domain>"""
    assert [need.name for need in needs.needs_of(text)] == ["/ovmf", "/vars", "/k", "/k"]


def test_the_chains_of_disks_that_are_still_configured():
    chain = "<backingStore><source file='/base-of{0}'/></backingStore>"
    live = "".join(
        disk(f"<source file='{path}'/>{chain.format(path)}") for path in ("/a", "/ejected")
    )
    found = needs.chains_of(
        f"<domain><devices>{live}</devices></domain>", [needs.Need("file", "/a", "a")]
    )
    assert [need.name for need in found] == ["/a", "/base-of/a"]


MEMINFO = """MemTotal:        8000 kB
MemAvailable:    1024 kB
SwapFree:        1024 kB
HugePages_Total:    4
HugePages_Free:     1
Hugepagesize:    2048 kB
"""


@pytest.mark.parametrize(
    ("wanted", "running", "enough"),
    [
        (Memory(4 * MIB, huge=False), Memory(2 * MIB, huge=False), True),
        (Memory(5 * MIB, huge=False), Memory(2 * MIB, huge=False), False),
        (Memory(4 * MIB, huge=True), Memory(2 * MIB, huge=True), True),
        (Memory(4 * MIB, huge=True), Memory(9 * MIB, huge=False), False),
    ],
)
def test_whether_there_is_enough_memory(wanted, running, enough):
    said = needs.too_little_memory(wanted, running, MEMINFO)
    assert (said == "") is enough
    assert needs.too_little_memory(wanted, running, "") == ""


@pytest.mark.parametrize(
    ("text", "memory"),
    [
        ("<memory unit='MiB'>3</memory>", Memory(3 * MIB, huge=False)),
        ("<memory>1024</memory>", Memory(MIB, huge=False)),
        (
            "<memory>1024</memory><memoryBacking><hugepages/></memoryBacking>",
            Memory(MIB, huge=True),
        ),
        ("", Memory(0, huge=False)),
    ],
)
def test_its_memory(text, memory):
    assert needs.memory_of(f"<domain>{text}</domain>") == memory
