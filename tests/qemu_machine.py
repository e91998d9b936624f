# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real QEMU that holds images, as a running guest would."""

from __future__ import annotations

import json
import subprocess


def machine_types() -> list[str]:
    """What this QEMU says of each machine type: its name, a description, whether it is to go."""
    argv = ["qemu-system-x86_64", "-machine", "help"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.splitlines()[1:]


class Machine:
    """A QEMU that does not run its guest, spoken to by QMP on its standard streams."""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-S"),
                *("-accel", "tcg", "-m", "16", "-qmp", "stdio", *options),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert "QMP" in json.loads(self.process.stdout.readline())
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments):
        print(
            json.dumps({"execute": name, "arguments": arguments}),
            file=self.process.stdin,
            flush=True,
        )
        while line := self.process.stdout.readline():
            # qemu-io prints its results in between.
            if line.startswith("{") and "event" not in (answer := json.loads(line)):
                return answer["return"]
        raise AssertionError("QEMU has ended")

    def io(self, command: str) -> str:
        return self.command("human-monitor-command", **{"command-line": f'qemu-io n "{command}"'})

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def blockdev(path, **more) -> tuple[str, str]:
    """The option that gives it an image, as node ``n``."""
    node = {"driver": "qcow2", "node-name": "n", "file": {"driver": "file", "filename": str(path)}}
    return "-blockdev", json.dumps({**node, **more})
