# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m bench``, called by make: builds images, times the pairs, writes the figures.

``build/bench/result.json`` has the same as the table.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict

from lab import LabError, guest_image
from lab.cache import CACHE
from lab.errors import call

from . import audit, guests, live
from .images import MIB, ROOT, WORK, allocated
from .pairs import Timing, measure, module, pairs, table

RESULTS = ROOT / "build" / "bench"
RUNS = int(os.environ.get("BENCH_RUNS", "5"))
MEMORY_GOAL_BYTES = 100 << 20


def sizes() -> dict[str, int]:
    """Allocated bytes of a guest's copies: ours with its defaults, and qemu-img's with -c.

    Of the system alone: random data, as there is in the image that is timed, compresses nowhere.
    """
    guest = guest_image(CACHE).disk
    ours, theirs = WORK / "ours.qcow2", WORK / "theirs.qcow2"
    argv = module("image_convert", "size", src=str(guest), dest=str(ours), min_free_bytes=0)
    call(argv, timeout=600)
    call(["qemu-img", "convert", "-c", "-f", "qcow2", "-O", "qcow2", guest, theirs], timeout=600)
    return {path.stem: allocated(path) for path in (ours, theirs)}


def report(
    timings: Sequence[Timing],
    copies: dict[str, int],
    ways: Sequence[guests.Row],
    running: Sequence[live.Row],
    memory: dict[int, int],
) -> bool:
    """Print and write it; whether all goals were reached."""
    peaks = {path.stem: int(path.read_text()) for path in sorted(WORK.glob("*.memory"))}
    smaller = 1 - copies["ours"] / copies["theirs"]
    goals = guests.goals(ways) | audit.memory_goals(memory)
    print(f"\n{table(timings)}\n\n{guests.table(ways)}\n")
    for goal, reached in goals.items():
        print(f"{goal}{'' if reached else '  missed'}")
    print(f"\nCompaction of a running guest\n{live.table(running)}\n")
    print(
        f"image_convert's copy of the system is {smaller:.1%} smaller than convert -c's (goal: 5 %)"
    )
    print(f"peak memory of a module's process: {max(peaks.values()) / MIB:.0f} MiB (goal: 100)")
    ok = all(timing.ok for timing in timings) and all(goals.values())
    ok = ok and all(row.ok for row in running)
    ok = ok and smaller >= 0.05 and max(peaks.values()) <= MEMORY_GOAL_BYTES
    RESULTS.mkdir(parents=True, exist_ok=True)
    result = {
        "ok": ok,
        "runs": RUNS,
        "timings": [asdict(timing) | {"ratio": timing.ratio} for timing in timings],
        "copy_bytes": copies,
        "ways": [asdict(row) | {"freed_bytes": row.freed_bytes} for row in ways],
        "running": [asdict(row) for row in running],
        "peak_memory_bytes": peaks,
        "audit_memory_bytes": memory,
    }
    text = json.dumps(result, indent=2) + "\n"
    (RESULTS / "result.json").write_text(text, encoding="utf-8")
    return ok


def main() -> int:
    """Entry point; returns the exit status."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    try:
        timings = []
        for pair in [*audit.pairs(), *pairs()]:
            print(f"==> {pair.title} ({RUNS} runs of each)", flush=True)
            timings.append(measure(pair, runs=RUNS, export=WORK / "hyperfine.json"))
        memory = audit.memory()
        copies = sizes()
        print("==> A guest's disk, trimmed while it runs, and offline (once each)", flush=True)
        ways = guests.ways()
        print(f"==> A disk of a running guest ({RUNS} runs)", flush=True)
        return 0 if report(timings, copies, ways, live.rows(WORK, runs=RUNS), memory) else 1
    except LabError as exc:
        print(f"ERROR: {exc}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(WORK, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
