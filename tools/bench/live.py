# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest notices of the compaction of its disk, and how long that takes.

The guest's heartbeat (tools/lab/load.py) tells the longest time between two of its fsyncs: over the
whole operation, and over as long a time at rest just before.  The wall time is held against that of
the offline rewrite of the same disk.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import Disk, Guest, GuestSpec, Lab
from lab.cache import CACHE

LOAD = Path(__file__).resolve().parents[1] / "lab" / "load.py"
DEVICE = "/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_data"
MIB = 1 << 20
#: The heartbeat's longest gap may be longer by so much, without KVM.
GAP_GOAL_SECONDS = 0.25
#: The wall time, to that of the offline rewrite.
TIME_GOAL = 1.5


@dataclass(frozen=True)
class Row:
    """One figure held against another, in seconds; ``ok`` if the goal is reached."""

    title: str
    ours_seconds: float
    theirs_seconds: float
    goal: str
    ok: bool


def rows(work: Path, *, runs: int) -> list[Row]:
    """Measure, in a lab below a folder that is removed in the end.

    :raises LabError: the guest, or the module, failed.
    """
    with Lab(work / "live-lab", cache=CACHE) as lab:
        try:
            return _measured(lab, work, runs)
        finally:
            lab.clean()


def _measured(lab: Lab, work: Path, runs: int) -> list[Row]:
    disks = (
        Disk("sda", root=True, serial="root"),
        Disk("sdb", size_bytes=4096 * MIB, discard="unmap", serial="data"),
    )
    guest = lab.create(GuestSpec("bench", disks=disks))
    guest.start()
    guest.wait_for_agent()
    guest.run("sh", "-c", 'printf %s "$1" >/load.py', "sh", LOAD.read_text(encoding="utf-8"))
    prepare = f"mkfs.ext4 -q {DEVICE}; mkdir /data /notes; mount {DEVICE} /data"
    guest.run("sh", "-c", prepare, timeout=120)
    guest.run("sh", "-c", "head -c 512M /dev/urandom >/data/keep; sync", timeout=600)
    guest.agent("guest-exec", path="/usr/bin/python3", arg=["/load.py", "beat", "/data", "/notes"])
    path = str(guest.disk("sdb").path)
    live, offline, gaps, rest = [], [], [], []
    for _number in range(runs):
        zeros = "head -c 512M /dev/zero >/data/z; sync; rm /data/z; sync"
        guest.run("sh", "-c", zeros, timeout=600)
        offline.append(_offline(path, work))
        begin, clock = time.monotonic(), _clock(guest)
        _module("domain_compact", uri=lab.uri, domains=["bench"], disks=["sdb"], **_WISH)
        live.append(time.monotonic() - begin)
        end = _clock(guest)
        gaps.append(_longest_gap(guest, clock, end))
        time.sleep(live[-1])
        rest.append(_longest_gap(guest, end, _clock(guest)))
    # In pairs: other work on the machine makes both longer.
    gap, calm = statistics.median(gaps), statistics.median(rest)
    ours, theirs = statistics.median(live), statistics.median(offline)
    return [
        Row(
            "longest gap of a heartbeat, live compaction to rest",
            gap,
            calm,
            f"+{GAP_GOAL_SECONDS} s",
            gap - calm <= GAP_GOAL_SECONDS,
        ),
        Row(
            "live compaction, against the offline rewrite",
            ours,
            theirs,
            f"{TIME_GOAL} x",
            ours <= TIME_GOAL * theirs,
        ),
    ]


_WISH = {
    "power": "live",
    "trim": False,
    "method": "rewrite",
    "min_reclaim_bytes": 16 * MIB,
    "min_free_bytes": 0,
}


def _offline(path: str, work: Path) -> float:
    """Seconds of the offline rewrite of the same disk, as it is now, elsewhere."""
    copy = work / "offline.qcow2"
    shutil.copyfile(path, copy)
    with copy.open("rb") as file:
        os.fsync(file.fileno())
    # The guest has it open, so its reference counts may be behind.
    argv = ["qemu-img", "check", "-q", "-r", "all", str(copy)]
    subprocess.run(argv, check=False, timeout=120, capture_output=True)
    wish = {name: value for name, value in _WISH.items() if name not in ("power", "trim")}
    begin = time.monotonic()
    _module("image_compact", uri="", paths=[str(copy)], **wish)
    seconds = time.monotonic() - begin
    copy.unlink()
    return seconds


def _module(name: str, **arguments: object) -> None:
    folder = Path(os.environ.get("TMPDIR", "/tmp"))  # noqa: S108
    given = folder / f"bench-{os.getpid()}.json"
    given.write_text(json.dumps(arguments), encoding="utf-8")
    try:
        subprocess.run(
            [sys.executable, "-m", "bench.module", name, str(given)],
            check=True,
            timeout=1800,
            stdout=subprocess.DEVNULL,
        )
    finally:
        given.unlink()


def _clock(guest: Guest) -> str:
    return guest.run("python3", "/load.py", "clock", "/", "/").stdout.strip()


def _longest_gap(guest: Guest, begin: str, end: str) -> float:
    argv = ("python3", "/load.py", "gap", "/data", "/notes", begin, end)
    return float(guest.run(*argv).stdout)


def table(rows: Sequence[Row]) -> str:
    """The result for people."""
    return "\n".join(
        f"{row.title:<58}{row.ours_seconds:>8.2f}s{row.theirs_seconds:>8.2f}s  {row.goal}"
        f"{'' if row.ok else '  missed'}"
        for row in rows
    )
