# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Live compactions and backups while other clients of libvirt do random things at random moments.

No write that was acknowledged is lost, no file of others is touched, no guest is off that was on,
and when the others are done with what they did, nothing is left that nobody names.  A short storm
is part of ``make test-all``; ``make storm`` is the long one.  The seed is printed:
THINVIRT_STORM_SEED repeats it.
"""

from __future__ import annotations

import collections
import contextlib
import os
import random
import shutil
import time
from pathlib import Path

import pytest
from backup_lab import assert_whole
from compact_lab import answer, leftovers, sha256, start, wait_for
from image_lab import qemu_io, run
from lab import Disk, GuestSpec, LabError
from live_lab import CONTENT, MIB, Writer, assert_one_file, compact_live, source_of

FULL = os.environ.get("THINVIRT_STORM") == "full"
SEED = int(os.environ.get("THINVIRT_STORM_SEED", random.SystemRandom().randrange(1 << 32)))
#: How many rounds, in a short storm and in a long one.
ROUNDS = {"compaction": (8, 400), "moving": (4, 200), "backup": (4, 200)}
#: In this time the others do their work; a run takes about as long.
SECONDS = 3.0
EXTERNAL = ("--disk-only", "--no-metadata", "--atomic", "--diskspec")
BACKUP = (
    "<domainbackup mode='pull'><server transport='unix' socket='{}'/><disks><disk name='sda' "
    "backup='yes' type='file'><scratch file='{}'/></disk></disks></domainbackup>"
)


class Others:
    """What other clients do to a domain, and how they tidy up."""

    def __init__(self, lab, guest, chance) -> None:
        self.lab, self.guest, self.chance = lab, guest, chance
        self.path = guest.disk("sda").path
        self.folder = self.path.parent / "others"
        self.folder.mkdir(exist_ok=True)
        self.neighbour = self.folder / "neighbour.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", self.neighbour, "8M")
        qemu_io(self.neighbour, "write -P 9 0 1M")
        self.before = sha256(self.neighbour)
        self.number = 0
        self.size_mib = 128
        #: What was done since the last time that they tidied up, and files that must stay.
        self.done: list[str] = []
        self.files: list[Path] = []
        self.refused: collections.Counter[str] = collections.Counter()

    def virsh(self, command, *arguments):
        return self.lab.virsh(command, self.guest.name, *map(str, arguments))

    def fresh(self) -> Path:
        self.number += 1
        return self.folder / f"{self.number}"

    def act(self) -> None:
        """Do one thing; libvirt may refuse it, for we or others are at work."""
        what = self.chance.choice(ACTIONS)
        try:
            kept = what(self)
        except LabError as error:
            print(f"{what.__name__} refused: {str(error).rpartition('error: ')[2]}", flush=True)
            self.refused[what.__name__] += 1
            # One that was refused in the middle: a start, while we were at work on the disk.
            if self.guest.state() == "shut off":
                self.done.append(what.__name__)
            return
        self.done.append(what.__name__)
        if kept is not None:
            self.files.append(kept)

    def snapshot(self) -> Path:
        path = self.fresh()
        self.virsh("snapshot-create-as", *EXTERNAL, f"sda,file={path}")
        return path

    def snapshot_internal(self) -> None:
        self.virsh("snapshot-create-as", f"s{self.fresh().name}")

    def checkpoint(self) -> None:
        self.virsh("checkpoint-create-as", f"c{self.fresh().name}")

    def managed_save(self) -> None:
        self.virsh("managedsave")

    def save(self) -> Path:
        path = self.fresh().with_suffix(".save")
        self.virsh("save", path)
        return path

    def backup(self) -> Path:
        request, path = self.fresh().with_suffix(".xml"), self.fresh()
        request.write_text(BACKUP.format(self.lab.state / "tmp/others.sock", path))
        self.virsh("backup-begin", request)
        return path

    def copy(self) -> Path:
        path = self.fresh()
        limit = ("--bandwidth", 1, "--bytes")
        self.virsh("blockcopy", "sda", path, "--transient-job", *limit)
        return path

    def pull(self) -> None:
        self.virsh("blockpull", "sda", "--bandwidth", 1, "--bytes")

    def resize(self) -> None:
        self.virsh("blockresize", "sda", f"{self.size_mib + 1}M")
        self.size_mib += 1

    def reset(self) -> None:
        self.virsh("reset")

    def destroy(self) -> None:
        self.virsh("destroy")

    def destroy_and_start(self) -> None:
        self.virsh("destroy")
        self.lab.virsh("start", self.guest.name, "--paused")

    def plug(self) -> None:
        self.virsh(
            "attach-disk", self.neighbour, "sdb", "--subdriver", "qcow2", "--targetbus", "scsi",
            "--mode", "readonly",
        )  # fmt: skip

    def unplug(self) -> None:
        self.virsh("detach-disk", "sdb")

    def redefine(self) -> None:
        text = self.guest.xml(inactive=True)
        path = self.fresh().with_suffix(".xml")
        path.write_text(text.replace("</vcpu>", f"</vcpu><!-- {self.number} -->", 1))
        self.lab.virsh("define", str(path))

    def assert_left_alone(self) -> None:
        """Nobody has touched what is the others'."""
        assert sha256(self.neighbour) == self.before
        assert [path for path in self.files if not path.exists()] == []
        off = {"managed_save", "save", "destroy", "destroy_and_start"}
        if not off & set(self.done):
            assert self.guest.state() != "shut off", self.done
        jobs = {"copy": "Block Copy", "pull": "Block Pull"}
        if self.guest.state() != "shut off" and not off & set(self.done):
            for name in set(self.done) & set(jobs):
                assert jobs[name] in self.virsh("blockjob", "sda", "--raw")
            if "backup" in self.done:
                assert "others.sock" in self.virsh("backup-dumpxml")

    def tidy(self) -> None:
        """End and undo what was done."""
        saves = [path for path in self.files if path.suffix == ".save"]
        if self.guest.state() == "shut off":
            if saves and not self.has_managed_save():
                self.lab.virsh("restore", str(saves[-1]), "--paused")
            else:
                self.lab.virsh("start", self.guest.name)
        self.try_to("domjobabort")
        self.try_to("blockjob", "sda", "--abort")
        wait_for(lambda: not self.virsh("blockjob", "sda", "--raw").strip())
        # A snapshot of the image from before our overlay can be deleted when that has gone.
        compact_live(self.lab, self.guest.name, state="recovered")
        for kind in ("snapshot", "checkpoint"):
            for name in self.virsh(f"{kind}-list", "--name", "--topological").split()[::-1]:
                self.virsh(f"{kind}-delete", name)
        while source_of(self.guest).parent == self.folder:
            self.virsh("blockcommit", "sda", "--active", "--shallow", "--pivot", "--wait")
        self.try_to("detach-disk", "sdb")
        self.done, self.files = [], []

    def has_managed_save(self) -> bool:
        return "Managed save:   yes" in self.virsh("dominfo")

    def try_to(self, command, *arguments) -> None:
        with contextlib.suppress(LabError):
            self.virsh(command, *arguments)


ACTIONS = (
    Others.snapshot, Others.snapshot_internal, Others.checkpoint, Others.managed_save,
    Others.save, Others.backup, Others.copy, Others.pull, Others.resize, Others.reset,
    Others.destroy, Others.destroy_and_start, Others.plug, Others.unplug, Others.redefine,
)  # fmt: skip


class Storm:
    def __init__(self, lab, guest, what, folders) -> None:
        self.lab, self.guest, self.what, self.folders = lab, guest, what, folders
        self.chance = random.Random(f"{SEED} {what}")  # noqa: S311
        self.others = Others(lab, guest, self.chance)
        self.writer = Writer(lab, guest, self.chance)
        self.ends: collections.Counter[str] = collections.Counter()

    def round(self) -> None:
        zeros = 'qemu-io -d scsi0-0-0-0 "write -q -P 0 0 28M"'
        self.others.virsh("qemu-monitor-command", "--hmp", zeros)
        moments = sorted(
            self.chance.uniform(0, SECONDS) for _moment in range(self.chance.choice((1, 1, 2)))
        )
        with self.writer:
            process = self.run()
            if self.chance.random() < 0.8:
                wait_for(lambda: self.begun() or process.poll() is not None)
            begin = time.monotonic()
            for moment in moments:
                time.sleep(max(0.0, begin + moment - time.monotonic()))
                self.others.act()
            result = answer(process, patience=180)
        print(self.others.done, result.get("msg", "") or "done", flush=True)
        self.ends["failed" if result["failed"] else "done"] += 1
        assert "Traceback" not in result.get("msg", "")
        self.others.assert_left_alone()
        self.writer.assert_whole(source_of(self.guest))
        self.others.tidy()
        self.after(result)

    def begun(self) -> bool:
        return any(leftovers(folder) for folder in self.folders)

    def run(self):
        given = {"uri": self.lab.uri, "domains": [self.guest.name], "min_free_bytes": 0}
        if self.what == "backup":
            limit = {"bandwidth_bytes": 4 * MIB, "keep": 2}
            return start(module="domain_backup", dest_dir=str(self.folders[1]), **limit, **given)
        if self.what == "moving":
            here = source_of(self.guest).parent
            given["dest_dir"] = str(next(f for f in self.folders if f != here))
        limit = {"bandwidth_bytes": 4 * MIB, "min_reclaim_bytes": 0}
        return start(module="domain_compact", power="live", trim=False, **limit, **given)

    def after(self, result) -> None:
        """With what the others did undone, there is one file again, and nothing beside it."""
        if self.what == "backup":
            if not result["failed"]:
                assert_whole(result["domains"][0]["version"])
            assert not self.others.virsh("blockjob", "sda", "--raw").strip()
            assert [n for n in leftovers(self.others.path.parent) if "thinvirt" in n] == []
        else:
            recovered = compact_live(self.lab, self.guest.name, state="recovered")
            assert not recovered["failed"], recovered["msg"]
        top = source_of(self.guest)
        assert_one_file(self.guest, top)
        for folder in self.folders:
            assert [n for n in leftovers(folder) if top.name in n] == []
        self.writer.assert_whole(top)


@pytest.fixture
def storm(lab, request):
    made = []

    def storm(what):
        disk = Disk("sda", "scsi", size_bytes=128 * MIB)
        guest = lab.create(GuestSpec(f"others-{what}", memory_mib=64, disks=(disk,)))
        qemu_io(guest.disk("sda").path, *CONTENT)
        lab.virsh("start", guest.name, "--paused")
        folders = [guest.disk("sda").path.parent, lab.state / "elsewhere"]
        folders[1].mkdir(exist_ok=True)
        made.append(Storm(lab, guest, what, folders))
        return made[0]

    print(f"\nTHINVIRT_STORM_SEED={SEED} {request.node.name}")
    yield storm
    for it in made:
        it.guest.destroy()
        records = ("--managed-save", "--snapshots-metadata", "--checkpoints-metadata")
        lab.virsh("undefine", it.guest.name, *records)
        shutil.rmtree(it.others.folder)
        for folder in it.folders:
            for path in folder.glob(f"*{it.guest.name}-sda*"):
                path.unlink()


@pytest.mark.storm
@pytest.mark.parametrize("what", ROUNDS)
def test_storm_of_others(storm, what, record_property):
    it = storm(what)
    for _number in range(ROUNDS[what][FULL]):
        it.round()
    assert it.writer.count > 0
    told = f"others, {what}: {dict(it.ends)}, refused {dict(it.others.refused)}"
    record_property("storm", told)
