# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Windows that is played: the answers of the modules that the role windows_guest calls.

It knows the role's scripts by their text and runs none of them; see wsman_stand_in.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROLE = Path(__file__).resolve().parents[1] / "roles" / "windows_guest"
SCRIPTS = {path.read_text().strip(): path.name for path in (ROLE / "files").glob("*.ps1")}
MSI = r"D:\guest-agent\qemu-ga-x86_64.msi"

#: What state.ps1 is meant to print on a guest where nothing is left to do.
CONVERGED: dict[str, Any] = {
    "os": "Microsoft Windows Server 2022 Standard 10.0.20348",
    "drivers": [
        {"name": "vioscsi", "running": True, "version": "100.103.104.28500"},
        {"name": "vioser", "running": True, "version": "100.103.104.28500"},
    ],
    "agent": {"status": "Running", "start_type": "Automatic"},
    "virtio_win_iso": None,
    "delete_notify": [
        "NTFS DisableDeleteNotify = 0  (Allows TRIM operations to be sent to the storage device)",
        "ReFS DisableDeleteNotify = 0  (Allows TRIM operations to be sent to the storage device)",
    ],
    "retrim_task": {"state": "Ready"},
    "maintenance_disabled": None,
    "fast_startup": 0,
    "disks": [
        {
            "number": 0,
            "name": "QEMU QEMU HARDDISK",
            "serial": "system",
            "provisioning": "Thin",
            "media": "SSD",
            "sector_bytes": 512,
        }
    ],
    "retrim_events": [],
}
#: The same with everything wrong that the role can mend.
NEGLECTED: dict[str, Any] = {
    **CONVERGED,
    "agent": None,
    "virtio_win_iso": {"label": "virtio-win-0.1.285", "agent_msi": MSI},
    "delete_notify": [
        "NTFS DisableDeleteNotify = 1  (Disabled)",
        "ReFS DisableDeleteNotify is not currently set",
    ],
    "retrim_task": {"state": "Disabled"},
    "fast_startup": 1,
}
EVENT_264 = {
    "id": 264,
    "time": "2026-06-01T03:00:00Z",
    "properties": [
        "retrim",
        "(C:)",
        "The operation requested is not supported by the hardware backing the volume. (0x8900002A)",
    ],
}


class Windows:
    """Answers modules; remembers what was asked of it.

    :param deaf: modules report success, and nothing changes (as under a group policy).
    :param retrim: what happens when it retrims, and what retrim.ps1 prints.
    """

    def __init__(
        self,
        state: dict[str, Any],
        *,
        deaf: bool = False,
        retrim: Callable[[], list[dict[str, str]]] = list,
    ) -> None:
        self.state = copy.deepcopy(state)
        self.calls: list[str] = []
        self._deaf = deaf
        self._retrim = retrim

    def __call__(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        module = name.rpartition(".")[2]
        if module == "async_status":
            return self._async_status(arguments)
        if module == "win_powershell":
            module = SCRIPTS[arguments["script"].strip()]
        if module != "state.ps1":
            self.calls.append(f"{module} in check mode" if arguments["check_mode"] else module)
        answer = getattr(self, f"_{module.replace('.', '_')}")
        apply = not (arguments["check_mode"] or self._deaf)
        return dict(answer(arguments, apply))

    def _state_ps1(self, arguments: dict[str, Any], _apply: bool) -> dict[str, Any]:
        assert not arguments["check_mode"], "win_powershell would not run it"
        return {"changed": True, "output": [json.dumps(self.state)]}

    def _win_package(self, arguments: dict[str, Any], apply: bool) -> dict[str, Any]:
        assert (arguments["path"], arguments["state"]) == (MSI, "present")
        if apply:
            self.state["agent"] = CONVERGED["agent"]
        return {"changed": True}

    def _win_service(self, arguments: dict[str, Any], apply: bool) -> dict[str, Any]:
        assert arguments == arguments | {"name": "QEMU-GA", "start_mode": "auto"}
        assert self.state["agent"] is not None, "win_service fails for a service that is not there"
        if apply:
            self.state["agent"] = CONVERGED["agent"]
        return {"changed": True}

    def _delete_notify_ps1(self, arguments: dict[str, Any], apply: bool) -> dict[str, Any]:
        *names, value = arguments["parameters"]["Setting"]
        if apply:
            self.state["delete_notify"] = [
                line.replace("= 1", f"= {value}")
                if not names or line.startswith(names[0])
                else line
                for line in self.state["delete_notify"]
            ]
        return {"changed": True}

    def _win_scheduled_task(self, arguments: dict[str, Any], apply: bool) -> dict[str, Any]:
        assert arguments["path"] == r"\Microsoft\Windows\Defrag"
        if apply:
            self.state["retrim_task"] = {"state": "Ready" if arguments["enabled"] else "Disabled"}
        return {"changed": True}

    def _win_regedit(self, arguments: dict[str, Any], apply: bool) -> dict[str, Any]:
        assert (arguments["name"], arguments["type"]) == ("HiberbootEnabled", "dword")
        if apply:
            self.state["fast_startup"] = arguments["data"]
        return {"changed": True}

    def _retrim_ps1(self, arguments: dict[str, Any], _apply: bool) -> dict[str, Any]:
        assert arguments["is_async"], "it takes hours"
        return {"ansible_job_id": "j1", "started": 1, "finished": 0, "results_file": "j1"}

    def _async_status(self, arguments: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = {"ansible_job_id": arguments["jid"], "started": 1, "finished": 1}
        if arguments["mode"] == "cleanup":
            return answer
        return {**answer, "changed": True, "output": [json.dumps(self._retrim())]}
