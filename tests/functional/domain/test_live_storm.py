# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""domain_compact is killed while a domain runs, or libvirtd is, or the domain's QEMU, or all.

A short storm is part of every test run; ``make storm`` is the long one.  The seed is printed:
THINVIRT_STORM_SEED repeats it.  A kill leaves the page cache: what only the power can take, this
can't show.
"""

from __future__ import annotations

import collections
import contextlib
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import (
    journal_path,
    peek,
)
from compact_lab import answer, leftovers, start, users_of, wait_for
from image_lab import qemu_io
from lab import Disk, GuestSpec
from libvirtd import comm, has_ended, kill_libvirtd, start_libvirtd
from live_lab import (
    CONTENT,
    MIB,
    Writer,
    assert_one_file,
    compact_live,
    is_alive,
    pid_of,
    put_on,
)

FULL = os.environ.get("THINVIRT_STORM") == "full"
SEED = int(os.environ.get("THINVIRT_STORM_SEED", random.SystemRandom().randrange(1 << 32)))
#: How often each is killed: in a short storm, in a long one. See test_live_kill_points as well.
#: ``host`` is all three at one instant, as when its power fails.
TIMES = {"module": (1, 60), "libvirtd": (1, 10), "QEMU": (1, 10), "host": (1, 10)}
#: The same where the image goes to another folder, and back.
TIMES_MOVING = {"module": (1, 60), "libvirtd": (1, 10), "QEMU": (1, 10), "host": (1, 10)}
#: At the switch from one overlay to the other, which takes some milliseconds.
TIMES_AT_SWITCH = {"QEMU": (1, 30), "host": (1, 30), "libvirtd": (0, 10)}
SWITCH_SECONDS = 0.03
WISH = {"power": "live", "trim": False, "min_reclaim_bytes": 0}


class Storm:
    """One domain, whose disk is compacted, and what is killed meanwhile."""

    def __init__(self, lab, guest, victim, folders) -> None:
        self.lab = lab
        self.guest = guest
        self.victim = victim
        #: Where the image can be: one folder, or two between which it moves.
        self.folders = folders
        self.chance = random.Random(f"{SEED} {victim}")  # noqa: S311
        self.writer = Writer(lab, guest, self.chance)
        self.stages: collections.Counter[str] = collections.Counter()
        self.ends: collections.Counter[str] = collections.Counter()

    def fresh(self) -> None:
        """The image has zeros again that are worth it: the guest writes them."""
        if self.guest.state() == "shut off":
            self.lab.virsh("start", self.guest.name, "--paused")
        zeros = 'qemu-io -d scsi0-0-0-0 "write -q -P 0 0 28M"'
        self.lab.virsh("qemu-monitor-command", self.guest.name, "--hmp", zeros)

    def run(self):
        given = {"uri": self.lab.uri, "domains": [self.guest.name], **WISH}
        if len(self.folders) > 1:
            here = self.writer.top().parent
            given["dest_dir"] = str(next(folder for folder in self.folders if folder != here))
        return start(module="domain_compact", **given)

    def begun(self) -> bool:
        found = (name for folder in self.folders for name in leftovers(folder))
        return any(name.startswith("journal of ") for name in found)

    def left(self):
        """What the journal says, or the journals."""
        name = self.guest.disk("sda").path.name
        found = (peek(str(folder / name)) for folder in self.folders)
        return next((record for record in found if record), None)

    def assert_one_file(self) -> None:
        """The domain is on one file, and nothing is beside it or in the other folder."""
        path = self.writer.top()
        assert_one_file(self.guest, path)
        name = self.guest.disk("sda").path.name
        for folder in self.folders:
            assert [n for n in leftovers(folder) if name in n] == []
            assert (folder / name).exists() is (folder == path.parent)

    def duration(self) -> float:
        self.fresh()
        with self.writer:
            process = self.run()
            wait_for(lambda: self.begun() or process.poll() is not None)
            begin = time.monotonic()
            result = answer(process)
        assert result["changed"], result
        return time.monotonic() - begin

    def kill_after(self, seconds: float) -> None:
        self.fresh()
        with self.writer:
            process = self.run()
            wait_for(lambda: self.begun() or process.poll() is not None)
            time.sleep(seconds)
            self.kill(process)
        self.after()

    def kill_at_switch(self, seconds: float) -> None:
        """So long after the journal has said that the guest is to change its overlay."""
        self.fresh()
        with self.writer:
            process = self.run()
            wait_for(lambda: self.begun() or process.poll() is not None)
            while not self.told("pivot") and process.poll() is None:
                pass  # it is there for some milliseconds
            time.sleep(seconds)
            self.kill(process)
        self.after()

    def told(self, stage: str) -> bool:
        """Whether a journal of the run at work says so."""
        for folder in self.folders:
            with contextlib.suppress(OSError):
                journal = journal_path(str(folder / self.guest.disk("sda").path.name))
                if f'"stage": "{stage}"' in Path(journal).read_text():
                    return True
        return False

    def kill(self, process) -> None:
        if self.victim == "module":
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return
        if self.victim == "host":
            qemu = pid_of(self.guest, self.lab.state)
            kills = [
                process.kill,
                lambda: kill_libvirtd(self.lab),
                lambda: os.kill(qemu, signal.SIGKILL),
            ]
            self.chance.shuffle(kills)
            for kill in kills:
                kill()
            process.communicate()
            start_libvirtd(self.lab)
            return
        if self.victim == "QEMU":
            os.kill(pid_of(self.guest, self.lab.state), signal.SIGKILL)
        else:
            kill_libvirtd(self.lab)
            time.sleep(self.chance.uniform(0, 2))
            start_libvirtd(self.lab)
        result = answer(process, patience=180)
        self.ends["failed" if result["failed"] else "done"] += 1

    def after(self) -> None:
        """Nothing is lost, on the chain as it is, and on the one file that the next run makes."""
        for folder in self.folders:
            wait_for(lambda at=folder: not [p for p in users_of(at) if comm(p) == "qemu-img"])
        if self.victim == "libvirtd":
            self.end_if_lost()
        left = self.left()
        self.stages[left.stage if left else "nothing begun, or ended"] += 1
        whole = self.whole_top(left)
        result = compact_live(self.lab, self.guest.name, state="recovered")
        if result["failed"]:
            self.decide(whole, result["msg"])
            result = compact_live(self.lab, self.guest.name, state="recovered")
        assert not result["failed"], result["msg"]
        recovered = result["domains"][0]["recovered"]
        assert bool(recovered) is (left is not None)
        if recovered:
            self.ends["finished" if "finished" in recovered else "undone"] += 1
        self.assert_one_file()
        self.writer.assert_whole(self.writer.top())
        if self.guest.state() == "shut off":
            self.lab.virsh("start", self.guest.name, "--paused")
        again = compact_live(self.lab, self.guest.name, state="recovered")
        assert not again["changed"]

    def end_if_lost(self) -> None:
        """A guest that libvirtd has lost track of is refused, and shut down as the refusal says.

        libvirt 9.0 can't read what it has written down itself in the middle of a switch, and takes
        the domain for shut off; or it has the disk where it was before, or a job without end.
        """
        if has_ended(self.lab):
            self.ends["libvirtd crashed"] += 1  # a host starts it again
            start_libvirtd(self.lab)
        if not self.writer.is_elsewhere():
            return
        files = self.files()
        result = compact_live(self.lab, self.guest.name, state="recovered")
        if not result["failed"]:  # it noticed in time
            return
        said = result["msg"]
        assert any(word in said for word in ("for shut off", "QEMU writes to", "does not end"))
        assert self.files() >= files
        self.ends["lost by libvirtd"] += 1
        os.kill(pid_of(self.guest, self.lab.state), signal.SIGKILL)
        wait_for(lambda: not is_alive(self.guest, self.lab.state))
        wait_for(lambda: self.guest.state() == "shut off")
        # An overlay first: an image is whole too where nothing was written since.
        in_order = sorted(files, key=lambda path: (path.suffix != ".overlay", path))
        whole = [path for path in in_order if self.writer.is_whole(path)]
        assert whole, "no file has all that was acknowledged"
        if self.writer.top() not in whole:
            put_on(self.lab, self.guest, whole[0], without=["backingStore"])

    def files(self) -> set[Path]:
        """The disk's: images and overlays."""
        name = self.guest.disk("sda").path.name
        found = (path for folder in self.folders for path in folder.glob(f"{name}*"))
        return {path for path in found if path.suffix in (".qcow2", ".overlay")}

    def at_switch(self, left) -> bool:
        """The guest's QEMU was killed when it was told to change from one overlay to another."""
        return left is not None and left.stage == "pivot" and self.guest.state() == "shut off"

    def whole_top(self, left) -> Path:
        """The top that has all that was acknowledged; at the switch that may be the second."""
        top = self.writer.top()
        if not self.at_switch(left):
            self.writer.assert_whole(top)
            return top
        folder = Path(left.live.dest).parent if left.live.dest else top.parent
        second = folder / left.live.second
        whole = [path for path in (top, second) if self.writer.is_whole(path)]
        assert whole, "neither overlay has all that was acknowledged"
        return whole[0]

    def decide(self, whole: Path, refusal: str) -> None:
        """What recovery can't know and the writer does: which overlay is the right one."""
        assert "they differ" in refusal
        assert "Nothing was changed" in refusal
        self.ends["left to people"] += 1
        if whole != self.writer.top():
            put_on(self.lab, self.guest, whole, without=["backingStore"])
        self.lab.virsh("start", self.guest.name, "--paused")


@pytest.fixture
def storm(lab, request):
    made = []

    def storm(victim, *, moves):
        disk = Disk("sda", "scsi", size_bytes=128 * MIB)
        guest = lab.create(GuestSpec("stormy", memory_mib=64, disks=(disk,)))
        qemu_io(guest.disk("sda").path, *CONTENT)
        lab.virsh("start", guest.name, "--paused")
        folders = [guest.disk("sda").path.parent, lab.state / "elsewhere"]
        folders[1].mkdir(exist_ok=True)
        made.append(Storm(lab, guest, victim, folders if moves else folders[:1]))
        return made[0]

    print(f"\nTHINVIRT_STORM_SEED={SEED} {request.node.name}")
    yield storm
    for it in made:
        it.guest.destroy()
        lab.virsh("undefine", it.guest.name)
        shutil.rmtree(lab.state / "elsewhere")


@pytest.mark.storm
@pytest.mark.parametrize("victim", TIMES)
def test_storm(storm, victim):
    blow(storm(victim, moves=False), TIMES[victim][FULL])


@pytest.mark.storm
@pytest.mark.parametrize("victim", TIMES_MOVING)
def test_storm_while_it_moves_to_another_folder(storm, victim):
    blow(storm(victim, moves=True), TIMES_MOVING[victim][FULL])


@pytest.mark.storm
@pytest.mark.parametrize("victim", TIMES_AT_SWITCH)
def test_storm_at_the_switch(storm, victim):
    times = TIMES_AT_SWITCH[victim][FULL]
    if not times:
        pytest.skip("a libvirtd that is killed here may be waited for for minutes: make storm")
    it = storm(victim, moves=victim == "libvirtd")
    for number in range(times):
        seconds = it.chance.uniform(0, SWITCH_SECONDS)
        print(f"{number}: {seconds:.4f} s after the journal", flush=True)
        it.kill_at_switch(seconds)
    tell(it, times)


def blow(it: Storm, times: int) -> None:
    duration = it.duration()
    for number in range(times):
        seconds = it.chance.uniform(0, duration)
        print(f"{number}: {seconds:.4f} s of {duration:.2f}", flush=True)
        it.kill_after(seconds)
    tell(it, times)


def tell(it: Storm, times: int) -> None:
    print(
        f"{it.victim}: killed {times} times in {dict(it.stages)}, {dict(it.ends)}; "
        f"{it.writer.count} blocks written"
    )
    assert it.writer.count > 0
