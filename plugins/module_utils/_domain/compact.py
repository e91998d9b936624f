# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compact the disks of domains, while they are shut off."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import policy, restart, xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import (
    Guest,
    Hypervisor,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.turns import side_by_side
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.usage import Users
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    HypervisorError,
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import compact
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact_policy import Request
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.estimate import estimate
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.progress import progress_logger
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.replace import Stages
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import StoppedError


@dataclasses.dataclass
class DiskOutcome:
    """One disk: what became of its image, or why nothing did."""

    target: str
    path: str
    outcome: compact.Outcome | None = None
    error: ThinvirtError | None = None


@dataclasses.dataclass
class Outcome:
    """One domain.

    :param status: ``done``, ``skipped`` or ``failed``.
    :param forgotten: a run that was killed has left it shut down.
    :param downtime_seconds: how long a guest was off that ran before; None if it was not.
    """

    guest: Guest
    status: str = "done"
    reason: str = ""
    disks: list[DiskOutcome] = dataclasses.field(default_factory=list)
    forgotten: bool = False
    downtime_seconds: float | None = None
    error: ThinvirtError | None = None

    @property
    def changed(self) -> bool:
        return (
            self.forgotten
            or self.downtime_seconds is not None
            or any(disk.outcome.changed for disk in self.disks if disk.outcome)
        )

    def errors(self) -> list[ThinvirtError]:
        """All that went wrong, that of the domain first."""
        found = [self.error] if self.error else []
        return found + [disk.error for disk in self.disks if disk.error]


@dataclasses.dataclass(frozen=True)
class Compactor:
    """How the disks of a host's domains are compacted.

    :param disks: targets or globs; empty for every disk that can be thin.
    :param power: ``keep`` leaves running guests alone, ``cycle`` shuts them down meanwhile.
    :param shutdown_timeout: seconds for a guest to power off, and again to come back.
    :param parallel: how many domains at once have disks on one file system worked on.
    """

    hypervisor: Hypervisor
    users: Users
    request: Request
    disks: t.Sequence[str]
    power: str
    shutdown_timeout: int
    parallel: int
    check_mode: bool
    log: t.Callable[[str], None]

    def domains(self, patterns: t.Sequence[str]) -> list[Outcome]:
        """Compact the domains that match: side by side on different file systems, in turn on one.

        :raises ThinvirtError: a domain or disk that was named does not exist.
        :raises StoppedError: a signal asked to end; a guest that ran runs again.
        """
        guests = self.hypervisor.guests(patterns)
        outcomes, read = [], []
        for guest in guests:
            outcome = Outcome(guest)
            outcomes.append(outcome)
            try:
                configured = xml.parse_domain(guest.configured_xml(with_secrets=False))
                read.append((outcome, configured))
            except StoppedError:
                raise
            except ThinvirtError as error:
                outcome.status, outcome.error = "failed", error
        policy.refuse_unknown_disks([configured for _outcome, configured in read], self.disks)
        # All file systems of a domain before it begins: a guest must not be off while it waits.
        pieces = [(pair, self._file_systems(pair[1])) for pair in read]
        side_by_side(self._domain_or_error, pieces, each=self.parallel)
        return outcomes

    def _file_systems(self, domain: xml.Domain) -> frozenset[int]:
        """Where the disks lie that are to be worked on; those that can't be found, nowhere."""
        devices = set()
        for disk in policy.choose_disks(domain, self.disks):
            with contextlib.suppress(HypervisorError, OSError):
                devices.add(os.stat(self.hypervisor.disk_path(disk)).st_dev)
        return frozenset(devices)

    def _domain_or_error(self, piece: tuple[Outcome, xml.Domain]) -> None:
        outcome, configured = piece
        try:
            self._domain(outcome, configured)
        except StoppedError:
            raise
        except ThinvirtError as error:
            outcome.status, outcome.error = "failed", error
        if outcome.errors():
            outcome.status = "failed"

    def _domain(self, outcome: Outcome, configured: xml.Domain) -> None:
        guest = outcome.guest
        outcome.forgotten = restart.is_forgotten(configured)
        try:
            self._compact(outcome, configured)
        finally:
            # Its image comes first: a killed run may have left a journal of that as well.
            if outcome.forgotten and not self.check_mode:
                restart.start_forgotten(guest)

    def _compact(self, outcome: Outcome, configured: xml.Domain) -> None:
        guest = outcome.guest
        if not guest.is_active():
            outcome.disks = self._disks(configured, check_mode=self.check_mode)
            return
        live = xml.parse_domain(guest.live_xml())
        if self.power == "keep":
            outcome.status, outcome.reason = "skipped", "The domain is running."
            return
        planned = self._disks(configured, check_mode=True, running=True)
        worth_it = any(disk.outcome and disk.outcome.changed for disk in planned)
        if worth_it:
            restart.refuse_no_return(guest, configured, live)
        if self.check_mode or not worth_it:
            outcome.disks = planned
            outcome.reason = "" if self.check_mode else "Nothing is worth a shutdown."
            return
        begin = time.monotonic()
        with restart.shut_down_meanwhile(
            guest, timeout=self.shutdown_timeout, expect_agent=live.agent_connected
        ):
            outcome.downtime_seconds = time.monotonic() - begin
            outcome.disks = self._disks(configured, check_mode=False)
        outcome.downtime_seconds = time.monotonic() - begin

    def _disks(
        self, domain: xml.Domain, *, check_mode: bool, running: bool = False
    ) -> list[DiskOutcome]:
        return [
            self._disk(domain, disk, check_mode=check_mode, running=running)
            for disk in policy.choose_disks(domain, self.disks)
        ]

    def _disk(
        self, domain: xml.Domain, disk: xml.Disk, *, check_mode: bool, running: bool
    ) -> DiskOutcome:
        done = DiskOutcome(disk.target, disk.path)
        try:
            done.path = self.hypervisor.disk_path(disk)
            _refuse_foreign(domain.name, disk, done.path)
            request = dataclasses.replace(self.request, image_format=disk.format or "raw")
            stages = Stages(report=progress_logger(done.path, self.log))
            if running:
                obstacles = functools.partial(self.users.obstacles, off=domain.uuid)
                done.outcome = estimate(done.path, request, obstacles=obstacles, stages=stages)
            else:
                done.outcome = compact.compact(
                    done.path,
                    request,
                    obstacles=self.users.obstacles,
                    check_mode=check_mode,
                    stages=stages,
                )
        except StoppedError:
            raise
        except ThinvirtError as error:
            done.error = error
        return done


def _refuse_foreign(domain: str, disk: xml.Disk, path: str) -> None:
    """Refuse what is no raw or qcow2 image in a file of this host."""
    where = f"disk {disk.target} of domain {domain}"
    if not path or disk.source_type == "block":
        raise RefusedError(
            f"Refused: {where} is of type {disk.source_type}, no image file on this host; nothing "
            "was changed.",
            remedy="Have the guest trim it (thinvirt.kvm.domain_trim).",
        )
    if disk.format not in ("raw", "qcow2", ""):
        raise RefusedError(
            f"Refused: {where} has the format {disk.format}; nothing was changed.",
            remedy="Convert it to qcow2 or raw with qemu-img convert.",
        )
