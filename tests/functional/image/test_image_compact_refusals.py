# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""image_compact: what can't be done safely is refused, and then nothing has changed."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys

import pytest
from compact_lab import (
    MIB,
    compact,
    entry_of,
    image,
    raw_image,
    refused,
    sha256,
    state,
    with_dead_clusters,
)
from image_lab import create, qemu_io, run
from qcow2_bytes import patch
from qemu_machine import Machine, blockdev

METHODS = ["punch", "rewrite", "auto", "trim"]


def consent(method: str) -> dict:
    """What it takes for a method to be tried at all."""
    return {"method": method, "accept_no_rollback": method == "trim"}


@pytest.fixture
def boot():
    machines = []

    def boot(*options: str) -> Machine:
        machines.append(Machine(*options))
        return machines[-1]

    yield boot
    for machine in machines:
        machine.end()


@contextlib.contextmanager
def opened(path, mode: str):
    """Another process that has a file open."""
    code = "import sys; f = open(sys.argv[1], sys.argv[2]); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, path, mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        yield child
        child.stdin.close()


def still_punched(path, *, freed=20 * MIB, **parameters) -> None:
    """What refuses a rewrite for the sake of others does not matter to holes."""
    checksum = sha256(path)
    assert entry_of(path, method="punch", **parameters)["freed_bytes"] >= freed
    assert sha256(path) == checksum


# In use


@pytest.mark.parametrize("method", METHODS)
def test_a_machine_writes_to_it(tmp_path, boot, method):
    path = image(tmp_path / "x.qcow2")
    machine = boot(*blockdev(path))
    says = f"is in use by qemu-system-x86 ({machine.process.pid}); nothing was changed."
    refused(path, says, "Shut the domain down", **consent(method))
    machine.io("write -P 9 0 64k")
    machine.command("quit")
    machine.process.wait(10)
    assert "failed" not in run("qemu-io", "-f", "qcow2", "-c", "read -P 9 0 64k", path)


def test_a_machine_reads_it_as_the_backing_file_of_an_image_elsewhere(tmp_path, boot):
    """Nobody's header beside it says so.  To commit to the new image by the old one's tables
    would destroy it.
    """
    for folder in ("golden", "instances"):
        (tmp_path / folder).mkdir()
    base = image(tmp_path / "golden" / "base.qcow2")
    top = tmp_path / "instances" / "top.qcow2"
    create(top, "128M", backing="../golden/base.qcow2")
    machine = boot(*blockdev(top))
    refused(base, f"is in use by qemu-system-x86 ({machine.process.pid})", method="rewrite")
    refused(base, "is in use by", **consent("trim"))
    still_punched(base)
    entry = entry_of(base, compression="zstd")
    assert not entry["changed"]
    assert "A rewrite was refused" in entry["reason"]


def test_a_machine_writes_to_it_without_locks(tmp_path, boot):
    path = image(tmp_path / "x.qcow2")
    file = {"driver": "file", "filename": str(path), "locking": "off"}
    boot(*blockdev(path, file=file))
    for method in METHODS:
        refused(path, "is in use by qemu-system-x86", **consent(method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", ["r+b", "ab"])
def test_a_program_has_it_open_for_writing(tmp_path, method, mode):
    path = raw_image(tmp_path / "x.raw")
    with opened(path, mode) as child:
        refused(path, f"({child.pid}); nothing was changed", "end what uses", **consent(method))


@pytest.mark.parametrize("method", METHODS)
def test_it_is_attached_to_a_loop_device(tmp_path, method):
    path = raw_image(tmp_path / "x.raw")
    device = run("losetup", "-f", "--show", path).strip()
    try:
        refused(path, f"is attached to {device}", "losetup -d", **consent(method))
    finally:
        run("losetup", "-d", device)


def test_a_whole_file_is_locked_by_another_program(tmp_path):
    path = raw_image(tmp_path / "x.raw")
    code = (
        "import fcntl, sys\n"
        "f = open(sys.argv[1], 'r+b')\n"
        "fcntl.lockf(f, fcntl.LOCK_EX)\n"
        "print(flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        refused(path, f"({child.pid})")
        child.stdin.close()


# What a copy would lose


def test_internal_snapshots(tmp_path):
    path = image(tmp_path / "x.qcow2")
    for name in ("a", "b"):
        run("qemu-img", "snapshot", "-c", name, path)
    refused(path, "has 2 internal snapshots", "use method=punch", method="rewrite")
    still_punched(path)


def test_a_backing_file(tmp_path):
    image(tmp_path / "base.qcow2")
    path = image(tmp_path / "x.qcow2")
    run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", path)
    refused(path, "has a backing file, base.qcow2", "flatten=true", method="rewrite")
    still_punched(path)


@pytest.mark.parametrize("spelled", ["base.qcow2", "./base.qcow2", "{}/base.qcow2", "link.qcow2"])
@pytest.mark.parametrize("method", ["rewrite", "trim"])
def test_an_overlay_beside_it(tmp_path, spelled, method):
    base = image(tmp_path / "base.qcow2")
    os.symlink("base.qcow2", tmp_path / "link.qcow2")
    create(tmp_path / "top", "128M", backing=spelled.format(tmp_path))
    says = f"is the backing file of {tmp_path}/top; nothing was changed."
    refused(base, says, "commit or remove the overlays", **consent(method))
    still_punched(base)


def test_an_overlay_beside_it_whose_folder_has_two_names(tmp_path):
    (tmp_path / "real").mkdir()
    os.symlink("real", tmp_path / "other")
    image(tmp_path / "real" / "base.qcow2")
    create(tmp_path / "real" / "top", "128M", backing=f"{tmp_path}/real/base.qcow2")
    refused(tmp_path / "other" / "base.qcow2", "is the backing file of", method="rewrite")


def test_neighbours_that_name_something_else(tmp_path):
    """What they name is looked up only where it can matter, and never opened."""
    path = image(tmp_path / "x.qcow2")
    names = ["other.qcow2", "/net/host/x.qcow2", "nbd://host/x", "json:{}", "../x.qcow2"]
    for number, name in enumerate(names):
        create(tmp_path / f"{number}", "128M", backing=name)
    (tmp_path / "evil").write_bytes(b"QFI\xfb" + os.urandom(4096))
    os.mkfifo(tmp_path / "fifo")
    assert entry_of(path, method="rewrite")["changed"]


def test_a_data_file(tmp_path):
    path = tmp_path / "x.qcow2"
    create(path, "64M", data_file=f"{tmp_path}/x.data")
    qemu_io(path, "write -P 7 0 8M", "write -P 0 8M 24M")
    refused(path, "keeps its data in an external file", method="rewrite")
    still_punched(path, freed=1, min_reclaim_bytes=0)
    still_punched(tmp_path / "x.data")


def test_a_data_file_that_somebody_has_named_is_not_even_opened(tmp_path):
    path = tmp_path / "x.qcow2"
    create(path, "64M", data_file=f"{tmp_path}/x.data")
    os.unlink(tmp_path / "x.data")
    os.mkfifo(tmp_path / "x.data")  # to open it would wait forever
    refused(path, "keeps its data in an external file", method="rewrite")


def test_encryption(tmp_path):
    path = tmp_path / "x.qcow2"
    secret = ("--object", "secret,id=s,data=abc")
    options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=500"
    argv = ["qemu-img", "create", "-q", *secret, "-f", "qcow2", "-o", options, path, "64M"]
    for _attempt in range(10):  # "Unable to get accurate CPU usage" on a busy machine
        if subprocess.run(argv, capture_output=True, check=False).returncode == 0:
            break
    refused(path, "is encrypted", "domain_trim", method="rewrite")
    entry = entry_of(path, min_reclaim_percent=99)
    assert "is encrypted" in entry["reason"]


@pytest.mark.parametrize(
    ("bit", "says"), [(1, "was not closed properly"), (2, "is marked as corrupt")]
)
def test_a_bit_that_calls_for_repair(tmp_path, bit, says):
    path = image(tmp_path / "x.qcow2", lazy_refcounts="on")
    with open(path, "r+b") as file:
        head = file.read(4096)
        file.seek(0)
        file.write(patch(head, incompatible=bit))
    refused(path, says, "qemu-img check -r all", method="rewrite")
    refused(path, says, **consent("trim"))
    still_punched(path)


def test_tables_that_are_damaged(tmp_path):
    path = image(tmp_path / "x.qcow2", data_mib=4)
    with open(path, "r+b") as file:  # an L1 entry that leads out of the file
        file.seek(0x30000)
        file.write((1 << 63 | 0x7FFF0000).to_bytes(8, "big"))
    refused(path, "is damaged: qemu-img check found", "Repair it", method="rewrite")


def test_a_bitmap_that_was_not_saved(tmp_path, boot):
    path = image(tmp_path / "x.qcow2")
    run("qemu-img", "bitmap", "--add", path, "b0")
    machine = boot(*blockdev(path))
    machine.io("write 0 64k")
    machine.end()
    refused(path, "bitmaps that were not saved properly: b0", "--remove", method="rewrite")
    still_punched(path)


def test_hard_links(tmp_path):
    path = image(tmp_path / "x.qcow2")
    os.link(path, tmp_path / "y.qcow2")
    refused(path, "has 2 names (hard links)", "Remove the other names", method="rewrite")
    still_punched(path)
    assert path.samefile(tmp_path / "y.qcow2")


@pytest.mark.parametrize("method", ["punch", "rewrite", "auto"])
def test_preallocated_on_purpose(tmp_path, method):
    path = image(tmp_path / "x.qcow2", preallocation="falloc", zeros_mib=0)
    refused(path, "was preallocated on purpose", "preallocation=off", method=method)
    run("fallocate", "-l", 32 * MIB, tmp_path / "x.raw")
    refused(tmp_path / "x.raw", "was preallocated on purpose", method=method)


# What is no image file


@pytest.mark.parametrize("method", METHODS)
def test_a_block_device(tmp_path, method):
    path = with_dead_clusters(tmp_path / "x.qcow2")
    before = state(tmp_path)
    device = run("losetup", "-f", "--show", path).strip()
    try:
        result = compact(device, **consent(method))
        assert "is a block device" in result["msg"]
        assert "domain_trim" in result["msg"]
    finally:
        run("losetup", "-d", device)
    assert state(tmp_path) == before


def test_a_symlink_that_leads_out_of_its_folder(tmp_path):
    (tmp_path / "pool").mkdir()
    image(tmp_path / "x.qcow2")
    before = state(tmp_path)
    os.symlink("../x.qcow2", tmp_path / "pool" / "x.qcow2")
    refused(tmp_path / "pool" / "x.qcow2", "is a symlink that leads out of its folder")
    os.unlink(tmp_path / "pool" / "x.qcow2")
    assert state(tmp_path) == before


def make_socket(path):
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


KINDS = {
    "a FIFO": os.mkfifo,
    "a directory": os.mkdir,
    "a socket": make_socket,
    "a symlink to": lambda path: os.symlink("gone", path),
    "does not exist": lambda _path: None,
}


@pytest.mark.parametrize("says", KINDS)
@pytest.mark.parametrize("method", ["auto", "trim"])
def test_what_is_no_file(tmp_path, says, method):
    KINDS[says](tmp_path / "x")
    refused(tmp_path / "x", says, **consent(method))


@pytest.mark.parametrize("path", ["x.qcow2", "/nowhere/x\0y", "/nowhere/\udcff"])
def test_names_that_lead_nowhere(path):
    result = compact(path)
    assert result["failed"]
    assert "Traceback" not in json.dumps(result)


def test_a_malformed_header(tmp_path):
    path = tmp_path / "x.qcow2"
    path.write_bytes(b"QFI\xfb\0\0\0\x03")
    refused(path, "If it is a raw disk, say so with format=raw")


# Room


def test_not_enough_space(tmp_path):
    path = with_dead_clusters(tmp_path / "x.qcow2")
    before, too_much = state(tmp_path), 1 << 60
    result = compact(path, method="rewrite", min_free_bytes=too_much)
    assert result["failed"]
    for says in (
        "bytes for its copy, with a margin of 67108864 and",
        f"{too_much} to be left free (min_free_bytes)",
        "Free space, lower min_free_bytes, or use method=punch, which needs none.",
    ):
        assert says in result["msg"]
    assert "A rewrite was refused" in entry_of(path, min_free_bytes=too_much)["reason"]
    assert state(tmp_path) == before


def test_wishes_that_contradict_each_other(tmp_path):
    path = image(tmp_path / "x.qcow2")
    before = state(tmp_path)
    for wish, says in (
        ({"method": "punch", "compression": "zstd"}, "compression needs a new image"),
        ({"method": "trim"}, "accept_no_rollback=true"),
        ({"cluster_size_bytes": 1000}, "Use a power of two"),
        ({"allowed_dirs": ["golden"]}, "is not an absolute path"),
        ({"timeout": 0}, "Allow at least 1 second"),
    ):
        result = compact(path, **wish)
        assert says in result["msg"]
    assert state(tmp_path) == before
