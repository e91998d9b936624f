# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""image_compact asks libvirt who uses an image; and a domain that starts meanwhile.

The guests are paused and have no system.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from pathlib import Path

import host_xml
import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import journal_path
from compact_lab import (
    MIB,
    allocated,
    answer,
    assert_same,
    compact,
    entry_of,
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
from image_lab import create, qemu_io, run
from lab import Disk, GuestSpec, LabError

FULL = os.environ.get("THINVIRT_STORM") == "full"


@pytest.fixture
def define(lab, request):
    """Define a domain on images that exist; it is undefined with all that belongs to it."""
    defined = []

    def define(*paths: Path, name: str = "c", file_format: str = "qcow2"):
        name = f"{name}-{request.node.name.split('[')[0][-40:]}"
        disks = tuple(
            Disk(f"vd{letter}", "virtio", path=path, format=file_format)
            for letter, path in zip("abc", paths, strict=False)
        )
        guest = lab.create(GuestSpec(name, machine="pc", memory_mib=32, disks=disks))
        defined.append(guest)
        return guest

    yield define
    for guest in defined:
        guest.destroy()
        leftovers = ("--managed-save", "--snapshots-metadata", "--checkpoints-metadata")
        lab.virsh("undefine", guest.name, *leftovers)


def refused_but_punched(lab, path, says: str) -> None:
    """A copy, and changes from inside, are refused; holes matter to nobody."""
    refused(path, says, uri=lab.uri, method="rewrite")
    refused(path, says, uri=lab.uri, method="trim", accept_no_rollback=True)
    checksum = sha256(path)
    assert entry_of(path, uri=lab.uri)["method"] == "punch"
    assert sha256(path) == checksum
    entry = entry_of(path, uri=lab.uri, compression="zstd")
    assert (entry["changed"], says in entry["reason"]) == (False, True)


def test_a_domain_that_is_off_hinders_nothing(lab, define, tmp_path):
    path = image(tmp_path / "x.qcow2")
    shutil.copy(path, tmp_path / "pristine")
    guest = define(path)
    assert entry_of(path, uri=lab.uri, method="rewrite")["changed"]
    assert_same(path, tmp_path / "pristine")
    lab.virsh("start", guest.name, "--paused")


@pytest.mark.parametrize("method", ["punch", "rewrite", "auto", "trim"])
def test_a_domain_runs(lab, define, tmp_path, method):
    path = image(tmp_path / "x.qcow2")
    guest = define(path)
    lab.virsh("start", guest.name, "--paused")
    consent = {"method": method, "accept_no_rollback": method == "trim"}
    for uri in (lab.uri, ""):
        refused(path, "is in use by qemu-system-x86", uri=uri, **consent)


def test_managed_save(lab, define, tmp_path):
    """Its memory knows the disk as it is: punching is the same content."""
    path = image(tmp_path / "x.qcow2")
    guest = define(path)
    lab.virsh("start", guest.name, "--paused")
    lab.virsh("managedsave", guest.name, "--paused")
    refused_but_punched(lab, path, f"belongs to domain {guest.name}, whose memory was saved")
    lab.virsh("start", guest.name)
    assert guest.state() == "paused"


def test_snapshots_of_libvirt(lab, define, tmp_path):
    path, other = image(tmp_path / "x.qcow2"), image(tmp_path / "y.qcow2")
    guest = define(path, other)
    lab.virsh("snapshot-create-as", guest.name, "before")
    refused_but_punched(lab, other, f"belongs to domain {guest.name}, which has snapshots")


def test_checkpoints(lab, define, tmp_path):
    path = image(tmp_path / "x.qcow2")
    guest = define(path)
    lab.virsh("start", guest.name, "--paused")
    lab.virsh("checkpoint-create-as", guest.name, "monday")
    guest.destroy()
    refused_but_punched(lab, path, f"belongs to domain {guest.name}, which has checkpoints")
    lab.virsh("checkpoint-delete", guest.name, "monday", "--metadata")


def test_an_image_of_two_domains(lab, define, tmp_path):
    path = image(tmp_path / "x.qcow2")
    first, second = define(path, name="a"), define(path, name="b")
    refused_but_punched(lab, path, f"is shared by the domains {first.name}, {second.name}")


def test_the_backing_file_of_a_domain_in_another_folder(lab, define, tmp_path):
    for folder in ("golden", "instances"):
        (tmp_path / folder).mkdir()
    base = image(tmp_path / "golden" / "base.qcow2")
    create(tmp_path / "instances" / "top", "128M", backing=base)
    define(tmp_path / "instances" / "top")
    refused_but_punched(lab, base, f"is the backing file of {tmp_path}/instances/top")


def test_a_raw_disk_into_which_the_guest_has_written_a_header(lab, define, tmp_path):
    """A copy of what that header says would lose the disk."""
    path = image(tmp_path / "x.raw", zeros_mib=24)
    guest = define(path, file_format="raw")
    refused(path, f"is of format raw for domain {guest.name}", uri=lab.uri, method="rewrite")
    checksum = sha256(path)
    entry = entry_of(path, uri=lab.uri, method="rewrite", format="raw")
    assert entry["freed_bytes"] > 20 * MIB
    assert sha256(path) == checksum


def test_a_volume_of_a_pool_is_looked_at_anew(lab, tmp_path):
    path = image(tmp_path / "x.qcow2")
    name = f"pool-{os.getpid()}"
    lab.virsh("pool-create-as", name, "dir", "--target", str(tmp_path))
    try:
        before = lab.virsh("vol-info", "x.qcow2", "--pool", name, "--bytes")
        assert str(allocated(path)) in before
        assert entry_of(path, uri=lab.uri)["changed"]
        assert str(allocated(path)) in lab.virsh("vol-info", "x.qcow2", "--pool", name, "--bytes")
    finally:
        lab.virsh("pool-destroy", name)


# Other hosts' libvirt, and none


@pytest.mark.parametrize("running", [True, False])
def test_what_libvirt_says_counts_without_a_lock(tmp_path, running):
    path = image(tmp_path / "x.qcow2")
    domain = host_xml.domain("web1", host_xml.disk("vda", path), running=running)
    uri = host_xml.host(tmp_path.parent / f"{tmp_path.name}.xml", domain)
    if running:
        for method in ("punch", "rewrite", "auto"):
            says = "is disk vda of domain web1, which is not shut off"
            refused(path, says, "power=cycle", uri=uri, method=method)
    else:
        assert entry_of(path, uri=uri)["changed"]


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("qemu+unix:///system?socket=/nowhere/libvirt-sock", "Cannot connect to libvirt at"),
        ("nonsense", "Cannot connect to libvirt at nonsense"),
        ("qemu+ssh://host/system", "leads to another machine"),
        ("qemu+tcp://[broken/system", "leads to another machine"),
    ],
)
def test_a_uri_that_is_wrong(tmp_path, uri, says):
    path = image(tmp_path / "x.qcow2")
    before = state(tmp_path)
    for check in (True, False):
        result = compact(path, uri=uri, check=check)
        assert result["failed"]
        assert says in result["msg"]
        assert "\n" not in result["msg"]
    assert state(tmp_path) == before


def test_a_host_without_libvirt(tmp_path):
    (tmp_path / "no").mkdir()
    (tmp_path / "no" / "libvirt.py").write_text("raise ImportError\n")
    path = image(tmp_path / "x.qcow2")
    prefix = ("env", f"PYTHONPATH={tmp_path}/no:{os.environ['PYTHONPATH']}")
    result = compact(path, uri="qemu:///system", prefix=prefix)
    assert "bindings of libvirt are missing" in result["msg"]
    assert entry_of(path, prefix=prefix)["method"] == "punch"


# A domain that starts meanwhile


def qemu_has(path: Path) -> bool:
    """The one QEMU that has a file of this folder open has what the name means."""
    found = set()
    for fd in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            name = os.readlink(fd)
            comm = (fd.parents[1] / "comm").read_text()
            if comm.startswith("qemu-system") and name.startswith(str(path)):
                found.add(fd.stat().st_ino)
    return found == {path.stat().st_ino}


@pytest.mark.parametrize("stage", ["check", "measure", "convert", "compare"])
def test_it_is_let_in_while_a_copy_is_made(lab, define, tmp_path, stage):
    path = image(tmp_path / "x.qcow2")
    shutil.copy(path, tmp_path / "pristine")
    inode, guest = path.stat().st_ino, define(path)
    process = start(path, uri=lab.uri, method="rewrite", hold=stage)
    held_child(process)
    lab.virsh("start", guest.name, "--paused")
    assert "was let in first; nothing was changed. Run it again" in answer(process)["msg"]
    assert qemu_has(path)
    assert path.stat().st_ino == inode
    assert leftovers(tmp_path) == []
    guest.destroy()
    assert entry_of(path, uri=lab.uri, method="rewrite")["changed"]
    assert_same(path, tmp_path / "pristine")


def test_it_is_let_in_while_holes_are_dug(lab, define, tmp_path):
    """Each takes ten milliseconds of its own."""
    path = tmp_path / "x.raw"
    path.write_bytes((b"x" * 4096 + bytes(4096)) * 600)
    checksum, full = sha256(path), allocated(path)
    guest = define(path, file_format="raw")
    prefix = ("strace", "-qq", "-o", "/dev/null", "-e", "trace=fallocate")
    prefix += ("-e", "inject=fallocate:delay_enter=10000")
    process = start(path, uri=lab.uri, method="punch", prefix=prefix, min_reclaim_bytes=0)
    wait_for(lambda: allocated(path) < full - 10 * 4096)
    lab.virsh("start", guest.name, "--paused")
    assert "was let in first; its content was not changed" in answer(process)["msg"]
    guest.destroy()
    assert sha256(path) == checksum
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("stage", ["check", "convert", "compare"])
def test_it_is_let_in_while_it_is_copied_elsewhere(lab, define, tmp_path, stage):
    path, copy = image(tmp_path / "x.qcow2"), tmp_path / "copy.qcow2"
    guest = define(path)
    given = {"src": str(path), "dest": str(copy), "min_free_bytes": 0}
    process = start_module("image_convert", hold=stage, **given)
    held_child(process)
    lab.virsh("start", guest.name, "--paused")
    assert "was let in first; nothing was changed" in answer(process)["msg"]
    assert sorted(os.listdir(tmp_path)) == ["x.qcow2"]


@pytest.mark.parametrize(
    ("call", "new"),
    [
        ("linkat,link:delay_enter", False),
        ("renameat2:delay_enter", False),
        ("renameat2:delay_exit", True),
        ("unlink:delay_exit", True),
    ],
)
def test_it_starts_around_the_swap(lab, define, tmp_path, call, new):
    """It gets the image that it has come for, which has the name then."""
    path = image(tmp_path / "x.qcow2")
    shutil.copy(path, tmp_path / "pristine")
    inode, guest = path.stat().st_ino, define(path)
    prefix = ("strace", "-qq", "-o", f"{tmp_path}/log", "-e", f"trace={call.partition(':')[0]}")
    prefix += ("-e", f"inject={call}=1500000:when=1")
    process = start(path, uri=lab.uri, method="rewrite", prefix=prefix)
    journal = Path(journal_path(str(path)))
    wait_for(lambda: journal.exists() and b'"stage": "swap"' in journal.read_bytes())
    if new:
        wait_for(lambda: path.stat().st_ino != inode)
    lab.virsh("start", guest.name, "--paused")
    result = answer(process)
    assert result["failed"] is not new, result["msg"]
    assert new or "was let in first; nothing was changed" in result["msg"]
    assert (path.stat().st_ino != inode) is new
    assert qemu_has(path)
    assert path.stat().st_nlink == 1
    assert leftovers(tmp_path) == []
    guest.destroy()
    assert_same(path, tmp_path / "pristine")


@pytest.mark.storm
@pytest.mark.parametrize("method", ["rewrite", "punch"])
def test_a_race_without_end(lab, define, tmp_path, method, record_property):
    """It is started and stopped all the time; never do both go on with the image."""
    path = image(tmp_path / "x.qcow2", data_mib=32, zeros_mib=64)
    shutil.copy(path, tmp_path / "pristine")
    guest, over, seen = define(path), threading.Event(), {"started": 0, "failed": 0}
    wrong: list[str] = []

    def race() -> None:
        while not over.is_set():
            try:
                lab.virsh("start", guest.name, "--paused")
            except LabError:
                seen["failed"] += 1
                continue
            seen["started"] += 1
            if not qemu_has(path):
                wrong.append("a domain runs on a file that has lost its name")
            lab.virsh("destroy", guest.name)

    racer = threading.Thread(target=race)
    racer.start()
    outcomes = []
    try:
        deadline = time.monotonic() + (60 if FULL else 8)
        while time.monotonic() < deadline:
            wish = {"cluster_size_bytes": 65536 << len(outcomes) % 2} if method == "rewrite" else {}
            result = compact(path, uri=lab.uri, method=method, **wish)
            outcomes.append("refused" if result["failed"] else "done")
            if result["failed"]:
                known = ("is in use", "not shut off", "was let in first")
                assert any(says in result["msg"] for says in known)
            assert leftovers(tmp_path) == []
            with contextlib.suppress(AssertionError):  # the domain has it
                qemu_io(path, "write -P 0 32M 64M")
    finally:
        over.set()
        racer.join()
    assert wrong == []
    assert set(outcomes) <= {"refused", "done"}
    said = f"a domain started {seen['started']} times, and could not {seen['failed']} times"
    record_property("storm", f"race with {method}, {outcomes.count('done')} runs done: {said}")
    guest.destroy()
    assert_same(path, tmp_path / "pristine")
    lab.virsh("start", guest.name, "--paused")


def test_a_raw_image_of_a_domain_is_punched_and_starts(lab, define, tmp_path):
    path = raw_image(tmp_path / "x.raw")
    guest = define(path, file_format="raw")
    assert entry_of(path, uri=lab.uri)["freed_bytes"] > 23 * MIB
    lab.virsh("start", guest.name, "--paused")
    assert qemu_has(path)
    guest.destroy()
    assert run("qemu-img", "info", "-f", "raw", path)
