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
from dataclasses import asdict
from pathlib import Path

from lab import LabError, guest_image
from lab.daemon import CACHE
from lab.errors import call

from .pairs import Pair, Timing, measure, table

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".cache" / "bench"
RESULTS = ROOT / "build" / "bench"
RUNS = int(os.environ.get("BENCH_RUNS", "5"))
MEMORY_GOAL_BYTES = 100 << 20
MIB = 1 << 20


def half_zero(path: Path) -> None:
    """1.5 GiB of random data and as much of zeros that a guest wrote, MiB by MiB."""
    block = os.urandom(MIB)
    raw = path.with_suffix(".raw")
    with raw.open("wb") as file:
        for number in range(3072):
            file.write(block if number % 2 else bytes(MIB))
    argv = ["qemu-img", "convert", "-S", "0", "-f", "raw", "-O", "qcow2", str(raw), str(path)]
    call(argv, timeout=600)
    raw.unlink()


def zero_filled_guest(path: Path) -> None:
    """The lab's guest, 1 GiB of data more, and 1 GiB of zeros where files were deleted."""
    shutil.copyfile(guest_image(CACHE).disk, path)
    noise = path.with_suffix(".noise")
    noise.write_bytes(os.urandom(1024 * MIB))
    write = f"write -s {noise} 4G 1G"
    call(["qemu-io", "-f", "qcow2", "-c", write, str(path)], timeout=300)
    call(["qemu-io", "-f", "qcow2", "-c", "write -P 0 6G 1G", str(path)], timeout=120)
    noise.unlink()


def module(name: str, label: str, **arguments: object) -> list[str]:
    """A command that runs a module and notes its peak memory."""
    path = WORK / f"{label}.json"
    path.write_text(json.dumps(arguments), encoding="utf-8")
    memory = str(WORK / f"{label}.memory")
    return [sys.executable, "-m", "bench.module", name, str(path), memory]


def pairs() -> list[Pair]:
    """What is measured; the images are made."""
    half, work, out = WORK / "half.qcow2", WORK / "work.qcow2", WORK / "out.qcow2"
    guest = WORK / "guest.qcow2"
    half_zero(half)
    zero_filled_guest(guest)
    # Only the image leaves the page cache: programs stay, as on a host that runs them often.
    cold = f"sync; dd if={work} iflag=nocache count=0 status=none"
    fresh = f"rm -f {out}* {WORK}/.*.thinvirt-*; cp --sparse=never {{}} {work}; {cold}"
    convert = ["qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", str(work), str(out)]
    everything = {"uri": "", "paths": [str(work)], "min_free_bytes": 0}
    return [
        Pair(
            "punch, half of it zeros, against qemu-img convert",
            module("image_compact", "punch", method="punch", **everything),
            convert,
            fresh.format(half),
            0.7,
        ),
        Pair(
            "the same against reading the allocated bytes once",
            module("image_compact", "punch", method="punch", **everything),
            ["dd", f"if={work}", "of=/dev/null", "bs=1M", "status=none"],
            fresh.format(half),
            1.3,
        ),
        Pair(
            "verified rewrite of a guest, against qemu-img convert",
            module("image_compact", "rewrite", method="rewrite", **everything),
            convert,
            fresh.format(guest),
            2.0,
        ),
        Pair(
            "image_convert with its defaults, against convert -c",
            module("image_convert", "convert", src=str(work), dest=str(out), min_free_bytes=0),
            ["qemu-img", "convert", "-c", "-f", "qcow2", "-O", "qcow2", str(work), str(out)],
            fresh.format(guest),
            0.25,
        ),
    ]


def sizes() -> dict[str, int]:
    """Allocated bytes of a guest's copies: ours with its defaults, and qemu-img's with -c."""
    guest = WORK / "guest.qcow2"
    ours, theirs = WORK / "ours.qcow2", WORK / "theirs.qcow2"
    argv = module("image_convert", "size", src=str(guest), dest=str(ours), min_free_bytes=0)
    call(argv, timeout=600)
    call(["qemu-img", "convert", "-c", "-f", "qcow2", "-O", "qcow2", guest, theirs], timeout=600)
    return {path.stem: path.stat().st_blocks * 512 for path in (ours, theirs)}


def report(timings: list[Timing], copies: dict[str, int]) -> bool:
    """Print and write it; whether all goals were reached."""
    peaks = {path.stem: int(path.read_text()) for path in sorted(WORK.glob("*.memory"))}
    smaller = 1 - copies["ours"] / copies["theirs"]
    print(f"\n{table(timings)}\n")
    print(f"image_convert's copy is {smaller:.1%} smaller than convert -c's (goal: 5 %)")
    print(f"peak memory of a module's process: {max(peaks.values()) / MIB:.0f} MiB (goal: 100)")
    ok = all(timing.ok for timing in timings)
    ok = ok and smaller >= 0.05 and max(peaks.values()) <= MEMORY_GOAL_BYTES
    RESULTS.mkdir(parents=True, exist_ok=True)
    result = {
        "ok": ok,
        "runs": RUNS,
        "timings": [asdict(timing) | {"ratio": timing.ratio} for timing in timings],
        "copy_bytes": copies,
        "peak_memory_bytes": peaks,
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
        for pair in pairs():
            print(f"==> {pair.title} ({RUNS} runs of each)", flush=True)
            timings.append(measure(pair, runs=RUNS, export=WORK / "hyperfine.json"))
        return 0 if report(timings, sizes()) else 1
    except LabError as exc:
        print(f"ERROR: {exc}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(WORK, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
