# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find and end the processes of one lab, and no others.

libvirtd is started with TMPDIR=STATE/tmp and hands it on to every QEMU: a process is ours when
its environment says so. Process ids on disk may be stale, an environment can't be.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path


def marker(state: Path) -> dict[str, str]:
    """The environment variable that marks a process as part of the lab in *state*."""
    return {"TMPDIR": str(state / "tmp")}


def _is_marked(pid: int, state: Path) -> bool:
    ((name, value),) = marker(state).items()
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # gone, or another user's
        return False
    return f"{name}={value}".encode() in environ.split(b"\0")


def owned_pids(state: Path) -> list[int]:
    """Living processes of the lab in *state*, daemons and guests."""
    pids = (int(entry) for entry in os.listdir("/proc") if entry.isdigit())
    return [pid for pid in pids if _is_marked(pid, state)]


@contextlib.contextmanager
def _handles(state: Path) -> Iterator[list[int]]:
    """Process handles: unlike an id, a handle never comes to mean another process."""
    handles: list[int] = []
    try:
        for pid in owned_pids(state):
            with contextlib.suppress(ProcessLookupError):
                handles.append(os.pidfd_open(pid))
                if not _is_marked(pid, state):
                    os.close(handles.pop())
        yield handles
    finally:
        for handle in handles:
            os.close(handle)


def end_all(state: Path, *, grace: float = 10.0) -> int:
    """Ask every process of the lab to end, kill what has not after *grace* seconds.

    Returns how many processes were told to end. When it returns they are gone.
    """
    ended = 0
    for signum, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, grace)):
        with _handles(state) as handles:
            if signum == signal.SIGTERM:
                ended = len(handles)
            for handle in handles:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, signum)
            _wait(handles, patience)
    return ended


def _wait(handles: list[int], seconds: float) -> None:
    """Return when every process has ended (a handle becomes readable then) or time is up."""
    deadline = time.monotonic() + seconds
    waiting = set(handles)
    while waiting and (left := deadline - time.monotonic()) > 0:
        poll = select.poll()
        for handle in waiting:
            poll.register(handle, select.POLLIN)
        waiting -= {handle for handle, _event in poll.poll(left * 1000)}
