# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Give a running guest a new QEMU with other discard settings, without a reboot.

The guest is saved as a whole, its saved state gets the new settings, and it is restored.  libvirt's
*managed* save is used, not a file of our own: whatever is killed in between, libvirt knows of the
state, and the next start of the domain, by hand, by our next run, or by autostart after a reboot
of the host, goes on from it.  ``virsh save`` with the new XML was rejected for that reason: a
start would boot the guest anew, and lose its memory.

The XML in the state is the running one, so what else is configured for the next start goes on
waiting for it.
"""

from __future__ import annotations

import contextlib
import time
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._discard import savable
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import (
    agent,
    restart,
    save_folder,
    startable,
    xml,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import (
    Guest,
    Hypervisor,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    AgentError,
    HypervisorError,
    RefusedError,
    UnsupportedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import signals_wait

Settings = t.Mapping[str, xml.DiskSettings]

#: Its agent is back as soon as the guest is; one that is slower has other troubles.
_AGENT_SECONDS = 30
_AGENT_PAUSE_SECONDS = 0.5


def refuse(hypervisor: Hypervisor, guest: Guest, live: xml.Domain, live_xml: str) -> None:
    """Refuse what cannot be saved and restored.

    :raises RefusedError: nothing was changed.
    """
    driver = hypervisor.versions().driver
    if driver != "QEMU":
        raise UnsupportedError(
            f"Refused: domain {guest.name} cannot be saved and restored by libvirt's driver "
            f"{driver}, only by QEMU's; nothing was changed.",
            remedy="Use apply=power_cycle.",
        )
    startable.refuse(guest, live_xml, boots=False)
    space, folder = save_folder.file_system(hypervisor.local_uri())
    state = guest.state()
    facts = savable.Facts(
        persistent=guest.is_persistent(),
        running=state.running,
        paused_on_purpose=state.paused_on_purpose,
        has_managed_save=guest.has_managed_save(),
        jobs=guest.jobs(disk.target for disk in live.disks if disk.device in ("disk", "lun")),
        blockers=savable.blockers(live_xml),
        needed_bytes=guest.memory_bytes() + savable.MARGIN_BYTES,
        free_bytes=space.free_bytes,
        folder=folder,
    )
    savable.refuse_unsavable(guest.name, facts)


def save_and_restore(
    hypervisor: Hypervisor,
    guest: Guest,
    *,
    settings: Settings,
    old: Settings,
    done: restart.Done,
) -> None:
    """Save a guest and restore it with other settings; a paused one is paused again.

    Signals wait until the guest is back.

    :param settings: what its disks are to run with, by target.
    :param old: what they run with now.
    :param done: is told each step, and how long the guest stood still: at most from the request
        to save it until libvirt said that it was restored.
    :raises RefusedError: it could not be saved, and runs on as it did.
    :raises HypervisorError: it runs with its old settings, or not at all; the message tells.
    """
    uri = hypervisor.local_uri()
    guest.write_note(restart.me(), saved=restart.settings_text(old))
    with signals_wait():
        begin = time.monotonic()
        _save(guest, done)
        failure = None
        try:
            restart.patiently(guest, lambda: _restore(guest, settings))
        except HypervisorError as error:
            failure = error
            restart.patiently(guest, lambda: restart.resume(guest, old, as_is=False))
        done.pause_seconds = time.monotonic() - begin
        done.actions.append("restored")
        restart.drop_stale_state(guest, old)
        with contextlib.suppress(OSError):  # a file system that cannot: the state is gone anyway
            save_folder.settle(uri)
        guest.remove_note()
    if failure is not None:
        raise HypervisorError(
            f"Domain {guest.name} could not be restored with its new settings, and was restored "
            f"with its old ones after {done.pause_seconds:.1f} s; it runs on, and the new ones "
            f"wait for its next start: {failure.message}",
            remedy="Look at its log: its next start may fail for the same reason.",
        ) from failure
    _verify(guest, settings)


def _save(guest: Guest, done: restart.Done) -> None:
    try:
        guest.managed_save()
    except HypervisorError as error:
        lost = guest.is_lost()
        was_off = restart.patiently(guest, lambda: not guest.is_active())
        restart.patiently(guest, lambda: restart.start_forgotten(guest))
        if was_off or lost:
            done.actions += ["saved", "restored"] if was_off else []
            raise HypervisorError(
                f"Saving domain {guest.name} was interrupted; it runs "
                f"{'again' if was_off else 'on'}, with its old settings, and the new ones wait "
                f"for its next start: {error.message}",
                remedy="Look at libvirt's log and at the guest, then run the task again.",
            ) from error
        raise RefusedError(
            f"Domain {guest.name} could not be saved, and runs on as it did; nothing was changed: "
            f"{error.message}",
            remedy="Mend what libvirt complains of, or use apply=power_cycle.",
        ) from error
    done.actions.append("saved")


def _restore(guest: Guest, settings: Settings) -> None:
    """Resume the guest with these settings and nothing else changed, unless somebody has."""
    if guest.is_active():
        return
    before = guest.managed_save_xml()
    if xml.parse_domain(before).uuid != guest.uuid:
        raise HypervisorError(f"The saved state of domain {guest.name} is of another domain.")
    after = xml.with_settings(before, settings)
    guest.define_managed_save_xml(after)
    kept = guest.managed_save_xml()
    if xml.without_settings(kept) != xml.without_settings(before) or not _has(kept, settings):
        raise HypervisorError(
            f"libvirt did not keep the settings in the saved state of domain {guest.name}."
        )
    guest.start()


def _has(text: str, settings: Settings) -> bool:
    found = {disk.target: disk.settings for disk in xml.parse_domain(text).disks}
    return all(found.get(target) == wanted for target, wanted in settings.items())


def _verify(guest: Guest, settings: Settings) -> None:
    if not _has(guest.live_xml(), settings):
        raise HypervisorError(
            f"Domain {guest.name} was restored, and does not run with its new settings: somebody "
            "else has started it.",
            remedy="Run the task again.",
        )


def set_clock(guest: Guest) -> bool:
    """Set the clock of a guest that stood still, through its agent; False if it could not be."""
    deadline = time.monotonic() + _AGENT_SECONDS
    while True:
        try:
            agent.ping(guest)
            agent.set_time(guest, nanoseconds=time.time_ns(), timeout=_AGENT_SECONDS)
            return True
        except AgentError:
            if time.monotonic() > deadline:
                return False
        time.sleep(_AGENT_PAUSE_SECONDS)
