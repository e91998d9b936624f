# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""domain_compact is killed before each step that changes a name, a file or the guest's chain.

Not at a random moment, as in a storm: between any two steps.  ``make storm`` takes all of them, a
test run some of those around the switches and the exchange of names.
"""

from __future__ import annotations

import os
import random
import shutil

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import journal_path
from compact_lab import answer, leftovers, start, users_of, wait_for
from image_lab import qemu_io
from lab import Disk, GuestSpec
from libvirtd import comm
from live_lab import CONTENT, MIB, Writer, assert_one_file, compact_live

FULL = os.environ.get("THINVIRT_STORM") == "full"
#: Notes each step before it is taken, with what the journal says; kills its process before one.
STEPS = """
import json, os, signal, threading
lock, steps = threading.Lock(), []
kill_at, path = int(os.environ["KILL_AT"]), os.environ["STEPS"]
append = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def stage():
    try:
        with open(os.environ["JOURNAL"], encoding="ascii") as file:
            return json.loads(file.read().splitlines()[-1]).get("stage", "nothing")
    except (OSError, IndexError):
        return "nothing"
def wrapped(function, name):
    def step(*arguments, **more):
        with lock:
            steps.append(name)
            given = " ".join(word for word in map(str, arguments) if word[:1] == "/")
            os.write(append, f"{name} {stage()} {given}\\n".encode())
            if len(steps) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **more)
    return step
for name in ("rename", "link", "unlink", "fsync"):
    setattr(os, name, wrapped(getattr(os, name), name))
import libvirt
for name in ("snapshotCreateXML", "blockCopy", "blockCommit", "blockJobAbort"):
    setattr(libvirt.virDomain, name, wrapped(getattr(libvirt.virDomain, name), name))
libvirt.virConnect.defineXML = wrapped(libvirt.virConnect.defineXML, "defineXML")
"""
SEED = int(os.environ.get("THINVIRT_STORM_SEED", random.SystemRandom().randrange(1 << 32)))
#: A short run is killed so often, before or after one of these.
SHORT = 2
SWITCHES = ("link", "rename", "blockCopy", "blockJobAbort", "blockCommit")
#: What has to be on the disk before the guest is told to go on with another file.
JOURNAL = [
    *("snapshotCreateXML snapshot", "blockCopy mirror", "blockJobAbort pivot"),
    *("blockCommit merge", "blockJobAbort merge"),
]


class World:
    """A domain whose disk is compacted, or moved to and fro between two folders."""

    def __init__(self, lab, guest, folders, tmp_path) -> None:
        self.lab, self.guest, self.folders = lab, guest, folders
        self.writer = Writer(lab, guest, random.Random(11))  # noqa: S311
        self.steps = tmp_path / "steps"
        self.site = tmp_path / "site"
        self.site.mkdir()
        (self.site / "sitecustomize.py").write_text(STEPS)

    def run(self, kill_at: int):
        zeros = 'qemu-io -d scsi0-0-0-0 "write -q -P 0 0 28M"'
        self.lab.virsh("qemu-monitor-command", self.guest.name, "--hmp", zeros)
        self.steps.unlink(missing_ok=True)
        given = {"power": "live", "trim": False, "min_reclaim_bytes": 0}
        image = self.writer.top()
        if len(self.folders) > 1:
            dest = next(folder for folder in self.folders if folder != image.parent)
            given["dest_dir"] = str(dest)
        prefix = (
            *("env", f"PYTHONPATH={self.site}:{os.environ['PYTHONPATH']}"),
            *(f"KILL_AT={kill_at}", f"STEPS={self.steps}"),
            f"JOURNAL={journal_path(str(image))}",
        )
        given |= {"uri": self.lab.uri, "domains": [self.guest.name]}
        return start(module="domain_compact", prefix=prefix, **given)

    def taken(self) -> list[str]:
        return self.steps.read_text().splitlines()

    def assert_recovered(self, where: str) -> None:
        """Nothing is lost: on the chain as it is, and on the file that the next run makes of it."""
        for folder in self.folders:
            wait_for(lambda at=folder: not [pid for pid in users_of(at) if comm(pid) == "qemu-img"])
        self.writer.assert_whole(self.writer.top())
        left = [name for folder in self.folders for name in leftovers(folder)]
        result = compact_live(self.lab, self.guest.name, state="recovered")
        assert not result["failed"], (where, result["msg"])
        recovered = result["domains"][0]["recovered"]
        assert recovered or not [name for name in left if name.endswith(".overlay")], where
        path = self.writer.top()
        assert_one_file(self.guest, path)
        for folder in self.folders:
            assert leftovers(folder) == [], where
            assert (folder / path.name).exists() is (folder == path.parent), where
        self.writer.assert_whole(path)


@pytest.fixture
def world(lab, tmp_path, request):
    disk = Disk("sda", "scsi", size_bytes=128 * MIB)
    guest = lab.create(GuestSpec("points", memory_mib=64, disks=(disk,)))
    folders = [guest.disk("sda").path.parent, lab.state / "points"]
    folders[1].mkdir()
    try:
        qemu_io(guest.disk("sda").path, *CONTENT)
        lab.virsh("start", guest.name, "--paused")
        yield World(lab, guest, folders[: 1 + (request.param == "moving")], tmp_path)
    finally:
        guest.destroy()
        lab.virsh("undefine", guest.name)
        shutil.rmtree(folders[1])


def to_kill_before(steps: list[str]) -> list[int]:
    """Numbers of steps; in a short run some of those that the guest or a name depends on."""
    numbers = range(1, len(steps) + 1)
    if FULL:
        return list(numbers)
    names = [step.split()[0] for step in steps]
    found = [n for n in numbers if names[n - 1] in SWITCHES or names[n - 2] in SWITCHES]
    return sorted(random.Random(SEED).sample(found, SHORT))  # noqa: S311


@pytest.mark.storm
@pytest.mark.parametrize("world", ["in place", "moving"], indirect=True)
def test_killed_between_any_two_steps(world, record_property):
    with world.writer:
        result = answer(world.run(0))
    assert result["changed"], result
    steps = world.taken()
    print(f"\nTHINVIRT_STORM_SEED={SEED}", *enumerate(steps, 1), sep="\n")
    # One that moves is given its name in another folder by a link.
    assert set(SWITCHES) - {step.split()[0] for step in steps} == (
        {"rename"} if len(world.folders) > 1 else set()
    )
    told = [" ".join(step.split()[:2]) for step in steps]
    assert [step for step in told if step.startswith(("block", "snap"))] == JOURNAL
    # Of the journal and its folder.  All else is flushed before: until libvirt has noted the
    # switch, the end of the host leaves two overlays to choose from.
    assert told.count("fsync pivot") == 2
    naming = {step for step in told if step.startswith(("link", "rename"))}
    assert naming <= {"link swap", "rename swap"}
    chosen = to_kill_before(steps)
    for number in chosen:
        with world.writer:
            process = world.run(number)
            said = process.communicate(timeout=120)
        where = f"before {number} {world.taken()[-1]}"
        print(where, flush=True)
        assert process.returncode == -9, (where, said)
        world.assert_recovered(where)
    assert world.writer.count > 0
    record_property("storm", f"live: killed before {len(chosen)} of {len(steps)} steps")
