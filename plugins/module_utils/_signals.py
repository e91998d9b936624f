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

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ReportedError

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: What other threads are told, as a signal is raised in the main one only.
_asked: list[StoppedError] = []
_this_thread = threading.local()
#: Not empty while signals do not raise; the last one takes what comes.
_held: list[list[int]] = []


class StoppedError(ReportedError):
    """Somebody asked this run to end.

    Not a :class:`ThinvirtError`: what notes the errors of one domain and goes on with the next one
    must not take it for one of them.  What undoes something after an error catches
    :class:`ReportedError`.
    """


def _stop(number: int, _frame: types.FrameType | None) -> None:
    if _held:
        _held[-1].append(number)
    else:
        _raise(number)


def _raise(number: int) -> None:
    for each in _SIGNALS:  # what is being cleaned up is not interrupted by a second one
        signal.signal(each, _do_nothing)
    _asked.append(
        StoppedError(
            f"Stopped by {signal.Signals(number).name} before the end; what was unfinished was "
            "undone.",
            remedy="Run it again.",
        )
    )
    raise _asked[0]


def is_stopping() -> bool:
    """Whether a signal has asked this process to end: nothing new is to be begun."""
    return bool(_asked)


def stop_if_asked() -> None:
    """Raise, in a thread beside the main one, what a signal has raised there; once.

    To be called where such a thread waits or works for long.  What it does in its ``finally``
    clauses is not interrupted again.

    :raises StoppedError: a signal has asked this process to end.
    """
    if threading.current_thread() is threading.main_thread() or not _asked:
        return
    if not getattr(_this_thread, "stopped", False):
        _this_thread.stopped = True
        raise StoppedError(_asked[0].message, remedy=_asked[0].remedy)


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
        _asked.clear()


@contextlib.contextmanager
def signals_wait() -> t.Iterator[None]:
    """Hold these signals back while something is done that is short and belongs together."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        # The kernel gives one to another thread, if there is one; Python's handler runs in this.
        with signals_noted():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def signals_noted() -> t.Iterator[None]:
    """Hold these signals back while a program is started, which would inherit blocked ones.

    What was noted is raised in the end: who calls this knows the program by then, and can end it.
    """
    if threading.current_thread() is not threading.main_thread():  # no other one is interrupted
        yield
        return
    noted: list[int] = []
    _held.append(noted)
    try:
        yield
    finally:
        _held.pop()
        if _held:
            _held[-1].extend(noted)
        elif noted:
            _raise(noted[0])
