# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The same disk of a real guest, made small in every way: trimmed while it runs, and offline.

The guest has deleted 300 MiB and overwritten them with zeros, so that every way can find them.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import Disk, Guest, GuestSpec, Lab
from lab.appliance import appliance
from lab.cache import CACHE
from lab.errors import call

from .images import COPY, IMAGE, MIB, WORK, allocated, convert, fresh
from .pairs import module

NAME = "bench"
WASTE_MIB = 300
REWRITE, SPARSIFY = "image_compact, rewrite, verified", "virt-sparsify, to a copy"
#: Of virt-sparsify's time to that of rewrite.
SPARSIFY_GOAL = 3.0


@dataclass(frozen=True)
class Row:
    """One way: how long it took, and what the disk takes on the host before and after."""

    way: str
    seconds: float
    before_bytes: int
    after_bytes: int

    @property
    def freed_bytes(self) -> int:
        """Blocks on the host."""
        return self.before_bytes - self.after_bytes


def ways() -> list[Row]:
    """Time every way once, with cold cache.

    :raises LabError: one failed.
    """
    wasted = WORK / "wasted.qcow2"
    lab = Lab(WORK / "lab")
    try:
        lab.start()
        guest = _wasteful(lab)
        disk = guest.disk("sda").path or WORK
        guest.shutdown()
        shutil.copyfile(disk, wasted)
        guest.start()
        guest.wait_for_agent()
        guest.run("sync")
        before = allocated(disk)
        argv = module("domain_trim", "trim", uri=lab.uri, domains=[NAME])
        rows = [Row("domain_trim, while it runs", _seconds(argv), before, allocated(disk))]
    finally:
        lab.clean()
    compact = {"uri": "", "paths": [str(IMAGE)], "min_free_bytes": 0, "min_reclaim_bytes": 0}
    sparsify = ["virt-sparsify", "--quiet", "--format", "qcow2", "--convert", "qcow2"]
    with appliance(CACHE) as env:
        commands = {
            "image_compact, punch": module("image_compact", "punch2", method="punch", **compact),
            REWRITE: module("image_compact", "rewrite2", method="rewrite", **compact),
            "qemu-img convert": convert(),
            SPARSIFY: [*sparsify, str(IMAGE), str(COPY)],
        }
        # Its overlay lies beside the image, not in a /tmp that may be small.
        env |= {"TMPDIR": str(WORK)}
        rows += [_offline(way, argv, wasted, env=env) for way, argv in commands.items()]
    return rows


def _wasteful(lab: Lab) -> Guest:
    guest = lab.create(GuestSpec(NAME, disks=(Disk("sda", root=True, discard="unmap"),)))
    guest.start()
    guest.wait_for_agent()
    zeros = ("dd", "if=/dev/zero", "of=/waste", "bs=1M", f"count={WASTE_MIB}", "conv=fsync")
    guest.run(*zeros, timeout=300)
    guest.run("rm", "/waste")
    guest.run("sync")
    return guest


def _offline(way: str, argv: Sequence[str], pristine: Path, *, env: Mapping[str, str]) -> Row:
    call(["sh", "-c", fresh(pristine)], timeout=600)
    before = allocated(IMAGE)
    seconds = _seconds(argv, env=env)
    return Row(way, seconds, before, allocated(COPY if COPY.exists() else IMAGE))


def _seconds(argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> float:
    begin = time.monotonic()
    call(argv, timeout=1800, env=os.environ | dict(env or {}))
    return time.monotonic() - begin


def goals(rows: Sequence[Row]) -> dict[str, bool]:
    """What has to be so, and whether it is."""
    by_way = {row.way: row for row in rows}
    rewrite, sparsify = by_way[REWRITE], by_way[SPARSIFY]
    trim = rows[0]
    return {
        f"rewrite is {sparsify.seconds / rewrite.seconds:.0f} times as fast as virt-sparsify "
        f"(goal: {SPARSIFY_GOAL:.0f})": sparsify.seconds >= SPARSIFY_GOAL * rewrite.seconds,
        f"its result takes {rewrite.after_bytes / MIB:.1f} MiB, that of virt-sparsify "
        f"{sparsify.after_bytes / MIB:.1f} (goal: no more)": rewrite.after_bytes
        <= sparsify.after_bytes,
        f"the agent's trim freed {trim.freed_bytes / MIB:.0f} MiB of {WASTE_MIB}": (
            trim.freed_bytes >= WASTE_MIB * MIB * 0.95
        ),
    }


def table(rows: Sequence[Row]) -> str:
    """The result for people."""
    title = f"A guest's disk, {WASTE_MIB} MiB of it deleted and zero-filled (one run each)"
    lines = [title, f"{'':<36}{'time':>9}{'before':>12}{'after':>12}{'freed':>12}"]
    for row in rows:
        sizes = (row.before_bytes, row.after_bytes, row.freed_bytes)
        cells = "".join(f"{size / MIB:>8,.0f} MiB" for size in sizes)
        lines.append(f"{row.way:<36}{row.seconds:>8.2f}s{cells}")
    return "\n".join(lines)
