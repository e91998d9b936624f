# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One filler at a time in a guest: a lock that ends with its process, and who holds it.

Two of them would each keep to its budget and together exceed what the host can take.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import stat
import time
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure

LOCK_PATH = "/run/thinvirt-zero-fill.lock"
#: A filler heeds SIGTERM between two writes; one that does not by then is killed.
_GRACE_SECONDS = 15
_POLL_SECONDS = 0.1


@contextlib.contextmanager
def the_only_filler(path: str = LOCK_PATH) -> t.Iterator[None]:
    """Hold the lock of this guest.

    :raises RefusedError: another filler runs; the message names its process.
    """
    with _lock_file(path) as fd:
        if not _acquired(fd):
            raise RefusedError(
                f"{_name(_holder(fd))} is filling file systems of this guest already. "
                "Nothing was written.",
                remedy="Wait for it, or end it with state=absent.",
            )
        yield


def running_filler(path: str = LOCK_PATH) -> bool:
    """Whether a filler runs in this guest."""
    with _lock_file(path) as fd:
        return not _acquired(fd)


def end_filler(*, timeout: float, path: str = LOCK_PATH) -> bool:
    """End the filler that runs in this guest, if one does; returns whether one did.

    It is asked by SIGTERM, so that it tells what it has written.  One that does not heed that is
    killed, and its file, which has no name, goes with it.

    :raises ThinvirtError: it is still there after so many seconds.
    """
    deadline = time.monotonic() + timeout
    kill_at = time.monotonic() + min(_GRACE_SECONDS, timeout / 2)
    asked: set[int] = set()
    killed: set[int] = set()
    with _lock_file(path) as fd:
        while not _acquired(fd):
            pid = _holder(fd)
            if time.monotonic() > deadline:
                raise ThinvirtError(
                    f"{_name(pid)} is still filling {timeout:.0f} s after it was told to end.",
                    remedy="Its disk may hang: look at the host's free space and at the domain.",
                )
            if pid and pid not in asked:
                _signal(pid, signal.SIGTERM, fd)
                asked.add(pid)
            elif pid and pid not in killed and time.monotonic() > kill_at:
                _signal(pid, signal.SIGKILL, fd)
                killed.add(pid)
            time.sleep(_POLL_SECONDS)
    return bool(asked)


@contextlib.contextmanager
def _lock_file(path: str) -> t.Iterator[int]:
    """The file is never removed: whoever waits for it would hold a lock that nobody else sees."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        raise failure(path, "opened", error) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise RefusedError(
                f"{path} is not this user's own file. Nothing was written.",
                remedy="Find out where it comes from, and remove it.",
            )
        yield fd
    finally:
        os.close(fd)


def _acquired(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(fd: int) -> int:
    """The process that holds the lock, as the kernel says it; 0 if it is out of sight.

    A number in the file itself was rejected: one that a killed filler left may be anybody's.
    """
    status = os.fstat(fd)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with open("/proc/locks", encoding="ascii") as file:
        for line in file:
            fields = line.split()
            # ``1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF``; who waits has a -> there.
            if len(fields) == 8 and fields[1] == "FLOCK" and fields[5] == device:
                return max(0, int(fields[4]))
    return 0


def _signal(pid: int, number: signal.Signals, fd: int) -> None:
    """Only to a process that still holds the lock: a number may be given anew meanwhile."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except (OSError, AttributeError):  # before Linux 5.3
        if _holder(fd) == pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return
    try:
        if _holder(fd) == pid:
            signal.pidfd_send_signal(pidfd, number)
    except OSError as error:
        if error.errno != errno.ESRCH:
            raise ThinvirtError(f"{_name(pid)} cannot be told to end: {error.strerror}.") from error
    finally:
        os.close(pidfd)


def _name(pid: int) -> str:
    return f"Process {pid}" if pid else "A process that cannot be seen from here"
