# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""image_compact, stopped: by signals, a full disk, a failing one, a second run, storage that can't.

QEMU's programs are held with SIGSTOP at the stage that matters, so that nothing depends on luck.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from compact_lab import (
    MIB,
    allocated,
    answer,
    assert_same,
    child_of,
    compact,
    entry_of,
    image,
    leftovers,
    raw_image,
    refused,
    sha256,
    start,
    state,
    users_of,
    wait_for,
    with_dead_clusters,
)
from image_lab import run

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@contextlib.contextmanager
def held(path, stage: str, **parameters):
    """A rewrite of an image that stands still in a stage: the process, and QEMU's in it."""
    process = start(path, **{"method": "rewrite", **parameters})
    try:
        child = child_of(process, stage)
        os.kill(child, signal.SIGSTOP)
        yield process, child
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def assert_as_it_was(path: Path, before: dict) -> None:
    """And nobody is at work on it any more."""
    assert state(path.parent) == before
    assert wait_for(lambda: users_of(path.parent) == [])


# Signals


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("stage", ["convert", "compare"])
def test_a_signal_undoes_a_copy(tmp_path, stage, number):
    path = image(tmp_path / "x.qcow2")
    before = state(tmp_path)
    with held(path, stage) as (process, child):
        assert len(leftovers(tmp_path)) == 2
        process.send_signal(number)
        result = answer(process)
    assert result["failed"]
    assert f"Stopped by {number.name} before the end" in result["msg"]
    assert not os.path.exists(f"/proc/{child}")
    assert_as_it_was(path, before)
    assert entry_of(path, method="rewrite")["recovered"] == ""


@pytest.mark.parametrize("number", SIGNALS)
def test_many_signals_are_one(tmp_path, number):
    path = image(tmp_path / "x.qcow2")
    before = state(tmp_path)
    with held(path, "convert") as (process, _child):
        for each in (number, *SIGNALS, *SIGNALS):
            process.send_signal(each)
        assert "Stopped by" in answer(process)["msg"]
    assert_as_it_was(path, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_punching(tmp_path, number):
    """Each hole takes a millisecond of its own; the content is the same after each."""
    path = tmp_path / "x.raw"
    path.write_bytes((b"x" * 4096 + bytes(4096)) * 400)
    checksum = sha256(path)
    prefix = ("strace", "-qq", "-o", "/dev/null")
    prefix += ("-e", "trace=fallocate", "-e", "inject=fallocate:delay_enter=10000")
    process = start(path, prefix=prefix, method="punch", min_reclaim_bytes=0)
    full = allocated(path)
    wait_for(lambda: allocated(path) < full - 10 * 4096)
    (child,) = child_pids(process)
    os.kill(child, number)
    assert f"Stopped by {number.name}" in answer(process)["msg"]
    assert full - 400 * 4096 < allocated(path) < full
    assert sha256(path) == checksum
    assert leftovers(tmp_path) == []
    assert entry_of(path, method="punch")["changed"]


def child_pids(process: subprocess.Popen) -> list[int]:
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return list(map(int, text.split()))


def test_a_signal_between_rename_and_end_waits_until_all_is_in_order(tmp_path):
    path = image(tmp_path / "x.qcow2")
    shutil.copy(path, tmp_path / "pristine")
    prefix = ("strace", "-qq", "-o", "/dev/null", "-e", "trace=rename")
    prefix += ("-e", "inject=rename:delay_exit=1000000")
    inode = path.stat().st_ino
    process = start(path, prefix=prefix, method="rewrite")
    wait_for(lambda: path.stat().st_ino != inode)
    (child,) = child_pids(process)
    os.kill(child, signal.SIGTERM)
    assert "Stopped by SIGTERM" in answer(process)["msg"]
    assert_same(path, tmp_path / "pristine")
    assert path.stat().st_nlink == 1
    assert leftovers(tmp_path) == []


# Two runs


@pytest.mark.parametrize("method", ["rewrite", "punch", "auto"])
def test_a_second_run_fails_at_once_and_names_the_first(tmp_path, method):
    path = image(tmp_path / "x.qcow2")
    with held(path, "convert") as (process, child):
        busy = f"Another run process {process.pid} (rewrite, copy) is at work on {path}"
        before = state(tmp_path)
        for check in (True, False):
            result = compact(path, method=method, check=check)
            assert busy in result["msg"]
            assert "Wait for it to end" in result["msg"]
        assert state(tmp_path) == before
        os.kill(child, signal.SIGCONT)
        assert answer(process)["images"][0]["method"] == "rewrite"
    assert leftovers(tmp_path) == []


# A domain, or a stranger, in between


def test_an_image_that_is_written_to_while_it_is_copied(tmp_path):
    """By somebody who heeds no locks; the last byte of the file, whose time alone changes."""
    path = image(tmp_path / "x.qcow2")
    with held(path, "compare") as (process, child):
        os.utime(path)
        inode = path.stat().st_ino
        os.kill(child, signal.SIGCONT)
        result = answer(process)
    assert "was written to while it was copied; the copy was removed" in result["msg"]
    assert path.stat().st_ino == inode
    assert leftovers(tmp_path) == []


def test_an_image_that_is_exchanged_while_it_is_copied(tmp_path):
    """Restored from a backup, for example: that one is not to be written over."""
    path = image(tmp_path / "x.qcow2")
    image(tmp_path / "restored", data_mib=8)
    checksum = sha256(tmp_path / "restored")
    with held(path, "convert") as (process, child):
        os.rename(tmp_path / "restored", path)
        os.kill(child, signal.SIGCONT)
        result = answer(process)
    assert "was changed or exchanged by somebody else; it was left as it is" in result["msg"]
    assert sha256(path) == checksum
    assert os.listdir(tmp_path) == ["x.qcow2"]


def test_an_image_that_is_exchanged_before_it_is_copied(tmp_path):
    """What is copied is the file that was looked at, and so is what may be replaced."""
    path = image(tmp_path / "x.qcow2")
    image(tmp_path / "restored", data_mib=8)
    checksum = sha256(tmp_path / "restored")
    with held(path, "check") as (process, child):
        os.rename(tmp_path / "restored", path)
        os.kill(child, signal.SIGCONT)
        result = answer(process)
    assert "was changed or exchanged by somebody else" in result["msg"]
    assert sha256(path) == checksum
    assert os.listdir(tmp_path) == ["x.qcow2"]


def test_a_copy_that_somebody_exchanges(tmp_path):
    path = image(tmp_path / "x.qcow2")
    before = state(tmp_path)
    with held(path, "compare") as (process, child):
        (temp,) = glob.glob(f"{tmp_path}/.x.qcow2.thinvirt-*.tmp")
        os.rename(raw_image(tmp_path / "evil"), temp)
        os.kill(child, signal.SIGCONT)
        result = answer(process)
    assert result["failed"]
    assert "it was left as it is" in result["msg"]
    after = state(tmp_path)
    assert after["x.qcow2"][:-2] == before["x.qcow2"][:-2]
    assert leftovers(tmp_path) == []


def test_a_copy_that_somebody_writes_to(tmp_path):
    """What is compared is what gets the name."""
    path = image(tmp_path / "x.qcow2", data_mib=4)
    before = state(tmp_path)
    with held(path, "compare") as (process, child):
        (temp,) = glob.glob(f"{tmp_path}/.x.qcow2.thinvirt-*.tmp")
        with open(temp, "r+b") as file:
            file.seek(-70000, os.SEEK_END)
            file.write(os.urandom(70000))
        os.kill(child, signal.SIGCONT)
        result = answer(process)
    assert "has another content; it was removed" in result["msg"]
    assert_as_it_was(path, before)


# Full disks, bad disks, disks that can't


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
        os.kill(child, signal.SIGCONT)
        result = answer(process)
    assert result["failed"]
    for says in ("No space left on device", "it is as it was", "Free space on the file system."):
        assert says in result["msg"]
    assert state(point)["x.qcow2"] == content
    assert leftovers(point) == []
    filler.unlink()
    assert entry_of(path, method="rewrite")["freed_bytes"] > 20 * MIB


def test_a_disk_that_comes_down_to_what_is_to_be_left_free(mounted):
    point = mounted(256)
    path = image(point / "x.qcow2")
    content = state(point)["x.qcow2"]
    with held(path, "convert", min_free_bytes=64 * MIB) as (process, child):
        fill_up(point, leave_bytes=48 * MIB)
        os.kill(child, signal.SIGCONT)
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
        ("rename", "EIO", "cannot be replaced: Input/output error"),
        ("rename", "EXDEV", "cannot be replaced"),
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


@pytest.mark.parametrize(
    ("number", "says"),
    [
        ("ENOSPC", "it is as it was, and the copy was removed: No space left on device"),
        ("EIO", "Check the disks of this host"),
    ],
)
def test_a_copy_that_does_not_reach_the_disk(tmp_path, number, says):
    path = image(tmp_path / "x.qcow2", data_mib=4)
    before = state(tmp_path)
    sitecustomize = tmp_path.parent / f"{tmp_path.name}.py"
    sitecustomize.mkdir()
    (sitecustomize / "sitecustomize.py").write_text(
        "import errno, os, stat\n"
        "real = os.fsync\n"
        "def fsync(fd):\n"
        "    if os.readlink(f'/proc/self/fd/{fd}').endswith('.tmp'):\n"
        f"        raise OSError(errno.{number}, os.strerror(errno.{number}))\n"
        "    real(fd)\n"
        "os.fsync = fsync\n"
    )
    prefix = ("env", f"PYTHONPATH={sitecustomize}:{os.environ['PYTHONPATH']}")
    result = compact_with(prefix, path, method="rewrite")
    assert result["failed"]
    assert says in result["msg"]
    assert_as_it_was(path, before)


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
