# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The probes on real file systems: in loop devices, and two of which can't punch holes."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from pathlib import Path

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.extents import (
    data_extents,
    extent_count,
    file_usage,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.filesystem import (
    file_system_of,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.punch import (
    can_discard,
    can_punch_holes,
)

MIB = 1024 * 1024
MKFS = {
    "ext2": ["mkfs.ext2", "-q", "-F"],  # its files have no extents
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "xfs": ["mkfs.xfs", "-q"],
    "vfat": ["mkfs.vfat"],
    "ramfs": None,  # where the kernel has no vfat
}
CANNOT_PUNCH = {"vfat", "ramfs"}


def run(*argv: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = list(map(str, argv))
    return subprocess.run(command, capture_output=True, text=True, check=check, timeout=60)


@pytest.fixture(scope="module", params=MKFS)
def mounted(request, tmp_path_factory):
    """(type, mount point, source): the point has a blank in its name."""
    kind = request.param
    if f"\t{kind}\n" not in Path("/proc/filesystems").read_text():
        pytest.skip(f"this kernel has no {kind}")
    folder = tmp_path_factory.mktemp(kind)
    image, point = folder / "image", folder / "mount point"
    point.mkdir()
    with contextlib.ExitStack() as stack:
        source = kind
        if MKFS[kind]:
            with open(image, "wb") as file:
                file.truncate(512 * MIB)
            run(*MKFS[kind], image)
            source = run("losetup", "-f", "--show", image).stdout.strip()
            stack.callback(run, "losetup", "-d", source)
        run("mount", "-t", kind, source, point)
        stack.callback(run, "umount", point)
        yield kind, point, source


def test_probe_agrees_with_fallocate(mounted):
    kind, point, _device = mounted
    run("dd", "if=/dev/urandom", f"of={point}/file", "bs=64k", "count=1", "conv=fsync")
    punched = run("fallocate", "-p", "-o", 0, "-l", 65536, point / "file", check=False)
    probe = can_punch_holes(str(point))
    assert probe.works is (punched.returncode == 0)
    assert probe.works is (kind not in CANNOT_PUNCH)
    os.unlink(point / "file")
    assert [name for name in os.listdir(point) if name != "lost+found"] == []


def test_probe_on_a_file_system_mounted_read_only(mounted):
    _kind, point, _device = mounted
    run("mount", "-o", "remount,ro", point)
    try:
        probe = can_punch_holes(str(point))
        assert file_system_of(str(point)).read_only
    finally:
        run("mount", "-o", "remount,rw", point)
    assert probe.works is None
    assert "Read-only file system" in probe.reason
    assert not file_system_of(str(point)).read_only


def test_probe_on_a_full_file_system(mounted):
    kind, point, _device = mounted
    if kind == "ramfs":
        pytest.skip("ramfs is never full before the host is")
    for block in ("1M", "4k"):  # up to the last block
        target = (f"of={point}/filler", "oflag=append", "conv=notrunc,fsync")
        run("dd", "if=/dev/zero", *target, f"bs={block}", check=False)
    try:
        probe = can_punch_holes(str(point))
    finally:
        os.unlink(point / "filler")
    assert probe.works is None
    assert "No space left" in probe.reason


def test_file_system(mounted):
    kind, point, source = mounted
    with open(point / "file", "w") as file:
        found = file_system_of(file.fileno())
    os.unlink(point / "file")
    assert (found.mount_point, found.source, found.type) == (str(point), source, kind)
    number = os.stat(point).st_dev
    assert found.device == f"{os.major(number)}:{os.minor(number)}"
    size, free = run("df", "-B1", "--output=size,avail", point).stdout.split()[-2:]
    assert (found.total_bytes, found.free_bytes) == (int(size), int(free))


def test_data_and_holes(mounted):
    kind, point, _device = mounted
    path = point / "sparse"
    with open(path, "w+b") as file:
        for offset in (0, 8 * MIB, 24 * MIB):
            os.pwrite(file.fileno(), b"x" * MIB, offset)
        file.truncate(32 * MIB)
        os.fsync(file.fileno())
        found = list(data_extents(file.fileno()))
        extents = extent_count(file.fileno())
        usage = file_usage(file.fileno())
    blocks = int(run("stat", "-c", "%b", path).stdout) * 512
    listed = "" if kind in CANNOT_PUNCH else run("filefrag", "-v", path).stdout
    os.unlink(path)
    assert usage.allocated_bytes == blocks
    assert usage.length_bytes == 32 * MIB
    if kind in CANNOT_PUNCH:  # knows neither holes nor FIEMAP
        assert found == [(0, 32 * MIB)]
        assert extents is None
    else:
        assert found == [(0, MIB), (8 * MIB, MIB), (24 * MIB, MIB)]
        assert extents is not None
        assert extents >= 3  # more where a mebibyte does not fit between what mkfs has laid out
        assert len(re.findall(r"^ *\d+:", listed, re.MULTILINE)) == extents


def test_a_file_of_nothing_but_a_hole(mounted):
    kind, point, _device = mounted
    path = point / "hole"
    with open(path, "w+b") as file:
        file.truncate(0 if kind in CANNOT_PUNCH else MIB)
        assert list(data_extents(file.fileno())) == []
    os.unlink(path)


def test_loop_device_discards_if_its_file_can_be_punched(mounted):
    """The loop driver passes discards on as holes: on vfat it can't."""
    kind, point, _device = mounted
    with open(point / "inner", "wb") as file:
        file.truncate(16 * MIB)
    device = run("losetup", "-f", "--show", point / "inner").stdout.strip()
    try:
        answer = run("blkdiscard", device, check=False)
        assert can_discard(device).works is (answer.returncode == 0)
        assert can_discard(device).works is (kind not in CANNOT_PUNCH)
        assert file_usage(device).allocated_bytes is None
        assert file_usage(device).length_bytes == 16 * MIB
    finally:
        run("losetup", "-d", device)
        os.unlink(point / "inner")
