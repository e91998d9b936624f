# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where zeros help, and how many are written."""

from __future__ import annotations

import dataclasses

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest.zero_fill import layers_of
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest.zero_policy import (
    MIB,
    Layer,
    planned,
    refusal,
    reserve,
    step,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.filesystem import Mount

GIB = 1 << 30
DISK = (Layer("sda1"),)
LVM = (Layer("dm-0", "LVM-x"), Layer("sda2"))
MOUNT = Mount(
    id=1,
    device="8:1",
    root="/",
    mount_point="/",
    type="ext4",
    source="/dev/sda1",
    read_only=False,
)


@pytest.mark.parametrize("kind", ["ext2", "ext3", "ext4", "xfs"])
@pytest.mark.parametrize("layers", [DISK, LVM])
def test_these_are_filled(kind, layers):
    assert refusal(dataclasses.replace(MOUNT, type=kind), layers) is None


@pytest.mark.parametrize(
    ("kind", "layers", "word", "final"),
    [
        ("tmpfs", (), "no disk", True),
        ("overlay", (), "no disk", True),
        ("nfs4", (), "no disk", True),
        ("fuse.sshfs", (), "no disk", True),
        ("btrfs", (), "compresses", False),  # its device number is no device's
        ("zfs", (), "compresses", False),
        ("bcachefs", DISK, "compresses", False),
        ("f2fs", DISK, "new places", False),
        ("nilfs2", DISK, "checkpoints", False),
        ("vfat", DISK, "never tried", False),
        ("ext4", (Layer("dm-0", "CRYPT-LUKS2-1-x"), Layer("sda2")), "encrypted (dm-0)", True),
        ("xfs", (Layer("dm-1", "LVM-x"), Layer("dm-0", "CRYPT-PLAIN-x")), "encrypted", True),
        ("ext4", (Layer("dm-2", "LVM-x"), Layer("dm-1", "LVM-x-tpool")), "thin pool", False),
        ("ext4", (Layer("dm-2", "VDO-x"),), "VDO", True),
    ],
)
def test_these_are_refused(kind, layers, word, final):
    found = refusal(dataclasses.replace(MOUNT, type=kind), layers)
    assert found is not None
    assert word in found.reason
    assert found.final is final


def test_what_is_read_only_is_refused():
    found = refusal(dataclasses.replace(MOUNT, read_only=True), DISK)
    assert found is not None
    assert found.final


def test_the_devices_below_are_found(tmp_path):
    """A tree as sysfs has it: LVM on LUKS on a partition."""
    for number, name, uuid, slave in (
        ("253:1", "dm-1", "LVM-x", "253:0"),
        ("253:0", "dm-0", "CRYPT-LUKS2-x", "8:2"),
        ("8:2", "sda2", "", ""),
    ):
        device = tmp_path / "devices" / name
        device.mkdir(parents=True)
        (tmp_path / "dev" / "block").mkdir(parents=True, exist_ok=True)
        (tmp_path / "dev" / "block" / number).symlink_to(device)
        if uuid:
            (device / "dm").mkdir()
            (device / "dm" / "uuid").write_text(f"{uuid}\n")
        if slave:
            (device / "slaves" / "below").mkdir(parents=True)
            (device / "slaves" / "below" / "dev").write_text(f"{slave}\n")
    expected = [Layer("dm-1", "LVM-x"), Layer("dm-0", "CRYPT-LUKS2-x"), Layer("sda2")]
    assert list(layers_of("253:1", str(tmp_path))) == expected
    assert list(layers_of("0:35", str(tmp_path))) == []


def test_the_reserve():
    assert reserve(GIB, None) == 256 * MIB
    assert reserve(100 * GIB, None) == 5 * GIB
    assert reserve(100 * GIB, 0) == 0


@pytest.mark.parametrize(
    ("free", "keep", "budget", "expected"),
    [
        (GIB, 0, 10 * GIB, (4 * MIB, "")),
        (GIB, GIB - 3 * MIB, 10 * GIB, (2 * MIB, "")),  # 1 MiB is for the file system's own use
        (GIB, GIB - MIB, 10 * GIB, (0, "reserve")),
        (GIB, 2 * GIB, 10 * GIB, (0, "reserve")),
        (GIB, 0, 5000, (4096, "")),
        (GIB, 0, 4095, (0, "budget")),
        (GIB, 2 * GIB, 0, (0, "budget")),
    ],
)
def test_a_step(free, keep, budget, expected):
    assert step(free_bytes=free, keep_free_bytes=keep, budget_bytes=budget) == expected


def test_what_is_planned_is_never_negative():
    assert planned(free_bytes=0, keep_free_bytes=GIB, budget_bytes=GIB) == 0
    assert planned(free_bytes=GIB, keep_free_bytes=MIB, budget_bytes=10 * GIB) == GIB - 2 * MIB
    assert planned(free_bytes=GIB, keep_free_bytes=MIB, budget_bytes=MIB) == MIB
