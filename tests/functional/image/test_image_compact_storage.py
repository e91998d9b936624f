# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""image_compact on full disks, failing ones, and storage that can't do it."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import pytest
from compact_lab import (
    MIB,
    answer,
    assert_as_it_was,
    assert_same,
    compact,
    entry_of,
    fill,
    go_on,
    held,
    held_child,
    image,
    leftovers,
    raw_image,
    refused,
    sha256,
    start,
    start_module,
    state,
    with_dead_clusters,
)
from image_lab import run
from support import run_module


@pytest.fixture
def mounted(tmp_path):
    """Mounts a small ext4 file system, or another that is named, on a loop device."""
    with contextlib.ExitStack() as stack:

        def mount(size_mib: int, *options: str) -> Path:
            disk, point = tmp_path / "disk", tmp_path / "mnt"
            point.mkdir()
            with open(disk, "wb") as file:
                file.truncate(size_mib * MIB)
            mkfs = options or ("mkfs.ext4", "-q", "-F", "-m", "0")
            run(*mkfs, disk)
            run("mount", "-o", "loop", disk, point)
            stack.callback(run, "umount", point)
            return point

        yield mount


def free_bytes(point: Path) -> int:
    figures = os.statvfs(point)
    return figures.f_bfree * figures.f_frsize


def fill_up(point: Path, *, leave_bytes: int = 0) -> Path:
    """Take all room of a file system but so much."""
    filler = point / "filler"
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT)
    for size in (MIB, 4096, 1024):
        with contextlib.suppress(OSError):
            while free_bytes(point) - size >= leave_bytes:
                os.write(fd, bytes(size))
    os.close(fd)
    return filler


@pytest.mark.parametrize("left", [0, 100_000, MIB, 8 * MIB, 15 * MIB])
def test_a_disk_that_becomes_full_while_a_copy_is_made(mounted, left):
    """The image has 16 MiB of data: all five are too little."""
    point = mounted(256)
    path = image(point / "x.qcow2")
    content = state(point)["x.qcow2"]
    with held(path, "convert") as (process, child):
        filler = fill_up(point, leave_bytes=left)
        go_on(child)
        result = answer(process)
    assert result["failed"]
    for says in ("No space left on device", "it is as it was", "Free space on the file system."):
        assert says in result["msg"]
    assert state(point)["x.qcow2"] == content
    assert leftovers(point) == []
    filler.unlink()
    assert entry_of(path, method="rewrite")["freed_bytes"] > 20 * MIB


@pytest.mark.parametrize("left", [0, MIB, 15 * MIB])
def test_a_disk_that_becomes_full_while_a_copy_is_made_elsewhere(mounted, tmp_path, left):
    """The older copy keeps its name, and its note."""
    point = mounted(256)
    path, dest = image(tmp_path / "x.qcow2", zeros_mib=0), point / "copy.qcow2"
    given = {"src": str(path), "dest": str(dest), "compression": "none", "min_free_bytes": 0}
    assert run_module("image_convert", **given)["changed"]
    fill(path, data_mib=16)
    before = state(point)
    process = start_module("image_convert", hold="convert", **given)
    child = held_child(process)
    filler = fill_up(point, leave_bytes=left)
    go_on(child)
    result = answer(process)
    assert result["failed"]
    for says in ("No space left on device", "it is as it was", "Free space on the file system."):
        assert says in result["msg"]
    filler.unlink()
    assert state(point) == before
    assert run_module("image_convert", **given)["changed"]
    assert_same(path, dest)
    assert sorted(os.listdir(point)) == ["copy.qcow2", "copy.qcow2.thinvirt.json", "lost+found"]


def test_a_disk_that_comes_down_to_what_is_to_be_left_free(mounted):
    point = mounted(256)
    path = image(point / "x.qcow2")
    content = state(point)["x.qcow2"]
    with held(path, "convert", min_free_bytes=64 * MIB) as (process, child):
        fill_up(point, leave_bytes=48 * MIB)
        go_on(child)
        result = answer(process)
    assert "less than min_free_bytes=67108864; the copy was removed" in result["msg"]
    assert "Free space, or lower min_free_bytes" in result["msg"]
    assert state(point)["x.qcow2"] == content
    assert leftovers(point) == []


@pytest.mark.parametrize("mkfs", ["ext4", "xfs"])
def test_a_full_disk_is_punched_free(mounted, mkfs):
    """There it is needed most; not even the journal has room for a word."""
    point = mounted(*((128,) if mkfs == "ext4" else (512, "mkfs.xfs", "-q")))
    path = raw_image(point / "x.raw")
    checksum = sha256(path)
    fill_up(point)
    assert entry_of(path)["freed_bytes"] > 23 * MIB
    assert sha256(path) == checksum
    assert leftovers(point) == []


def test_a_full_disk_refuses_a_copy(mounted):
    point = mounted(128)
    path = with_dead_clusters(point / "x.qcow2")
    fill_up(point)
    refused(path, "Free space, lower min_free_bytes, or use method=punch", method="rewrite")


@pytest.mark.parametrize(
    ("call", "number", "says"),
    [
        ("renameat2", "EIO", "cannot be replaced: Input/output error"),
        ("renameat2", "EXDEV", "cannot be replaced"),
        ("fchown", "EPERM", "cannot be compacted: Operation not permitted"),
        ("fchmod", "EPERM", "cannot be compacted: Operation not permitted"),
    ],
)
def test_a_system_call_that_fails(tmp_path, call, number, says):
    path = image(tmp_path / "x.qcow2", data_mib=4)
    os.chown(path, 1234, -1)
    before = state(tmp_path)
    prefix = ("strace", "-qq", "-o", "/dev/null", "-e", f"trace={call}")
    prefix += ("-e", f"inject={call}:error={number}")
    result = compact_with(prefix, path, method="rewrite")
    assert result["failed"]
    assert says in result["msg"]
    after = state(tmp_path)
    # A second name that came and went is seen in the time of its last change alone.
    assert after["x.qcow2"][:-2] == before["x.qcow2"][:-2]
    assert list(after) == list(before)
    assert entry_of(path, method="rewrite")["changed"]


@pytest.fixture
def fsync_fails(tmp_path):
    """The options that make fsync(2) fail for files whose name ends so, in whichever thread."""

    def fsync_fails(suffix: str, number: str) -> tuple[str, ...]:
        folder = tmp_path.parent / f"{tmp_path.name}-python"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(
            "import errno, os\n"
            "real = os.fsync\n"
            "def fsync(fd):\n"
            f"    if os.readlink(f'/proc/self/fd/{{fd}}').endswith({suffix!r}):\n"
            f"        raise OSError(errno.{number}, os.strerror(errno.{number}))\n"
            "    real(fd)\n"
            "os.fsync = fsync\n"
        )
        return ("env", f"PYTHONPATH={folder}:{os.environ['PYTHONPATH']}")

    return fsync_fails


@pytest.mark.parametrize(
    ("number", "says"),
    [
        ("ENOSPC", "it is as it was, and the copy was removed: No space left on device"),
        ("EIO", "Check the disks of this host"),
    ],
)
def test_a_copy_that_does_not_reach_the_disk(tmp_path, fsync_fails, number, says):
    path = image(tmp_path / "x.qcow2", data_mib=4)
    before = state(tmp_path)
    result = compact_with(fsync_fails(".tmp", number), path, method="rewrite")
    assert result["failed"]
    assert says in result["msg"]
    assert_as_it_was(path, before)


def test_holes_that_do_not_reach_the_disk(tmp_path, fsync_fails):
    path = raw_image(tmp_path / "x.raw")
    checksum = sha256(path)
    result = compact_with(fsync_fails("x.raw", "EIO"), path, method="punch")
    assert "cannot be punched: Input/output error" in result["msg"]
    assert sha256(path) == checksum
    assert leftovers(tmp_path) == []


def compact_with(prefix, path, **parameters):
    return answer(start(path, prefix=prefix, **parameters))


def test_storage_without_links_still_replaces_in_one_go(tmp_path):
    """vfat, some FUSE servers: there is no second name for the original."""
    path = image(tmp_path / "x.qcow2")
    shutil.copy(path, tmp_path / "pristine")
    prefix = ("strace", "-qq", "-o", "/dev/null", "-e", "trace=linkat,link")
    prefix += ("-e", "inject=linkat,link:error=EPERM")
    assert not compact_with(prefix, path, method="rewrite")["failed"]
    assert_same(path, tmp_path / "pristine")
    assert leftovers(tmp_path) == []
    path = image(tmp_path / "y.qcow2")
    before = state(tmp_path)
    result = compact_with(prefix, path, method="rewrite", keep_original=True)
    assert "cannot be replaced: Operation not permitted" in result["msg"]
    assert state(tmp_path) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="to mount takes root")
def test_a_file_system_that_cannot_punch(tmp_path):
    point = tmp_path / "ram"
    point.mkdir()
    run("mount", "-t", "ramfs", "none", point)
    try:
        path = raw_image(point / "x.raw")
        says = "cannot punch holes; nothing was changed."
        refused(path, says, "Use method=rewrite", method="punch")
        before = state(point)
        for check in (True, False):  # which can't tell how much room it has either
            entry = entry_of(path, check=check)
            assert not entry["changed"]
            assert says in entry["reason"]
            assert "A rewrite was refused" in entry["reason"]
        assert state(point) == before
    finally:
        run("umount", point)


def test_a_file_system_that_cannot_punch_gets_a_new_image(tmp_path):
    path = raw_image(tmp_path / "x.raw")
    checksum = sha256(path)
    prefix = ("strace", "-qq", "-o", "/dev/null", "-e", "trace=fallocate")
    prefix += ("-e", "inject=fallocate:error=EOPNOTSUPP")
    (entry,) = compact_with(prefix, path)["images"]
    assert entry["method"] == "rewrite"
    assert entry["freed_bytes"] == 24 * MIB
    assert sha256(path) == checksum
    assert leftovers(tmp_path) == []


def test_a_file_system_that_gives_nothing_back_is_not_said_to_have_changed(mounted):
    """Its blocks are larger than the zeros in them; and so it would be at each run."""
    point = mounted(128, "mkfs.ext4", "-q", "-F", "-O", "bigalloc", "-C", "65536")
    path = point / "x.raw"
    path.write_bytes(b"".join(os.urandom(32768) + bytes(32768) for _number in range(256)))
    checksum = sha256(path)
    for says in ("the file system gave no block back", "0 bytes are zeros"):
        result = compact(path, method="punch", min_reclaim_bytes=0)
        assert (result["failed"], result["changed"], result["freed_bytes"]) == (False, False, 0)
        assert says in result["summary"][0]
    assert sha256(path) == checksum
