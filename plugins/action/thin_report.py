# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module ``thin_report``, which runs on the controller.

An action plugin, as a module would be sent to its host as Python files alone: the template, the
style sheet, the script and the schema stay in the collection's folder, and only here they are at
hand.  Nor do the answers of a whole fleet have to be sent anywhere.  It opens no connection.
"""

from __future__ import annotations

import os
import typing as t

from ansible.plugins.action import ActionBase
from ansible_collections.thinvirt.kvm.plugins.module_utils import _plan
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import encodable
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report import (
    csv_files,
    document,
    history,
    output,
    page,
    reading,
    schema,
    work,
)

SPEC: dict[str, t.Any] = {
    "hosts": {"type": "dict", "required": True},
    "dest_dir": {"type": "path", "required": True},
    "formats": {
        "type": "list",
        "elements": "str",
        "choices": ["html", "json", "csv"],
        "default": ["html", "json", "csv"],
    },
    "history": {"type": "list", "elements": "path", "default": []},
    "work": {"type": "dict", "default": {}},
    "title": {"type": "str", "default": "Disk space of KVM guests"},
    "mode": {"type": "str", "default": "0640"},
    "owner": {"type": "str"},
    "group": {"type": "str"},
}


class ActionModule(ActionBase):  # type: ignore[misc]
    """Read the answers and what is there, decide, write unless it is check mode, and report."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None
    ) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        _validated, options = self.validate_argument_spec(argument_spec=SPEC)
        try:
            result.update(self._report(options))
        except ThinvirtError as error:
            result.update(failed=True, changed=False, **error.result())
        return result

    def _report(self, options: dict[str, t.Any]) -> dict[str, t.Any]:
        folder = options["dest_dir"].rstrip("/") or "/"
        if not os.path.isabs(folder):
            raise RefusedError(
                f"dest_dir {folder} is not absolute; nothing was written.",
                remedy="Name it from / on.",
            )
        access = output.access(mode=options["mode"], owner=options["owner"], group=options["group"])
        fleet = reading.read_fleet(options["hosts"])
        earlier, warnings = history.read(options["history"])
        report = document.build(
            fleet,
            title=encodable(options["title"]),
            history=history.merge(earlier, fleet.file_systems),
            work=work.read_work(options["work"]),
        )
        outputs = output.plan(folder, _texts(report, options["formats"]), access)
        changes = [change for file in outputs for change in file.changes]
        if not self._task.check_mode:
            output.apply(folder, outputs, access)
        result: dict[str, t.Any] = {
            "changed": bool(changes),
            "diff": _plan.diff(changes),
            "files": [
                {
                    "path": file.path,
                    "size_bytes": file.size_bytes,
                    "changed": bool(file.changes),
                }
                for file in outputs
            ],
            "taken_at": report["taken_at"],
            "summary": report["summary"],
            "unread": [
                {name: host[name] for name in ("host", "status", "msg")}
                for host in report["hosts"]
                if host["status"] != "read"
            ],
        }
        if warnings:
            result["warnings"] = warnings
        return result


def _texts(report: document.Document, formats: list[str]) -> dict[str, str]:
    """The files of the report; each format in full, so that none is newer than its neighbour."""
    texts: dict[str, str] = {}
    if "html" in formats:
        texts["report.html"] = page.html(report)
    if "json" in formats:
        texts["report.json"] = document.to_json(report)
        texts[document.SCHEMA_FILE] = schema.text()
    if "csv" in formats:
        texts.update(csv_files.texts(report))
    return texts
