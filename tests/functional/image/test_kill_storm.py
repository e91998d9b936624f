# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module is killed, it alone and at any moment; the name always holds a whole image.

A short storm is part of every test run; ``make storm`` is the long one.  The seed is printed:
THINVIRT_STORM_SEED repeats it.
"""

from __future__ import annotations

import collections
import os
import random
import shutil
import signal
import subprocess
import time
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
    users_of,
    wait_for,
)
from image_lab import create, qemu_io

FULL = os.environ.get("THINVIRT_STORM") == "full"
SEED = int(os.environ.get("THINVIRT_STORM_SEED", random.SystemRandom().randrange(1 << 32)))
#: How often each is killed: in a short storm, in a long one.
TIMES = {"rewrite": (6, 100), "keep_original": (2, 30), "punch": (5, 50)}


class Storm:
    """One image that is compacted and killed again and again, from its first state each time.

    :param parameters: of the module.
    :param identical: the file is to stay the same byte by byte, not only the guest's disk.
    """

    def __init__(self, pristine: Path, parameters: dict, *, identical: bool) -> None:
        self.pristine = pristine
        self.folder = pristine.parent / "pool"
        self.folder.mkdir()
        self.path = self.folder / "x.qcow2"
        self.parameters = parameters
        self.identical = identical
        self.stages: collections.Counter[str] = collections.Counter()
        self.slowest = 0.0

    def fresh(self) -> None:
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        shutil.copyfile(self.pristine, self.path)

    def has_come_to(self, point: str) -> bool:
        """``start``, ``begin``: it holds the journal, ``copy``: there is one, whole or not."""
        names = leftovers(self.folder)
        return point == "start" or any(point == "begin" or n.endswith(".tmp") for n in names)

    def assert_whole(self) -> None:
        if self.identical:
            assert sha256(self.path) == sha256(self.pristine)
        assert_same(self.path, self.pristine)

    def kill_at(self, point: str, seconds: float) -> None:
        """Kill a run so many seconds after it came to a point."""
        self.fresh()
        process = start(self.path, **self.parameters)
        wait_for(lambda: self.has_come_to(point) or process.poll() is not None)
        time.sleep(seconds)
        self.after_kill(process)

    def after_kill(self, process: subprocess.Popen) -> None:
        """Kill it, and nothing else; prove that nothing is lost, and that the next run goes on."""
        ended = process.poll() is not None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        left = None if ended else peek(str(self.path))
        self.stages["ended before" if ended else left.stage if left else "nothing begun"] += 1
        # qemu-img dies with its parent, before it could be asked to.
        wait_for(lambda: users_of(self.folder) == [], seconds=2)
        self.assert_whole()
        self.assert_goes_on()

    def assert_goes_on(self) -> None:
        begin = time.monotonic()
        entry_of(self.path, **self.parameters)
        self.slowest = max(self.slowest, time.monotonic() - begin)
        self.assert_whole()
        assert self.path.stat().st_nlink == 1
        kept = [f"{self.path.name}.thinvirt-original"] if "keep_original" in self.parameters else []
        assert sorted(os.listdir(self.folder)) == sorted([self.path.name, *kept])
        for name in kept:
            assert sha256(self.folder / name) == sha256(self.pristine)
            assert (self.folder / name).stat().st_nlink == 1
        assert not entry_of(self.path, **self.parameters)["changed"]

    def duration(self, point: str) -> float:
        """Seconds from a point to the end."""
        self.fresh()
        process = start(self.path, **self.parameters)
        wait_for(lambda: self.has_come_to(point))
        begin = time.monotonic()
        assert answer(process)["changed"]
        return time.monotonic() - begin


@pytest.fixture
def storm(tmp_path, request):
    def storm(kind: str) -> Storm:
        pristine = tmp_path / "pristine"
        if kind != "punch":
            image(pristine, data_mib=48, zeros_mib=48)
            parameters = {"method": "rewrite", "min_free_bytes": 0}
            more = {"keep_original": True} if kind == "keep_original" else {}
            return Storm(pristine, {**parameters, **more}, identical=False)
        # Each hole is a system call of its own.
        create(pristine, "128M")
        pieces = b"".join(os.urandom(65536) + bytes(65536) for _number in range(320))
        (tmp_path / "pieces").write_bytes(pieces)
        qemu_io(pristine, f"write -s {tmp_path}/pieces 0 {len(pieces) // MIB}M")
        return Storm(pristine, {"method": "punch", "min_reclaim_bytes": 0}, identical=True)

    print(f"\nTHINVIRT_STORM_SEED={SEED} {request.node.name}")
    return storm


@pytest.mark.storm
@pytest.mark.parametrize("kind", TIMES)
def test_storm(storm, kind):
    it = storm(kind)
    times = TIMES[kind][FULL]
    chance = random.Random(f"{SEED} {kind}")  # noqa: S311
    points = ["begin", "copy", "copy", "start"] if kind != "punch" else ["begin"] * 5 + ["start"]
    durations = {point: it.duration(point) for point in set(points)}
    for number in range(times):
        point = points[number % len(points)]
        seconds = chance.uniform(0, durations[point] * 1.02)
        print(f"{number}: {seconds:.4f} s after {point}")
        it.kill_at(point, seconds)
    print(f"{kind}: killed {times} times in {dict(it.stages)}; slowest next run {it.slowest:.1f} s")
    assert sum(it.stages.values()) == times
