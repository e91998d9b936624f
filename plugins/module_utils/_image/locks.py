# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who holds an image open: QEMU's locks on single bytes of it, and the processes behind them.

QEMU (block/file-posix.c) locks byte 100+n for a permission that it uses and byte 200+n for
one that it does not share.  Asking with F_OFD_GETLK takes no lock and disturbs nobody.  A
lock proves use; no lock proves little: other programs, and QEMU with ``locking=off``, take none.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import stat
import struct
import time
import typing as t

#: QEMU's permissions by their number n.
PERMISSIONS = ("consistent-read", "write", "write-unchanged", "resize", "graph-mod")
USED_BASE = 100
UNSHARED_BASE = 200

#: Scanning /proc for holders stops after this many seconds; what was found by then counts.
MAX_SCAN_SECONDS = 5.0

#: struct flock: type, whence, start, length, pid, padded to its alignment.
_FLOCK = struct.Struct("@hhqqi0q")


@dataclasses.dataclass(frozen=True)
class LockState:
    """The permissions that others hold on an image.

    :param used: permissions that somebody uses.
    :param unshared: permissions that somebody does not grant to others.
    :param known: false where the file system knows no such locks; then both are empty.
    """

    used: frozenset[str]
    unshared: frozenset[str]
    known: bool = True

    @property
    def in_use(self) -> bool:
        """Somebody has the image open, a running guest or a tool of QEMU's."""
        return bool(self.used or self.unshared)

    @property
    def writer(self) -> bool:
        """Somebody may change the image at any moment."""
        return bool(self.used & {"write", "resize"})


@dataclasses.dataclass(frozen=True)
class Holder:
    """A process that has an image open.

    :param command: the kernel's name for it, 15 bytes at most, such as ``qemu-system-x86``.
    """

    pid: int
    command: str


def probe_locks(fd: int) -> LockState:
    """Ask which of QEMU's locks others hold on an open file; reading rights are enough.

    :raises OSError: the kernel refuses for another reason than not knowing such locks.
    """
    try:
        return LockState(
            used=frozenset(_locked(fd, USED_BASE)),
            unshared=frozenset(_locked(fd, UNSHARED_BASE)),
        )
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            return LockState(used=frozenset(), unshared=frozenset(), known=False)
        raise


def _locked(fd: int, base: int) -> t.Iterator[str]:
    for number, permission in enumerate(PERMISSIONS):
        # F_WRLCK is in conflict with any lock of others; to ask needs no right to write.
        question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, base + number, 1, 0)
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, question)
        if _FLOCK.unpack(answer)[0] != fcntl.F_UNLCK:
            yield permission


def find_holders(
    wanted: t.Collection[tuple[int, int]], *, proc: str = "/proc"
) -> dict[tuple[int, int], list[Holder]]:
    """The processes that have files open, for all files in one scan of /proc.

    :param wanted: ``(st_dev, st_ino)`` of the files; nothing is scanned without any.
    :returns: an entry for each that is open somewhere; processes that we may not look into,
        and those that a scan of :data:`MAX_SCAN_SECONDS` did not reach, are missing.
    """
    found: dict[tuple[int, int], list[Holder]] = {}
    deadline = time.monotonic() + MAX_SCAN_SECONDS
    for pid in _other_processes(proc) if wanted else ():
        if time.monotonic() > deadline:
            break
        for key in _open_files(f"{proc}/{pid}/fd").intersection(wanted):
            found.setdefault(key, []).append(Holder(pid, _command(f"{proc}/{pid}/comm")))
    return found


def _other_processes(proc: str) -> list[int]:
    try:
        names = os.listdir(proc)
    except OSError:  # no /proc here: nobody can be named
        return []
    numbers = (int(name) for name in names if name.isdigit())
    return sorted(pid for pid in numbers if pid != os.getpid())


def _open_files(folder: str) -> set[tuple[int, int]]:
    """``(st_dev, st_ino)`` of the regular files and block devices that a process has open."""
    found: set[tuple[int, int]] = set()
    try:
        names = os.listdir(folder)
    except OSError:  # the process ended, or is not ours to look into
        return found
    for name in names:
        link = os.path.join(folder, name)
        try:
            if not os.readlink(link).startswith("/"):  # a pipe, a socket, an anonymous inode
                continue
            status = os.stat(link)
        except OSError:  # closed meanwhile
            continue
        if stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode):
            found.add((status.st_dev, status.st_ino))
    return found


def _command(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="backslashreplace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return ""
