# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compact the disks of domains, while they are shut off, or while they run."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._compaction.outcome import (
    DiskOutcome,
    Outcome,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._discard import trim
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import (
    died,
    disk_safety,
    known_disk,
    policy,
    restart,
    running_qemu,
    startable,
    xml,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import (
    Guest,
    Hypervisor,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.one_run import only_run
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.turns import side_by_side
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.usage import Users
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    HypervisorError,
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import compact
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact_policy import (
    Request,
    obstacles_to,
    refuse_obstacles,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.disk_links import followed
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.estimate import estimate
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.files import open_image
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.progress import progress_logger
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.replace import Stages
from ansible_collections.thinvirt.kvm.plugins.module_utils._live import policy as live_policy
from ansible_collections.thinvirt.kvm.plugins.module_utils._live import recovery as live_recovery
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.checks import (
    Bounds,
    WriteRate,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.live import (
    LiveCompaction,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.move import Move
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import is_stopping

#: Seconds that a guest may take to trim; one that is not done by then goes on trimming.
_TRIM_SECONDS = 600


@dataclasses.dataclass
class Compactor:
    """How the disks of a host's domains are compacted.

    :param disks: targets or globs; empty for every disk that can be thin.
    :param power: ``keep`` leaves running guests alone, ``cycle`` shuts them down meanwhile,
        ``live`` compacts their disks as they run.
    :param only_recover: end or undo what killed runs have left, and nothing else.
    :param trim: have guests trim first, with ``live``.
    :param accept_transient: consent to ``live`` on domains without a configuration.
    :param bandwidth_bytes: what each copy may move in a second, with ``live``; 0 for no limit.
    :param shutdown_timeout: seconds for a guest to power off, and again to come back.
    :param parallel: how many domains at once have disks on one file system worked on.
    """

    hypervisor: Hypervisor
    request: Request
    disks: t.Sequence[str]
    power: str
    shutdown_timeout: int
    parallel: int
    check_mode: bool
    log: t.Callable[[str], None]
    only_recover: bool = False
    trim: bool = True
    accept_transient: bool = False
    bandwidth_bytes: int = 0
    _users: Users = dataclasses.field(init=False)

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
                with self._alone(guest):
                    outcome.recovered = live_recovery.recover(
                        self.hypervisor, guest, log=self.log, check_mode=self.check_mode
                    )
                configured = xml.parse_domain(guest.configured_xml(with_secrets=False))
                read.append((outcome, configured))
            except ThinvirtError as error:
                outcome.status, outcome.error = "failed", error
        if self.only_recover:
            return outcomes
        policy.refuse_unknown_disks([configured for _outcome, configured in read], self.disks)
        self._users = Users(self.hypervisor)
        # All file systems of a domain before it begins: a guest must not be off while it waits.
        pieces = [(pair, self._file_systems(pair[1])) for pair in read]
        side_by_side(self._domain_or_error, pieces, each=self.parallel)
        return outcomes

    def _file_systems(self, domain: xml.Domain) -> frozenset[int]:
        """Where the disks lie, and go, that are to be worked on; those not to be found, nowhere."""
        devices = {os.stat(self.request.dest_dir).st_dev} if self.request.dest_dir else set()
        for disk in policy.choose_disks(domain, self.disks):
            with contextlib.suppress(HypervisorError, OSError):
                devices.add(os.stat(self.hypervisor.disk_path(disk)).st_dev)
        return frozenset(devices)

    def _alone(self, guest: Guest) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.check_mode else only_run(guest)

    def _domain_or_error(self, piece: tuple[Outcome, xml.Domain]) -> None:
        outcome, _before = piece
        try:
            with self._alone(outcome.guest):
                # Hours may have passed with others.
                configured = xml.parse_domain(outcome.guest.configured_xml(with_secrets=False))
                self._domain(outcome, configured)
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
                outcome.restarted = restart.start_forgotten(guest)

    def _compact(self, outcome: Outcome, configured: xml.Domain) -> None:
        guest = outcome.guest
        if not guest.is_active():
            outcome.disks = self._disks(guest, configured, check_mode=self.check_mode)
            return
        live = xml.parse_domain(guest.live_xml())
        if self.power == "keep":
            outcome.status, outcome.reason = "skipped", "The domain is running."
            return
        if self.power == "live":
            with died.kept_alive(
                guest, ran=not self.check_mode, settle=lambda: self._settle(outcome)
            ):
                self._compact_live(outcome, configured, live)
            return
        planned = self._disks(guest, configured, check_mode=True, running=True)
        worth_it = any(disk.outcome and disk.outcome.changed for disk in planned)
        if worth_it:
            restart.refuse_no_return(guest, configured, live)
            startable.refuse(guest, guest.configured_xml(with_secrets=False))
        if self.check_mode or not worth_it:
            outcome.disks = planned
            outcome.reason = "" if self.check_mode else "Nothing is worth a shutdown."
            return
        begin = time.monotonic()
        with restart.shut_down_meanwhile(
            guest, timeout=self.shutdown_timeout, expect_agent=live.agent_connected
        ):
            outcome.downtime_seconds = time.monotonic() - begin
            outcome.disks = self._disks(guest, configured, check_mode=False)
        outcome.downtime_seconds = time.monotonic() - begin

    def _compact_live(self, outcome: Outcome, configured: xml.Domain, live: xml.Domain) -> None:
        guest = outcome.guest
        live_policy.refuse_host(self.hypervisor.versions())
        live_policy.refuse_domain(
            guest.name,
            persistent=guest.is_persistent(),
            accept_transient=self.accept_transient,
            busy=bool(guest.job_name()),
        )
        if self.check_mode and self.trim:
            outcome.reason = "The guest would be asked to trim first; what that gives is not known."
        elif self.trim:
            self._trim(outcome)
        chosen = [
            (disk, self._estimated(outcome, disk, live))
            for disk in policy.choose_disks(configured, self.disks)
        ]
        outcome.disks = [done for _disk, done in chosen]
        # What gives back most comes first: the next ones have that space as well.
        for disk, done in sorted(chosen, key=lambda pair: -_gain(pair[1])):
            if done.outcome is not None and done.outcome.changed and not is_stopping():
                self._in_its_turn(outcome, disk.target, done)

    def _in_its_turn(self, outcome: Outcome, target: str, done: DiskOutcome) -> None:
        """Plan a disk anew, and carry that out: others may have been at work while it waited."""
        guest, planned = outcome.guest, done.outcome
        try:
            disk = xml.parse_domain(guest.configured_xml(with_secrets=False)).disk(target)
            if disk is None:
                raise RefusedError(
                    f"Disk {target} of domain {guest.name} was taken out of its configuration "
                    "meanwhile; nothing was changed.",
                    remedy="Run it again.",
                )
            done.path = self._live_path(guest, disk, xml.parse_domain(guest.live_xml()))
            if planned is None or os.path.realpath(done.path) != planned.path:
                done.outcome = self._live_estimate(guest, disk, done.path)
            else:  # what it gives was read from the same file
                with open_image(_followed(disk, done.path)) as image:
                    obstacles = Users(self.hypervisor).obstacles(image, off=guest.uuid)
                    users = obstacles_to(obstacles, disk.format)
                    refuse_obstacles(done.path, users, punch=False)
        except ThinvirtError as error:
            done.outcome, done.error = None, error
            return
        if done.outcome is not None and done.outcome.changed:
            self._carry_out(guest, disk, done)

    def _settle(self, outcome: Outcome) -> None:
        """What our own work could not end while the guest was dying."""
        outcome.recovered += live_recovery.recover(
            self.hypervisor, outcome.guest, log=self.log, check_mode=False
        )

    def _trim(self, outcome: Outcome) -> None:
        """Dead blocks go before they are copied; a guest that can't is compacted nevertheless."""
        (trimmed,) = trim.trim_all(
            self.hypervisor,
            [outcome.guest],
            minimum_bytes=0,
            timeout=_TRIM_SECONDS,
            parallel=1,
            check_mode=False,
        )
        if trimmed.error is None:
            outcome.trimmed_bytes = trimmed.freed_bytes
        else:
            outcome.reason = f"It was not trimmed first: {trimmed.error}"

    def _estimated(self, outcome: Outcome, disk: xml.Disk, live: xml.Domain) -> DiskOutcome:
        done = DiskOutcome(disk.target, disk.path)
        try:
            done.path = self._live_path(outcome.guest, disk, live)
            done.writes = WriteRate(outcome.guest, disk.target)
            done.outcome = self._live_estimate(outcome.guest, disk, done.path)
        except ThinvirtError as error:
            done.error = error
        return done

    def _live_path(self, guest: Guest, disk: xml.Disk, live: xml.Domain) -> str:
        """The image of a running domain's disk, if nothing in the XML forbids to compact it."""
        path = self.hypervisor.disk_path(disk)
        running = live.disk(disk.target)
        if running is None:
            raise RefusedError(
                f"Refused: disk {disk.target} of domain {live.name} is not plugged in; nothing "
                "was changed.",
                remedy="Leave it out of disks until the domain is shut off.",
            )
        live_policy.refuse_disk(live.name, running)
        _refuse_foreign(live.name, disk, path)
        disk_safety.refuse_disks(
            guest.live_xml(),
            [disk.target],
            known_disk.LIVE,
            qemu=lambda: running_qemu.version_of(live),
        )
        now = self.hypervisor.disk_path(running)
        if now and os.path.realpath(now) != os.path.realpath(path):
            live_policy.refuse_moved(live.name, disk.target)
        return path

    def _live_estimate(self, guest: Guest, disk: xml.Disk, path: str) -> compact.Outcome:
        found = estimate(
            _followed(disk, path),
            self._live_request(disk),
            obstacles=functools.partial(self._users.obstacles, off=guest.uuid),
            stages=Stages(report=progress_logger(path, self.log)),
        )
        if found.changed:
            found.method = "live"
        return found

    def _live_request(self, disk: xml.Disk) -> Request:
        return dataclasses.replace(self.request, image_format=disk.format, method="rewrite")

    def _carry_out(self, guest: Guest, disk: xml.Disk, done: DiskOutcome) -> None:
        if done.outcome is None:
            return
        estimated, path = done.outcome, done.outcome.path
        try:
            source = xml.source_of(
                guest.configured_xml(with_secrets=False),
                disk.target,
                with_backing=not self.request.flatten,  # libvirt reads it in the images' headers
            )
            work = LiveCompaction(
                self.hypervisor,
                guest,
                disk,
                path,
                source=source,
                request=self._live_request(disk),
                bounds=Bounds(
                    self.bandwidth_bytes, done.writes.bytes_per_second() if done.writes else 0.0
                ),
                stages=Stages(report=progress_logger(path, self.log)),
            )
            if self.check_mode:
                work.refuse()
                return
            done.live = work.live
            done.outcome = dataclasses.replace(estimated, method="none", after=estimated.before)
            with done.outcome.witnessed(self.request.dest_dir or os.path.dirname(path)):
                work.carry_out(done.outcome)
        except ThinvirtError as error:
            done.error = error

    def _disks(
        self, guest: Guest, domain: xml.Domain, *, check_mode: bool, running: bool = False
    ) -> list[DiskOutcome]:
        done = []
        for disk in policy.choose_disks(domain, self.disks):
            if not (check_mode or running):  # others may have been at work while it waited
                domain = xml.parse_domain(guest.configured_xml(with_secrets=False))
            now = domain.disk(disk.target) or disk
            done.append(self._disk(guest, domain, now, check_mode=check_mode, running=running))
        return done

    def _disk(
        self,
        guest: Guest,
        domain: xml.Domain,
        disk: xml.Disk,
        *,
        check_mode: bool,
        running: bool,
    ) -> DiskOutcome:
        done = DiskOutcome(disk.target, disk.path)
        try:
            done.path = self.hypervisor.disk_path(disk)
            _refuse_foreign(domain.name, disk, done.path)
            path = _followed(disk, done.path)
            disk_safety.refuse_disks(
                guest.configured_xml(with_secrets=False), [disk.target], known_disk.COMPACT_OFF
            )
            request = dataclasses.replace(self.request, image_format=disk.format or "raw")
            stages = Stages(report=progress_logger(done.path, self.log))
            if running:
                obstacles = functools.partial(self._users.obstacles, off=domain.uuid)
                done.outcome = estimate(path, request, obstacles=obstacles, stages=stages)
            elif request.moves(os.path.realpath(path)):
                done.outcome = self._moved(guest, disk, path, request, stages)
            else:
                done.outcome = compact.compact(
                    path,
                    request,
                    obstacles=self._users.obstacles,
                    check_mode=check_mode,
                    stages=stages,
                )
        except ThinvirtError as error:
            done.error = error
        return done

    def _moved(
        self, guest: Guest, disk: xml.Disk, path: str, request: Request, stages: Stages
    ) -> compact.Outcome:
        """The disk of a domain that is shut off, in another folder."""
        request = dataclasses.replace(request, method="rewrite")
        outcome = estimate(path, request, obstacles=self._users.obstacles, stages=stages)
        move = Move(
            self.hypervisor, guest, disk.target, outcome.path, request=request, stages=stages
        )
        if self.check_mode:
            move.refuse()
        else:
            outcome = dataclasses.replace(outcome, method="none", after=outcome.before)
            with outcome.witnessed(request.dest_dir):
                move.carry_out(outcome)
        return outcome


def _gain(done: DiskOutcome) -> int:
    return (done.outcome.reclaimable_bytes or 0) if done.outcome is not None else 0


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


def _followed(disk: xml.Disk, path: str) -> str:
    return followed(path, image_format=disk.format or "raw")
