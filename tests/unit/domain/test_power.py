# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shut down in order, and wait for the agent, with a guest played by a small class."""

from __future__ import annotations

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import power
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    AgentError,
    HypervisorError,
    RefusedError,
)


class Guest:
    """A guest that powers off after so many polls, and whose agent answers after so many pings.

    :param obeys: which request to shut down it heeds, from 1 on; 0 for none.
    """

    name = "web1"

    def __init__(self, *, obeys=1, polls=2, pings=2, refuses=False):
        self._obeys, self._polls, self._pings = obeys, polls, pings
        self._refuses = refuses
        self.done = []

    def is_active(self):
        if self._obeys and self.done.count("shutdown") >= self._obeys:
            self._polls -= 1
        return self._polls > 0

    def shutdown(self):
        self.done.append("shutdown")
        if self._refuses:
            raise HypervisorError("libvirt could not shut down domain web1: no.")

    def agent(self, command, _arguments, *, timeout):
        assert (command, timeout) == ("guest-ping", 10)
        self.done.append("ping")
        self._pings -= 1
        if self._pings > 0:
            raise AgentError("Nobody there.")
        return {}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(power, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(power, "_ASK_AGAIN_SECONDS", 0.1)


def test_a_guest_that_obeys_is_asked_once():
    guest = Guest()
    power.shut_down(guest, 5)
    assert guest.done == ["shutdown"]


def test_a_guest_that_is_off_is_not_asked():
    guest = Guest(polls=0)
    power.shut_down(guest, 5)
    assert guest.done == []


def test_a_guest_that_missed_the_first_request_is_asked_again():
    guest = Guest(obeys=3)
    power.shut_down(guest, 5)
    assert guest.done == ["shutdown"] * 3


def test_a_guest_that_does_not_obey_is_left_running():
    guest = Guest(obeys=0, polls=1)
    with pytest.raises(RefusedError, match="web1 did not power off within 1 s and was left runn"):
        power.shut_down(guest, 1)
    assert set(guest.done) == {"shutdown"}


def test_why_libvirt_refused_is_told():
    guest = Guest(obeys=0, polls=1, refuses=True)
    with pytest.raises(RefusedError, match="could not shut down domain web1: no") as caught:
        power.shut_down(guest, 1)
    assert caught.value.remedy


def test_a_guest_that_went_off_as_it_was_asked_is_no_failure():
    """Nobody can be asked to shut down who is off by then."""
    guest = Guest(refuses=True)
    power.shut_down(guest, 5)
    assert guest.done == ["shutdown"]


def test_the_agent_is_pinged_until_it_answers():
    guest = Guest(pings=3)
    power.wait_for_agent(guest, 5)
    assert guest.done == ["ping"] * 3


def test_an_agent_that_does_not_come_back():
    guest = Guest(pings=10_000)
    with pytest.raises(AgentError, match=r"web1 .*did not come back within 1 s") as caught:
        power.wait_for_agent(guest, 1)
    assert caught.value.remedy
