# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest that was shut down or saved for our work runs again afterwards, whatever happens to us.

Before that a note goes into the domain's own metadata: it stays with the domain, survives
a reboot of the host, and needs no file.  Whoever finds such a note of a process that is no more
starts the guest and removes the note.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import (
    left_off,
    power,
    save_folder,
    xml,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import Guest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    BusyError,
    HypervisorError,
    RefusedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import signals_wait
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import typed

#: An upgrade of libvirt restarts its daemon, which takes some seconds.
_RECONNECT_SECONDS = 60.0
_RECONNECT_PAUSE_SECONDS = 1.0

#: libvirt writes the memory of a guest, which nobody can hurry; it is asked this often.
_BUSY_PAUSE_SECONDS = 1.0

_Result = t.TypeVar("_Result")

STARTED = "A run that was killed had shut it down; it was started again."
_RUNS = "A run had left a note to start it; it runs, and the note was removed."


@contextlib.contextmanager
def shut_down_meanwhile(guest: Guest, *, timeout: int, expect_agent: bool) -> t.Iterator[None]:
    """Shut a running guest down in order, and start it again in any case.

    :param timeout: seconds for the shutdown, and again for the agent to come back.
    :param expect_agent: the guest had an agent before, so wait for it afterwards.
    :raises RefusedError: it did not power off; it still runs.  The note stays, as the guest may
        do so later; see ``left_off``.
    :raises HypervisorError: it does not start again.
    :raises AgentError: it was started, and its agent does not answer.
    """
    guest.write_note(asking(timeout))
    try:
        power.shut_down(guest, timeout)
        guest.write_note(me())  # from now on it is off for our work
        yield
    finally:
        with signals_wait():
            bring_back(guest)
    if expect_agent:
        power.wait_for_agent(guest, timeout)


def bring_back(guest: Guest) -> None:
    """Start the guest if it is off.

    :raises HypervisorError: it does not start, or libvirt does not answer any more.
    """

    def start() -> None:
        if not guest.is_active():
            _start(guest)
            guest.remove_note()

    patiently(guest, start)


def patiently(guest: Guest, do: t.Callable[[], _Result]) -> _Result:
    """Do something, and once more if libvirtd was restarted meanwhile.

    :param do: looks at the guest's state first, so that it may be repeated.
    :raises HypervisorError: it failed, or libvirt does not answer any more.
    """
    deadline = time.monotonic() + _RECONNECT_SECONDS
    while True:
        try:
            return do()
        except HypervisorError:
            if not guest.is_lost() or time.monotonic() > deadline:
                raise
        time.sleep(_RECONNECT_PAUSE_SECONDS)
        with contextlib.suppress(HypervisorError):
            guest.reconnect()


@dataclasses.dataclass
class Done:
    """What was really done to a guest, kept while it is done: an error may come at any time.

    :param actions: in their order; see the module's ``actions``.
    :param downtime_seconds: how long it was off, None if it was not.
    :param pause_seconds: how long its CPUs stood still, None if they did not.
    :param clock_set: its clock was set after that, None if there was no need.
    """

    actions: list[str] = dataclasses.field(default_factory=list)
    downtime_seconds: float | None = None
    pause_seconds: float | None = None
    clock_set: bool | None = None


def power_cycle(guest: Guest, *, timeout: int, expect_agent: bool, done: Done) -> None:
    """Turn a guest off and on again, so that a new QEMU reads its configuration.

    A reboot inside the guest is not enough: the QEMU process stays the same.  The guest is never
    forced off.

    :param done: is told each step, and the seconds without service: from the request until the
        agent answered (or until the start, without an agent).
    """
    begin = time.monotonic()
    with shut_down_meanwhile(guest, timeout=timeout, expect_agent=False):
        done.actions.append("shut_down")
    done.actions.append("started")
    try:
        if expect_agent:
            power.wait_for_agent(guest, timeout)
    finally:
        done.downtime_seconds = time.monotonic() - begin


def refuse_no_return(guest: Guest, configured: xml.Domain, live: xml.Domain) -> None:
    """Refuse to shut down what would not stay off, or would not come back as it is.

    :raises RefusedError: nothing was changed.
    """
    if not guest.is_persistent():
        raise RefusedError(
            f"Refused: domain {guest.name} is transient, and would be gone after a shutdown; "
            "nothing was changed.",
            remedy=f"Make it persistent first (virsh dumpxml {typed(guest.name)}, then virsh "
            "define).",
        )
    if configured.on_poweroff != "destroy":
        raise RefusedError(
            f"Refused: domain {configured.name} has on_poweroff={configured.on_poweroff}, so it "
            "cannot be turned off and on in order; nothing was changed.",
            remedy="Restart it by hand, or set on_poweroff to destroy.",
        )
    plugged = {disk.target for disk in live.disks} - {disk.target for disk in configured.disks}
    if plugged:
        raise RefusedError(
            f"Refused: domain {configured.name} has disks that were plugged in while it runs and "
            f"are not in its configuration ({', '.join(sorted(plugged))}): it would come back "
            "without them; nothing was changed.",
            remedy="Attach them to the configuration too (virsh attach-device --config).",
        )


def is_forgotten(domain: xml.Domain) -> bool:
    """Whether a killed run has left this domain, as it is configured, with a note.

    :raises RefusedError: the run that wrote the note is still at work.
    """
    note = domain.restart_note
    if not note:
        return False
    if is_alive(note):
        raise RefusedError(
            f"Another run (process {note.split()[0]}) has shut domain {domain.name} down for its "
            "work; nothing was changed.",
            remedy="Wait for it to end.",
        )
    return True


def start_forgotten(guest: Guest, *, timeout: float = 300) -> str:
    """Start a guest that a killed run had shut down or saved, unless somebody has; remove the note.

    :param timeout: seconds that libvirt may take to end what the killed run had asked for.
    :returns: what was found and done, in a sentence.
    :raises HypervisorError: the guest does not start.
    """
    noted = xml.parse_domain(guest.configured_xml(with_secrets=False))
    saved = parse_settings(noted.saved_note)
    _take_over(guest, saved, timeout)
    said = STARTED
    if guest.is_active():
        drop_stale_state(guest, saved)
        said = _RUNS
    elif why := why_left_off(guest, noted):
        said = left_alone(why)
    elif saved:
        resume(guest, saved)
    else:
        _start(guest)
    guest.remove_note()
    return said


def why_left_off(guest: Guest, noted: xml.Domain) -> str:
    """Why a guest that is off and has a note is not started, in half a sentence; empty if it is.

    :param noted: its configuration as it was found.
    """
    note = left_off.Note(
        since=noted.note_since,
        until=left_off.until_of(noted.restart_note),
        started=noted.note_started,
        saved=bool(noted.saved_note),
    )
    if not note.since:  # of an earlier release, which noted nothing that could be compared
        return ""
    return left_off.why_not(
        note,
        save_folder.log_of(guest.uri, guest.name),
        reason=guest.why_off(),
        has_saved_state=guest.has_managed_save(),
        now=time.time(),
    )


def left_alone(why: str) -> str:
    """What people are told of a guest that is left off."""
    return f"A run had left a note to start it; {why}: it was left off, and the note was removed."


def _take_over(guest: Guest, saved: t.Mapping[str, xml.DiskSettings], timeout: float) -> None:
    """Make the note ours.  libvirt may still be saving or restoring the guest: this waits.

    Only then its state can be relied on: libvirt lets nobody change a domain meanwhile.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            return guest.write_note(me(), saved=settings_text(saved))
        except BusyError as error:
            if time.monotonic() > deadline:
                # Seen with libvirt 9.0: killed before it had started QEMU (pid='0' in its status
                # file), it comes back with a job that nobody ends, after each restart.
                raise BusyError(
                    f"A run that was killed left a note in domain {guest.name}, and libvirt was "
                    f"busy with this domain for more than {timeout:.0f} s; nothing was changed: "
                    f"{error.message}",
                    remedy="Run the task again later. If libvirt never becomes free and no QEMU of "
                    "this domain runs, libvirtd was killed while it started one and does not "
                    "forget it: stop libvirtd, move its status file away (/run/libvirt/qemu/"
                    f"{guest.name}.xml), start libvirtd, and run the task again.",
                ) from error
        time.sleep(_BUSY_PAUSE_SECONDS)


def drop_stale_state(guest: Guest, saved: t.Mapping[str, xml.DiskSettings]) -> None:
    """Remove the saved state of a guest that runs, if we had saved it.

    libvirt removes it when it has resumed the guest.  If it was killed just then, or while it
    was saving, the next start would resume old memory on disks that have moved on.
    """
    if saved and guest.has_managed_save():
        guest.remove_managed_save()


def resume(guest: Guest, old: t.Mapping[str, xml.DiskSettings], *, as_is: bool = True) -> None:
    """Start a guest that was saved; with its old settings if it does not with its new ones.

    :param as_is: try it as its saved state is, first.
    :raises HypervisorError: it does not start either way; its state is kept.
    """
    complaints: list[str] = []
    # libvirt may still be clearing away a QEMU that has just failed, and take the next one with it
    # ("domain is not running"): the old settings are tried once more.
    for settings in (*((None,) if as_is else ()), old, old):
        try:
            if complaints:
                time.sleep(_RECONNECT_PAUSE_SECONDS)
            if guest.is_active():
                return
            if settings is not None:
                text = guest.managed_save_xml()
                guest.define_managed_save_xml(xml.with_settings(text, settings))
            guest.start()
        except HypervisorError as error:
            if guest.is_lost():
                raise
            complaints.append(error.message)
        else:
            return
    name = guest.name
    if not guest.has_managed_save():
        raise HypervisorError(
            f"Domain {name} was saved for this work, its saved state has disappeared, and it is "
            f"off: {complaints[0]}",
            remedy=f"Look at its log and run virsh start {typed(name)}: it boots as after a power "
            "cut.",
        )
    raise HypervisorError(
        f"Domain {name} was saved for this work and cannot be restored, neither with its new "
        f"settings nor with its old ones; it is off, and its memory is kept in libvirt's saved "
        f"state: {' '.join(dict.fromkeys(complaints))}",
        remedy=f"Look at its log, mend what it complains of (virsh managedsave-edit "
        f"{typed(name)}), and run virsh start {typed(name)}: it goes on where it was. Only if that "
        "memory may be lost, "
        f"virsh start --force-boot {typed(name)} boots it as after a power cut.",
    )


def settings_text(settings: t.Mapping[str, xml.DiskSettings]) -> str:
    """Settings by disk, for a note; empty if there are none."""
    plain = {target: dataclasses.asdict(each) for target, each in settings.items()}
    return json.dumps(plain, sort_keys=True) if plain else ""


def parse_settings(text: str) -> dict[str, xml.DiskSettings]:
    """What :func:`settings_text` made.

    :raises HypervisorError: somebody else has written the note.
    """
    if not text:
        return {}
    try:
        return {target: xml.DiskSettings(**each) for target, each in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise HypervisorError(
            "The note that a killed run left in the domain's metadata cannot be read: "
            f"{text[:200]!r}.",
            remedy=f"Start the domain by hand and remove the note (virsh metadata DOMAIN --uri "
            f"{xml.NOTE_NAMESPACE} --remove --config).",
        ) from error


def _start(guest: Guest) -> None:
    try:
        guest.start()
    except HypervisorError as error:
        with contextlib.suppress(HypervisorError):
            guest.write_note(me())  # what was tried in vain is no start by somebody else
        raise HypervisorError(
            f"Domain {guest.name} was shut down for this work and does not start again: "
            f"{error.message}",
            remedy=f"Look at its log and run virsh start {typed(guest.name)}.",
        ) from error


def me() -> str:
    """This process and when it began: the number alone may mean another one after a reboot."""
    pid = os.getpid()
    return f"{pid} {_began(pid)}"


def asking(timeout: int) -> str:
    """:func:`me`, while a guest is asked to shut down; it may obey a little later than in time."""
    return f"{me()} until={int(time.time()) + timeout + left_off.OBEY_SECONDS}"


def is_alive(note: str) -> bool:
    """Whether the process that :func:`me` has named is at work."""
    pid, _blank, began = note.partition(" until=")[0].partition(" ")
    return pid.isdecimal() and bool(began) and _began(int(pid)) == began


def _began(pid: int) -> str:
    """When a living process began, with the boot of the host; empty if it lives no more."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            # The command, in brackets, may hold anything; the state and the time are behind it.
            state, *fields = file.read().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    # A zombie is one that nobody has asked about yet.
    return "" if state in "ZX" else f"{boot} {fields[18]}"
