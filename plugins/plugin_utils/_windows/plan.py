# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role windows_guest changes in a guest, and what it can only report (pure).

Sources: facts of the virtio-win project's issues (numbers below, kvm-guest-drivers-windows), and
Microsoft's documentation of fsutil, Optimize-Volume and the storage optimizer.  Nothing here was
tried on a real Windows.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._findings import Finding
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._windows.state import (
    EVENT_DONE,
    EVENT_FAILED,
    Disk,
    Event,
    State,
)

_DISK_DRIVERS = ("vioscsi", "viostor")


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the role's variables ask for.

    :param domain: the guest's libvirt domain, for findings.
    :param agent: have the guest agent installed and running.
    :param agent_msi: its installer, if not the one on the virtio-win ISO.
    :param fast_startup_off: switch fast startup off.
    :param virtio_win: the oldest release 0.1.N that is not worth a finding.
    """

    domain: str
    agent: bool = True
    agent_msi: str = ""
    fast_startup_off: bool = False
    virtio_win: int = 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """What differs from what is wanted, each for the task that changes it.

    :param agent_msi: the installer to run, or empty.
    :param agent_start: start the agent's service, and have it start at boot.
    :param delete_notify: argument lists for ``fsutil behavior set DisableDeleteNotify``.
    :param enable_retrim_task: enable ScheduledDefrag.
    :param disable_fast_startup: switch fast startup off.
    :param changes: all of these in words.
    :param retrim_refused: why a retrim would be dangerous, or empty.
    :param findings: what the role can't change.
    :param summary: what was read, in lines for people.
    """

    agent_msi: str
    agent_start: bool
    delete_notify: tuple[tuple[str, ...], ...]
    enable_retrim_task: bool
    disable_fast_startup: bool
    changes: tuple[str, ...]
    retrim_refused: str
    findings: tuple[Finding, ...]
    summary: tuple[str, ...]

    def result(self) -> dict[str, t.Any]:
        """For the role's tasks; ``problems`` are the findings in lines for people."""
        return {
            **dataclasses.asdict(self),
            "delete_notify": [list(arguments) for arguments in self.delete_notify],
            "changes": list(self.changes),
            "findings": [finding.result() for finding in self.findings],
            "summary": list(self.summary),
            "problems": [f"{f.severity}: {f.reason} {f.remedy}" for f in self.findings],
        }


def plan(state: State, wanted: Wanted) -> Plan:
    """Decide.

    Where discards could hit the wrong sectors nothing is done that makes Windows send any.
    """
    danger = wrong_sectors(state)
    agent_msi = agent_start = ""
    if wanted.agent:
        if not state.agent:
            agent_msi = wanted.agent_msi or state.agent_msi
        elif (state.agent, state.agent_start) != ("Running", "Automatic"):
            agent_start = "start the guest agent, now and at boot"
    off = () if danger else tuple(sorted(fs for fs, kept in state.delete_notify.items() if kept))
    enable_task = not danger and state.retrim_task == "Disabled"
    fast_startup = wanted.fast_startup_off and state.fast_startup
    changes = (
        agent_msi and f"install the guest agent from {agent_msi}",
        agent_start,
        *(f"set DisableDeleteNotify of {fs or 'all file systems'} to 0" for fs in off),
        "enable the weekly task ScheduledDefrag" if enable_task else "",
        "switch fast startup off" if fast_startup else "",
    )
    return Plan(
        agent_msi=agent_msi,
        agent_start=bool(agent_start),
        delete_notify=tuple((fs, "0") if fs else ("0",) for fs in off),
        enable_retrim_task=enable_task,
        disable_fast_startup=fast_startup,
        changes=tuple(change for change in changes if change),
        retrim_refused=danger.reason if danger else "",
        findings=_findings(state, wanted, danger),
        summary=_summary(state),
    )


def wrong_sectors(state: State) -> Finding | None:
    """viostor discarded the wrong sectors of disks with logical sectors of 4096 bytes.

    Issue 513.  Which driver a disk has Windows does not tell here, so one such disk is enough.
    """
    disks = [disk for disk in state.disks if disk.sector_bytes > 512]
    if not disks or not any(d.name == "viostor" and d.running for d in state.drivers):
        return None
    return Finding(
        id="windows-viostor-4kn",
        severity="error",
        reason=f"{_upper(disks[0].line())}, and the driver viostor is in use: it may discard the "
        "wrong sectors of such a disk and destroy data. Nothing was done that makes Windows "
        "discard.",
        remedy="Give the disk logical sectors of 512 bytes or put it on virtio-scsi.",
    )


def failed_retrims(events: t.Iterable[Event]) -> tuple[Event, ...]:
    """The last failure of each volume that no success of the same operation came after."""
    last: dict[tuple[str, str], Event] = {}
    for event in sorted(events, key=lambda event: event.time):
        if event.id in (EVENT_DONE, EVENT_FAILED):
            last[event.about] = event
    return tuple(event for event in last.values() if event.id == EVENT_FAILED)


def _findings(state: State, wanted: Wanted, danger: Finding | None) -> tuple[Finding, ...]:
    found = [danger] if danger else []
    found += [
        *_of_drivers(state, wanted),
        *_of_retrim(state),
        *(finding for disk in state.disks for finding in _of_disk(disk)),
    ]
    if wanted.agent and not (state.agent or wanted.agent_msi or state.agent_msi):
        found.append(
            Finding(
                id="windows-guest-agent-missing",
                severity="warning",
                reason="The guest agent is not installed, and no virtio-win ISO is inserted.",
                remedy="Insert the virtio-win ISO as a CD-ROM of the domain, or name the agent's "
                "MSI in windows_guest_agent_msi, and run this again.",
            )
        )
    if state.fast_startup and not wanted.fast_startup_off:
        found.append(
            Finding(
                id="windows-fast-startup",
                severity="info",
                reason="Fast startup is on: Windows hibernates when it is shut down and leaves "
                "NTFS unclean, so tools for shut off guests leave its disks alone.",
                remedy="Set windows_guest_fast_startup_off.",
            )
        )
    return tuple(dataclasses.replace(finding, domain=wanted.domain) for finding in found)


def _of_drivers(state: State, wanted: Wanted) -> t.Iterator[Finding]:
    running = {driver.name: driver for driver in state.drivers if driver.running}
    if not any(name in running for name in _DISK_DRIVERS):
        yield Finding(
            id="windows-driver-missing",
            severity="info",
            reason="No disk of the guest uses a driver of virtio-win (vioscsi, viostor).",
            remedy="Install the virtio-win drivers and move the disks to virtio-scsi.",
        )
    if "vioser" not in running:
        yield Finding(
            id="windows-driver-missing",
            severity="warning",
            reason="The driver vioser does not run, without which the guest agent has no channel.",
            remedy="Install the virtio-win drivers, and give the domain a channel "
            "org.qemu.guest_agent.0.",
        )
    for driver in running.values():
        if driver.virtio_win is not None and driver.virtio_win < wanted.virtio_win:
            # 666, 824 and 858: viostor told a granularity that had Windows rewrite all data
            yield Finding(
                id="windows-driver-old",
                severity="warning",
                reason=f"The driver {driver.name} {driver.version} is of virtio-win "
                f"0.1.{driver.virtio_win}, older than 0.1.{wanted.virtio_win}. With older ones "
                "Windows may rewrite whole disks where it should trim them.",
                remedy="Update the virtio-win drivers.",
            )


def _of_retrim(state: State) -> t.Iterator[Finding]:
    if not state.delete_notify:
        yield Finding(
            id="windows-delete-notify-unknown",
            severity="warning",
            reason="fsutil did not tell whether Windows passes deletions on.",
            remedy="Look at fsutil behavior query DisableDeleteNotify in the guest.",
        )
    if not state.retrim_task:
        yield Finding(
            id="windows-retrim-task-missing",
            severity="warning",
            reason="The scheduled task ScheduledDefrag does not exist, so nothing trims weekly.",
            remedy="Trim from the host instead: thinvirt.kvm.domain_trim on a schedule.",
        )
    if state.maintenance_disabled:
        yield Finding(
            id="windows-maintenance-disabled",
            severity="warning",
            reason="Automatic maintenance is switched off (MaintenanceDisabled), and with it the "
            "weekly retrim.",
            remedy="Switch it on, or trim from the host: thinvirt.kvm.domain_trim on a schedule.",
        )
    for event in failed_retrims(state.events):
        yield Finding(
            id="windows-retrim-failed",
            severity="error",
            reason=f"Event 264 of {event.time}: Windows could not complete {event.about[0]} on "
            f"{event.about[1]}: {event.reason}",
            # 1574: 32768 cured it for most, 65536 too, which is a cluster of qcow2
            remedy="Set kvm_domains_discard_granularity_bytes to 65536 (32768 for raw images) in "
            "thinvirt.kvm.configure and power the guest off and on: Windows 11 needs it since the "
            "updates of May 2026. If it has it, update the virtio-win drivers.",
        )


def _of_disk(disk: Disk) -> t.Iterator[Finding]:
    thin, ssd = disk.provisioning == "Thin", disk.media == "SSD"
    if not thin and not ssd:
        yield Finding(
            id="windows-disk-not-thin",
            severity="warning",
            reason=f"Windows takes it for neither thin nor solid state, so it does not trim "
            f"{disk.line()}.",
            remedy="Set discard with thinvirt.kvm.domain_discard and power the guest off and on.",
        )
    elif thin and not ssd:
        yield Finding(
            id="windows-optimize-rewrites",
            severity="warning",
            reason=f"Windows takes it for thin and not for solid state, so its weekly Optimize may "
            f"consolidate slabs, which writes much and lets the image grow: {disk.line()}.",
            remedy="Set kvm_domains_rotation_rate to 1 (scsi, sata and ide) in "
            "thinvirt.kvm.configure and power the guest off and on.",
        )


def _summary(state: State) -> tuple[str, ...]:
    drivers = ", ".join(
        f"{driver.name} {driver.version}{'' if driver.running else ' (not running)'}"
        for driver in state.drivers
    )
    system = (
        f"{state.os or 'Windows'}; drivers: {drivers or 'none of virtio-win'}; guest agent: "
        f"{state.agent or 'not installed'}; ScheduledDefrag: {state.retrim_task or 'missing'}"
        f"{f'; ISO: {state.iso}' if state.iso else ''}"
    )
    return (system, *(_upper(disk.line()) for disk in state.disks))


def _upper(line: str) -> str:
    return line[:1].upper() + line[1:]
