# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work side by side on different file systems, in turn on the same one."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import (
    is_stopping,
    signals_noted,
    stop_if_asked,
)

#: libvirtd works on so many requests of one connection at a time (max_client_requests in
#: libvirtd.conf); more threads would only wait there.
MAX_WORKERS = 5

Work = t.TypeVar("Work")


class Turns:
    """How many may work on a file system at once.

    :param each: so many on each file system.
    """

    def __init__(self, each: int) -> None:
        self._each = each
        self._lock = threading.Lock()
        self._slots: dict[int, threading.Semaphore] = {}

    @contextlib.contextmanager
    def on(self, devices: t.Iterable[int]) -> t.Iterator[None]:
        """Wait for a turn on each of these file systems (``st_dev``), and have them meanwhile.

        All take them in the same order, so that no two wait for each other.
        """
        with contextlib.ExitStack() as stack:
            for device in sorted(set(devices)):
                with self._lock:
                    slot = self._slots.setdefault(device, threading.Semaphore(self._each))
                stack.enter_context(slot)
                stop_if_asked()
            yield


def side_by_side(work: t.Callable[[Work], None], pieces: t.Sequence[Work], *, workers: int) -> None:
    """Do each piece of work, so many at once at most.

    With one worker this thread does it all, in order.

    :raises StoppedError: a signal asked to end; by now all threads have ended as well.
    """
    if min(workers, len(pieces)) <= 1:
        for piece in pieces:
            work(piece)
        return

    def begin(piece: Work) -> None:
        if not is_stopping():
            work(piece)

    with concurrent.futures.ThreadPoolExecutor(min(workers, len(pieces), MAX_WORKERS)) as pool:
        try:
            with signals_noted():  # a thread that was not yet written down would not be waited for
                futures = [pool.submit(begin, piece) for piece in pieces]
            for future in futures:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)  # and wait for what is at work
