# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who has an image in a way that shows nowhere, and who comes while there is work on it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact import (
    compact as compact_one,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact_policy import Request
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.replace import Stages
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage import lease
from compact_lab import (
    MIB,
    allocated,
    answer,
    assert_as_it_was,
    entry_of,
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
    wait_for,
)
from image_lab import run
from qemu_machine import Machine, blockdev
from support import run_module

METHODS = ["punch", "rewrite", "auto"]

#: Maps a file for writing, and has no descriptor of it any more.
MAPPED = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
fd = os.open(sys.argv[1], os.O_RDWR)
assert libc.mmap(None, ctypes.c_size_t(4096), 3, 1, fd, ctypes.c_long(0)) != 2**64 - 1
os.close(fd)
print(flush=True)
sys.stdin.read()
"""
#: Opens a file, waiting if it has to, and stays.
OPENS = """
import os, sys
fd = os.open(sys.argv[1], eval(sys.argv[2]))
print(flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def program(code, *arguments):
    argv = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        yield child
        child.stdin.close()


# Who has it


@pytest.mark.parametrize("method", METHODS)
def test_it_is_mapped_and_not_open(tmp_path, method):
    path = raw_image(tmp_path / "x.raw")
    with program(MAPPED, path) as child:
        refused(path, "in use by python", f"({child.pid}); nothing was changed", method=method)


@pytest.mark.parametrize("method", METHODS)
def test_a_loop_device_by_a_name_of_another_mount_namespace(tmp_path, method):
    path = raw_image(tmp_path / "x.raw")
    (tmp_path / "other").mkdir()
    attach = f"mount --bind {tmp_path} /mnt; losetup -f --show /mnt/x.raw"
    device = run("unshare", "-m", "sh", "-c", attach).strip()
    try:
        refused(path, f"is attached to {device}", "losetup -d", method=method)
    finally:
        run("losetup", "-d", device)


@pytest.mark.parametrize("method", METHODS)
def test_a_loop_device_by_a_name_that_is_gone(tmp_path, method):
    path = raw_image(tmp_path / "x.raw")
    os.link(path, tmp_path / "link")
    device = run("losetup", "-f", "--show", tmp_path / "link").strip()
    (tmp_path / "link").unlink()
    try:
        refused(path, f"is attached to {device}", "losetup -d", method=method)
    finally:
        run("losetup", "-d", device)


def test_a_loop_device_that_only_reads(tmp_path):
    path = raw_image(tmp_path / "x.raw")
    device = run("losetup", "-r", "-f", "--show", path).strip()
    try:
        assert entry_of(path, method="punch")["freed_bytes"] >= 24 * MIB
    finally:
        run("losetup", "-d", device)


@pytest.mark.parametrize("check", [False, True])
def test_a_copy_is_not_made_of_what_is_written_to(tmp_path, check):
    path = raw_image(tmp_path / "x.raw")
    with program(MAPPED, path) as child:
        given = {"src": str(path), "dest": str(tmp_path / "copy"), "min_free_bytes": 0}
        result = run_module("image_convert", check=check, **given)
    assert f"({child.pid}); nothing was changed" in result["msg"]
    assert os.listdir(tmp_path) == ["x.raw"]


@pytest.mark.parametrize("mounted", [False, True])
def test_a_block_device_that_is_mounted(tmp_path, mounted):
    path = tmp_path / "disk"
    with open(path, "wb") as file:
        file.truncate(32 * MIB)
    run("mkfs.ext4", "-q", "-F", path)
    device = run("losetup", "-f", "--show", path).strip()
    try:
        if mounted:
            run("mount", device, "/mnt")
        given = {"src": device, "dest": str(tmp_path / "copy"), "min_free_bytes": 0}
        result = run_module("image_convert", **given)
        assert result["failed"] is mounted
        if mounted:
            assert f"{device} is in use by a mount, or by another block device" in result["msg"]
    finally:
        if mounted:
            run("umount", "/mnt")
        run("losetup", "-d", device)


def test_processes_are_not_looked_at_for_an_image_that_nobody_has(tmp_path):
    path = image(tmp_path / "x.qcow2")
    trace = tmp_path / "trace"
    prefix = ("strace", "-f", "-qq", "-o", str(trace), "-e", "trace=openat,readlink")
    process = start(path, prefix=prefix, method="rewrite")
    assert answer(process)["images"][0]["method"] == "rewrite"
    looked_at = [line for line in trace.read_text().splitlines() if '"/proc"' in line]
    assert looked_at == []


# Who comes meanwhile


def test_a_machine_that_starts_while_a_copy_is_made_is_let_in(tmp_path):
    path = image(tmp_path / "x.qcow2")
    inode = path.stat().st_ino
    with held(path, "convert") as (process, child):
        machine = Machine(*blockdev(path))
        try:
            result = answer(process)
            machine.io("write -P 9 0 64k")
        finally:
            machine.end()
    error = result["images"][0]["error"]["msg"]
    assert "was let in first; nothing was changed. Run it again when nobody uses it" in error
    assert not os.path.exists(f"/proc/{child}")
    assert path.stat().st_ino == inode
    assert leftovers(tmp_path) == []
    assert "failed" not in run("qemu-io", "-f", "qcow2", "-c", "read -P 9 0 64k", path)


@pytest.mark.parametrize("stage", ["check", "compare"])
def test_a_program_that_comes_while_a_copy_is_made_is_let_in(tmp_path, stage):
    path = image(tmp_path / "x.qcow2")
    before = state(tmp_path)
    with held(path, stage) as (process, _child):
        begin = time.monotonic()
        with program(OPENS, path, "os.O_RDWR"):
            assert time.monotonic() - begin < 20  # and not lease-break-time
            assert "was let in first" in answer(process)["msg"]
    assert_as_it_was(path, before)


def test_a_program_that_comes_while_an_image_is_copied_elsewhere(tmp_path):
    path = image(tmp_path / "x.qcow2")
    given = {"src": str(path), "dest": str(tmp_path / "copy"), "min_free_bytes": 0}
    process = start_module("image_convert", hold="convert", **given)
    held_child(process)
    with program(OPENS, path, "os.O_RDWR"):
        assert "was let in first; nothing was changed" in answer(process)["msg"]
    assert os.listdir(tmp_path) == ["x.qcow2"]


def test_who_only_reads_does_not_wait_for_a_copy(tmp_path):
    path = image(tmp_path / "x.qcow2")
    with held(path, "compare") as (process, child), program(OPENS, path, "os.O_RDONLY"):
        assert process.poll() is None
        go_on(child)
        assert answer(process)["images"][0]["method"] == "rewrite"


@contextlib.contextmanager
def punching(path):
    """Each hole takes ten milliseconds of its own."""
    prefix = ("strace", "-qq", "-o", "/dev/null")
    prefix += ("-e", "trace=fallocate", "-e", "inject=fallocate:delay_enter=10000")
    process = start(path, prefix=prefix, method="punch", min_reclaim_bytes=0)
    full = allocated(path)
    wait_for(lambda: allocated(path) < full - 10 * 4096)
    yield process


def test_a_machine_that_starts_while_holes_are_punched_is_let_in(tmp_path):
    path = image(tmp_path / "x.qcow2", data_mib=1, zeros_mib=0)
    with open(path, "ab") as file:  # dead clusters, as far as QEMU knows
        file.write((b"x" * 4096 + bytes(4096)) * 600)
    shutil.copy(path, tmp_path / "pristine")
    with punching(path) as process:
        machine = Machine(*blockdev(path))
        try:
            result = answer(process)
        finally:
            machine.end()
    assert "was let in first; its content was not changed" in result["msg"]
    run("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", path, tmp_path / "pristine")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("stays", [False, True])
def test_a_reader_that_comes_while_holes_are_punched(tmp_path, stays):
    """One that stays may be a QEMU, which reads first and writes later."""
    path = tmp_path / "x.raw"
    path.write_bytes((b"x" * 4096 + bytes(4096)) * 400)
    checksum = sha256(path)
    with punching(path) as process, program(OPENS, path, "os.O_RDONLY") as reader:
        if not stays:
            reader.stdin.close()
            reader.wait()
        result = answer(process)
    assert sha256(path) == checksum
    assert leftovers(tmp_path) == []
    assert result["failed"] is stays
    if stays:
        assert "was let in first; its content was not changed" in result["msg"]
    else:
        assert allocated(path) <= 410 * 4096


def test_an_image_without_leases_says_so(tmp_path, monkeypatch):
    """As on NFS: who writes is looked for, and the result says who was not kept out."""
    monkeypatch.setattr(lease, "_place", lambda _fd, _kind: None)
    path = raw_image(tmp_path / "x.raw")

    def outcome():
        request = Request(min_reclaim_bytes=0, min_free_bytes=0)
        return compact_one(
            str(path),
            request,
            obstacles=lambda _image: (),
            check_mode=False,
            stages=Stages(),
        )

    with program(MAPPED, path) as child, pytest.raises(RefusedError, match=rf"\({child.pid}\)"):
        outcome()
    done = outcome()
    assert done.method == "punch"
    kind = run("findmnt", "-n", "-o", "FSTYPE", "-T", path).strip()
    assert f"Only who heeds QEMU's locks was kept out: its file system ({kind})" in done.reason
