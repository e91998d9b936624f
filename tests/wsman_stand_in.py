# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for Windows: a WSMan server that speaks PSRP and runs no PowerShell at all.

No Windows and no PowerShell engine can be had where these tests run.  What a controller sends to
``ansible_connection=psrp`` is real: the modules, their arguments, the async wrapper.  What comes
back is whatever a test's *machine* returns for a module's name and arguments.  So a test with it
shows which modules a role calls, when, and with what; **it never shows that any PowerShell works**.

Protocols: [MS-WSMV] and [MS-PSRP]; psrpcore has the server's half of the latter.
"""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from xml.etree import ElementTree

import psrpcore
from psrpcore.types import RunspacePoolState

_SOAP = "http://www.w3.org/2003/05/soap-envelope"
_ADDRESSING = "http://schemas.xmlsoap.org/ws/2004/08/addressing"
_SHELL = "http://schemas.microsoft.com/wbem/wsman/1/windows/shell"
_WSMAN = "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd"
_TRANSFER = "http://schemas.xmlsoap.org/ws/2004/09/transfer"
_ENVELOPE = (
    f'<s:Envelope xmlns:s="{_SOAP}" xmlns:a="{_ADDRESSING}" xmlns:rsp="{_SHELL}" '
    f'xmlns:w="{_WSMAN}" xmlns:x="{_TRANSFER}"><s:Header><a:RelatesTo>{{to}}</a:RelatesTo>'
    "</s:Header><s:Body>{body}</s:Body></s:Envelope>"
)
#: What separates the two manifests that ansible-core sends; executor/powershell/bootstrap_wrapper.
_SEPARATOR = "\0\0\0\0"

#: Answers a module: (name such as ansible.windows.win_service, its arguments) -> its result.
Machine = Callable[[str, dict[str, Any]], dict[str, Any]]


class _Pool:
    """One runspace pool of one client."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._pool = psrpcore.ServerRunspacePool()
        self._input: dict[uuid.UUID, list[str]] = {}

    def create_pipeline(self, identity: str) -> None:
        psrpcore.ServerPipeline(self._pool, uuid.UUID(identity))

    def receive(self, data: bytes) -> None:
        self._pool.receive_data(psrpcore.PSRPPayload(data, psrpcore.StreamType.default, None))
        while (event := self._pool.next_event()) is not None:
            if isinstance(event, psrpcore.CreatePipelineEvent):
                self._input[event.pipeline_id] = []
                self._pool.pipeline_table[event.pipeline_id].start()
            elif isinstance(event, psrpcore.PipelineInputEvent):
                self._input[event.pipeline_id].append(str(event.data))
            elif isinstance(event, psrpcore.EndOfPipelineInputEvent):
                self._end(event.pipeline_id)

    def _end(self, pipeline_id: uuid.UUID) -> None:
        pipeline = self._pool.pipeline_table[pipeline_id]
        pipeline.write_output(_answer(self._machine, self._input.pop(pipeline_id)))
        pipeline.complete()

    def data(self) -> Iterator[bytes]:
        while (payload := self._pool.data_to_send()) is not None:
            yield payload.data

    def close(self) -> None:
        if self._pool.state == RunspacePoolState.Opened:
            self._pool.begin_close()


def _answer(machine: Machine, lines: list[str]) -> str:
    """What the pipeline prints; it got its manifest as its input, line by line."""
    parts = "\n".join(lines).split(f"\n{_SEPARATOR}\n")
    manifest = json.loads(parts[1])
    action = manifest["actions"][-1]
    parameters = action["params"]
    if action["name"] == "powershell_expand_user.ps1":
        return str(parameters["Path"]).replace("~", r"C:\Users\stand-in")
    (arguments,) = (v["Value"] for v in parameters["Variables"] if v["Name"] == "complex_args")
    name = parameters["Script"].removesuffix(".ps1")
    given = {key: value for key, value in arguments.items() if not key.startswith("_ansible_")}
    given["check_mode"] = arguments["_ansible_check_mode"]
    given["is_async"] = any(a["name"] == "async_wrapper.ps1" for a in manifest["actions"])
    return json.dumps(machine(name, given))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WsmanServer

    def log_message(self, *_arguments: object) -> None:
        """Nothing: pytest shows what matters."""

    def do_POST(self) -> None:
        request = ElementTree.fromstring(self.rfile.read(int(self.headers["Content-Length"])))
        action = (request.findtext(f".//{{{_ADDRESSING}}}Action") or "").rsplit("/", 1)[-1]
        with self.server.lock:
            body = getattr(self, f"_{action.lower()}")(request)
        message_id = request.findtext(f".//{{{_ADDRESSING}}}MessageID")
        answer = _ENVELOPE.format(to=message_id, body=body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/soap+xml;charset=UTF-8")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _pool(self, request: ElementTree.Element) -> _Pool:
        selector = request.findtext(f".//{{{_WSMAN}}}Selector")
        return self.server.pools[str(selector).upper()]

    def _create(self, request: ElementTree.Element) -> str:
        (xml,) = (item for item in request.iter() if item.tag.endswith("creationXml"))
        shell = request.find(f".//{{{_SHELL}}}Shell")
        assert shell is not None
        name = shell.get("ShellId", "").upper()
        pool = self.server.pools[name] = _Pool(self.server.machine)
        pool.receive(base64.b64decode(xml.text or ""))
        return (
            f"<rsp:Shell><rsp:ShellId>{name}</rsp:ShellId></rsp:Shell><x:ResourceCreated>"
            f"<a:ReferenceParameters><w:SelectorSet><w:Selector Name='ShellId'>{name}</w:Selector>"
            "</w:SelectorSet></a:ReferenceParameters></x:ResourceCreated>"
        )

    def _command(self, request: ElementTree.Element) -> str:
        line = request.find(f".//{{{_SHELL}}}CommandLine")
        assert line is not None
        pool, identity = self._pool(request), line.get("CommandId", "")
        pool.create_pipeline(identity)
        pool.receive(base64.b64decode(line.findtext(f"{{{_SHELL}}}Arguments") or ""))
        return (
            f"<rsp:CommandResponse><rsp:CommandId>{identity}</rsp:CommandId></rsp:CommandResponse>"
        )

    def _send(self, request: ElementTree.Element) -> str:
        for stream in request.iter(f"{{{_SHELL}}}Stream"):
            self._pool(request).receive(base64.b64decode(stream.text or ""))
        return "<rsp:SendResponse/>"

    def _receive(self, request: ElementTree.Element) -> str:
        streams = "".join(
            f"<rsp:Stream Name='stdout'>{base64.b64encode(data).decode()}</rsp:Stream>"
            for data in self._pool(request).data()
        )
        return f"<rsp:ReceiveResponse>{streams}</rsp:ReceiveResponse>"

    def _signal(self, _request: ElementTree.Element) -> str:
        return "<rsp:SignalResponse/>"

    def _delete(self, request: ElementTree.Element) -> str:
        self._pool(request).close()
        return ""


class WsmanServer(ThreadingHTTPServer):
    """Listens on a free port of this machine's loopback; any password will do."""

    daemon_threads = True

    def __init__(self, machine: Machine) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.machine = machine
        self.lock = threading.Lock()
        self.pools: dict[str, _Pool] = {}

    def variables(self) -> dict[str, Any]:
        """The inventory's variables of a host that this server plays."""
        return {
            "ansible_connection": "psrp",
            "ansible_host": "127.0.0.1",
            "ansible_port": self.server_address[1],
            "ansible_user": "anybody",
            "ansible_password": "anything",
            "ansible_psrp_protocol": "http",
            "ansible_psrp_auth": "basic",
            "ansible_psrp_message_encryption": "never",
        }


@contextlib.contextmanager
def serve(machine: Machine) -> Iterator[WsmanServer]:
    """Play this machine while the context lasts."""
    with WsmanServer(machine) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
