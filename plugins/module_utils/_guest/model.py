# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of a guest, seen from inside (pure)."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._guest.stack import Device
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest.tables import (
    CronJob,
    CrypttabEntry,
    FstabEntry,
)


@dataclasses.dataclass(frozen=True)
class MountedFileSystem:
    """A mounted file system on a disk of the guest, with all its mounts.

    :param devices: knames of the devices that it lies on; btrfs may have several.
    :param options: those of its mounts and its own, each once.
    :param used_bytes: what it counts as in use, None where that was not asked.
    """

    source: str
    type: str
    devices: tuple[str, ...]
    mount_points: tuple[str, ...]
    options: tuple[str, ...]
    read_only: bool
    total_bytes: int | None = None
    used_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Timer:
    """``fstrim.timer`` and ``fstrim.service`` as systemd sees them.

    :param enablement: such as ``enabled``, ``disabled``, ``masked``; empty if there is no timer.
    :param command: the argument lists that the service runs, one after the other.
    :param needs_reload: their files have changed since systemd read them.
    :param own_conf: text of the role's drop-in of the timer, empty if there is none.
    :param own_service_conf: the same of the service.
    """

    enablement: str = ""
    active: bool = False
    calendar: tuple[str, ...] = ()
    delay_seconds: int | None = None
    command: tuple[tuple[str, ...], ...] = ()
    needs_reload: bool = False
    own_conf: str = ""
    own_service_conf: str = ""

    @property
    def runs(self) -> bool:
        """It fires, and will after a reboot."""
        return self.active and self.enablement.startswith(("enabled", "static"))


@dataclasses.dataclass(frozen=True)
class Initramfs:
    """The initial RAM disk of the running kernel.

    :param generator: ``initramfs-tools``, ``dracut``, ``mkinitcpio``, ``mkinitfs``, or empty.
    :param virtio_scsi: whether it (or the kernel itself) has the driver; None if unknown.
    :param older_than_crypttab: it may hold an older copy of what opens the root.
    """

    generator: str = ""
    path: str = ""
    virtio_scsi: bool | None = None
    older_than_crypttab: bool = False


@dataclasses.dataclass(frozen=True)
class GuestState:
    """All that was read.

    :param timer: None where systemd is not what runs the system.
    :param agent_enabled: systemd starts the agent by itself; None without systemd.
    :param hardware_max_bytes: of each disk, the largest discard that the hardware takes.
    :param selinux_enforcing: SELinux is there and enforces.
    :param selinux_agent: the boolean that the agent's trim needs; None if the policy lacks it.
    """

    kernel: str
    devices: t.Mapping[str, Device]
    file_systems: tuple[MountedFileSystem, ...]
    fstab: tuple[FstabEntry, ...] = ()
    crypttab: tuple[CrypttabEntry, ...] = ()
    timer: Timer | None = None
    cron_jobs: tuple[CronJob, ...] = ()
    agent_installed: bool = False
    agent_running: bool = False
    agent_enabled: bool | None = None
    selinux_enforcing: bool = False
    selinux_agent: bool | None = None
    initramfs: Initramfs = Initramfs()
    hardware_max_bytes: t.Mapping[str, int] = dataclasses.field(default_factory=dict)
