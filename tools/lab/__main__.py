# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab from a shell, for Molecule's create and destroy and for people.

A guest's specification in JSON has the fields of GuestSpec and Disk::

    {"guests": [{"name": "g1", "machine": "pc-i440fx-3.1",
                 "disks": [{"target": "sda", "root": true}, {"target": "vdb", "bus": "virtio"}]}]}
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .cache import CACHE
from .daemon import Lab
from .domain import Disk, GuestSpec
from .errors import LabError
from .guest import Guest
from .image import guest_image

#: For a guest's agent to answer on a machine that has other work, without KVM.
_BOOT_SECONDS = 600


def parse_specs(text: str) -> list[GuestSpec]:
    """Guests from JSON.

    :raises LabError: it is not JSON, or a field is unknown or missing.
    """
    try:
        return [_spec(guest) for guest in json.loads(text)["guests"]]
    except (ValueError, KeyError, TypeError) as exc:
        raise LabError(f"the guests' specification is wrong: {exc!r}") from exc


def _spec(guest: dict[str, Any]) -> GuestSpec:
    disks = [Disk(**disk) for disk in guest.get("disks", [])]
    return GuestSpec(**guest | ({"disks": tuple(disks)} if disks else {}))


def up(lab: Lab, text: str) -> dict[str, Any]:
    """Start the lab and the guests; ends when every agent answers. Returns what it made."""
    specs = parse_specs(text)
    lab.start()
    guests = [lab.create(spec) for spec in specs]
    for guest in guests:
        guest.start()
    for guest in guests:
        guest.wait_for_agent(timeout=_BOOT_SECONDS)
    return {"uri": lab.uri, "guests": {guest.name: _describe(guest) for guest in guests}}


def _describe(guest: Guest) -> dict[str, Any]:
    return {
        "machine": guest.spec.machine,
        "disks": {
            disk.target: {"path": str(disk.path), "bus": disk.bus} for disk in guest.spec.disks
        },
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m lab", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--state", type=Path, required=True, help="the lab's own folder")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where the guest image is kept")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("image", help="build the guest image if it isn't there, print its files")
    commands.add_parser("warm", help="boot and save what warm guests restore, if it isn't there")
    commands.add_parser("start", help="start the daemon, print its URI")
    commands.add_parser("stop", help="end the daemon and every guest")
    commands.add_parser("down", help="stop, and remove the lab's folder")
    argument = commands.add_parser("up", help="start guests, wait for their agents, print JSON")
    argument.add_argument("spec", type=argparse.FileType(), help="JSON file, or - for stdin")
    argument = commands.add_parser("exec", help="run a program in a guest")
    argument.add_argument("--timeout", type=float, default=60, help="in seconds (60)")
    argument.add_argument("guest")
    argument.add_argument("argv", nargs=argparse.REMAINDER)
    argument = commands.add_parser("virsh", help="run virsh on the lab")
    argument.add_argument("argv", nargs=argparse.REMAINDER)
    return parser


def _complain(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # standard output is for the result


def main() -> int:
    """Entry point; returns the exit status."""
    args = _parser().parse_args()
    try:
        lab = Lab(args.state, cache=args.cache, say=_complain)
        match args.command:
            case "image":
                image = guest_image(args.cache, _complain)
                print(image.disk, image.kernel, image.initrd, sep="\n")
            case "warm":
                with lab:
                    lab.prepare_warm(GuestSpec("warm"))
                lab.clean()
            case "start":
                lab.start()
                print(lab.uri)
            case "stop":
                lab.stop()
            case "down":
                lab.clean()
            case "up":
                print(json.dumps(up(lab, args.spec.read())))
            case "exec":
                output = lab.guest(args.guest).run(*args.argv, timeout=args.timeout, check=False)
                sys.stdout.write(output.stdout)
                sys.stderr.write(output.stderr)
                return output.rc
            case "virsh":
                sys.stdout.write(lab.virsh(*args.argv))
    except LabError as exc:
        _complain(f"ERROR: {exc}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
