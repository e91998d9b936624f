# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the host holds of a lab's disks: the proof, made without the collection.

measure.py STATE            prints JSON by guest: its XML, and of each disk the allocated blocks
                            (stat), the data (qemu-img map) and its discard settings (virsh)
measure.py STATE BEFORE     compares with such JSON; adds each disk's outcome: ``freed`` or
                            ``kept``, if both instruments say so, otherwise what they say
"""

from __future__ import annotations

import json
import os
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

from lab import Lab
from lab.errors import call

MIB = 1 << 20
# 100 MiB were wasted. Around them a file system writes its own data.
FREED_BYTES = 90 * MIB
KEPT_BYTES = 5 * MIB


def measure(lab: Lab) -> dict[str, dict]:
    guests = lab.virsh("list", "--all", "--name").split()
    return {name: _guest(lab, name) for name in guests}


def _guest(lab: Lab, name: str) -> dict:
    live, inactive = lab.virsh("dumpxml", name), lab.virsh("dumpxml", name, "--inactive")
    configured = _drivers(inactive)
    disks = {
        target: {
            "allocated_bytes": _allocated(path),
            "data_bytes": _data(path),
            "discard_live": driver.get("discard", ""),
            "discard_inactive": configured[target][1].get("discard", ""),
        }
        for target, (path, driver) in _drivers(live).items()
    }
    return {"live": live, "inactive": inactive, "disks": disks}


def _drivers(xml: str) -> dict[str, tuple[str, dict[str, str]]]:
    disks = ET.fromstring(xml).iterfind("devices/disk")  # noqa: S314 (libvirt's own)
    return {
        disk.find("target").get("dev"): (
            disk.find("source").get("file"),
            disk.find("driver").attrib,
        )
        for disk in disks
    }


def _allocated(path: str) -> int:
    with open(path, "rb") as file:
        os.fsync(file.fileno())  # some file systems count late
        return os.fstat(file.fileno()).st_blocks * 512


def _data(path: str) -> int:
    extents = call(["qemu-img", "map", "-U", "-f", "qcow2", "--output=json", path], timeout=60)
    return sum(extent["length"] for extent in json.loads(extents) if extent["data"])


def outcome(before: dict, after: dict) -> str:
    gains = [before[key] - after[key] for key in ("allocated_bytes", "data_bytes")]
    if all(gain >= FREED_BYTES for gain in gains):
        return "freed"
    if all(abs(gain) < KEPT_BYTES for gain in gains):
        return "kept"
    return "unclear: stat says {:.1f}, qemu-img {:.1f} MiB freed".format(*(g / MIB for g in gains))


def main(state: str, before: str | None = None) -> None:
    result = measure(Lab(Path(state)))
    if before:
        earlier = json.loads(Path(before).read_text(encoding="utf-8"))
        for name, guest in result.items():
            for target, disk in guest["disks"].items():
                disk["outcome"] = outcome(earlier[name]["disks"][target], disk)
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
