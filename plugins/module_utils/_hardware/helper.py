# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Give domains a helper disk and a CD drive for a while, and take exactly these away again.

The file of the disk is made before the domain names it, and removed when no QEMU has it any more.
Its name follows from the domain's, so whoever comes next finds what a killed run has left.
"""

from __future__ import annotations

import dataclasses
import os
import stat
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import (
    died,
    policy,
    redefine,
    restart,
    startable,
    xml,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import (
    Guest,
    Hypervisor,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware import (
    compare,
    helper_xml,
    reconfigure,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._plan import Change
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import (
    signals_wait,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.trust import (
    refuse_exchangeable,
)

SIZE_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for.

    :param present: False takes away what is ours.
    :param disk: with a helper disk.
    :param iso: absolute path of what is in the CD drive; empty for no drive.
    :param folder: where the helper disk's file lies; empty for beside the first disk.
    :param power: ``keep`` leaves a running guest as it is until its next start, ``cycle`` shuts it
        down and starts it again.
    :param timeout: seconds for it to power off, and again to come back.
    """

    present: bool
    disk: bool = True
    iso: str = ""
    folder: str = ""
    power: str = "keep"
    timeout: int = 300


@dataclasses.dataclass
class Outcome:
    """One domain: what was decided, and what became of it.

    :param now: the configured XML, with secrets; never part of a result.
    :param after: the XML that is to be defined; empty if nothing is.
    :param file: of the helper disk; empty if none is wanted or known.
    :param make: the file is to be made.
    :param remove: the file is to be removed, once no QEMU has it.
    :param restart_required: a QEMU runs that does not have what is configured.
    """

    guest: Guest
    now: str = ""
    after: str = ""
    file: str = ""
    make: bool = False
    remove: bool = False
    restart_required: bool = False
    agent_connected: bool = False
    changes: tuple[Change, ...] = ()
    done: restart.Done = dataclasses.field(default_factory=restart.Done)
    written: bool = False
    defined: bool = False
    removed: bool = False
    cycle: bool = False
    error: ThinvirtError | None = None

    @property
    def changed(self) -> bool:
        """What the plan says; once something went wrong, what was done until then."""
        if self.error is not None:
            return self.written or self.removed or bool(self.done.actions)
        return bool(self.changes) or self.cycle

    def result(self) -> dict[str, t.Any]:
        """The domain's entry in the module's ``domains``."""
        entry = {
            "name": self.guest.name,
            "uuid": self.guest.uuid,
            "changed": self.changed,
            "actions": list(self.done.actions),
        }
        if self.error is not None:
            return {**entry, "error": self.error.result()}
        devices = helper_xml.devices(self.after or self.now)
        return {
            **entry,
            "helper_disk": devices.disk,
            "iso": devices.cd,
            "targets": list(devices.targets),
            "restart_required": self.restart_required and "started" not in self.done.actions,
            "file_left": self.file if self.remove and not self.removed else "",
        }


def decide(hypervisor: Hypervisor, domains: t.Sequence[str], request: Request) -> list[Outcome]:
    """Read every chosen domain and plan; nothing is changed.

    :raises ThinvirtError: a domain that was named or the ISO does not exist.
    """
    if request.iso:
        _refuse_no_file(request.iso)
    outcomes = []
    for guest in hypervisor.guests(domains):
        outcome = Outcome(guest)
        outcomes.append(outcome)
        try:
            _plan(hypervisor, outcome, request)
        except ThinvirtError as error:
            outcome.after, outcome.changes, outcome.error = "", (), error
    return outcomes


def _plan(hypervisor: Hypervisor, outcome: Outcome, request: Request) -> None:
    guest = outcome.guest
    outcome.now = guest.configured_xml(with_secrets=True)
    configured = xml.parse_domain(outcome.now)
    restart.is_forgotten(configured)  # refuses while another run is at work
    had = helper_xml.devices(outcome.now)
    outcome.file = had.disk or _file_name(hypervisor, configured, request)
    if request.present:
        wanted = outcome.file if request.disk else ""
        after = helper_xml.with_devices(outcome.now, disk=wanted, iso=request.iso)
        outcome.make = bool(wanted) and not _is_ours(wanted)
    else:
        after = helper_xml.without_devices(outcome.now)
        outcome.remove = bool(outcome.file) and _is_ours(outcome.file)
    if outcome.make or outcome.remove:
        refuse_exchangeable(outcome.file)
    has = helper_xml.devices(after)
    _plan_restart(outcome, configured, has, request)
    if after != outcome.now:
        reconfigure.refuse_unfit(guest, "its devices cannot be changed", may_run=True)
        outcome.after = after
    name = guest.name
    outcome.changes = tuple(
        Change(name, setting, before or None, afterwards or None)
        for setting, before, afterwards in (
            ("helper disk", had.disk, has.disk),
            ("CD drive", had.cd, has.cd),
            (
                f"file {outcome.file}",
                "present" if outcome.remove else None,
                "present" if outcome.make else None,
            ),
        )
        if (before or None) != (afterwards or None)
    )
    if outcome.remove and outcome.restart_required and not outcome.cycle:  # it is in use, and stays
        outcome.changes = tuple(c for c in outcome.changes if not c.setting.startswith("file "))


def _plan_restart(
    outcome: Outcome, configured: xml.Domain, has: helper_xml.Devices, request: Request
) -> None:
    guest = outcome.guest
    if not guest.is_active():
        return
    live_xml = guest.live_xml()
    live = xml.parse_domain(live_xml)
    running = helper_xml.devices(live_xml)
    outcome.restart_required = (running.disk, running.cd) != (has.disk, has.cd)
    outcome.agent_connected = live.agent_connected
    outcome.cycle = outcome.restart_required and request.power == "cycle"
    if outcome.cycle:
        others = tuple(disk for disk in live.disks if disk.target not in running.targets)
        restart.refuse_no_return(guest, configured, dataclasses.replace(live, disks=others))
        startable.refuse(guest, outcome.now)


def carry_out(hypervisor: Hypervisor, outcome: Outcome, request: Request) -> None:
    """Apply one domain's plan; its error, if any, is kept in the outcome."""
    if outcome.error is not None:
        return
    try:
        if outcome.cycle:
            startable.refuse(outcome.guest, outcome.now)
        if outcome.make:
            with signals_wait():
                _make(outcome.file)
                outcome.written = True
        if outcome.after:
            with signals_wait():
                redefine.redefine(
                    hypervisor,
                    outcome.guest,
                    before=outcome.now,
                    after=outcome.after,
                    is_as_wanted=lambda found: compare.is_kept(outcome.after, found),
                )
                outcome.written = outcome.defined = True
        if outcome.cycle:
            with died.kept_alive(outcome.guest, ran=True):
                restart.power_cycle(
                    outcome.guest,
                    timeout=request.timeout,
                    expect_agent=outcome.agent_connected,
                    done=outcome.done,
                )
        if outcome.remove and not _is_in_use(outcome.guest, outcome.file):
            _remove(outcome.file)
            outcome.removed = True
    except ThinvirtError as error:
        outcome.error = error
    finally:
        if outcome.make and outcome.written and not outcome.defined:
            _remove(outcome.file)
            outcome.written = False


def _file_name(hypervisor: Hypervisor, configured: xml.Domain, request: Request) -> str:
    """Where the file lies: beside the first disk of the domain that is a file.

    :raises RefusedError: there is none, and it is needed.
    """
    folder = request.folder
    if not folder:
        for disk in policy.choose_disks(configured, ()):
            path = hypervisor.disk_path(disk) if disk.source_type != "block" else ""
            if path:
                folder = os.path.dirname(path)
                break
    if folder and "/" not in configured.name:
        return os.path.join(folder, f"{configured.name}-thinvirt-helper.img")
    if request.present and request.disk:
        raise RefusedError(
            f"Refused: domain {configured.name} has no disk in a file beside which its helper disk "
            "could lie; nothing was changed.",
            remedy="Name a folder with dir.",
        )
    return ""


def _refuse_no_file(path: str) -> None:
    try:
        is_file = os.path.isabs(path) and stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        raise failure(path, "read", error) from error
    if not is_file:
        raise RefusedError(
            f"{shown(path)} is no absolute path of a file on this host; nothing was changed.",
            remedy="Put the ISO on the hypervisor and name it from / on.",
        )


def _is_ours(path: str) -> bool:
    """Whether the file is there, as :func:`_make` makes it.

    :raises RefusedError: something else has its name.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise failure(path, "read", error) from error
    if stat.S_ISREG(status.st_mode) and status.st_size == SIZE_BYTES and status.st_nlink == 1:
        return True
    raise RefusedError(
        f"Refused: {shown(path)} is not a helper disk of this collection's ({SIZE_BYTES} bytes); "
        "nothing was changed.",
        remedy="Find out what it is, and move it away.",
    )


def _make(path: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    temp = f"{path}.{os.getpid()}"
    try:
        fd = os.open(temp, flags, 0o600)
        try:
            os.ftruncate(fd, SIZE_BYTES)
        finally:
            os.close(fd)
        try:
            os.link(temp, path)  # never over what has come meanwhile
        finally:
            os.unlink(temp)
    except OSError as error:
        raise failure(path, "made", error) from error


def _remove(path: str) -> None:
    if _is_ours(path):
        try:
            os.unlink(path)
        except OSError as error:
            raise failure(path, "removed", error) from error


def _is_in_use(guest: Guest, path: str) -> bool:
    return guest.is_active() and helper_xml.devices(guest.live_xml()).disk == path
