# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What other programs do to a domain while its disk is compacted, one thing at a time.

They do it with virsh while the copy is made; what the guest's QEMU has acknowledged is read back
with qemu-img, from the file that libvirt has in the end.
"""

from __future__ import annotations

import json
import random
import time

import pytest
from compact_lab import answer, leftovers, start, wait_for
from image_lab import run
from lab import Disk, GuestSpec
from live_lab import CONTENT, MIB, Writer, assert_one_file, compact_live, source_of
from support import assert_explains

#: So slow that the copy is still made when the others have done their work.
SLOW = {"bandwidth_bytes": 2 * MIB, "min_reclaim_bytes": 0}


class Others:
    """A domain whose disk is being compacted, and the others at work on it."""

    def __init__(self, lab, guest, file_format) -> None:
        self.lab, self.guest, self.file_format = lab, guest, file_format
        self.path = guest.disk("sda").path
        self.writer = Writer(lab, guest, random.Random(7))  # noqa: S311
        self.extra = self.path.parent / "others"
        self.configured = guest.xml(inactive=True)

    def virsh(self, command, *arguments):
        return self.lab.virsh(command, self.guest.name, *map(str, arguments))

    def begin(self, **arguments):
        given = {"power": "live", "trim": False, "min_free_bytes": 0, **SLOW, **arguments}
        process = start(
            module="domain_compact", uri=self.lab.uri, domains=[self.guest.name], **given
        )
        copies = f".{self.path.name}.thinvirt-*.tmp"
        wait_for(lambda: list(self.path.parent.glob(copies)) or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        return process

    def recover(self):
        return compact_live(self.lab, self.guest.name, state="recovered")

    def assert_recovered(self) -> None:
        result = self.recover()
        assert not result["failed"], result["msg"]
        assert_one_file(self.guest)
        self.writer.assert_whole()
        assert not self.recover()["changed"]

    def write(self) -> None:
        count = self.writer.count
        with self.writer:
            wait_for(lambda: self.writer.count > count + 3)


def snapshot(it):
    it.virsh("snapshot-create-as", *EXTERNAL, f"sda,file={it.extra}")
    yield "others over"
    top, base = f"--top={it.extra}", f"--base={overlay(it)}"
    it.virsh("blockcommit", "sda", top, base, "--active", "--pivot", "--wait")


EXTERNAL = ("--disk-only", "--no-metadata", "--atomic", "--diskspec")


def overlay(it):
    (found,) = it.path.parent.glob(f"{it.path.name}.thinvirt-*.overlay")
    return found


def internal_snapshot(it):
    it.virsh("snapshot-create-as", "s1")
    yield "snapshot s1 names"
    it.virsh("snapshot-delete", "s1")


def checkpoint(it):
    it.virsh("checkpoint-create-as", "c1")
    yield "checkpoint c1 names"
    it.virsh("checkpoint-delete", "c1")


def managed_save(it):
    it.virsh("managedsave")
    yield "managed save"
    assert_explains(it.recover(), "managed save", "no file was removed")
    it.virsh("start")


def save(it):
    it.virsh("save", it.extra)
    yield "virsh save"
    assert_explains(it.recover(), "virsh save", "no file was removed")
    it.lab.virsh("restore", str(it.extra), "--paused")


def backup(it):
    text = (
        "<domainbackup mode='pull'><server transport='unix' socket='{}'/><disks><disk name='sda' "
        "backup='yes' type='file'><scratch file='{}'/></disk></disks></domainbackup>"
    )
    request = it.lab.state / "backup.xml"
    request.write_text(text.format(it.lab.state / "tmp/bk.sock", it.extra))
    it.virsh("backup-begin", request)
    yield "busy (backup)"
    assert "others" in it.virsh("backup-dumpxml")
    it.virsh("domjobabort")


def copy(it):
    it.virsh("blockcopy", "sda", it.extra, "--transient-job", "--bandwidth", 1, "--bytes")
    yield "block job (copy"
    assert "Block Copy" in it.virsh("blockjob", "sda", "--raw")
    it.virsh("blockjob", "sda", "--abort")


def pull(it):
    it.virsh("blockpull", "sda", "--bandwidth", 1, "--bytes")
    yield "block job (stream) is at work"
    assert "Block Pull" in it.virsh("blockjob", "sda", "--raw")
    it.virsh("blockjob", "sda", "--abort")


OTHERS = (
    snapshot, internal_snapshot, checkpoint, managed_save, save, backup, copy, pull,
)  # fmt: skip


@pytest.fixture
def others(lab):
    made = []

    def others(file_format="qcow2"):
        disk = Disk("sda", "scsi", size_bytes=128 * MIB, format=file_format)
        guest = lab.create(GuestSpec("visited", memory_mib=64, disks=(disk,)))
        options = [part for command in CONTENT for part in ("-c", command)]
        run("qemu-io", "-f", file_format, *options, guest.disk("sda").path)
        lab.virsh("start", guest.name, "--paused")
        made.append(guest)
        return Others(lab, guest, file_format)

    yield others
    for guest in made:
        guest.destroy()
        records = ("--managed-save", "--snapshots-metadata", "--checkpoints-metadata")
        lab.virsh("undefine", guest.name, *records)
        folder = guest.disk("sda").path.parent
        for path in (*folder.glob("*visited*"), folder / "others"):
            path.unlink(missing_ok=True)


@pytest.mark.parametrize("do", OTHERS, ids=lambda do: do.__name__)
def test_we_give_way_and_lose_nothing(others, do):
    it = others()
    process = it.begin()
    it.write()
    steps = do(it)
    said = next(steps)
    if it.guest.state() != "shut off":
        it.write()
    result = answer(process)
    assert_explains(result, said)
    it.writer.assert_whole(source_of(it.guest))
    before = leftovers(it.path.parent)
    assert it.recover()["failed"]  # nothing is undone while they need it
    assert leftovers(it.path.parent) == before
    next(steps, None)
    it.write()
    it.assert_recovered()


@pytest.mark.parametrize("file_format", ["qcow2", "raw"])
@pytest.mark.parametrize("again", [False, True], ids=["off", "off and on"])
def test_powered_off_in_the_middle(others, file_format, again):
    it = others(file_format)
    process = it.begin(bandwidth_bytes=8 * MIB)
    if file_format == "qcow2":
        it.write()
    it.guest.destroy()
    if again:
        it.lab.virsh("start", it.guest.name, "--paused")
    result = answer(process)
    assert not result["failed"], result["msg"]
    assert it.guest.xml(inactive=True) == it.configured
    assert_one_file(it.guest)
    if file_format == "qcow2":
        it.writer.assert_whole()


def test_a_disk_that_was_enlarged_keeps_its_size(others):
    it = others()
    process = it.begin(bandwidth_bytes=8 * MIB)
    it.write()
    it.virsh("blockresize", "sda", "160M")
    it.write()
    result = answer(process)
    assert not result["failed"], result["msg"]
    assert_one_file(it.guest)
    info = json.loads(run("qemu-img", "info", "-U", "--output=json", it.path))
    assert info["virtual-size"] == 160 * MIB
    it.writer.assert_whole()


def test_a_disk_that_was_given_another_file_keeps_that(others):
    it = others()
    run("qemu-img", "create", "-q", "-f", "qcow2", it.extra, "1M")
    changed = it.lab.state / "changed.xml"
    changed.write_text(it.configured.replace(str(it.path), str(it.extra)))
    process = it.begin(bandwidth_bytes=8 * MIB)
    it.write()
    it.lab.virsh("define", str(changed))
    answer(process)
    assert source_of(it.guest) == it.path
    assert f"<source file='{it.extra}'" in it.guest.xml(inactive=True)
    it.writer.assert_whole()
    assert leftovers(it.path.parent) == []


def test_a_disk_is_planned_anew_when_its_turn_comes(others):
    it = others()
    second = it.path.parent / "visited-b.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", second, "64M")
    run("qemu-io", "-c", "write -P 0 0 16M", "-c", "write -P 3 16M 1M", second)
    it.virsh("attach-disk", second, "sdb", "--subdriver", "qcow2", "--persistent", "--targetbus",
             "scsi")  # fmt: skip
    process = it.begin(bandwidth_bytes=4 * MIB)
    it.virsh(
        "snapshot-create-as", "--disk-only", "--no-metadata", "--atomic",
        "--diskspec", "sda,snapshot=no", "--diskspec", f"sdb,file={it.extra}",
    )  # fmt: skip
    result = answer(process)
    for inactive in (False, True):
        assert f"<source file='{it.extra}'" in it.guest.xml(inactive=inactive)
    assert second.stat().st_blocks * 512 > 16 * MIB
    assert "visited-b" in result["msg"] or "sdb" in result["msg"] or not result["failed"]
    assert_one_file(it.guest)


def test_a_second_run_is_refused_at_once(others):
    it = others()
    process = it.begin()
    begin = time.monotonic()
    for arguments in ({"power": "live"}, {"power": "keep"}, {"state": "recovered"}):
        result = compact_live(it.lab, it.guest.name, **arguments)
        assert_explains(result, f"Another run (process {process.pid}) is at work on domain visited")
    assert time.monotonic() - begin < 10
    assert process.poll() is None
    process.terminate()
    answer(process)
    assert_one_file(it.guest)
