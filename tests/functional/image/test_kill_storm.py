# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A module is killed, it alone and at any moment; the name always holds a whole image.

A short storm is part of every test run; ``make storm`` is the long one.  The seed is printed:
THINVIRT_STORM_SEED repeats it.
"""

from __future__ import annotations

import collections
import json
import os
import random
import shutil
import signal
import subprocess
import time
import typing as t
from pathlib import Path

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import peek
from compact_lab import (
    MIB,
    answer,
    assert_same,
    entry_of,
    image,
    leftovers,
    sha256,
    start,
    start_module,
    users_of,
    wait_for,
)
from image_lab import create, qemu_io, run
from lab import Disk, GuestSpec, guest_image
from lab.cache import CACHE
from support import run_module

FULL = os.environ.get("THINVIRT_STORM") == "full"
SEED = int(os.environ.get("THINVIRT_STORM_SEED", random.SystemRandom().randrange(1 << 32)))
#: How often each is killed: in a short storm, in a long one.
TIMES = {
    "rewrite": (6, 100),
    "keep_original": (2, 30),
    "punch": (5, 50),
    "convert": (3, 10),
    "convert again": (3, 10),
}
#: Where it may have come to when the clock of a kill begins to run, in turn.
POINTS = ("begin", "copy", "copy", "start")
POINTS_OF_PUNCH = (*("begin",) * 5, "start")
ROOT = Path(__file__).resolve().parents[3]
GUEST_DISKS = ROOT / "extensions" / "molecule" / "shared" / "guest_disks.py"


class Storm:
    """A module that is killed again and again, from the same first state each time.

    :param folder: which is emptied each time; nothing else may be in it.
    :param path: in it, the name that always has to hold a whole image.
    """

    def __init__(self, folder: Path, path: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.path = path
        self.stages: collections.Counter[str] = collections.Counter()
        self.slowest = 0.0

    def fresh(self) -> None:
        """Make the first state anew."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()

    def begin(self) -> subprocess.Popen:
        """Start the module."""
        raise NotImplementedError

    def assert_whole(self) -> None:
        """Nothing is lost."""
        raise NotImplementedError

    def assert_goes_on(self) -> None:
        """The next run succeeds and leaves nothing, and the one after it has nothing to do."""
        raise NotImplementedError

    def has_come_to(self, point: str) -> bool:
        """``start``, ``begin``: it holds the journal, ``copy``: there is one, whole or not."""
        names = leftovers(self.folder)
        return point == "start" or any(point == "begin" or n.endswith(".tmp") for n in names)

    def kill_at(self, point: str, seconds: float) -> None:
        """Kill a run so many seconds after it came to a point; prove that nothing is lost."""
        self.fresh()
        process = self.begin()
        wait_for(lambda: self.has_come_to(point) or process.poll() is not None)
        time.sleep(seconds)
        ended = process.poll() is not None
        process.send_signal(signal.SIGKILL)  # to it, and nothing else
        process.communicate()
        # qemu-img dies with its parent, and lets go of the journal then.
        wait_for(lambda: users_of(self.folder) == [], seconds=5)
        left = None if ended else peek(str(self.path))
        self.stages["ended before" if ended else left.stage if left else "no journal"] += 1
        self.assert_whole()

    def go_on(self) -> None:
        """Prove that the next run does."""
        begin = time.monotonic()
        self.assert_goes_on()
        self.slowest = max(self.slowest, time.monotonic() - begin)
        self.assert_whole()

    def duration(self, point: str) -> float:
        """Seconds from a point until nothing is left to be undone."""
        self.fresh()
        process = self.begin()
        begin = time.monotonic()
        wait_for(lambda: self.has_come_to("begin"))
        if point != "start":
            wait_for(lambda: self.has_come_to(point))
            begin = time.monotonic()
        wait_for(lambda: not leftovers(self.folder), seconds=60)
        seconds = time.monotonic() - begin
        assert answer(process)["changed"]
        return seconds

    def rage(self, kind: str, *, times: int, points: t.Sequence[str] = POINTS) -> str:
        """Kill it so many times; what was hit, in one line."""
        chance = random.Random(f"{SEED} {kind}")  # noqa: S311
        durations = {point: self.duration(point) for point in sorted(set(points))}
        for number in range(times):
            point = points[number % len(points)]
            seconds = chance.uniform(0, durations[point] * 1.02)
            print(f"{number}: {seconds:.4f} s after {point}")
            self.kill_at(point, seconds)
            self.go_on()
        assert sum(self.stages.values()) == times
        hit = ", ".join(f"{stage} {count}" for stage, count in self.stages.most_common())
        return f"{kind}: {times} kills ({hit}); slowest next run {self.slowest:.1f} s"


class Compaction(Storm):
    """One image that is compacted in place.

    :param parameters: of the module.
    :param identical: the file is to stay the same byte by byte, not only the guest's disk.
    """

    def __init__(self, pristine: Path, parameters: dict, *, identical: bool = False) -> None:
        folder = pristine.parent / "pool"
        super().__init__(folder, folder / "x.qcow2")
        self.pristine = pristine
        self.parameters = {"min_free_bytes": 0, **parameters}
        self.identical = identical

    def fresh(self) -> None:
        super().fresh()
        shutil.copyfile(self.pristine, self.path)

    def begin(self) -> subprocess.Popen:
        return start(self.path, **self.parameters)

    def assert_whole(self) -> None:
        if self.identical:
            assert sha256(self.path) == sha256(self.pristine)
        assert_same(self.path, self.pristine)

    def assert_goes_on(self) -> None:
        entry_of(self.path, **self.parameters)
        assert self.path.stat().st_nlink == 1
        kept = [f"{self.path.name}.thinvirt-original"] if "keep_original" in self.parameters else []
        assert sorted(os.listdir(self.folder)) == sorted([self.path.name, *kept])
        for name in kept:
            assert sha256(self.folder / name) == sha256(self.pristine)
            assert (self.folder / name).stat().st_nlink == 1
        assert not entry_of(self.path, **self.parameters)["changed"]


class Conversion(Storm):
    """One image that is copied elsewhere.

    :param older: of which there is a copy already, whose name the new one is to take; None: the
        name is free.
    """

    def __init__(self, pristine: Path, *, older: Path | None) -> None:
        folder = pristine.parent / "pool"
        super().__init__(folder, folder / "copy.qcow2")
        self.pristine = pristine
        self.older = older
        self.source = pristine.parent / "x.qcow2"
        self.arguments = {"src": str(self.source), "dest": str(self.path), "min_free_bytes": 0}

    def fresh(self) -> None:
        super().fresh()
        if self.older is not None:
            shutil.copyfile(self.older, self.source)
            assert run_module("image_convert", **self.arguments)["changed"]
        shutil.copyfile(self.pristine, self.source)
        self.before = self.source.stat()

    def begin(self) -> subprocess.Popen:
        return start_module("image_convert", **self.arguments)

    def assert_whole(self) -> None:
        now = self.source.stat()
        assert (now.st_ino, now.st_mtime_ns) == (self.before.st_ino, self.before.st_mtime_ns)
        assert sha256(self.source) == sha256(self.pristine)
        if self.older is None and not self.path.exists():
            return
        whole = [self.pristine] if self.older is None else [self.pristine, self.older]
        answers = [
            subprocess.run(
                ["qemu-img", "compare", other, self.path], capture_output=True, check=False
            ).returncode
            for other in whole
        ]
        assert sorted(answers) == sorted([0, *[1] * (len(whole) - 1)])
        run("qemu-img", "check", "-q", "-f", "qcow2", self.path)

    def assert_goes_on(self) -> None:
        result = run_module("image_convert", **self.arguments)
        assert not result["failed"], result["msg"]
        assert_same(self.path, self.pristine)
        names = [self.path.name, f"{self.path.name}.thinvirt.json"]
        assert sorted(os.listdir(self.folder)) == names
        assert not run_module("image_convert", **self.arguments)["changed"]


@pytest.fixture
def storm(tmp_path, request):
    def storm(kind: str) -> Storm:
        pristine = tmp_path / "pristine"
        if kind.startswith("convert"):
            image(pristine, data_mib=48, zeros_mib=48)
            older = image(tmp_path / "older", data_mib=8) if kind == "convert again" else None
            return Conversion(pristine, older=older)
        if kind != "punch":
            image(pristine, data_mib=48, zeros_mib=48)
            more = {"keep_original": True} if kind == "keep_original" else {}
            return Compaction(pristine, {"method": "rewrite", **more})
        # Each hole is a system call of its own.
        create(pristine, "128M")
        pieces = b"".join(os.urandom(65536) + bytes(65536) for _number in range(320))
        (tmp_path / "pieces").write_bytes(pieces)
        qemu_io(pristine, f"write -s {tmp_path}/pieces 0 {len(pieces) // MIB}M")
        return Compaction(pristine, {"method": "punch", "min_reclaim_bytes": 0}, identical=True)

    print(f"\nTHINVIRT_STORM_SEED={SEED} {request.node.name}")
    return storm


@pytest.mark.storm
@pytest.mark.parametrize("kind", TIMES)
def test_storm(storm, kind, record_property):
    points = POINTS_OF_PUNCH if kind == "punch" else POINTS
    record_property("storm", storm(kind).rage(kind, times=TIMES[kind][FULL], points=points))


@pytest.mark.storm
@pytest.mark.skipif(not FULL, reason="two boots: make storm")
def test_a_guest_boots_after_a_storm(lab, tmp_path, record_property):
    """Its disk is rewritten and killed; at last it is started as the last kill has left it."""
    pristine = tmp_path / "pristine"
    shutil.copyfile(guest_image(CACHE).disk, pristine)
    storm = Compaction(pristine, {"method": "rewrite"})
    storm.fresh()
    guest = lab.create(GuestSpec("storm", disks=(Disk("sda", root=True, path=storm.path),)))
    try:
        guest.start()
        guest.wait_for_agent()
        # 100 MiB of zeros, in files that are deleted.
        before = json.loads(in_guest(guest, "zero"))["sda"]["tree"]
        guest.shutdown()
        shutil.copyfile(storm.path, pristine)
        said = storm.rage("a guest's disk", times=5, points=("copy", "copy", "begin"))
        storm.kill_at("copy", random.Random(SEED).uniform(0, 1))  # noqa: S311
        guest.start()
        guest.wait_for_agent()
        assert json.loads(in_guest(guest, "tree"))["sda"] == before
    finally:
        guest.destroy()
        lab.virsh("undefine", "storm")
    record_property("storm", f"{said}; one more, and it boots with all files as they were")


def in_guest(guest, action: str) -> str:
    return guest.run("python3", "-c", GUEST_DISKS.read_text(), action, "sda", timeout=180).stdout
