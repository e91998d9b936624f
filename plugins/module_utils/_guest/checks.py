# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What on the guest's side keeps discards from its disks, or the guest from trimming (pure).

What QEMU and the host do with a discard is judged by ``_audit/checks``.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._findings import SEVERITIES, Finding
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest import stack
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest.model import (
    GuestState,
    MountedFileSystem,
    Timer,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest.stack import Device
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown

#: Kernel, drivers/md/raid5.c: these pass discards on only if told that zeros are sure to follow.
_PARITY_ARRAYS = ("raid4", "raid5", "raid6")

_AT_ONCE = "Its file systems are mounted with discard: what is deleted is given back at once."

_Found = t.Iterator[Finding]


def findings(state: GuestState, *, domain: str = "") -> list[Finding]:
    """All findings, the worst first.

    :param domain: name of the domain, which a guest does not know itself.
    """
    found = [
        *_stack(state),
        *_mounts(state),
        *_schedule(state),
        *_agent(state),
        *_initramfs(state),
    ]
    found.sort(key=lambda finding: SEVERITIES.index(finding.severity), reverse=True)
    return [dataclasses.replace(finding, domain=domain) for finding in found]


def stopped_by(state: GuestState, system: MountedFileSystem) -> Device | None:
    """The link that stops the discards of a file system, or None."""
    stopping = (stack.stops(state.devices, kname) for kname in system.devices)
    return next((device for device in stopping if device is not None), None)


def outside_fstab(state: GuestState) -> list[MountedFileSystem]:
    """File systems that fstrim misses when it reads only fstab; it adds the root by itself."""
    listed = {entry.mount_point for entry in state.fstab} | {"/"}
    return [
        system
        for system in state.file_systems
        if not system.read_only
        and stopped_by(state, system) is None
        and listed.isdisjoint(system.mount_points)
    ]


def trims_only_fstab(timer: Timer) -> bool:
    """Whether fstrim.service leaves out what is not in fstab.

    ``--listed-in`` stops at the first file that is not empty, so /etc/fstab:/proc/self/mountinfo
    is fstab alone wherever there is one.
    """
    for argv in timer.command:
        options = {"-a", "--all"} & {*argv}
        bundled = any(word[:1] == "-" and word[1:2] != "-" and "a" in word for word in argv)
        listed = next((after for word, after in zip(argv, argv[1:]) if _lists(word)), "")
        if options or bundled or listed.startswith("/proc/"):
            return False
    return bool(timer.command)


def _lists(word: str) -> bool:
    return word in ("-I", "--listed-in")


def _stack(state: GuestState) -> _Found:
    stopping: dict[str, tuple[Device, list[str]]] = {}
    for system in state.file_systems:
        device = stopped_by(state, system)
        if device is not None:
            stopping.setdefault(device.kname, (device, []))[1].extend(system.mount_points)
    for device, mount_points in stopping.values():
        finding = _stop(state, device)
        reason = f"{finding.reason} It concerns {_listed(mount_points)}."
        yield dataclasses.replace(finding, reason=reason)


def _stop(state: GuestState, device: Device) -> Finding:
    if device.type == "crypt":
        return _stop_crypt(state, device)
    if device.type.startswith(("raid", "linear", "md")):
        return _stop_array(device)
    if device.type in ("disk", "part"):
        return _stop_disk(state, device)
    return _stop_mapping(device)


def _stop_disk(state: GuestState, device: Device) -> Finding:
    name = shown(device.name)
    if state.hardware_max_bytes.get(device.kname, 0):
        return Finding(
            id="guest-discard-switched-off",
            severity="error",
            reason=f"Discards of disk {name} are switched off in the guest: its discard_max_bytes "
            "was set to 0.",
            remedy="Remove what sets it (a udev rule, tuned, sysfs.conf) and reboot the guest.",
        )
    return Finding(
        id="guest-discard-disk",
        severity="error",
        reason=f"The disk {name} says that it takes no discards.",
        remedy="It is the hypervisor's part: see its finding in thinvirt.kvm.thin_info.",
    )


def _stop_array(device: Device) -> Finding:
    name = shown(device.name)
    if device.type in _PARITY_ARRAYS:
        return Finding(
            id="guest-discard-md",
            severity="error",
            reason=f"The array {name} ({device.type}) drops discards: the kernel does not trust "
            "its disks to read zeros afterwards.",
            remedy="If all of its disks do (QEMU's do), set "
            "raid456.devices_handle_discard_safely=Y on the kernel's command line and reboot the "
            "guest.",
        )
    return Finding(
        id="guest-discard-md",
        severity="error",
        reason=f"The array {name} ({shown(device.type)}) takes no discards, though its disks do.",
        remedy="Reboot the guest: an array looks at its disks only when it is assembled.",
    )


def _stop_mapping(device: Device) -> Finding:
    name = shown(device.name)
    if device.type == "mpath":
        return Finding(
            id="guest-discard-multipath",
            severity="error",
            reason=f"The multipath device {name} takes no discards, though its paths do.",
            remedy="Reload the map (multipath -r), or reboot the guest.",
        )
    if device.type == "lvm":
        return Finding(
            id="guest-discard-lvm",
            severity="error",
            reason=f"The logical volume {name} takes no discards, though what it lies on does: it "
            "is a snapshot, or its thin pool ignores them.",
            remedy="Look at lvs -o +segtype,discards; for a thin pool: lvchange --discards "
            "passdown.",
        )
    return Finding(
        id="guest-discard-link",
        severity="error",
        reason=f"The device {name} ({shown(device.type)}) takes no discards, though what it lies "
        "on does.",
        remedy="Look at the documentation of that kind of device, or move the file system off it.",
    )


def _stop_crypt(state: GuestState, device: Device) -> Finding:
    name = shown(device.name)
    entry = next((entry for entry in state.crypttab if entry.name == device.name), None)
    if entry is not None and entry.discard:
        return Finding(
            id="guest-discard-dm-crypt-reopen",
            severity="warning",
            reason=f"crypttab allows discards for {name}, and it was opened before that.",
            remedy="Reboot the guest, or close and open the mapping.",
        )
    consent = (
        "Set linux_guest_luks_discard: true, if it may be seen on the host which blocks are free, "
        "and with that how much is stored and by which kind of file system"
    )
    if entry is None:
        return Finding(
            id="guest-discard-dm-crypt",
            severity="error",
            reason=f"dm-crypt drops the discards of {name}, which is not in crypttab.",
            remedy=f"Have whatever opens it use cryptsetup open --allow-discards. {consent}, for "
            "those in crypttab.",
        )
    return Finding(
        id="guest-discard-dm-crypt",
        severity="error",
        reason=f"dm-crypt drops the discards of {name}: crypttab does not allow them.",
        remedy=f"{consent}.",
    )


def _mounts(state: GuestState) -> _Found:
    notrim = [entry.mount_point for entry in state.fstab if entry.notrim]
    if notrim:
        yield Finding(
            id="guest-mount-notrim",
            severity="warning",
            reason=f"fstab keeps fstrim off {_listed(notrim)} (X-fstrim.notrim).",
            remedy="Remove that option from fstab, unless it is there on purpose.",
        )
    # fstab as well: ext4 does not show an option that is its default
    nodiscard = [s.mount_points[0] for s in state.file_systems if "nodiscard" in s.options]
    nodiscard += [entry.mount_point for entry in state.fstab if "nodiscard" in entry.options]
    if nodiscard:
        yield Finding(
            id="guest-mount-nodiscard",
            severity="info",
            reason=f"{_listed(nodiscard)} is mounted with nodiscard: deleted files are not "
            "discarded at once. fstrim does not heed that option.",
            remedy="Nothing needs to be done where fstrim runs every week.",
        )
    if state.timer is not None and trims_only_fstab(state.timer):
        missed = [system.mount_points[0] for system in outside_fstab(state)]
        if missed:
            yield Finding(
                id="guest-mount-not-in-fstab",
                severity="warning",
                reason=f"fstrim.service reads fstab only, and {_listed(missed)} is not in there.",
                remedy="Set linux_guest_trim_all: true, or add it to fstab.",
            )


def _discards_at_once(state: GuestState) -> bool:
    """Whether every file system that could be trimmed is mounted with ``discard``."""
    options = [
        {option.partition("=")[0] for option in system.options}
        for system in state.file_systems
        if not system.read_only and stopped_by(state, system) is None
    ]
    return bool(options) and all("discard" in each for each in options)


def _schedule(state: GuestState) -> _Found:
    at_once = _discards_at_once(state)
    foreign = [job for job in state.cron_jobs if not job.own]
    if state.timer is not None and state.timer.runs:
        if foreign:
            yield Finding(
                id="guest-cron-fstrim",
                severity="warning",
                reason=f"fstrim.timer is on, and cron runs fstrim as well: {_jobs(foreign)}.",
                remedy="Set linux_guest_cron_jobs: remove.",
            )
        return
    if state.timer is not None:
        how = state.timer.enablement or "not installed"
        running = "" if state.timer.active else " and not started"
        cron = f" Cron runs fstrim: {_jobs(foreign)}." if foreign else ""
        mounts = f" {_AT_ONCE}" if at_once else ""
        yield Finding(
            id="guest-timer-off",
            severity="info" if foreign or at_once else "warning",
            reason=f"The guest does not trim by timer: fstrim.timer is {how}{running}.{cron}"
            f"{mounts}",
            remedy="Set linux_guest_manage_trim: true.",
        )
    elif not state.cron_jobs:
        yield Finding(
            id="guest-trim-not-scheduled",
            severity="info" if at_once else "warning",
            reason=f"Nothing in the guest runs fstrim. {_AT_ONCE}"
            if at_once
            else "The guest does not trim by itself: there is no systemd, and no cron job runs "
            "fstrim.",
            remedy="Set linux_guest_manage_trim: true.",
        )
    elif foreign and len(foreign) < len(state.cron_jobs):
        yield Finding(
            id="guest-cron-fstrim",
            severity="warning",
            reason=f"Cron runs fstrim more than once: {_jobs(foreign)}, and the role's own job.",
            remedy="Set linux_guest_cron_jobs: remove.",
        )


def _agent(state: GuestState) -> _Found:
    if not state.agent_installed:
        yield Finding(
            id="guest-agent-missing",
            severity="warning",
            reason="qemu-guest-agent is not installed, so the host cannot have the guest trim.",
            remedy="Set linux_guest_manage_agent: true.",
        )
    elif not state.agent_running:
        yield Finding(
            id="guest-agent-stopped",
            severity="warning",
            reason="qemu-guest-agent does not run, so the host cannot have the guest trim.",
            remedy="Set linux_guest_manage_agent: true. If it will not start, the domain has no "
            "virtio channel org.qemu.guest_agent.0.",
        )
    if state.selinux_enforcing and state.selinux_agent is False:
        yield Finding(
            id="guest-selinux-agent",
            severity="warning",
            reason="SELinux keeps the agent from file systems with other labels: "
            "virt_qemu_ga_read_nonsecurity_files is off.",
            remedy="Set linux_guest_manage_agent: true.",
        )


def _initramfs(state: GuestState) -> _Found:
    initramfs = state.initramfs
    if initramfs.virtio_scsi is False:
        yield Finding(
            id="guest-initramfs-without-virtio-scsi",
            severity="warning",
            reason=f"{shown(initramfs.path)} lacks virtio_scsi: the guest would not boot from a "
            "disk on virtio-scsi.",
            remedy="Set linux_guest_manage_initramfs: true.",
        )
    elif initramfs.virtio_scsi is None:
        yield Finding(
            id="guest-initramfs-unknown",
            severity="info",
            reason="Whether the guest could boot from virtio-scsi is not known: its initial RAM "
            "disk could not be examined.",
            remedy="Look for virtio_scsi in it before the disk's bus is changed.",
        )


def _listed(names: t.Sequence[str]) -> str:
    parts = [shown(name) for name in sorted(set(names))[:5]]
    more = len(set(names)) - len(parts)
    return ", ".join(parts) + (f" and {more} more" if more > 0 else "")


def _jobs(jobs: t.Iterable[t.Any]) -> str:
    return _listed([f"{job.path}:{job.line}" if job.line else job.path for job in jobs])
