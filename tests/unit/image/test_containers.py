# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a file is taken for by its first and its last bytes."""

from __future__ import annotations

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.containers import container_of

ZEROS = bytes(512)


@pytest.mark.parametrize(
    ("head", "tail", "found"),
    [
        (ZEROS, ZEROS, None),
        (b"", b"", None),
        (b"QFI\xfb\0\0\0\3" + ZEROS, ZEROS, None),
        (b"LUKS\xba\xbe\0\1" + ZEROS, ZEROS, None),  # a guest may well encrypt its whole disk
        (b"\xeb\x63\x90" + ZEROS[:507] + b"\x55\xaa", ZEROS, None),
        (b"KDMV" + ZEROS, ZEROS, "vmdk"),
        (b"COWD" + ZEROS, ZEROS, "vmdk"),
        (b"# Disk DescriptorFile\nversion=1\n", b"", "vmdk"),
        (b"<<< Oracle VM VirtualBox".ljust(64, b"\0") + b"\x7f\x10\xda\xbe", ZEROS, "vdi"),
        (b"vhdxfile" + ZEROS, ZEROS, "vhdx"),
        (b"conectix" + ZEROS, ZEROS, "vpc"),
        (ZEROS, b"conectix" + ZEROS[:504], "vpc"),
        (ZEROS, b"\0conectix" + ZEROS[:503], "vpc"),
        (ZEROS, ZEROS[:504] + b"conectix", None),
        (b"QED\0" + ZEROS, ZEROS, "qed"),
        (b"WithoutFreeSpace" + ZEROS, ZEROS, "parallels"),
        (b"WithouFreSpacExt" + ZEROS, ZEROS, "parallels"),
        (ZEROS, b"koly" + ZEROS[:508], "dmg"),
    ],
)
def test_marks(head, tail, found):
    assert (container_of(head, tail) or (None,))[0] == found
