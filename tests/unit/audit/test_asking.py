# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests that are asked side by side; here they are what says so, and libvirt is not asked."""

from __future__ import annotations

import threading
import time

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.asking import (
    Answer,
    Asker,
    Question,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    AgentError,
    AgentTimeoutError,
    BusyError,
    HypervisorError,
)

XML = "<domain><devices/></domain>"
ROOT = {"name": "vda1", "mountpoint": "/", "type": "ext4", "total-bytes": 9, "used-bytes": 5}


class Guest:
    """A guest that answers as it was told to."""

    def __init__(self, uuid, *, says=None, jobs=(), before=lambda: None, stopped=False, errors=()):
        self.uuid = uuid
        self._stopped, self._errors = stopped, errors
        self.asked: list[tuple[str, int]] = []
        self._says, self._jobs, self._before = says, jobs, before

    def agent(self, command, arguments, *, timeout):
        assert arguments == {}
        self.asked.append((command, timeout))
        self._before()
        if isinstance(self._says, Exception):
            raise self._says
        return self._says

    def jobs(self, targets):
        assert targets == ("vda",)
        if isinstance(self._jobs, Exception):
            raise self._jobs
        return list(self._jobs)

    def stopped_by_io_error(self):
        if isinstance(self._stopped, Exception):
            raise self._stopped
        return self._stopped

    def io_errors(self):
        if isinstance(self._errors, Exception):
            raise self._errors
        return dict(self._errors)


def answers(*guests, agent=True, **limits):
    with Asker(agent_timeout=3, **limits) as asker:
        for guest in guests:
            asker.ask(Question(guest=guest, targets=("vda",), agent=agent, live_xml=XML))
        return asker.answers()


def test_a_guest_that_answers():
    guest = Guest("a", says=[ROOT | {"disk": []}], jobs=["backup"])
    answer = answers(guest)["a"]
    assert (answer.agent, answer.jobs) == ("answered", ("backup",))
    assert [(s.mount_point, s.used_bytes) for s in answer.file_systems] == [("/", 5)]
    assert guest.asked == [("guest-get-fsinfo", 3)]


@pytest.mark.parametrize(
    ("errors", "told"),
    [([("vda", "no space")], {"vda": "no space"}), ([], {}), (HypervisorError("It hangs."), {})],
)
def test_one_that_an_io_error_has_paused_is_not_asked(errors, told):
    guest = Guest("a", says=[ROOT], stopped=True, errors=errors, jobs=["backup"])
    answer = answers(guest)["a"]
    assert (answer.stopped, answer.io_errors, guest.asked) == (True, told, [])
    assert (answer.agent, answer.jobs) == ("not-asked", ("backup",))


def test_one_whose_state_is_not_told_is_asked():
    answer = answers(Guest("a", says=[ROOT], stopped=HypervisorError("It is gone.")))["a"]
    assert (answer.stopped, answer.agent) == (False, "answered")


@pytest.mark.parametrize("says", [None, "x", 5, {}, [None], [{"name": []}], [ROOT]])
def test_nonsense_is_an_answer_that_tells_nothing(says):
    answer = answers(Guest("a", says=says))["a"]
    assert (answer.agent, answer.file_systems) == ("answered", ())


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (AgentTimeoutError("It sleeps."), "silent"),
        (AgentError("It will not."), "refused"),
        (HypervisorError("libvirt is gone."), "refused"),
    ],
)
def test_what_goes_wrong_is_said(error, outcome):
    error.remedy = "Wake it up."
    answer = answers(Guest("a", says=error, jobs=["backup"]))["a"]
    assert answer.remedy == ("Wake it up." if outcome == "refused" else "")
    assert (answer.agent, answer.reason) == (outcome, error.message)
    assert answer.jobs == ("backup",)


def test_an_agent_that_is_not_to_be_asked_is_not():
    guest = Guest("a", says=AssertionError())
    assert answers(guest, agent=False) == {"a": Answer()}
    assert guest.asked == []


def test_a_domain_that_is_too_busy_to_say_with_what():
    (job,) = answers(Guest("a", says=[], jobs=BusyError("Locked.")))["a"].jobs
    assert job
    assert answers(Guest("a", says=[], jobs=HypervisorError("Gone.")))["a"].jobs == ()


def test_one_that_hangs_does_not_hold_up_the_others():
    """It goes on only when all others have answered, which they could not in turn."""
    others = threading.Barrier(5)
    hung = Guest("hung", says=AgentTimeoutError("Hung."), before=lambda: others.wait(30))
    quick = [Guest(f"q{n}", says=[], before=lambda: others.wait(30)) for n in range(4)]
    found = answers(hung, *quick)
    assert found["hung"].agent == "silent"
    assert [found[guest.uuid].agent for guest in quick] == ["answered"] * 4


def test_nobody_is_asked_when_the_time_for_all_is_over():
    slow = [
        Guest(str(n), says=AgentTimeoutError("Hung."), before=lambda: time.sleep(0.4))
        for n in range(5)
    ]
    late = [Guest(str(n), says=[], jobs=["backup"]) for n in range(5, 9)]
    found = answers(*slow, *late, time_for_all=0.2)
    assert [found[guest.uuid] for guest in late] == [Answer(agent="no-time")] * 4
    assert [guest.asked for guest in late] == [[]] * 4
    assert answers(*late, agent=False, time_for_all=-1) == {
        guest.uuid: Answer(agent="not-asked") for guest in late
    }


def test_an_audit_that_fails_waits_for_nobody_who_was_not_asked_yet():
    guests = [Guest(str(n), says=[], before=lambda: time.sleep(0.2)) for n in range(50)]
    with Asker(agent_timeout=3) as asker:
        for guest in guests:
            asker.ask(Question(guest=guest, targets=("vda",), agent=True, live_xml=XML))
    assert sum(len(guest.asked) for guest in guests) < 25
