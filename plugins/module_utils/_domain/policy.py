# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which discard settings a domain's disks get (pure).

Reading is done before, applying afterwards: here it is only decided, so that check
mode, diff and a real run cannot differ.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.select import (
    is_glob,
    select,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.xml import (
    Disk,
    DiskSettings,
    Domain,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    NotFoundError,
    RefusedError,
    UnsupportedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._findings import Finding
from ansible_collections.thinvirt.kvm.plugins.module_utils._plan import Change

Version = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Versions:
    """Who we talk to.

    :param libvirt: version of the daemon.
    :param hypervisor: version of QEMU; meaningless for the test driver.
    :param driver: ``QEMU``, ``TEST``, …
    """

    libvirt: Version
    hypervisor: Version
    driver: str


# https://libvirt.org/formatdomain.html names the versions of discard_no_unref and
# rotation_rate; discard_granularity has none there: its patch is of July 2023, after
# the freeze of 9.6.0, and libvirt-common 9.0 has no such attribute, 11.3 has.
_LIBVIRT_NO_UNREF: Version = (9, 5, 0)
_QEMU_NO_UNREF: Version = (8, 1, 0)
_LIBVIRT_GRANULARITY: Version = (9, 7, 0)
_LIBVIRT_ROTATION_RATE: Version = (7, 3, 0)
_ROTATION_RATE_BUSES = ("scsi", "ide", "sata")
# libvirt accepts 1 (solid state) and rpm within the range of a 16 bit SCSI field
_ROTATION_RATES = (0, 1, *range(1025, 65535))
_THIN_SOURCES = ("file", "block", "volume")


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the user asks for; None leaves a setting as it is.  See :class:`DiskSettings`."""

    discard: str | None = None
    detect_zeroes: str | None = None
    discard_no_unref: bool | None = None
    discard_granularity_bytes: int | None = None
    rotation_rate: int | None = None

    def given(self) -> dict[str, t.Any]:
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}

    def on(self, settings: DiskSettings) -> DiskSettings:
        return dataclasses.replace(settings, **self.given())


@dataclasses.dataclass(frozen=True)
class DiskPlan:
    """One disk: its configured, its wanted, and its running settings.

    :param live: settings in the running QEMU; None if the domain is off or the disk is
        not plugged in.
    :param wanted_live: what the running QEMU should have; settings that are not asked for may
        differ between live and configured, and are not our concern.
    """

    domain: str
    disk: Disk
    wanted: DiskSettings
    live: DiskSettings | None
    wanted_live: DiskSettings | None

    @property
    def restart_required(self) -> bool:
        return self.wanted_live != self.live

    def changes(self) -> list[Change]:
        before, after = dataclasses.asdict(self.disk.settings), dataclasses.asdict(self.wanted)
        return [
            Change(f"{self.domain}/{self.disk.target}", name, before[name], after[name])
            for name in before
            if before[name] != after[name]
        ]


@dataclasses.dataclass(frozen=True)
class DomainPlan:
    """All disks of one domain that are to have the wanted settings."""

    name: str
    uuid: str
    active: bool
    disks: tuple[DiskPlan, ...]

    def changes(self) -> list[Change]:
        return [change for disk in self.disks for change in disk.changes()]

    def settings(self) -> dict[str, DiskSettings]:
        return {plan.disk.target: plan.wanted for plan in self.disks}

    @property
    def restart_required(self) -> bool:
        return any(disk.restart_required for disk in self.disks)


def is_written(disk: Disk) -> bool:
    """A disk that a guest writes; a CD-ROM, a floppy or a read-only disk keeps what it has."""
    return disk.device in ("disk", "lun") and not disk.readonly


def is_thin_candidate(disk: Disk) -> bool:
    """A disk that a guest writes and whose space this host could get back."""
    return is_written(disk) and disk.device == "disk" and disk.source_type in _THIN_SOURCES


def passes_qemu_by(disk: Disk) -> bool:
    """The guest's discards go to a device, or to another process, that QEMU never asks."""
    return disk.device == "lun" or disk.source_type == "vhostuser"


def discard_ignored(domain: str, disk: Disk) -> Finding | None:
    """A finding if QEMU drops the discards that a guest sends to this disk."""
    if disk.settings.discard == "unmap" or passes_qemu_by(disk):
        return None
    return Finding(
        id="discard-ignored",
        severity="error",
        reason="QEMU drops the guest's discards, and the guest does not notice.",
        remedy="Set discard with thinvirt.kvm.domain_discard and power the guest off and on.",
        domain=domain,
        disk=disk.target,
    )


def choose_disks(domain: Domain, patterns: t.Sequence[str]) -> tuple[Disk, ...]:
    """The disks that the user means: every candidate, or those that match a target or glob.

    A glob means candidates only; a cdrom, a read-only or a network disk has to be named.
    """
    if not patterns:
        return tuple(disk for disk in domain.disks if is_thin_candidate(disk))
    chosen = select(patterns, [disk.target for disk in domain.disks])
    named = {target for target in chosen if not is_glob(target)}
    matched = set().union(*chosen.values())
    return tuple(
        disk
        for disk in domain.disks
        if disk.target in matched and (disk.target in named or is_thin_candidate(disk))
    )


def refuse_unknown_disks(domains: t.Iterable[Domain], patterns: t.Sequence[str]) -> None:
    """A target that was named and that no chosen domain has is a mistake."""
    known = {disk.target for domain in domains for disk in domain.disks}
    missing = [target for target in patterns if not is_glob(target) and target not in known]
    if missing:
        raise NotFoundError(
            f"None of the chosen domains has a disk {', '.join(missing)}; nothing was changed.",
            remedy="Compare with virsh domblklist.",
        )


def plan_discard(
    configured: Domain,
    live: Domain | None,
    *,
    wanted: Wanted,
    disks: t.Sequence[str],
    versions: Versions,
) -> DomainPlan:
    """Decide for one domain.

    :param configured: the domain at its next start.
    :param live: the domain as it runs, None if it is off.
    :param disks: targets or globs; empty for every disk that can be thin.
    :raises RefusedError: a setting makes no sense on a disk.
    :raises UnsupportedError: libvirt or QEMU is too old for a setting.
    """
    plans = []
    for disk in choose_disks(configured, disks):
        settings = wanted.on(disk.settings)
        _refuse(configured.name, disk, wanted=wanted, settings=settings, versions=versions)
        running = live.disk(disk.target) if live is not None else None
        plans.append(
            DiskPlan(
                domain=configured.name,
                disk=disk,
                wanted=settings,
                live=running.settings if running is not None else None,
                wanted_live=wanted.on(running.settings) if running is not None else None,
            )
        )
    return DomainPlan(
        name=configured.name, uuid=configured.uuid, active=live is not None, disks=tuple(plans)
    )


def _refuse(
    name: str, disk: Disk, *, wanted: Wanted, settings: DiskSettings, versions: Versions
) -> None:
    where = f"disk {disk.target} of domain {name}"
    if disk.device in ("cdrom", "floppy") or disk.readonly:
        raise RefusedError(
            f"Refused: {where} is read-only or removable and has no space to give back; "
            "nothing was changed.",
            remedy="Leave it out of disks.",
        )
    if settings.detect_zeroes == "unmap" and settings.discard != "unmap":
        raise RefusedError(
            f"Refused: detect_zeroes=unmap on {where} has no effect without discard=unmap; "
            "nothing was changed.",
            remedy="Set discard to unmap, or detect_zeroes to off.",
        )
    if wanted.rotation_rate:
        if disk.bus not in _ROTATION_RATE_BUSES:
            raise RefusedError(
                f"Refused: rotation_rate is unknown on bus {disk.bus} of {where}; "
                "nothing was changed.",
                remedy=f"It exists on {', '.join(_ROTATION_RATE_BUSES)} only.",
            )
        if wanted.rotation_rate not in _ROTATION_RATES:
            raise RefusedError(
                f"Refused: rotation_rate={wanted.rotation_rate} for {where} is neither 1 (solid "
                "state) nor between 1025 and 65534 rpm; nothing was changed.",
                remedy="Use 1 for a disk that should be taken for solid state.",
            )
        _need("rotation_rate", where, versions, libvirt=_LIBVIRT_ROTATION_RATE)
    if wanted.discard_no_unref:
        if disk.format != "qcow2":
            raise RefusedError(
                f"Refused: discard_no_unref concerns qcow2 clusters, and {where} is "
                f"{disk.format or 'of unknown format'}; nothing was changed.",
                remedy="Leave discard_no_unref out for this disk.",
            )
        _need("discard_no_unref", where, versions, libvirt=_LIBVIRT_NO_UNREF, qemu=_QEMU_NO_UNREF)
    if wanted.discard_granularity_bytes:
        granularity = wanted.discard_granularity_bytes
        if granularity % 512 or granularity & (granularity - 1):
            raise RefusedError(
                f"Refused: discard_granularity_bytes={granularity} for {where} is not a power of "
                "two of at least 512; nothing was changed.",
                remedy="Use for example 32768 or 65536.",
            )
        _need("discard_granularity_bytes", where, versions, libvirt=_LIBVIRT_GRANULARITY)


def _need(
    setting: str,
    where: str,
    versions: Versions,
    *,
    libvirt: Version,
    qemu: Version = (0, 0, 0),
) -> None:
    """Refuse a setting that libvirt would drop in silence or QEMU would not start with."""
    for product, needed, present in (
        ("libvirt", libvirt, versions.libvirt),
        ("QEMU", qemu, versions.hypervisor),
    ):
        if present < needed:
            raise UnsupportedError(
                f"Refused: {setting} for {where} needs {product} {_dotted(needed)}, and this "
                f"host has {_dotted(present)}; nothing was changed.",
                remedy=f"Upgrade {product}, or leave {setting} out.",
            )


def _dotted(version: Version) -> str:
    return ".".join(str(number) for number in version)
