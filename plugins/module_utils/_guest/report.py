# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What linux_guest_info returns (pure)."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._findings import Finding
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest import checks, stack
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest.model import (
    GuestState,
    MountedFileSystem,
    Timer,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest.stack import Device


def result(state: GuestState, findings: t.Sequence[Finding]) -> dict[str, t.Any]:
    """The module's return values."""
    return {
        "summary": [f"{f.severity} {f.id}. {f.reason} {f.remedy}" for f in findings],
        "findings": [finding.result() for finding in findings],
        "kernel": state.kernel,
        "file_systems": [_file_system(state, system) for system in state.file_systems],
        "timer": _timer(state.timer),
        "cron_jobs": [dataclasses.asdict(job) for job in state.cron_jobs],
        "crypttab": _crypttab(state),
        "fstab_notrim": [entry.mount_point for entry in state.fstab if entry.notrim],
        "agent": {
            "installed": state.agent_installed,
            "running": state.agent_running,
            "enabled": state.agent_enabled,
        },
        "selinux": {
            "enforcing": state.selinux_enforcing,
            "agent_may_trim": state.selinux_agent,
        },
        "initramfs": dataclasses.asdict(state.initramfs),
    }


def _file_system(state: GuestState, system: MountedFileSystem) -> dict[str, t.Any]:
    stopping = checks.stopped_by(state, system)
    links = {
        link.kname: link for kname in system.devices for link in stack.links(state.devices, kname)
    }
    return {
        "source": system.source,
        "type": system.type,
        "mount_points": list(system.mount_points),
        "options": list(system.options),
        "read_only": system.read_only,
        "total_bytes": system.total_bytes,
        "used_bytes": system.used_bytes,
        "stopped_by": stopping.kname if stopping else "",
        "links": [_link(link) for link in links.values()],
    }


def _link(device: Device) -> dict[str, t.Any]:
    return {
        "device": device.kname,
        "name": device.name,
        "type": device.type,
        "serial": device.serial,
        "granularity_bytes": device.granularity_bytes,
        "discard_max_bytes": device.discard_max_bytes,
    }


def _timer(timer: Timer | None) -> dict[str, t.Any] | None:
    if timer is None:
        return None
    return {
        **dataclasses.asdict(timer),
        "calendar": list(timer.calendar),
        "command": [list(argv) for argv in timer.command],
        "only_fstab": checks.trims_only_fstab(timer),
    }


def _crypttab(state: GuestState) -> list[dict[str, t.Any]]:
    stopping = {
        device.name
        for device in (checks.stopped_by(state, system) for system in state.file_systems)
        if device is not None and device.type == "crypt"
    }
    return [
        {**dataclasses.asdict(entry), "stops_discards": entry.name in stopping}
        for entry in state.crypttab
    ]
