# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest that was shut down for our work runs again afterwards, whatever happens to us.

Before the shutdown a note goes into the domain's own metadata: it stays with the domain, survives
a reboot of the host, and needs no file.  Whoever finds such a note of a process that is no more
starts the guest and removes the note.
"""

from __future__ import annotations

import contextlib
import os
import time
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import power, xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import Guest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    HypervisorError,
    RefusedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import signals_wait

#: An upgrade of libvirt restarts its daemon, which takes some seconds.
_RECONNECT_SECONDS = 60.0
_RECONNECT_PAUSE_SECONDS = 1.0

STARTED = "A run that was killed had shut it down; it was started again."


@contextlib.contextmanager
def shut_down_meanwhile(guest: Guest, *, timeout: int, expect_agent: bool) -> t.Iterator[None]:
    """Shut a running guest down in order, and start it again in any case.

    :param timeout: seconds for the shutdown, and again for the agent to come back.
    :param expect_agent: the guest had an agent before, so wait for it afterwards.
    :raises RefusedError: it did not power off; it still runs.  The note stays, as the guest may
        do so later.
    :raises HypervisorError: it does not start again.
    :raises AgentError: it was started, and its agent does not answer.
    """
    guest.write_note(_me())
    try:
        power.shut_down(guest, timeout)
        yield
    finally:
        with signals_wait():
            _bring_back(guest)
    if expect_agent:
        power.wait_for_agent(guest, timeout)


def _bring_back(guest: Guest) -> None:
    """Start the guest if it is off; libvirtd may have been restarted meanwhile.

    :raises HypervisorError: it does not start, or libvirt does not answer any more.
    """
    deadline = time.monotonic() + _RECONNECT_SECONDS
    while True:
        try:
            if not guest.is_active():
                _start(guest)
                guest.remove_note()
            return
        except HypervisorError:
            if not guest.is_lost() or time.monotonic() > deadline:
                raise
        time.sleep(_RECONNECT_PAUSE_SECONDS)
        with contextlib.suppress(HypervisorError):
            guest.reconnect()


def power_cycle(guest: Guest, *, timeout: int, expect_agent: bool) -> float:
    """Turn a guest off and on again, so that a new QEMU reads its configuration.

    A reboot inside the guest is not enough: the QEMU process stays the same.  The guest is never
    forced off.

    :returns: seconds without service, from the request until the agent answered (or until the
        start, without an agent).
    """
    begin = time.monotonic()
    with shut_down_meanwhile(guest, timeout=timeout, expect_agent=expect_agent):
        pass
    return time.monotonic() - begin


def refuse_no_return(guest: Guest, configured: xml.Domain, live: xml.Domain) -> None:
    """Refuse to shut down what would not stay off, or would not come back as it is.

    :raises RefusedError: nothing was changed.
    """
    if not guest.is_persistent():
        raise RefusedError(
            f"Refused: domain {guest.name} is transient, and would be gone after a shutdown; "
            "nothing was changed.",
            remedy=f"Make it persistent first (virsh dumpxml {guest.name}, then virsh define).",
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
    if _is_alive(note):
        raise RefusedError(
            f"Another run (process {note.split()[0]}) has shut domain {domain.name} down for its "
            "work; nothing was changed.",
            remedy="Wait for it to end.",
        )
    return True


def start_forgotten(guest: Guest) -> None:
    """Start a guest that a killed run had shut down, unless somebody has, and remove the note.

    :raises HypervisorError: the guest does not start.
    """
    if not guest.is_active():
        _start(guest)
    guest.remove_note()


def _start(guest: Guest) -> None:
    try:
        guest.start()
    except HypervisorError as error:
        raise HypervisorError(
            f"Domain {guest.name} was shut down for this work and does not start again: "
            f"{error.message}",
            remedy=f"Look at its log and run virsh start {guest.name}.",
        ) from error


def _me() -> str:
    """This process and when it began: the number alone may mean another one after a reboot."""
    pid = os.getpid()
    return f"{pid} {_began(pid)}"


def _is_alive(note: str) -> bool:
    pid, _blank, began = note.partition(" ")
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
