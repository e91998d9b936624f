# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who holds an image open: QEMU's locks on single bytes of it, and the processes behind them.

QEMU (block/file-posix.c) locks byte 100+n for a permission that it uses and byte 200+n for
one that it does not share.  Asking with F_OFD_GETLK takes no lock and disturbs nobody.  A
lock proves use; no lock proves little: other programs, and QEMU with ``locking=off``, take none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import glob
import math
import os
import struct
import time
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown

#: QEMU's permissions by their number n.
PERMISSIONS = ("consistent-read", "write", "write-unchanged", "resize", "graph-mod")
USED_BASE = 100
UNSHARED_BASE = 200
#: The permissions, by number, that let somebody change an image: write and resize.
_WRITING = (1, 3)
#: What a file system answers that knows no such locks.
_NO_LOCKS = (errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)

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
    :param writes: it may write to it.
    """

    pid: int
    command: str
    writes: bool = False


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
        if error.errno in _NO_LOCKS:
            return LockState(used=frozenset(), unshared=frozenset(), known=False)
        raise


def _locked(fd: int, base: int) -> t.Iterator[str]:
    for number, permission in enumerate(PERMISSIONS):
        if _is_locked(fd, base + number):
            yield permission


def _is_locked(fd: int, byte: int) -> bool:
    # F_WRLCK is in conflict with any lock of others; to ask needs no right to write.
    question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, question)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def _set_lock(fd: int, kind: int, byte: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))


@contextlib.contextmanager
def writers_kept_out(fd: int, path: str) -> t.Iterator[None]:
    """Nobody who heeds QEMU's locks writes to an open image, or resizes it, meanwhile.

    First we say that we do not share these permissions, then we look whether somebody has them:
    in this order no domain that starts at the same time is missed.  A domain that starts later
    fails to get its lock, and says so.  Tools that only read go on working.

    :param path: for messages.
    :raises RefusedError: somebody writes to it, or the file system knows no such locks.
    :raises OSError: the kernel refuses for another reason.
    """
    taken = []
    try:
        for number in _WRITING:
            try:
                _set_lock(fd, fcntl.F_RDLCK, UNSHARED_BASE + number)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):  # a lock on the whole file
                    raise _in_use(fd, path) from error
                if error.errno in _NO_LOCKS:
                    raise RefusedError(
                        f"The file system of {shown(path)} has no locks that QEMU heeds, so a "
                        "domain could start meanwhile; nothing was changed.",
                        remedy="Work on a copy on a local file system.",
                    ) from error
                raise
            taken.append(number)
        if any(_is_locked(fd, USED_BASE + number) for number in _WRITING):
            raise _in_use(fd, path)
        yield
    finally:
        for number in taken:
            _set_lock(fd, fcntl.F_UNLCK, UNSHARED_BASE + number)


def refuse_writer(fd: int, path: str) -> None:
    """Refuse an image that somebody may change through QEMU right now; no lock is taken.

    :raises RefusedError: somebody may.
    """
    if probe_locks(fd).writer:
        raise _in_use(fd, path)


def refuse_reader(fd: int, path: str) -> None:
    """Refuse an image that somebody has open through QEMU, if only to read; no lock is taken.

    A domain reads the backing file of its disk, and may commit to it later: by its name, and by
    tables that it has read from the file that had the name before.

    :raises RefusedError: somebody has.
    """
    if probe_locks(fd).used:
        raise _in_use(fd, path)


def _in_use(fd: int, path: str) -> RefusedError:
    status = os.fstat(fd)
    key = (status.st_dev, status.st_ino)
    holders = find_holders([key]).get(key, ())
    named = ", ".join(f"{holder.command} ({holder.pid})" for holder in holders)
    return RefusedError(
        f"{shown(path)} is in use{f' by {named}' if named else ''}; nothing was changed.",
        remedy="Shut the domain down, or end what uses the image, and run it again.",
    )


def refuse_other_writers(fd: int, path: str) -> None:
    """Refuse an image that somebody may write to without QEMU's locks: open for writing, or looped.

    Only what this user may see is found; root sees all.

    :raises RefusedError: somebody may write to it.
    """
    status = os.fstat(fd)
    key = (status.st_dev, status.st_ino)
    loops = loop_devices_of(key)
    if loops:
        raise RefusedError(
            f"{shown(path)} is attached to {', '.join(loops)}; nothing was changed.",
            remedy="Detach it (losetup -d) and run it again.",
        )
    holders = find_holders([key], max_seconds=math.inf).get(key, ())
    if any(holder.writes for holder in holders):
        raise _in_use(fd, path)


def loop_devices_of(key: tuple[int, int], *, sysfs: str = "/sys/block") -> list[str]:
    """The loop devices that a file is attached to; the kernel holds it for them, no process."""
    found = []
    for name in sorted(glob.glob(f"{sysfs}/loop*/loop/backing_file")):
        try:
            with open(name, encoding="utf-8", errors="surrogateescape") as file:
                status = os.stat(file.read().rstrip("\n"))
        except OSError:  # detached meanwhile, or its file was deleted
            continue
        if (status.st_dev, status.st_ino) == key:
            found.append(f"/dev/{name.split('/')[-3]}")
    return found


def find_holders(
    wanted: t.Collection[tuple[int, int]],
    *,
    proc: str = "/proc",
    max_seconds: float | None = None,
) -> dict[tuple[int, int], list[Holder]]:
    """The processes that have files open, for all files in one scan of /proc.

    :param wanted: ``(st_dev, st_ino)`` of the files; nothing is scanned without any.
    :param max_seconds: :data:`MAX_SCAN_SECONDS` by default.
    :returns: an entry for each that is open somewhere; processes that we may not look into,
        and those that a scan of ``max_seconds`` did not reach, are missing.
    """
    found: dict[tuple[int, int], list[Holder]] = {}
    deadline = time.monotonic() + (MAX_SCAN_SECONDS if max_seconds is None else max_seconds)
    for pid in _other_processes(proc) if wanted else ():
        if time.monotonic() > deadline:
            break
        descriptors = _open_files(f"{proc}/{pid}/fd", wanted)
        for key, names in descriptors.items():
            writes = any(_may_write(f"{proc}/{pid}/fdinfo/{name}") for name in names)
            found.setdefault(key, []).append(Holder(pid, _command(f"{proc}/{pid}/comm"), writes))
    return found


def _other_processes(proc: str) -> list[int]:
    try:
        names = os.listdir(proc)
    except OSError:  # no /proc here: nobody can be named
        return []
    numbers = (int(name) for name in names if name.isdigit())
    return sorted(pid for pid in numbers if pid != os.getpid())


def _open_files(
    folder: str, wanted: t.Collection[tuple[int, int]]
) -> dict[tuple[int, int], list[str]]:
    """Which of the wanted files a process has open, and under which descriptors."""
    found: dict[tuple[int, int], list[str]] = {}
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
        key = (status.st_dev, status.st_ino)
        if key in wanted:
            found.setdefault(key, []).append(name)
    return found


def _may_write(fdinfo: str) -> bool:
    try:
        with open(fdinfo, encoding="ascii") as file:
            flags = [line.split()[1] for line in file if line.startswith("flags:")]
    except OSError:  # closed meanwhile
        return False
    return any(int(flag, 8) & os.O_ACCMODE != os.O_RDONLY for flag in flags)


def _command(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="backslashreplace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return ""
