# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest's agent runs a module in one program, with Ansible's pipelining.

community.libvirt.libvirt_qemu has none: it makes a folder, copies the module there, sets its mode,
runs it and removes the folder, and each of these starts a shell in the guest.

Most of the time goes to what Python compiles of each module, which comes without bytecode.  The
guest keeps that until it is off.

The module does not come as the ``input-data`` of guest-exec: with 200 kB and more of it the agent
often gives no answer, to that call or to any later one (QEMU 7.2).
"""

from __future__ import annotations

import base64
import io
import json
import shlex
import time
import uuid
from typing import Any

import libvirt_qemu
from ansible.module_utils.common.text.converters import to_text
from ansible_collections.community.libvirt.plugins.connection import libvirt_qemu as shipped

DOCUMENTATION = """
name: guest_exec
short_description: Tests only; libvirt_qemu with pipelining
description: As P(community.libvirt.libvirt_qemu#connection), with pipelining.
author: thinvirt.kvm contributors
options:
  remote_addr:
    description: The domain's name.
    default: inventory_hostname
    vars: [{name: ansible_host}, {name: inventory_hostname}]
  executable:
    description: The shell.
    default: /bin/sh
    vars: [{name: ansible_executable}]
  virt_uri:
    description: Where libvirt is.
    default: qemu:///system
    vars: [{name: ansible_libvirt_uri}]
  pipelining:
    description: Whether a module comes with the call; for this connection only, not for others.
    type: bool
    default: true
    vars: [{name: ansible_pipelining}]
"""
#: The guest may be busy, or emulated on a machine that is.
ANSWER_SECONDS = 60
CHUNK_BYTES = 48 << 10
#: To ask costs an emulated guest about as much as a short program does.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 0.4
#: Opens the file, which goes at once, and becomes the program.
READING = 'exec <"$0" && rm -f "$0" && exec "$@"'
#: How what ansible-core has packed ends, and what is put before it.
BEGIN = b'\nif __name__ == "__main__":\n'
KEEPING = b"""
def _keep_bytecode():
    import _imp, hashlib, marshal, os, zipimport
    make = zipimport._compile_source
    def compiled(path, source):
        kept = "/run/guest_exec-bytecode/" + hashlib.sha256(source).hexdigest()
        try:
            with open(kept, "rb") as file:
                code = marshal.load(file)
        except OSError:
            code = make(path, source)
            os.makedirs(os.path.dirname(kept), exist_ok=True)
            temp = kept + "." + str(os.getpid())
            with open(temp, "wb") as file:
                marshal.dump(code, file)
            os.rename(temp, kept)
        _imp._fix_co_filename(code, path)
        return code
    zipimport._compile_source = compiled
_keep_bytecode()
"""


class Connection(shipped.Connection):
    """A connection of community.libvirt whose programs read what they are given."""

    transport = "guest_exec"
    has_pipelining = True

    def exec_command(
        self, cmd: str, in_data: bytes | None = None, sudoable: bool = True
    ) -> tuple[int, bytes, bytes]:
        """Run a program in the guest that reads *in_data*."""
        super(shipped.Connection, self).exec_command(cmd, in_data=in_data, sudoable=sudoable)
        argv = shlex.split(to_text(cmd))
        if in_data is not None:
            in_data = in_data.replace(BEGIN, KEEPING + BEGIN)
            argv = ["/bin/sh", "-c", READING, self._write(in_data), *argv]
        call = {"path": argv[0], "arg": argv[1:], "capture-output": True}
        pid, pause = self._ask("guest-exec", **call)["pid"], FIRST_PAUSE_SECONDS
        while not (status := self._ask("guest-exec-status", pid=pid))["exited"]:
            time.sleep(pause)
            pause = min(LONGEST_PAUSE_SECONDS, 1.3 * pause)
        out, err = (base64.b64decode(status.get(key, "")) for key in ("out-data", "err-data"))
        return status.get("exitcode", 128 + status.get("signal", 0)), out, err

    def _write(self, data: bytes) -> str:
        """Write a file of the guest; its name."""
        path, stream = f"/run/guest_exec-{uuid.uuid4()}", io.BytesIO(data)
        handle = self._ask("guest-file-open", path=path, mode="wb")
        while chunk := base64.b64encode(stream.read(CHUNK_BYTES)).decode():
            self._ask("guest-file-write", handle=handle, **{"buf-b64": chunk})
        self._ask("guest-file-close", handle=handle)
        return path

    def _ask(self, command: str, **arguments: object) -> Any:
        request = json.dumps({"execute": command, "arguments": arguments})
        answer = libvirt_qemu.qemuAgentCommand(self.domain, request, ANSWER_SECONDS, 0)
        return json.loads(answer)["return"]
