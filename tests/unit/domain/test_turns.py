# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who waits for whom, and that a signal ends all of them."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.turns import (
    Turns,
    side_by_side,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import (
    StoppedError,
    signals_raise,
    stop_if_asked,
)

PATIENCE_SECONDS = 10


def most_at_once(pieces, *, each: int, workers: int) -> int:
    """How many pieces were at work at one time, when each waits for as many as there could be."""
    turns, lock = Turns(each), threading.Lock()
    at_work, most = 0, 0

    def work(devices):
        nonlocal at_work, most
        with turns.on(devices):
            with lock:
                at_work += 1
                most = max(most, at_work)
            time.sleep(0.2)
            with lock:
                at_work -= 1

    side_by_side(work, pieces, workers=workers)
    assert at_work == 0
    return most


@pytest.mark.parametrize(
    ("pieces", "each", "workers", "most"),
    [
        ([{1}, {2}], 1, 2, 2),
        ([{1}, {2}], 1, 1, 1),
        ([{1}, {1}, {1}], 1, 3, 1),
        ([{1}, {1}, {1}], 2, 3, 2),
        ([{1, 2}, {2, 3}, {1, 3}], 1, 3, 1),
        ([{1}] * 4 + [set()], 1, 5, 2),
        ([{number} for number in range(9)], 1, 9, 5),
        ([], 1, 1, 0),
    ],
)
def test_at_once(pieces, each, workers, most):
    assert most_at_once(pieces, each=each, workers=workers) == most


def test_nobody_waits_for_one_who_waits_for_him():
    turns, done = Turns(1), []

    def work(devices):
        for _round in range(200):
            with turns.on(devices):
                pass
        done.append(devices)

    side_by_side(work, [(1, 2, 3), (3, 2, 1), (2, 1, 3)], workers=3)
    assert len(done) == 3


def test_an_error_is_not_lost():
    def work(piece):
        if piece == 2:
            raise ValueError(piece)

    with pytest.raises(ValueError, match="2"):
        side_by_side(work, [1, 2, 3], workers=2)


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
        side_by_side(work, [1, 2, 3, 4], workers=2)
    sender.join()
    assert (sorted(cleaned), never) == ([1, 2], [])


def test_a_signal_of_an_earlier_run_is_forgotten():
    with signals_raise():
        side_by_side(lambda _piece: stop_if_asked(), [1, 2], workers=2)
