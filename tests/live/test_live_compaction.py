# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks of a guest that writes to them all the while are made small under it.

The guest's own program knows what must be on the disk (tools/lab/load.py); its file system is
checked by e2fsck, its kernel's log is read, blocks are counted with stat, XML is read with virsh.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from compact_lab import answer, leftovers, start, wait_for
from lab import Disk, GuestSpec
from live_lab import compact_live, pid_of

MIB = 1 << 20
LOAD = Path(__file__).resolve().parents[2] / "tools" / "lab" / "load.py"
FULL = os.environ.get("THINVIRT_STORM") == "full"
COMPACTIONS = 20 if FULL else 2
#: Kills of the guest's QEMU: each costs a boot.
CRASHES = 10 if FULL else 1
DEVICE = "/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_data"
WISH = {"min_reclaim_bytes": 16 * MIB}


class LoadedGuest:
    """A guest with a data disk that is written to until it is told to stop."""

    def __init__(self, lab, guest) -> None:
        self.lab = lab
        self.guest = guest
        self.path = guest.disk("sdb").path

    def mount(self) -> None:
        self.guest.run("mount", DEVICE, "/data")

    def begin(self) -> None:
        self.guest.run("rm", "-f", "/notes/stop", "/notes/errors")
        argument = ["/load.py", "run", "/data", "/notes"]
        self.guest.agent("guest-exec", path="/usr/bin/python3", arg=argument)
        self.wait_for_beats()

    def wait_for_beats(self) -> None:
        self.guest.run("sh", "-c", "while ! test -s /notes/commits; do sleep 0.1; done")

    def end(self) -> None:
        self.guest.run("touch", "/notes/stop")
        script = "while ! test -e /notes/errors; do sleep 0.1; done"
        self.guest.run("sh", "-c", script, timeout=120)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Two programs that wrote to the same files would find each other's records wrong."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def verify(self) -> dict:
        """What was written is there; the file system is sound; the kernel saw no error."""
        self.guest.run("sh", "-c", "! mountpoint -q /data || umount /data")
        checked = self.guest.run("e2fsck", "-f", "-n", DEVICE, check=False, timeout=180)
        assert checked.rc == 0, checked.stdout
        self.mount()
        argv = ("python3", "/load.py", "verify", "/data", "/notes")
        report = json.loads(self.guest.run(*argv, timeout=180).stdout)
        assert report["wrong"] == []
        assert min(report["records"], report["blocks"], report["commits"]) > 0
        errors = self.guest.run("sh", "-c", "dmesg | grep -iE 'I/O error|EXT4-fs error' || true")
        assert errors.stdout == ""
        return report

    def write_zeros(self, mib=100) -> None:
        """Space that the guest does not use any more, and that only a copy gives back."""
        self.guest.run(
            *("sh", "-c", f"head -c {mib}M /dev/zero >/data/z; sync; rm /data/z"), timeout=180
        )

    def blocks(self) -> int:
        return os.stat(self.path).st_blocks * 512

    def clock(self) -> str:
        return self.guest.run("python3", "/load.py", "clock", "/", "/").stdout.strip()

    def longest_gap(self, begin: str, end: str) -> float:
        argv = ("python3", "/load.py", "gap", "/data", "/notes", begin, end)
        return float(self.guest.run(*argv).stdout)


@pytest.fixture(scope="module")
def loaded(lab):
    disks = (
        Disk("sda", root=True),
        Disk("sdb", size_bytes=2048 * MIB, discard="unmap", serial="data"),
    )
    try:
        guest = lab.warm(GuestSpec("loaded", disks=disks))
        it = LoadedGuest(lab, guest)
        guest.run("mkdir", "/data", "/notes")
        guest.run("sh", "-c", 'printf %s "$1" >/load.py', "sh", LOAD.read_text())
        guest.run("mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=0", DEVICE, timeout=120)
        it.mount()
        yield it
    finally:
        lab.forget("loaded")


def without_numbers(xml: str) -> str:
    """QEMU numbers the files that it opens; nothing else may differ."""
    return re.sub(r" index='\d+'", "", xml)


def compact(loaded, **arguments):
    result = compact_live(loaded.lab, "loaded", disks=["sdb"], **{**WISH, **arguments})
    assert not result["failed"], result["msg"]
    return result


@pytest.mark.storm
@pytest.mark.slow("disks are copied while a guest writes to them, and all that it wrote is checked")
def test_a_guest_that_writes_loses_nothing(loaded):
    live, configured = loaded.guest.xml(), loaded.guest.xml(inactive=True)
    with loaded.writing():
        for number in range(COMPACTIONS):
            loaded.write_zeros()
            clock = loaded.clock()
            # The guest goes on writing while we count: nothing else is asked of it in between.
            before, begin = loaded.blocks(), time.monotonic()
            result = compact(loaded)
            freed, seconds = before - loaded.blocks(), time.monotonic() - begin
            gap = loaded.longest_gap(clock, loaded.clock())
            (disk,) = result["domains"][0]["disks"]
            assert disk["method"] == "live", disk
            assert disk["compared"]
            assert freed >= 64 * MIB
            assert abs(freed - disk["freed_bytes"]) < 32 * MIB
            print(
                f"\n{number}: {freed / MIB:.0f} MiB freed in {seconds:.1f} s, {disk['seconds']}, "
                f"stall {disk['stall_seconds']} s, longest gap of the heartbeat {gap:.3f} s",
                flush=True,
            )
            assert_one_file_of(loaded)
        trimmed = compact(loaded, trim=True)
        assert trimmed["domains"][0]["trimmed_bytes"] >= 0
    assert without_numbers(loaded.guest.xml()) == without_numbers(live)
    assert loaded.guest.xml(inactive=True) == configured
    print(f"\nverified: {loaded.verify()}")


def assert_one_file_of(loaded) -> None:
    for inactive in (False, True):
        assert f"<source file='{loaded.path}'" in loaded.guest.xml(inactive=inactive)
    assert [n for n in leftovers(loaded.path.parent) if loaded.path.name in n] == []


@pytest.mark.storm
@pytest.mark.slow("a guest boots from what a loss of power has left")
def test_a_guest_that_loses_its_power_has_all_that_was_acknowledged(loaded):
    chance = random.Random()  # noqa: S311
    stages = []
    for number in range(CRASHES):
        loaded.begin()
        loaded.write_zeros()
        given = {"uri": loaded.lab.uri, "domains": ["loaded"], "disks": ["sdb"], **WISH}
        process = start(module="domain_compact", power="live", trim=False, **given)
        wait_for(lambda: any("journal" in name for name in leftovers(loaded.path.parent)))
        seconds = chance.uniform(0, 4)
        time.sleep(seconds)
        os.kill(pid_of(loaded.guest, loaded.lab.state), signal.SIGKILL)
        result = answer(process, patience=180)
        stages.append((round(seconds, 2), "failed" if result["failed"] else "done"))
        print(f"\n{number}: {stages[-1]} {result.get('msg') or result['summary']}", flush=True)
        recovered = compact_live(loaded.lab, "loaded", state="recovered")
        assert not recovered["failed"], recovered["msg"]
        assert_one_file_of(loaded)
        # A cold boot: what the loss of power has left must do for one. A run that noticed has
        # started the guest again.
        if loaded.guest.state() == "shut off":
            loaded.guest.start()
        loaded.guest.wait_for_agent(timeout=600)
        # The journal of the file system is replayed, as after any loss of power.
        loaded.guest.run("e2fsck", "-f", "-p", DEVICE, check=False, timeout=180)
        loaded.guest.run("touch", "/notes/stop")
        print(f"verified: {loaded.verify()}", flush=True)
