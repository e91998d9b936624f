# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read a Linux guest from inside: devices, mounts, tables, timer, agent.  Changes nothing."""

from __future__ import annotations

import dataclasses
import glob
import os
import re
import stat
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._guest import initramfs, stack, tables
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest.model import (
    GuestState,
    MountedFileSystem,
    Timer,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest.reading import (
    output_of,
    read_text,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import process
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.filesystem import (
    Mount,
    parse_mountinfo,
)

#: Nothing to trim: read-only by nature, or another kernel's business.
_NOT_TRIMMED = {"squashfs", "iso9660", "udf", "erofs", "cramfs", "romfs", "swap"}
#: What a chain has to end in to be a disk of the guest; loop devices, zram and CD-ROMs are not.
_DISKS = {"disk", "mpath"}
_AGENTS = ("/usr/sbin/qemu-ga", "/usr/bin/qemu-ga", "/usr/libexec/qemu-ga")
_SELINUX_BOOLEAN = "/sys/fs/selinux/booleans/virt_qemu_ga_read_nonsecurity_files"
#: Files that hold crontab lines, and folders of scripts.  Debian, RHEL, SUSE, Alpine.
_CRONTABS = (
    "/etc/crontab",
    "/etc/cron.d/*",
    "/etc/crontabs/root",
    "/var/spool/cron/crontabs/root",
    "/var/spool/cron/tabs/root",
    "/var/spool/cron/root",
)
_SCRIPTS = ("/etc/cron.hourly/*", "/etc/cron.daily/*", "/etc/cron.weekly/*", "/etc/cron.monthly/*")
_PERIODIC = ("/etc/periodic/*/*",)
#: More files than any sane guest has in these places.
MAX_CRON_FILES = 500
#: Drop-ins that the role writes.
_OWN_CONF = "/etc/systemd/system/fstrim.timer.d/thinvirt.conf"
_OWN_SERVICE_CONF = "/etc/systemd/system/fstrim.service.d/thinvirt.conf"


def guest_state(*, with_initramfs: bool = True) -> GuestState:
    """All that is to be known of this system.

    :param with_initramfs: look into the initial RAM disk, which takes a second or two.
    :raises RequirementError: lsblk is missing.
    :raises ThinvirtError: what lsblk or the kernel prints is not understood.
    """
    kernel = os.uname().release
    with_systemd = os.path.isdir("/run/systemd/system")  # sd_booted(3)
    columns = ",".join(stack.COLUMNS)
    lsblk = process.find_program("lsblk", package="util-linux")
    # Not --all: devices without a size are nothing that a file system lies on.
    devices = stack.parse_lsblk(output_of([lsblk, "--json", "--bytes", "--output", columns]))
    mounts = parse_mountinfo(read_text("/proc/self/mountinfo", limit=1 << 24)).values()
    return GuestState(
        kernel=kernel,
        devices=devices,
        file_systems=_with_figures(mounted(mounts, devices, names=_names(mounts))),
        fstab=tables.parse_fstab(read_text("/etc/fstab", missing="")),
        crypttab=tables.parse_crypttab(read_text("/etc/crypttab", missing="")),
        timer=_timer() if with_systemd else None,
        cron_jobs=_cron_jobs(),
        agent_installed=any(os.path.exists(path) for path in _AGENTS),
        agent_running=_runs("qemu-ga"),
        agent_enabled=_agent_enabled() if with_systemd else None,
        selinux_enforcing=read_text("/sys/fs/selinux/enforce", missing="0").strip() == "1",
        selinux_agent=_selinux_boolean(read_text(_SELINUX_BOOLEAN, missing="")),
        initramfs=initramfs.examine(kernel) if with_initramfs else initramfs.unknown(),
        hardware_max_bytes={name: _hardware_max(name) for name in devices},
    )


def mounted(
    mounts: t.Iterable[Mount], devices: stack.Devices, *, names: t.Mapping[str, str]
) -> tuple[MountedFileSystem, ...]:
    """The file systems that lie on disks, in the order of their first mounts (pure).

    :param names: knames of the devices that mounts name as their sources.
    """
    numbers = {device.number: device.kname for device in devices.values()}
    found: dict[tuple[str, ...], MountedFileSystem] = {}
    for mount in mounts:
        # btrfs has device numbers of its own, which no block device bears.
        kname = numbers.get(mount.device) or names.get(mount.source, "")
        if kname not in devices or mount.type in _NOT_TRIMMED or not _on_disk(devices, kname):
            continue
        key = _members(devices, kname)
        known = found.get(key)
        options = (*(known.options if known else ()), *mount.options, *mount.super_options)
        found[key] = MountedFileSystem(
            source=known.source if known else mount.source,
            type=mount.type,
            devices=key,
            mount_points=(*(known.mount_points if known else ()), mount.mount_point),
            options=tuple(dict.fromkeys(options)),
            read_only=mount.read_only and (known is None or known.read_only),
        )
    return tuple(found.values())


def _members(devices: stack.Devices, kname: str) -> tuple[str, ...]:
    """All devices of a file system that may span several."""
    device = devices[kname]
    if device.fstype != "btrfs" or not device.uuid:
        return (kname,)
    return tuple(
        sorted(
            other.kname
            for other in devices.values()
            if (other.fstype, other.uuid) == ("btrfs", device.uuid)
        )
    )


def _on_disk(devices: stack.Devices, kname: str) -> bool:
    ends = [link for link in stack.links(devices, kname) if not link.below]
    return any(link.type in _DISKS and not link.kname.startswith("zram") for link in ends)


def _names(mounts: t.Iterable[Mount]) -> dict[str, str]:
    sources = {mount.source for mount in mounts if mount.source.startswith("/dev/")}
    return {source: os.path.basename(os.path.realpath(source)) for source in sources}


def _with_figures(systems: t.Iterable[MountedFileSystem]) -> tuple[MountedFileSystem, ...]:
    return tuple(map(_with_figure, systems))


def _with_figure(system: MountedFileSystem) -> MountedFileSystem:
    if system.type.startswith("fuse"):
        return system  # a program answers, or never does
    try:
        figures = os.statvfs(system.mount_points[0])
    except OSError:
        return system
    return dataclasses.replace(
        system,
        total_bytes=figures.f_blocks * figures.f_frsize,
        used_bytes=(figures.f_blocks - figures.f_bfree) * figures.f_frsize,
    )


def _systemctl_show(unit: str, properties: str) -> str:
    systemctl = process.find_program("systemctl", package="systemd")
    return output_of([systemctl, "show", unit, f"--property={properties}"])


def _timer() -> Timer:
    names = "LoadState,UnitFileState,ActiveState,TimersCalendar,RandomizedDelayUSec"
    timer = _systemctl_show("fstrim.timer", f"{names},NeedDaemonReload")
    service = _systemctl_show("fstrim.service", "ExecStart,NeedDaemonReload")
    return dataclasses.replace(
        parse_timer(timer, service),
        own_conf=read_text(_OWN_CONF, missing=""),
        own_service_conf=read_text(_OWN_SERVICE_CONF, missing=""),
    )


def _agent_enabled() -> bool:
    """Debian's unit is static: udev starts it with the virtio port."""
    state = _systemctl_show("qemu-guest-agent.service", "UnitFileState")
    return state.strip().partition("=")[2] in ("enabled", "static")


def parse_timer(timer: str, service: str) -> Timer:
    """``systemctl show`` of fstrim.timer and fstrim.service (pure)."""
    values = dict(line.partition("=")[::2] for line in timer.splitlines())
    if values.get("LoadState") == "not-found":
        return Timer()
    enablement = "masked" if values.get("LoadState") == "masked" else values.get("UnitFileState")
    commands = re.findall(r"argv\[\]=(.*?) ; ignore_errors=", service)
    calendar = re.findall(r"OnCalendar=(.*?) ; ", timer)
    return Timer(
        enablement=enablement or "",
        active=values.get("ActiveState") == "active",
        calendar=tuple(calendar),
        delay_seconds=_seconds(values.get("RandomizedDelayUSec", "")),
        command=tuple(tuple(command.split()) for command in commands),
        needs_reload="NeedDaemonReload=yes" in (*timer.splitlines(), *service.splitlines()),
    )


_UNITS = {"w": 604800, "d": 86400, "h": 3600, "min": 60, "s": 1, "month": 2629800, "y": 31557600}


def _seconds(span: str) -> int | None:
    """A time span as systemd prints it, such as ``1h 40min``."""
    total = 0
    for word in span.split():
        match = re.fullmatch(r"(\d+)([a-z]+)", word)
        if match is None or match[2] not in _UNITS:
            return 0 if word in ("0", "infinity") or match else None
        total += int(match[1]) * _UNITS[match[2]]
    return total if span else None


def _cron_jobs() -> tuple[tables.CronJob, ...]:
    found: list[tables.CronJob] = []
    for patterns, parse in (
        (_CRONTABS, tables.crontab_jobs),
        ((*_SCRIPTS, *_PERIODIC), tables.script_jobs),
    ):
        paths = sorted(path for pattern in patterns for path in glob.glob(pattern))
        for path in paths[:MAX_CRON_FILES]:
            found += parse(path, read_text(path, missing=""))
    return tuple(found)


def _runs(program: str) -> bool:
    numbers = (name for name in os.listdir("/proc") if name.isdigit())
    return any(
        read_text(f"/proc/{number}/comm", missing="").strip() == program for number in numbers
    )


def _selinux_boolean(text: str) -> bool | None:
    """``1 1``: as it is, and as it will be once changes are committed."""
    return text.split(maxsplit=1)[0] == "1" if text.split() else None


def _hardware_max(kname: str) -> int:
    if not stat.S_ISDIR(_mode(f"/sys/block/{kname}")):
        return 0
    text = read_text(f"/sys/block/{kname}/queue/discard_max_hw_bytes", missing="0").strip()
    return int(text) if text.isdecimal() and len(text) <= 20 else 0


def _mode(path: str) -> int:
    try:
        return os.stat(path).st_mode
    except OSError:
        return 0
