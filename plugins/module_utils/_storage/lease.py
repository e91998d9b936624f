# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Leases (F_SETLEASE): the kernel knows who has a file, and has whoever comes wait for us.

A read lease is placed only if nobody has the file open for writing: no process, by whatever name
and in whatever mount namespace, no mapping whose descriptor is closed, no loop device.  A write
lease is placed only if nobody else has it open at all.  While one is held, whoever opens the file
otherwise waits, the holder is told, and after /proc/sys/fs/lease-break-time (45 s) the kernel ends
it.  We don't make anybody wait: who is told by :func:`give_way_if_asked` gives up.

The kernel tells by a signal.  It is SIGURG, which nobody heeds, instead of SIGIO, which would end
this process; F_GETLEASE says the same to whoever asks, in any thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import threading
import time
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import GaveWayError
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.filesystem import mount_of_fd
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown

READ, WRITE, _NONE = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK

#: What the kernel answers where there are no leases: other file systems, block devices, files of
#: others for whom is not root.
_NOT_HERE = (errno.EINVAL, errno.EACCES, errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
#: File systems that others write to from other machines: what a lease says there proves nothing.
_REMOTE = ("nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "afs", "gfs2", "ocfs2", "virtiofs", "fuse")
#: How long somebody may take who only looks at a file that we write to.
_READER_SECONDS = 1.0

_mine = threading.local()


class Lease:
    """A lease on an open file, or the place of one where there are none.

    :param kind: :data:`READ` or :data:`WRITE` while one is held.
    :param writes: the last one that was asked for was to write.
    :param missing: why there can be none, such as a file system without leases.
    :param pause: called before somebody is let in who only looks at what we write to, and
    :param resume: afterwards, when we are alone again.
    """

    def __init__(self, fd: int, path: str) -> None:
        self.pause: t.Callable[[], None] = lambda: None
        self.resume: t.Callable[[], None] = lambda: None
        self.path = path
        self.kind = _NONE
        self.missing = ""
        self.writes = False
        self._fd = fd
        self._told = False

    def place(self, kind: int) -> bool:
        """Ask for a lease.

        :returns: false if others have the file; true also where there are no leases, and
            ``missing`` says so.
        """
        placed = _place(self._fd, kind)
        where = mount_of_fd(self._fd).type if placed is None else ""
        self.missing = f"its file system ({where}) has no leases" if where else ""
        self.kind = kind if placed else _NONE
        self.writes = kind == WRITE
        return placed is not False

    def is_wanted(self) -> bool:
        """Whether somebody waits for the file, or the kernel has taken the lease back."""
        return self.kind != _NONE and self._now() != self.kind

    def give_back(self) -> None:
        """Let in who waits."""
        if self.kind != _NONE:
            self.kind = _NONE
            with contextlib.suppress(BlockingIOError):  # the kernel has taken it
                fcntl.fcntl(self._fd, fcntl.F_SETLEASE, _NONE)

    def give_way_if_asked(self) -> None:
        """Raise, once, if somebody waits for the file; who only looks at what we write is let in.

        :raises GaveWayError: somebody does.
        """
        if self._told or not self.is_wanted():
            return
        if self.kind == WRITE and self._now() == READ and self._let_reader_in():
            return
        self._told = True
        raise self.gave_way()

    def gave_way(self) -> GaveWayError:
        what = "its content was not changed" if self.writes else "nothing was changed"
        return GaveWayError(
            f"Somebody else opened {shown(self.path)} meanwhile, a domain that starts perhaps, "
            f"and was let in first; {what}.",
            remedy="Run it again when nobody uses it.",
        )

    def _now(self) -> int:
        return fcntl.fcntl(self._fd, fcntl.F_GETLEASE)

    def _let_reader_in(self) -> bool:
        """False if somebody came who stays: QEMU reads at first, and wants to write a moment later.

        :raises ThinvirtError: what ``resume`` raises.
        """
        self.pause()
        self.give_back()
        deadline = time.monotonic() + _READER_SECONDS
        while time.monotonic() < deadline:
            if self.place(WRITE):
                self.resume()
                return True
            time.sleep(0.02)
        return False


@contextlib.contextmanager
def heeded(lease: Lease) -> t.Iterator[Lease]:
    """Have :func:`give_way_if_asked` ask for a lease in this thread; given back in the end."""
    leases = _mine.__dict__.setdefault("leases", [])
    leases.append(lease)
    try:
        yield lease
    finally:
        leases.remove(lease)
        lease.give_back()


def give_way_if_asked() -> None:
    """To be called now and then, by whoever works for long, at least each second.

    :raises GaveWayError: somebody waits for a file on which this thread has a lease.
    """
    for lease in _mine.__dict__.get("leases", ()):
        lease.give_way_if_asked()


def has_writer(fd: int) -> bool | None:
    """Whether anybody, this process included, may write to an open file; None if nobody can tell.

    :raises OSError: the file can't be opened again.
    """
    # Another open file: the one of ``fd`` may have a lease, which must not end with this one.
    # O_NONBLOCK, as a write lease of ours would have us wait for ourselves.
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        placed = _place(again, READ)
        return None if placed is None else not placed
    finally:
        os.close(again)  # and the lease with it


def _place(fd: int, kind: int) -> bool | None:
    """Whether a lease was placed; None where there are none."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, kind)
    except OSError as error:
        if error.errno in _NOT_HERE:
            return None
        if error.errno != errno.EAGAIN:
            raise
        return None if _is_remote(fd) else False
    if _is_remote(fd):
        fcntl.fcntl(fd, fcntl.F_SETLEASE, _NONE)
        return None
    return True


def _is_remote(fd: int) -> bool:
    return mount_of_fd(fd).type.partition(".")[0] in _REMOTE
