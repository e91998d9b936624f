# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work side by side on different file systems, in turn on the same one."""

from __future__ import annotations

import collections
import concurrent.futures
import threading
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import (
    is_stopping,
    signals_noted,
)

#: libvirtd works on so many requests of one connection at a time (max_client_requests in
#: libvirtd.conf); more threads would only wait there.
MAX_WORKERS = 5
_TICK_SECONDS = 0.5

Work = t.TypeVar("Work")
#: File systems by their ``st_dev``.
Places = t.FrozenSet[int]  # noqa: UP006


def side_by_side(
    work: t.Callable[[Work], None], pieces: t.Sequence[tuple[Work, Places]], *, each: int
) -> None:
    """Do each piece of work, at the earliest when all of its file systems have room for it.

    Where only one can be at work at a time, this thread does it all, in order.

    :param pieces: each with the file systems that it uses.
    :param each: so many pieces may use one file system at once.
    :raises StoppedError: a signal asked to end; by now all threads have ended as well.
    """
    places = frozenset[int]().union(*(places for _piece, places in pieces))
    workers = min(MAX_WORKERS, len(pieces), each * max(1, len(places)))
    if workers <= 1:
        for piece, _places in pieces:
            work(piece)
        return
    queue = _Queue(pieces, each)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        try:
            with signals_noted():  # a thread that was not yet written down would not be waited for
                futures = [pool.submit(queue.work_off, work) for _number in range(workers)]
            _wait(futures)
        finally:
            queue.close()


def _wait(futures: t.Sequence[concurrent.futures.Future[None]]) -> None:
    """Wait for all; raise what one of them raised.

    Not for long at a time: the kernel may hand a signal to another thread, and Python's handler
    runs in this one, but not while it sleeps.
    """
    while concurrent.futures.wait(futures, _TICK_SECONDS).not_done:
        pass
    for future in futures:
        future.result()


class _Queue(t.Generic[Work]):
    """What is to be done, for threads that take it when there is room for it."""

    def __init__(self, pieces: t.Sequence[tuple[Work, Places]], each: int) -> None:
        self._each = each
        self._waiting = list(pieces)
        self._at_work: collections.Counter[int] = collections.Counter()
        self._changed = threading.Condition()

    def work_off(self, work: t.Callable[[Work], None]) -> None:
        """One thread's life."""
        try:
            while (taken := self._take()) is not None:
                try:
                    work(taken[0])
                finally:
                    self._release(taken[1])
        finally:
            self.close()  # at the end, or after an error that is nobody's but ours

    def close(self) -> None:
        """Begin nothing more."""
        with self._changed:
            self._waiting.clear()
            self._changed.notify_all()

    def _take(self) -> tuple[Work, Places] | None:
        """The next that has room; waits for one.  None when nothing is to be begun any more."""
        with self._changed:
            while self._waiting and not is_stopping():
                for piece in self._waiting:
                    if all(self._at_work[place] < self._each for place in piece[1]):
                        self._waiting.remove(piece)
                        self._at_work.update(piece[1])
                        return piece
                self._changed.wait()
        return None

    def _release(self, places: Places) -> None:
        with self._changed:
            self._at_work.subtract(places)
            self._changed.notify_all()
