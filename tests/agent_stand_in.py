# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest agent that answers as it was told to: run in a Linux guest, in the place of qemu-ga.

It speaks the agent's protocol (docs/interop/qemu-ga.rst of QEMU) on the virtio channel, one command
at a time as the real one does, so that a real libvirt talks to it.  Its command ``be`` tells it
what the guest is: ``osinfo`` is the answer to guest-get-osinfo (without it the command does not
exist), ``fsinfo`` that to guest-get-fsinfo, ``fstrim`` a list of answers to the next guest-fstrim
commands, of which the last one stays.  The last two are objects; what each does, in this order:

``trim``    trims these paths in earnest
``delay``   sleeps so many seconds
``raw``     writes this text as it is, instead of an answer, and closes the port for some seconds
``answer``  returns this; MINIMUM in it becomes what the command named
Without ``raw`` and ``answer`` it never answers.
"""

from __future__ import annotations

import json
import os
import subprocess
import time

PORT = "/dev/virtio-ports/org.qemu.guest_agent.0"


class Agent:
    def __init__(self) -> None:
        self._port = os.open(PORT, os.O_RDWR)
        self._fstrim: list[dict] = [{}]
        self._osinfo: dict | None = None
        self._fsinfo: dict | None = None

    def serve(self) -> None:
        buffer = b""
        while True:
            buffer += os.read(self._port, 65536)
            line, newline, rest = buffer.partition(b"\n")
            if newline:
                buffer = rest
                self.handle(line)
            else:
                time.sleep(0.05)  # a port whose other end is closed reads as empty

    def handle(self, line: bytes) -> None:
        request = json.loads(line.strip(b"\xff\r ") or b'{"execute": ""}')
        command, arguments = request["execute"], request.get("arguments", {})
        if command == "guest-fstrim":
            self._trim(arguments)
        elif command.startswith("guest-sync"):
            self._answer(arguments["id"], prefix=b"\xff" * command.endswith("delimited"))
        elif command == "guest-info":
            self._answer({"version": "stand-in"})
        elif command == "be":
            self._fstrim = arguments.get("fstrim", [{}])
            self._osinfo = arguments.get("osinfo")
            self._fsinfo = arguments.get("fsinfo")
            self._answer({})
        elif command == "guest-get-fsinfo" and self._fsinfo is not None:
            self._do(self._fsinfo)
        elif command == "guest-get-osinfo" and self._osinfo is not None:
            self._answer(self._osinfo)
        elif command == "guest-ping":
            self._answer({})
        else:
            what = f"The command {command} has not been found"
            self._write(json.dumps({"error": {"class": "CommandNotFound", "desc": what}}))

    def _trim(self, arguments: dict) -> None:
        wish = self._fstrim.pop(0) if len(self._fstrim) > 1 else self._fstrim[0]
        for path in wish.get("trim", []):
            subprocess.run(["fstrim", path], check=False)
        self._do(wish, minimum=str(arguments["minimum"]))

    def _do(self, wish: dict, *, minimum: str = "") -> None:
        time.sleep(wish.get("delay", 0))
        if "raw" in wish:
            self._write(wish["raw"])
            time.sleep(3)
            # libvirt talks to an agent that sent garbage only when its port is opened anew, and
            # does not see one that is closed for less than a second
            os.close(self._port)
            time.sleep(1.5)
            self._port = os.open(PORT, os.O_RDWR)
        elif "answer" in wish:
            text = json.dumps(wish["answer"]).replace('"MINIMUM"', minimum)
            self._answer(json.loads(text))

    def _answer(self, value: object, *, prefix: bytes = b"") -> None:
        self._write(json.dumps({"return": value}), prefix=prefix)

    def _write(self, text: str, *, prefix: bytes = b"") -> None:
        os.write(self._port, prefix + text.encode("latin-1") + b"\n")


if __name__ == "__main__":
    Agent().serve()
