# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""End in order when asked to: SIGTERM, SIGINT and SIGHUP become an exception.

So children are ended, copies that nobody will use are removed, and journals are closed by the same
``finally`` clauses as after any other error.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import types
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: Not empty while signals do not raise; the last one takes what comes.
_held: list[list[int]] = []


class StoppedError(ThinvirtError):
    """Somebody asked this run to end."""


def _stop(number: int, _frame: types.FrameType | None) -> None:
    if _held:
        _held[-1].append(number)
    else:
        _raise(number)


def _raise(number: int) -> None:
    for each in _SIGNALS:  # what is being cleaned up is not interrupted by a second one
        signal.signal(each, _do_nothing)
    raise StoppedError(
        f"Stopped by {signal.Signals(number).name} before the end; what was unfinished was undone.",
        remedy="Run it again.",
    )


def _do_nothing(_number: int, _frame: types.FrameType | None) -> None:
    """Not SIG_IGN: programs that are started would inherit that."""


@contextlib.contextmanager
def signals_raise() -> t.Iterator[None]:
    """Raise :class:`StoppedError` in the main thread when a signal asks this process to end."""
    before = {number: signal.signal(number, _stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def signals_wait() -> t.Iterator[None]:
    """Hold these signals back while something is done that is short and belongs together."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def signals_noted() -> t.Iterator[None]:
    """Hold these signals back while a program is started, which would inherit blocked ones.

    What was noted is raised in the end: who calls this knows the program by then, and can end it.
    """
    noted: list[int] = []
    if threading.current_thread() is threading.main_thread():  # no other one is ever interrupted
        _held.append(noted)
    try:
        yield
    finally:
        if _held and _held[-1] is noted:
            _held.pop()
        if noted:
            _raise(noted[0])
