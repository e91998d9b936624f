# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""domain_compact with power=live, on domains whose processors stand still: what writes is QEMU.

Blocks are counted with stat, content is read with qemu-io, XML is read with virsh.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
import threading
from pathlib import Path

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import journal_path
from compact_lab import answer, child_of, go_on, held_child, start, wait_for
from image_lab import qemu_io, run
from lab import Disk, GuestSpec
from live_lab import CONTENT, Writer, assert_one_file, pid_of
from live_lab import compact_live as compact
from support import assert_explains, run_module

MIB = 1 << 20
DEVICE = "scsi0-0-0-0"


@pytest.fixture
def domain(lab):
    """Start domains without a system: 32 MiB of zeros and 4 MiB of sevens on their disk."""
    guests = []

    def domain(name="live", *, file_format="qcow2", **attributes):
        disk = Disk("sda", "scsi", size_bytes=128 * MIB, format=file_format, **attributes)
        guest = lab.create(GuestSpec(name, memory_mib=64, disks=(disk,)))
        guests.append(guest)
        fill(guest, file_format)
        lab.virsh("start", guest.name, "--paused")
        return guest

    yield domain
    for guest in guests:
        leftovers = ("--managed-save", "--snapshots-metadata", "--checkpoints-metadata")
        guest.destroy()
        lab.virsh("undefine", guest.name, *leftovers)
        for name in files(guest):
            (guest.disk("sda").path.parent / name).unlink()


def fill(guest, file_format="qcow2"):
    options = [part for command in CONTENT for part in ("-c", command)]
    run("qemu-io", "-f", file_format, *options, guest.disk("sda").path)


def begin(lab, name, *, stage="convert", **arguments):
    """A run that takes its time, and has come to its copy: the process."""
    slow = {"power": "live", "trim": False, "bandwidth_bytes": MIB, **arguments}
    process = start(module="domain_compact", uri=lab.uri, domains=[name], **slow)
    child_of(process, stage)
    return process


def refused(lab, guest, *words, **arguments):
    """It is refused in check mode and in a real run, in the same words, and nothing changes."""
    before = (blocks(guest), files(guest), guest.xml(), guest.xml(inactive=True))
    messages = []
    for check in (True, False):
        result = compact(lab, guest.name, check=check, **arguments)
        assert result["failed"], (words, result)
        assert_explains(result, *words)
        messages.append(re.sub(r"\d+ free;", "", result["msg"]))  # others write there too
        assert (blocks(guest), files(guest), guest.xml(), guest.xml(inactive=True)) == before
    assert messages[0] == messages[1]


def blocks(guest):
    return os.stat(guest.disk("sda").path).st_blocks * 512


def files(guest):
    folder = guest.disk("sda").path.parent
    return sorted(name for name in os.listdir(folder) if guest.name in name)


def without_numbers(xml):
    """QEMU numbers the files that it opens; nothing else may differ."""
    return re.sub(r" index='\d+'", "", xml)


def test_check_then_run_then_again(lab, domain):
    guest = domain()
    live, configured, before = guest.xml(), guest.xml(inactive=True), blocks(guest)
    status = os.stat(guest.disk("sda").path)
    checked = compact(lab, guest.name, check=True)
    assert checked["changed"]
    assert (blocks(guest), files(guest)) == (before, ["live-sda.qcow2"])

    real = compact(lab, guest.name)
    assert real["changed"], real
    (disk,) = real["domains"][0]["disks"]
    assert disk["method"] == "live"
    assert disk["compared"]
    assert real["freed_bytes"] == before - blocks(guest) >= 31 * MIB
    assert files(guest) == ["live-sda.qcow2"]
    assert 4 * MIB <= disk["moved_bytes"]["copy"] < before
    assert {"mirror", "commit"} <= set(disk["moved_bytes"])
    assert guest.xml(inactive=True) == configured
    assert without_numbers(guest.xml()) == without_numbers(live)
    after = os.stat(guest.disk("sda").path)
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        status.st_mode,
        status.st_uid,
        status.st_gid,
    )
    assert 0 < disk["stall_seconds"] < 5

    again = compact(lab, guest.name)
    assert not again["changed"]
    guest.destroy()
    qemu_io(guest.disk("sda").path, "read -P 0 0 32M", "read -P 7 32M 4M", "read -P 0 36M 92M")


def test_a_raw_disk(lab, domain):
    guest = domain(file_format="raw")
    before = blocks(guest)
    assert compact(lab, guest.name)["changed"]
    assert before - blocks(guest) >= 31 * MIB
    assert files(guest) == ["live-sda.raw"]
    guest.destroy()
    argv = ("read -P 0 0 32M", "-c", "read -P 7 32M 4M", "-c", "read -P 0 36M 92M")
    run("qemu-io", "-r", "-f", "raw", "-c", *argv, guest.disk("sda").path)


def test_another_form_and_the_original_kept(lab, domain):
    guest = domain()
    path = guest.disk("sda").path
    original = path.with_name(f"{path.name}.thinvirt-original")
    wish = {"compression": "zstd", "cluster_size_bytes": 131072, "keep_original": True}
    result = compact(lab, guest.name, **wish)
    (disk,) = result["domains"][0]["disks"]
    assert disk["kept"] == str(original)
    assert files(guest) == sorted([path.name, original.name])
    guest.destroy()
    told = json.loads(run("qemu-img", "info", "--output=json", path))
    assert told["cluster-size"] == 131072
    assert told["format-specific"]["data"]["compression-type"] == "zstd"
    run("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", path, original)
    run("qemu-img", "check", "-q", path)


def test_preallocated(lab, domain):
    guest = domain()
    result = compact(lab, guest.name, preallocation="falloc")
    (disk,) = result["domains"][0]["disks"]
    assert disk["method"] == "live", result
    assert blocks(guest) >= 128 * MIB
    guest.destroy()
    qemu_io(guest.disk("sda").path, "read -P 0 0 32M", "read -P 7 32M 4M", "read -P 0 36M 92M")


def test_a_copy_that_is_not_the_same_is_never_gone_over_to(lab, domain):
    guest = domain()
    path = guest.disk("sda").path
    inode, configured = path.stat().st_ino, guest.xml(inactive=True)
    process = begin(lab, guest.name, bandwidth_bytes=2 * MIB)
    child = child_of(process, "convert")
    (copy,) = wait_for(lambda: [*path.parent.glob(f".{path.name}.*.tmp")])
    place = wait_for(lambda: copy.read_bytes().find(b"\7" * 65536) + 1) - 1
    os.kill(child, signal.SIGSTOP)
    with copy.open("r+b") as file:  # a bit that has tipped
        file.seek(place + 4096)
        file.write(b"\6")
    go_on(child)
    result = answer(process)
    assert_explains(result, "has another content", "as it was")
    assert path.stat().st_ino == inode
    assert guest.xml(inactive=True) == configured
    assert_one_file(guest)


def test_what_gives_back_most_comes_first(lab):
    disks = [Disk(f"sd{letter}", "scsi", size_bytes=128 * MIB) for letter in "abc"]
    guest = lab.create(GuestSpec("three", memory_mib=64, disks=tuple(disks)))
    try:
        for target, mib in (("sda", 8), ("sdb", 32), ("sdc", 16)):
            qemu_io(guest.disk(target).path, f"write -P 0 0 {mib}M", "write -P 7 64M 1M")
        lab.virsh("start", guest.name, "--paused")
        result = compact(lab, guest.name)
        assert not result["failed"], result["msg"]
        assert [disk["method"] for disk in result["domains"][0]["disks"]] == ["live"] * 3
        # The new files' birth: the paused domain writes to none of them afterwards.
        born = {disk.target: disk.path.stat().st_ctime_ns for disk in guest.spec.disks}
        assert sorted(born, key=born.__getitem__) == ["sdb", "sdc", "sda"]
    finally:
        guest.destroy()
        lab.virsh("undefine", guest.name)
        for disk in guest.spec.disks:
            disk.path.unlink()


def test_what_qemu_flushes_at_a_switch_is_on_the_disk_before(lab, domain, tmp_path):
    """Or the guest's requests wait for it: 0.19 s instead of 0.02 s with 400 MiB to be flushed."""
    guest = domain()
    trace = tmp_path / "trace"
    strace = ("strace", "-f", "-qq", "-y", "-e", "trace=fsync", "-o", str(trace))
    given = {"power": "live", "trim": False, "domains": [guest.name], "uri": lab.uri}
    result = answer(start(module="domain_compact", prefix=strace, **given))
    assert not result["failed"], result["msg"]
    flushed = re.findall(r"fsync\(\d+<[^>]*/([^/>]*)>\)", trace.read_text())
    overlays = [name for name in flushed if name.endswith(".overlay")]
    first, second = sorted(set(overlays), key=overlays.index)
    # Each when it is made, and when the guest goes on with another; the second at its switch too.
    assert (overlays.count(first), overlays.count(second)) == (2, 3)
    # The image at the first switch; what has its name then, at the last one and in the end.
    assert flushed.index("live-sda.qcow2") < flushed.index(second)
    assert flushed[-1 - flushed[::-1].index(second) :].count("live-sda.qcow2") == 2


def test_how_far_it_is_can_be_followed_in_the_log(lab, domain, log):
    """While it runs: Ansible shows nothing before the end."""
    prefix, lines = log
    process = begin(lab, domain().name, bandwidth_bytes=2 * MIB, prefix=prefix)
    half_way = re.compile(r"live-sda\.qcow2: copy, [1-9]0 %, [1-9]\d* bytes")
    wait_for(lambda: any(map(half_way.search, list(lines))))
    assert process.poll() is None
    assert not answer(process)["failed"]
    text = "\n".join(lines)
    for stage in ("snapshot", "copy", "compare", "mirror", "commit", "clean"):
        assert f"live-sda.qcow2: {stage}" in text


@pytest.fixture
def log(tmp_path):
    """A command in which /dev has a log of its own, and what is written to that."""
    dev, lines = tmp_path / "dev", []
    dev.mkdir()
    for name, minor in (("null", 3), ("zero", 5), ("random", 8), ("urandom", 9)):
        os.mknod(dev / name, stat.S_IFCHR | 0o666, os.makedev(1, minor))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(dev / "log"))

        def listen() -> None:
            while line := listener.recv(65536).decode():
                lines.append(line)

        listening = threading.Thread(target=listen)
        listening.start()
        mount = 'mount --bind "$0" /dev && exec "$@"'
        yield ("unshare", "--mount", "sh", "-c", mount, str(dev)), lines
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", str(dev / "log"))
        listening.join()


def test_what_is_not_worth_it_is_left_alone(lab, domain):
    guest = domain()
    inode = guest.disk("sda").path.stat().st_ino
    wish = {"min_reclaim_bytes": 64 * MIB, "min_reclaim_percent": 99}
    result = compact(lab, guest.name, **wish)
    assert not result["changed"]
    assert "less than" in result["domains"][0]["disks"][0]["reason"]
    assert guest.disk("sda").path.stat().st_ino == inode
    assert files(guest) == ["live-sda.qcow2"]


@pytest.mark.parametrize("form", [{}, {"compression": "zlib"}], ids=str)
def test_a_copy_that_gives_back_less_than_was_estimated_is_dropped(lab, domain, tmp_path, form):
    """Such as that of a guest that has written meanwhile; here by a hair's breadth."""
    guest = domain()
    path = guest.disk("sda").path
    guest.destroy()
    (tmp_path / "noise").write_bytes(os.urandom(4 * MIB))  # cannot be compressed
    qemu_io(path, f"write -s {tmp_path}/noise 32M 4M")
    lab.virsh("start", guest.name, "--paused")
    inode = path.stat().st_ino
    checked = compact(lab, guest.name, check=True, **form)
    wish = {"min_reclaim_percent": 100, **form}
    wish["min_reclaim_bytes"] = checked["domains"][0]["disks"][0]["reclaimable_bytes"]
    result = compact(lab, guest.name, **wish)
    assert not result["failed"], result["msg"]
    assert not result["changed"]
    assert "worth it; it was dropped" in result["domains"][0]["disks"][0]["reason"]
    assert path.stat().st_ino == inode
    assert files(guest) == [path.name]
    assert_one_file(guest)


def test_domains_and_disks_that_are_refused(lab, domain):
    guest = domain()
    slow = ("--transient-job", "--bandwidth", "1")
    lab.virsh("blockcopy", guest.name, "sda", f"{lab.state}/tmp/c", *slow)
    refused(lab, guest, "block job (copy)", "virsh blockjob")
    lab.virsh("blockjob", guest.name, "sda", "--abort")
    backup = lab.state / "tmp" / "backup.xml"
    server = f"<server transport='unix' socket='{lab.state}/tmp/backup'/>"
    backup.write_text(f"<domainbackup mode='pull'>{server}</domainbackup>")
    lab.virsh("backup-begin", guest.name, str(backup))
    refused(lab, guest, "backed up")
    lab.virsh("domjobabort", guest.name)
    lab.virsh("checkpoint-create-as", guest.name, "c1")
    refused(lab, guest, "checkpoints")
    lab.virsh("checkpoint-delete", guest.name, "c1")
    lab.virsh("snapshot-create-as", guest.name, "s1")
    refused(lab, guest, "snapshots")
    lab.virsh("snapshot-delete", guest.name, "s1")
    with attached(lab, guest):
        refused(lab, guest, "disk sdb", "is of type network", disks=["sdb"])
        refused(lab, guest, "disk sdc", "shareable", disks=["sdc"])
    refused(lab, guest, "min_free_bytes", min_free_bytes=1 << 50)
    refused(lab, guest, "method=punch", method="punch")
    with_disk = guest.xml(inactive=True).replace(f"<name>{guest.name}<", "<name>other<")
    other = lab.state / "tmp" / "other.xml"
    other.write_text(re.sub("<uuid>.*</uuid>", "", with_disk))
    lab.virsh("define", str(other))
    refused(lab, guest, "shared by the domains")
    lab.virsh("undefine", "other")
    other.write_text(guest.xml(inactive=True))
    lab.virsh("undefine", guest.name)
    try:
        refused(lab, guest, "transient", "accept_transient")
        consented = compact(lab, guest.name, accept_transient=True)
        assert consented["changed"], consented
        assert files(guest) == ["live-sda.qcow2"]
    finally:
        lab.virsh("define", str(other))


@contextlib.contextmanager
def attached(lab, guest):
    """A domain with a disk on a network and one that others may use as well."""
    server, device = lab.state / "tmp" / "nbd", lab.state / "tmp" / "device.xml"
    images = [guest.disk("sda").path.with_name(name) for name in ("served.raw", "shared.raw")]
    for image in images:
        image.write_bytes(bytes(MIB))
    argv = ("qemu-nbd", "--persistent", "--socket", str(server), "--format", "raw", str(images[0]))
    with subprocess.Popen(argv) as process:
        try:
            wait_for(server.exists)
            for text in (
                (
                    "<disk type='network' device='disk'><driver name='qemu' type='raw'/>"
                    f"<source protocol='nbd'><host transport='unix' socket='{server}'/></source>"
                    "<target dev='sdb' bus='scsi'/></disk>"
                ),
                (
                    "<disk type='file' device='disk'><driver name='qemu' type='raw'/>"
                    f"<source file='{images[1]}'/>"
                    "<target dev='sdc' bus='scsi'/><shareable/></disk>"
                ),
            ):
                device.write_text(text)
                lab.virsh("attach-device", guest.name, str(device), "--live", "--config")
            yield
            for target in ("sdb", "sdc"):
                lab.virsh("detach-disk", guest.name, target, "--live", "--config")
        finally:
            process.kill()
            for image in images:
                image.unlink()


@pytest.mark.parametrize("what", ["SIGTERM", "destroy", "full", "full when compared", "timeout"])
def test_given_up_in_the_middle(lab, domain, what):
    guest = domain()
    configured, inode = guest.xml(inactive=True), guest.disk("sda").path.stat().st_ino
    ballast = guest.disk("sda").path.with_name("ballast")
    free = os.statvfs(lab.state).f_bavail * os.statvfs(lab.state).f_frsize
    wish = {"timeout": {"timeout": 3}, "full when compared": {"bandwidth_bytes": 64 * MIB}}
    wish = wish.get(what, {})
    if "full" in what:
        wish["min_free_bytes"] = free - (3 << 30)  # others on this disk may take or free as much
    writer = Writer(lab, guest, random.Random(1))  # noqa: S311
    with writer:
        process = begin(lab, guest.name, hold="compare" if "compared" in what else "", **wish)
        if what == "full when compared":
            held_child(process)
        if what == "SIGTERM":
            process.send_signal(signal.SIGTERM)
        if what == "destroy":
            guest.destroy()
        if "full" in what:
            with ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, 6 << 30)
        try:
            result = answer(process)
        finally:
            ballast.unlink(missing_ok=True)
    said = {"SIGTERM": "Stopped by SIGTERM", "timeout": "within"}
    assert_one_file(guest)
    same = guest.disk("sda").path.stat().st_ino == inode
    if what == "destroy":  # the copy was good, and is seen to be when the guest is off
        assert not result["failed"], result["msg"]
        assert result["changed"] is not same
        assert "finished nevertheless" in result["domains"][0]["disks"][0]["reason"]
    else:
        assert_explains(result, said.get(what, "min_free_bytes"), "as it was")
        assert same
    writer.assert_whole()
    assert writer.count > 0
    assert ("shut off" in guest.state()) is (what == "destroy")
    assert guest.xml(inactive=True) == configured


def test_what_a_killed_run_has_left_is_known_to_all(lab, domain):
    guest = domain()
    path = guest.disk("sda").path
    writer = Writer(lab, guest, random.Random(2))  # noqa: S311
    with writer:
        process = begin(lab, guest.name)
        process.kill()
        process.communicate()
    guest.destroy()
    left = files(guest)
    overlay = path.with_name(next(name for name in left if name.endswith(".overlay")))
    writer.assert_whole(overlay)
    for image in (path, overlay):
        refusal = run_module("image_compact", uri=lab.uri, paths=[str(image)], min_free_bytes=0)
        assert_explains(refusal, "state=recovered")
    copied = {"src": str(path), "dest": f"{lab.state}/tmp/copy.qcow2", "min_free_bytes": 0}
    assert_explains(run_module("image_convert", **copied), "state=recovered")
    checked = compact(lab, guest.name, check=True, state="recovered")
    assert checked["changed"]
    assert "is to be finished or undone" in checked["domains"][0]["recovered"]
    assert files(guest) == left

    result = compact(lab, guest.name, power="keep", method="rewrite")
    assert "was undone" in result["domains"][0]["recovered"]
    assert result["domains"][0]["disks"][0]["method"] == "rewrite"
    assert_one_file(guest)
    writer.assert_whole()


def test_a_disk_that_is_a_volume(lab, domain):
    guest = domain()
    guest.destroy()
    path = guest.disk("sda").path
    lab.virsh("pool-define-as", "live-pool", "dir", "--target", str(path.parent))
    lab.virsh("pool-start", "live-pool")
    try:
        text = guest.xml(inactive=True).replace("<disk type='file'", "<disk type='volume'")
        source = f"<source pool='live-pool' volume='{path.name}'/>"
        definition = lab.state / "tmp" / "volume.xml"
        definition.write_text(text.replace(f"<source file='{path}'/>", source))
        lab.virsh("define", str(definition))
        lab.virsh("start", guest.name, "--paused")
        configured = guest.xml(inactive=True)
        assert source in configured
        assert compact(lab, guest.name)["changed"]
        assert guest.xml(inactive=True) == configured
        assert files(guest) == ["live-sda.qcow2"]
        again = compact(lab, guest.name)
        assert not again["changed"]
        assert not again["failed"], again["msg"]
    finally:
        lab.virsh("pool-destroy", "live-pool")
        lab.virsh("pool-undefine", "live-pool")


@pytest.mark.parametrize(("stage", "end"), [("mirror", "undone"), ("merge", "finished")])
def test_killed_while_an_overlay_is_moved(lab, domain, stage, end):
    """The image's name means the copy, and QEMU has the original open, or the copy."""
    guest = domain()
    journal = Path(journal_path(str(guest.disk("sda").path)))
    writer = Writer(lab, guest, random.Random(3))  # noqa: S311
    with writer:
        process = begin(lab, guest.name, bandwidth_bytes=8 * MIB)
        wait_for(lambda: f'"stage": "{stage}"' in journal.read_text(), seconds=60)
        process.kill()
        process.communicate()
        result = compact(lab, guest.name, state="recovered")
    assert end in result["domains"][0]["recovered"]
    assert_one_file(guest)
    writer.assert_whole()
    guest.destroy()
    run("qemu-img", "check", "-q", guest.disk("sda").path)
    writer.assert_whole()


@pytest.fixture
def elsewhere(lab):
    folder = lab.state / "elsewhere"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def source_of(guest, *, inactive):
    return re.search("<source file='([^']*)'", guest.xml(inactive=inactive))[1]


@pytest.mark.parametrize("file_format", ["qcow2", "raw"])
def test_to_another_folder(lab, domain, elsewhere, file_format):
    guest = domain(file_format=file_format)
    path = guest.disk("sda").path
    new = elsewhere / path.name
    configured = guest.xml(inactive=True)
    checked = compact(lab, guest.name, check=True, dest_dir=str(elsewhere))
    assert checked["changed"]
    assert (files(guest), os.listdir(elsewhere)) == ([path.name], [])
    assert guest.xml(inactive=True) == configured

    writer = Writer(lab, guest, random.Random(5))  # noqa: S311
    with writer:
        result = compact(lab, guest.name, dest_dir=str(elsewhere))
    assert not result["failed"], result["msg"]
    (disk,) = result["domains"][0]["disks"]
    assert (disk["method"], disk["moved_to"], disk["kept"]) == ("live", str(new), "")
    assert (files(guest), os.listdir(elsewhere)) == ([], [path.name])
    assert source_of(guest, inactive=False) == source_of(guest, inactive=True) == str(new)
    assert guest.xml(inactive=True) == configured.replace(str(path), str(new))
    if file_format == "qcow2":
        writer.assert_whole(new)
    # It lies where it is wanted, and is as small as can be.
    again = compact(lab, guest.name, dest_dir=str(elsewhere), min_reclaim_percent=90)
    assert not again["changed"], again


def test_to_another_folder_and_the_original_kept(lab, domain, elsewhere):
    guest = domain()
    path = guest.disk("sda").path
    wish = {"dest_dir": str(elsewhere), "keep_original": True}
    # Also where nothing is to be gained.
    result = compact(lab, guest.name, **wish, min_reclaim_bytes=1 << 40, min_reclaim_percent=100)
    (disk,) = result["domains"][0]["disks"]
    assert disk["kept"] == str(path)
    assert disk["moved_to"] == str(elsewhere / path.name)
    guest.destroy()
    run("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", path, elsewhere / path.name)
    run("qemu-img", "check", "-q", elsewhere / path.name)
    (elsewhere / path.name).unlink()


def test_a_folder_where_it_cannot_go(lab, domain, elsewhere):
    guest = domain()
    name = guest.disk("sda").path.name
    refused(lab, guest, "is no folder", dest_dir=f"{elsewhere}/none")
    (elsewhere / name).write_text("somebody's")
    refused(lab, guest, "exists already", "another dest_dir", dest_dir=str(elsewhere))
    guest.destroy()
    refused(lab, guest, "exists already", dest_dir=str(elsewhere), power="keep")
    assert (elsewhere / name).read_text() == "somebody's"
    (elsewhere / name).unlink()
    refused(lab, guest, "dest_dir", dest_dir=str(elsewhere), power="keep", method="punch")
    assert os.listdir(elsewhere) == []


def test_a_domain_that_is_off_moves_too(lab, domain, elsewhere):
    guest = domain()
    guest.destroy()
    path = guest.disk("sda").path
    new, configured = elsewhere / path.name, guest.xml(inactive=True)
    given = {"dest_dir": str(elsewhere), "power": "keep"}
    assert compact(lab, guest.name, check=True, **given)["changed"]
    assert (files(guest), os.listdir(elsewhere)) == ([path.name], [])
    result = compact(lab, guest.name, **given)
    assert not result["failed"], result["msg"]
    (disk,) = result["domains"][0]["disks"]
    assert disk["moved_to"] == str(new)
    assert result["freed_bytes"] >= 31 * MIB
    assert (files(guest), os.listdir(elsewhere)) == ([], [path.name])
    assert guest.xml(inactive=True) == configured.replace(str(path), str(new))
    qemu_io(new, "read -P 0 0 32M", "read -P 7 32M 4M", "read -P 0 36M 92M")
    again = compact(lab, guest.name, **given)
    assert not again["changed"], again


def test_a_guest_that_dies_is_started_again_on_its_one_file(lab, domain):
    guest = domain()
    configured = guest.xml(inactive=True)
    process = begin(lab, guest.name)
    os.kill(pid_of(guest, lab.state), signal.SIGKILL)
    result = answer(process)
    assert_explains(result, f"Domain {guest.name} died", "started again")
    assert guest.state() == "running"
    assert guest.xml(inactive=True) == configured
    assert files(guest) == [guest.disk("sda").path.name]
    assert_one_file(guest)
    guest.destroy()
    qemu_io(guest.disk("sda").path, "read -P 0 0 32M", "read -P 7 32M 4M")


@pytest.mark.parametrize("what", ["SIGTERM", "destroy"])
def test_given_up_on_the_way(lab, domain, elsewhere, what):
    guest = domain()
    writer = Writer(lab, guest, random.Random(6))  # noqa: S311
    configured = guest.xml(inactive=True)
    with writer:
        process = begin(lab, guest.name, dest_dir=str(elsewhere))
        if what == "SIGTERM":
            process.send_signal(signal.SIGTERM)
        else:
            guest.destroy()
        result = answer(process)
    if what == "SIGTERM":
        assert_explains(result, "Stopped by SIGTERM", "as it was")
    assert_one_file(guest)
    assert os.listdir(elsewhere) == []
    assert guest.xml(inactive=True) == configured
    writer.assert_whole()
    assert writer.count > 0
