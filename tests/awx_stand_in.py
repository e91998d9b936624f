# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for AWX: as much of its API as the modules of ``awx.awx`` ask for.

No AWX can be had where these tests run.  The modules and their requests are real; what answers is
a store of named objects with a few of AWX's rules: a project has its playbooks only after its
update, a job template needs a playbook that its project has, and a survey has to be in order.  So
a test with it shows what is asked for and in which order; **it never shows that AWX takes it**.
"""

from __future__ import annotations

import contextlib
import json
import threading
import typing as t
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

from awx_lab import survey_errors

TOKEN = "not-a-secret-token"  # noqa: S105
#: What has to be there before, and is not made by us.
EXISTING = {
    "organizations": ["Default"],
    "inventories": ["Hypervisors"],
    "credentials": ["SSH to hypervisors"],
}
_PREFIX = "/api/v2/"

Item = dict[str, t.Any]
Answer = tuple[int, t.Any]


class AwxServer(ThreadingHTTPServer):
    """What is stored, and every request that changed it."""

    daemon_threads = True

    def __init__(self, playbooks: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.playbooks = playbooks
        self.writes: list[tuple[str, str]] = []
        self.refused: list[str] = []
        self.items: dict[str, list[Item]] = {}
        self.surveys: dict[int, Item] = {}
        self.associated: dict[str, list[int]] = {}
        for kind, names in EXISTING.items():
            for name in names:
                self._add(kind, {"name": name})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def named(self, kind: str) -> dict[str, Item]:
        return {item["name"]: item for item in self.items.get(kind, [])}

    def get(self, parts: list[str], query: dict[str, str]) -> Answer:
        if parts[0] == "project_updates":
            for project in self.items["projects"]:
                project["playbooks"] = self.playbooks
            return 200, {"status": "successful"}
        if len(parts) == 1:
            found = [
                item
                for item in self.items.get(parts[0], [])
                if all(str(item.get(name)) == value for name, value in query.items())
            ]
            return 200, {"count": len(found), "next": None, "results": found}
        if parts[2:] == ["survey_spec"]:
            return 200, self.surveys.get(int(parts[1]), {})
        ids = self.associated.get("/".join(parts), [])
        return 200, {"count": len(ids), "next": None, "results": [{"id": one} for one in ids]}

    def post(self, parts: list[str], data: Item) -> Answer:
        if parts[2:] == ["survey_spec"]:
            if errors := survey_errors(data):
                return 400, {"error": "; ".join(errors)}
            self.surveys[int(parts[1])] = data
            return 200, {}
        if len(parts) == 3:
            self.associated.setdefault("/".join(parts), []).append(data["id"])
            return 204, None
        if parts[0] == "job_templates":
            (project,) = (item for item in self.items["projects"] if item["id"] == data["project"])
            if data["playbook"] not in project["playbooks"]:
                return 400, {"playbook": ["Playbook not found for project."]}
        return 201, self._add(parts[0], data)

    def patch(self, parts: list[str], data: Item) -> Answer:
        (item,) = (item for item in self.items[parts[0]] if item["id"] == int(parts[1]))
        item.update(data)
        return 200, item

    def _add(self, kind: str, data: Item) -> Item:
        number = sum(map(len, self.items.values())) + 1
        url = f"{_PREFIX}{kind}/{number}/"
        item = {"id": number, "url": url, "type": kind, "scm_revision": "", "playbooks": []}
        item |= {"related": {"survey_spec": f"{url}survey_spec/"}, "summary_fields": {}, **data}
        if kind == "projects":  # AWX updates a new project at once
            item["summary_fields"] = {"current_update": {"id": number}}
        self.items.setdefault(kind, []).append(item)
        return item


class _Handler(BaseHTTPRequestHandler):
    server: AwxServer

    def _answer(self, method: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        data = json.loads(self.rfile.read(length) or b"{}")
        url = urlsplit(self.path)
        parts = url.path.removeprefix(_PREFIX).strip("/").split("/")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            status, body = 401, {"detail": "no"}
        elif method == "GET":
            status, body = self.server.get(parts, dict(parse_qsl(url.query)))
        else:
            # What an object is called, or for a part of it, such as a survey, where that belongs.
            self.server.writes.append((parts[-1] if len(parts) == 3 else parts[0], method))
            change = self.server.post if method == "POST" else self.server.patch
            status, body = change(parts, data)
        if status >= 400:
            self.server.refused.append(f"{method} {self.path}: {body}")
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if body is not None:
            self.wfile.write(json.dumps(body).encode())

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PATCH(self) -> None:
        self._answer("PATCH")

    def log_message(self, *_arguments: object) -> None:
        """Nothing to stderr."""


@contextlib.contextmanager
def serve(playbooks: list[str]) -> Iterator[AwxServer]:
    """Play an AWX whose projects have these playbooks, while the context lasts."""
    with AwxServer(playbooks) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
