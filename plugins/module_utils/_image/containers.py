# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which other hypervisor's container a file is (pure).

As in the probe functions of QEMU's block drivers; their files hold a disk, and are not one.
"""

from __future__ import annotations

#: What has to be read of a file, at its beginning and at its end.
HEAD_BYTES = 512
TAIL_BYTES = 512

#: What QEMU calls the format, where its mark lies, and the marks that it may have.
_AT_THE_BEGINNING = (
    ("vmdk", 0, (b"KDMV", b"COWD", b"# Disk DescriptorFile")),
    ("vdi", 0x40, (b"\x7f\x10\xda\xbe",)),
    ("vhdx", 0, (b"vhdxfile",)),
    ("vpc", 0, (b"conectix",)),
    ("qed", 0, (b"QED\0",)),
    ("parallels", 0, (b"WithoutFreeSpace", b"WithouFreSpacExt")),
    ("bochs", 0, (b"Bochs Virtual HD Image",)),
    ("cloop", 0, (b"#!/bin/sh\n#V2.0 Format\n",)),
)
#: The footer of a VHD of fixed size is 512 bytes long, and 511 in those of old releases.
_AT_THE_END = (("vpc", 512, b"conectix"), ("vpc", 511, b"conectix"), ("dmg", 512, b"koly"))

_NAMES = {
    "vmdk": "VMDK",
    "vdi": "VDI",
    "vhdx": "VHDX",
    "vpc": "VHD",
    "qed": "QED",
    "parallels": "Parallels",
    "bochs": "Bochs",
    "cloop": "cloop",
    "dmg": "DMG",
}


def container_of(head: bytes, tail: bytes) -> tuple[str, str] | None:
    """What QEMU and what people call the format of a container; None for any other file.

    :param head: the first :data:`HEAD_BYTES` of the file, or all of it.
    :param tail: the last :data:`TAIL_BYTES`, or all of it.
    """
    for name, offset, marks in _AT_THE_BEGINNING:
        if head.startswith(marks, offset):
            return name, _NAMES[name]
    for name, distance, mark in _AT_THE_END:
        if len(tail) >= distance and tail.startswith(mark, len(tail) - distance):
            return name, _NAMES[name]
    return None
