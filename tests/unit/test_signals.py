# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Signals end a run in order: once, and never in the middle of what belongs together."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import (
    StoppedError,
    signals_noted,
    signals_raise,
    signals_wait,
)

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.fixture(autouse=True)
def handlers():
    """They are as they were in the end, whatever a test does."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield before
    after = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(SIGNALS) == set()


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.001)  # Python runs handlers between two instructions


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_becomes_an_error(number):
    with pytest.raises(StoppedError, match=f"Stopped by {number.name} before.*Run it again"):  # noqa: SIM117
        with signals_raise():
            send(number)


def test_cleaning_up_is_not_interrupted_by_a_second_one():
    done = []

    def work() -> None:
        with signals_raise():
            try:
                send(signal.SIGTERM)
            finally:
                for number in SIGNALS * 2:
                    send(number)
                done.append("cleaned up")

    with pytest.raises(StoppedError, match="SIGTERM"):
        work()
    assert done == ["cleaned up"]


def test_it_waits_for_the_end_of_what_belongs_together():
    done = []

    def work() -> None:
        with signals_raise():
            with signals_wait():
                for number in SIGNALS:
                    send(number)
                done.append("all of it")
            done.append("more")

    with pytest.raises(StoppedError):
        work()
    assert done == ["all of it"]


def test_waiting_within_waiting():
    done = []

    def work() -> None:
        with signals_raise(), signals_wait():
            with signals_wait():
                send(signal.SIGHUP)
            done.append("inner")
            send(signal.SIGHUP)
            done.append("outer")

    with pytest.raises(StoppedError):
        work()
    assert done == ["inner", "outer"]


def test_an_error_of_its_own_survives_waiting():
    with pytest.raises(KeyError), signals_raise(), signals_wait():
        raise KeyError


def test_nothing_is_left_pending():
    with contextlib.suppress(StoppedError), signals_raise(), signals_wait():
        send(signal.SIGTERM)
    assert signal.sigpending() & set(SIGNALS) == set()


def test_a_signal_is_noted_while_a_program_is_started():
    """It would inherit signals that are held back, and nobody knows it yet that could end it."""
    done = []

    def work() -> None:
        with signals_raise():
            try:
                with signals_noted():
                    send(signal.SIGTERM)
                    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(SIGNALS) == set()
                    done.append("started")
            finally:
                done.append("ended")

    with pytest.raises(StoppedError, match="SIGTERM"):
        work()
    assert done == ["started", "ended"]


def test_other_threads_are_never_interrupted():
    """A signal is the main thread's, whoever starts a program meanwhile."""
    inside, over = threading.Event(), threading.Event()

    def start() -> None:
        with signals_noted():
            inside.set()
            over.wait(5)

    def work() -> None:
        with signals_raise():
            thread = threading.Thread(target=start)
            thread.start()
            inside.wait(5)
            try:
                send(signal.SIGTERM)
            finally:
                over.set()
                thread.join()

    with pytest.raises(StoppedError):
        work()


def test_no_handler_of_errors_takes_a_stop_for_one():
    assert not issubclass(StoppedError, ThinvirtError)
