# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who waits for whom, and that a signal ends all of them."""

from __future__ import annotations

import collections
import os
import signal
import threading
import time

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.turns import side_by_side
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import (
    StoppedError,
    signals_raise,
    stop_if_asked,
)

PATIENCE_SECONDS = 10


def most_at_once(pieces, each: int, expected: int) -> dict[int | str, int]:
    """How many pieces were at work at one time, on each place and in all; all of them are done.

    The first ones wait until as many as expected are at work: threads may be slow to begin.
    """
    lock, done, reached = threading.Lock(), [], threading.Event()
    at_work: collections.Counter = collections.Counter()
    most: collections.Counter = collections.Counter()

    def work(number):
        places = [*pieces[number], "all"]
        with lock:
            at_work.update(places)
            most.update({place: max(0, at_work[place] - most[place]) for place in places})
            if at_work["all"] >= expected:
                reached.set()
        reached.wait(PATIENCE_SECONDS)
        time.sleep(0.1)  # in which one too many would begin
        with lock:
            at_work.subtract(places)
        done.append(number)

    numbered = [(number, frozenset(places)) for number, places in enumerate(pieces)]
    side_by_side(work, numbered, each=each)
    assert sorted(done) == list(range(len(pieces)))
    return dict(most)


@pytest.mark.parametrize(
    ("pieces", "each", "most"),
    [
        ([{1}, {2}], 1, {1: 1, 2: 1, "all": 2}),
        ([{1}, {1}, {1}], 1, {1: 1, "all": 1}),
        ([{1}, {1}, {2}], 1, {1: 1, 2: 1, "all": 2}),
        ([{1}, {1}, {1}], 2, {1: 2, "all": 2}),
        ([{1, 2}, {2, 3}, {1, 3}], 1, {1: 1, 2: 1, 3: 1, "all": 1}),
        ([{number} for number in range(9)], 1, dict.fromkeys(range(9), 1) | {"all": 5}),
        ([set(), set()], 1, {"all": 1}),
        ([], 1, {}),
    ],
)
def test_at_once(pieces, each, most):
    assert most_at_once(pieces, each, most.get("all", 0)) == most


def test_an_error_is_not_lost():
    def work(piece):
        if piece == 2:
            raise ValueError(piece)

    with pytest.raises(ValueError, match="2"):
        side_by_side(work, [(number, frozenset([number])) for number in (1, 2, 3)], each=1)


def test_a_signal_ends_all_of_them_in_order():
    began, cleaned, never = threading.Barrier(3), [], []

    def work(piece):
        if piece > 2:
            never.append(piece)
        began.wait(PATIENCE_SECONDS)
        try:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while time.monotonic() < deadline:
                stop_if_asked()
                time.sleep(0.01)
        finally:
            stop_if_asked()  # what is cleaned up is not interrupted again
            cleaned.append(piece)

    def send():
        began.wait(PATIENCE_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(StoppedError, match="SIGTERM"), signals_raise():
        side_by_side(work, [(number, frozenset([number % 2])) for number in (1, 2, 3, 4)], each=1)
    sender.join()
    assert (sorted(cleaned), never) == ([1, 2], [])


def test_a_signal_of_an_earlier_run_is_forgotten():
    with signals_raise():
        side_by_side(
            lambda _piece: stop_if_asked(), [(1, frozenset([1])), (2, frozenset([2]))], each=1
        )
