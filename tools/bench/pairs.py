# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two commands timed in turn by hyperfine, and what their ratio should be."""

from __future__ import annotations

import json
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.errors import call

from .images import COPY, IMAGE, WORK, convert, fresh, half_zero, zero_filled_guest


@dataclass(frozen=True)
class Pair:
    """Ours against theirs.

    :param prepare: a shell command before every run of both, not timed.
    :param goal: the ratio of their medians, ours to theirs, must not be above it; None if it is
        only told.
    """

    title: str
    ours: Sequence[str]
    theirs: Sequence[str]
    prepare: str
    goal: float | None


@dataclass(frozen=True)
class Timing:
    """Medians in seconds."""

    title: str
    ours_seconds: float
    theirs_seconds: float
    goal: float | None

    @property
    def ratio(self) -> float:
        """Ours to theirs."""
        return self.ours_seconds / self.theirs_seconds

    @property
    def ok(self) -> bool:
        """The goal is reached."""
        return self.goal is None or self.ratio <= self.goal


def module(name: str, label: str, **arguments: object) -> list[str]:
    """A command that runs a module and notes its peak memory."""
    path = WORK / f"{label}.json"
    path.write_text(json.dumps(arguments), encoding="utf-8")
    memory = str(WORK / f"{label}.memory")
    return [sys.executable, "-m", "bench.module", name, str(path), memory]


def pairs() -> list[Pair]:
    """What is measured; the images are made."""
    half, guest = WORK / "half.qcow2", WORK / "guest.qcow2"
    half_zero(half)
    zero_filled_guest(guest)
    everything = {"uri": "", "paths": [str(IMAGE)], "min_free_bytes": 0}
    return [
        Pair(
            "punch, half of it zeros, against qemu-img convert",
            module("image_compact", "punch", method="punch", **everything),
            convert(),
            fresh(half),
            0.7,
        ),
        Pair(
            "the same against reading the allocated bytes once",
            module("image_compact", "punch", method="punch", **everything),
            ["dd", f"if={IMAGE}", "of=/dev/null", "bs=1M", "status=none"],
            fresh(half),
            1.3,
        ),
        Pair(
            "verified rewrite of a guest, against qemu-img convert",
            module("image_compact", "rewrite", method="rewrite", **everything),
            convert(),
            fresh(guest),
            2.0,
        ),
        Pair(
            "image_convert with its defaults, against convert -c",
            module("image_convert", "convert", src=str(IMAGE), dest=str(COPY), min_free_bytes=0),
            convert("-c"),
            fresh(guest),
            0.25,
        ),
    ]


def measure(pair: Pair, *, runs: int, export: Path) -> Timing:
    """Time both, run by run in turn, so that a machine that drifts slows both.

    :raises LabError: a command failed.
    """
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(runs):
        argv = ["hyperfine", "--shell=none", "--runs=1", "--style=none"]
        argv += ["--prepare", f"sh -c {shlex.quote(pair.prepare)}", "--export-json", str(export)]
        commands = {"ours": shlex.join(pair.ours), "theirs": shlex.join(pair.theirs)}
        order = list(commands) if number % 2 == 0 else list(commands)[::-1]
        for name in order:
            argv += ["--command-name", name, commands[name]]
        call(argv, timeout=1800)
        for result in json.loads(export.read_text(encoding="utf-8"))["results"]:
            times[result["command"]].append(result["median"])
    return Timing(
        pair.title,
        ours_seconds=statistics.median(times["ours"]),
        theirs_seconds=statistics.median(times["theirs"]),
        goal=pair.goal,
    )


def table(timings: Sequence[Timing]) -> str:
    """The result for people."""
    lines = [f"{'':<58}{'ours':>9}{'theirs':>9}{'ratio':>8}{'goal':>8}"]
    lines += [
        f"{timing.title:<58}{timing.ours_seconds:>8.2f}s{timing.theirs_seconds:>8.2f}s"
        f"{timing.ratio:>8.2f}{'' if timing.goal is None else format(timing.goal, '>8.2f')}"
        f"{'' if timing.ok else '  missed'}"
        for timing in timings
    ]
    return "\n".join(lines)
