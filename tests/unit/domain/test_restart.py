# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest comes back, also when libvirtd was restarted while it was off."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import restart, xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    HypervisorError,
    RefusedError,
)

RICH = (pathlib.Path(__file__).parent / "data" / "rich.xml").read_text(encoding="utf-8")


class Guest:
    """A guest that obeys at once, under a daemon that goes away for so many questions."""

    name = "web1"

    def __init__(self, *, gone=0, broken=False, persistent=True):
        self.active = True
        self.note = ""
        self._gone, self._broken, self._persistent = gone, broken, persistent
        self._connected = True

    def lose_connection(self):
        self._connected = False

    def _ask(self):
        if not self._connected:
            raise HypervisorError("libvirt could not read the state: client socket is closed.")

    def is_active(self):
        self._ask()
        return self.active

    def is_persistent(self):
        return self._persistent

    def is_lost(self):
        return not self._connected

    def reconnect(self):
        self._gone -= 1
        if self._gone > 0:
            raise HypervisorError("Nobody there.")
        self._connected = True

    def shutdown(self):
        assert self.note  # whatever happens from now on, somebody finds it
        self.active = False

    def start(self):
        self._ask()
        if self._broken:
            raise HypervisorError("libvirt could not start domain web1: no.")
        self.active = True

    def write_note(self, text):
        self.note = text

    def remove_note(self):
        self.note = ""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(restart, "_RECONNECT_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(restart, "_RECONNECT_SECONDS", 0.5)


def meanwhile(guest, work=lambda: None):
    with restart.shut_down_meanwhile(guest, timeout=5, expect_agent=False):
        assert not guest.active
        assert guest.note
        work()


def test_it_is_off_meanwhile_and_runs_afterwards():
    guest = Guest()
    meanwhile(guest)
    assert (guest.active, guest.note) == (True, "")


def test_it_runs_after_an_error_too():
    guest = Guest()
    with pytest.raises(ZeroDivisionError):
        meanwhile(guest, lambda: 1 / 0)
    assert (guest.active, guest.note) == (True, "")


@pytest.mark.parametrize("gone", [1, 3])
def test_a_daemon_that_was_restarted_is_waited_for(gone):
    guest = Guest(gone=gone)
    meanwhile(guest, guest.lose_connection)
    assert (guest.active, guest.note) == (True, "")


def test_a_daemon_that_does_not_come_back_leaves_the_note_for_the_next_run():
    guest = Guest(gone=10_000)
    with pytest.raises(HypervisorError):
        meanwhile(guest, guest.lose_connection)
    assert guest.note


def test_a_guest_that_does_not_start_is_an_error_at_once():
    guest = Guest(broken=True)
    with pytest.raises(HypervisorError, match="does not start again"):
        meanwhile(guest)
    assert guest.note


def test_what_would_not_come_back_as_it_is_is_refused():
    domain = xml.parse_domain(RICH)
    restart.refuse_no_return(Guest(), domain, domain)
    with pytest.raises(RefusedError, match="transient"):
        restart.refuse_no_return(Guest(persistent=False), domain, domain)
    looping = dataclasses.replace(domain, on_poweroff="restart")
    with pytest.raises(RefusedError, match="on_poweroff=restart"):
        restart.refuse_no_return(Guest(), looping, looping)
    fewer = dataclasses.replace(domain, disks=domain.disks[1:])
    with pytest.raises(RefusedError, match=r"plugged in while it runs .*\(sda\)"):
        restart.refuse_no_return(Guest(), fewer, domain)


def test_a_run_lives_by_its_number_and_its_beginning():
    """After a reboot the number may be that of anybody."""
    number, boot, began = restart.me().split()
    assert restart.is_alive(restart.me())
    assert not restart.is_alive(f"{number} {boot} {int(began) + 1}")
    assert not restart.is_alive(f"{number} another-boot {began}")
    assert not restart.is_alive(number)
