# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One guest of a lab: start, stop, and run programs in it through the guest agent."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .domain import Disk, GuestSpec
from .errors import LabError

Virsh = Callable[..., str]


@dataclass(frozen=True)
class Output:
    """What a program in the guest returned."""

    rc: int
    stdout: str
    stderr: str


class Guest:
    """A defined guest. Every method is bounded in time and raises LabError."""

    def __init__(self, spec: GuestSpec, virsh: Virsh) -> None:
        self.spec = spec
        self.name = spec.name
        self._virsh = virsh

    def disk(self, target: str) -> Disk:
        """The disk called *target*, with its path."""
        return next(disk for disk in self.spec.disks if disk.target == target)

    def state(self) -> str:
        """``running``, ``shut off``, ... as virsh says it."""
        return self._virsh("domstate", self.name).strip()

    def xml(self, *, inactive: bool = False) -> str:
        """The live XML, or the configured one."""
        return self._virsh("dumpxml", self.name, *(["--inactive"] if inactive else []))

    def start(self) -> None:
        """Power on; returns at once, see wait_for_agent."""
        self._virsh("start", self.name)

    def destroy(self) -> None:
        """Pull the plug, if it is in."""
        if self.state() != "shut off":
            self._virsh("destroy", self.name)

    def shutdown(self, *, timeout: float = 120) -> None:
        """Shut down cleanly through the agent and wait for power off."""
        self._virsh("shutdown", self.name, "--mode", "agent")
        self._until(timeout, "did not shut down", lambda: self.state() == "shut off")

    def wait_for_agent(self, *, timeout: float = 180) -> float:
        """Wait until the agent answers; returns the seconds it took."""
        started = time.monotonic()
        self._until(timeout, "its guest agent did not answer", self._answers)
        return time.monotonic() - started

    def agent(self, command: str, *, timeout: int = 10, **arguments: object) -> Any:
        """One agent command; returns its ``return`` value."""
        request = json.dumps({"execute": command, "arguments": arguments})
        answer = self._virsh(
            "qemu-agent-command", self.name, request, "--timeout", str(timeout), timeout=timeout + 5
        )
        return json.loads(answer)["return"]

    def run(self, *argv: str, timeout: float = 60, check: bool = True) -> Output:
        """Run a program in the guest, as root, without a shell.

        :param check: a return code other than 0 is an error.
        """
        pid = self.agent("guest-exec", path=argv[0], arg=argv[1:], **{"capture-output": True})[
            "pid"
        ]
        status: dict[str, Any] = {}

        def ended() -> bool:
            status.update(self.agent("guest-exec-status", pid=pid))
            return bool(status["exited"])

        self._until(timeout, f"no end of {' '.join(argv)}", ended)
        out, err = (
            base64.b64decode(status.get(key, "")).decode(errors="replace")
            for key in ("out-data", "err-data")
        )
        # A program ended by a signal has no exit code; 128 + n is the shell's way to say so.
        output = Output(status.get("exitcode", 128 + status.get("signal", 0)), out, err)
        if check and output.rc != 0:
            raise LabError(f"guest {self.name}: rc {output.rc}: {' '.join(argv)}: {err or out}")
        return output

    def _answers(self) -> bool:
        try:
            self.agent("guest-ping", timeout=2)
        except LabError:
            if self.state() != "running":
                raise LabError(f"guest {self.name} is not running; see its serial log") from None
            return False
        return True

    def _until(self, timeout: float, complaint: str, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + timeout
        pause = 0.05
        while not done():
            if time.monotonic() > deadline:
                raise LabError(f"guest {self.name}: {complaint} within {timeout:.0f} s")
            time.sleep(pause)
            pause = min(0.2, 1.5 * pause)
