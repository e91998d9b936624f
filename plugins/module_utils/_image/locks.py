# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who has an image: QEMU's locks on single bytes of it, and the kernel's word on all others.

QEMU (block/file-posix.c) locks byte 100+n for a permission that it uses and byte 200+n for
one that it does not share.  Asking with F_OFD_GETLK takes no lock and disturbs nobody.  A
lock proves use; no lock proves little: other programs, and QEMU with ``locking=off``, take none.
Leases (``_storage/lease``) tell of those.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import stat
import struct
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.holders import (
    file_key,
    has_open,
    is_mounted,
    users_seen,
    writers_seen,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.lease import (
    READ,
    WRITE,
    Lease,
    has_writer,
    heeded,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown

#: QEMU's permissions by their number n.
PERMISSIONS = ("consistent-read", "write", "write-unchanged", "resize", "graph-mod")
USED_BASE = 100
UNSHARED_BASE = 200
#: The permissions, by number, that let somebody change an image: write and resize.
_WRITING = (1, 3)
#: What a file system answers that knows no such locks.
_NO_LOCKS = (errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)

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
def writers_kept_out(fd: int, path: str) -> t.Iterator[Lease]:
    """Nobody writes to an open image, or resizes it, meanwhile.

    Whoever comes to write waits for us, and we give up (``lease.give_way_if_asked``); where there
    are no leases, only who heeds QEMU's locks is kept out.

    :param path: for messages.
    :raises RefusedError: somebody may write to it, or the file system knows no such locks.
    :raises OSError: the kernel refuses for another reason.
    """
    # In this order: who waits for the lease, as a domain that starts, finds no lock afterwards.
    with heeded(Lease(fd, path)) as lease, _qemu_kept_out(fd, path):
        place_or_refuse(lease, fd, path)
        yield lease


def place_or_refuse(lease: Lease, fd: int, path: str) -> None:
    """Have a read lease on an image, or be sure that nobody writes to it now.

    :raises RefusedError: somebody may.
    """
    placed = lease.place(READ)
    if not placed or lease.missing:
        refuse_other_writers(fd, path)
    if not placed:
        lease.missing = "this process itself has it open for writing"


@contextlib.contextmanager
def _qemu_kept_out(fd: int, path: str) -> t.Iterator[None]:
    """Nobody who heeds QEMU's locks writes to an open image.

    First we say that we do not share these permissions, then we look whether somebody has them:
    in this order no domain that starts at the same time is missed.  A domain that starts later
    fails to get its lock, and says so.  Tools that only read go on working.
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
        _unlock(fd, taken)


def _unlock(fd: int, numbers: t.Iterable[int]) -> None:
    for number in numbers:
        _set_lock(fd, fcntl.F_UNLCK, UNSHARED_BASE + number)


def _lock_anew(fd: int, path: str) -> None:
    for number in _WRITING:
        _set_lock(fd, fcntl.F_RDLCK, UNSHARED_BASE + number)
    if any(_is_locked(fd, USED_BASE + number) for number in _WRITING):
        raise _in_use(fd, path)


@contextlib.contextmanager
def written_in_place(fd: int, lease: Lease) -> t.Iterator[None]:
    """Have an image of :func:`writers_kept_out` open for writing, under the same descriptor.

    Nobody else has it open meanwhile, but for those who had it before, and who take a short look.

    :param lease: of that image.
    :raises RefusedError: somebody may write to it.
    :raises ThinvirtError: it can't be opened for writing.
    """
    _reopen(fd, lease, os.O_RDWR)
    # A domain that starts looks at its images, and has to get its locks a moment later.
    lease.pause = lambda: _unlock(fd, _WRITING)
    lease.resume = lambda: _lock_anew(fd, lease.path)
    try:
        # Refused where somebody reads it, such as a domain whose disk lies on this image.
        if not lease.place(WRITE) or lease.missing:
            _refuse_seen(fd, lease.path)
        yield
    except BaseException:
        _unlock(fd, _WRITING)  # who was waiting must not find our locks
        lease.give_back()
        raise
    _reopen(fd, lease, os.O_RDONLY)
    place_or_refuse(lease, fd, lease.path)


def _reopen(fd: int, lease: Lease, mode: int) -> None:
    """Open the same file, not what has its name by now, in another mode, and locked as before."""
    lease.give_back()  # we would wait for ourselves
    try:
        again = os.open(f"/proc/self/fd/{fd}", mode | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        action = "opened" if mode == os.O_RDONLY else "opened for writing"
        raise failure(lease.path, action, error) from error
    try:
        _lock_anew(again, lease.path)
        os.dup2(again, fd, inheritable=False)
    finally:
        os.close(again)


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


def refuse_other_writers(fd: int, path: str) -> None:
    """Refuse an image that anybody else may write to: by a descriptor, a mapping, a loop device.

    The kernel is asked; processes are looked at only to say who it is, or where it does not tell.

    :raises RefusedError: somebody may write to it.
    """
    if writers := other_writers(fd):
        raise _used_by(path, writers)


def other_writers(fd: int) -> list[str]:
    """Who else may write to an open file, for people; empty if nobody may."""
    status = os.fstat(fd)
    if stat.S_ISBLK(status.st_mode) and is_mounted(fd):
        return ["a mount, or by another block device on top of it"]
    known = has_writer(fd)
    if known is False:
        return []
    writers = writers_seen(fd)
    if known and not writers and not has_open(file_key(status)):
        return ["somebody who cannot be seen from here"]
    return writers


def _refuse_seen(fd: int, path: str) -> None:
    if writers := writers_seen(fd):
        raise _used_by(path, writers)


def _in_use(fd: int, path: str) -> RefusedError:
    return _used_by(path, users_seen(fd))


def _used_by(path: str, users: t.Sequence[str]) -> RefusedError:
    devices = [user for user in users if user.startswith("/dev/")]
    if devices:
        return RefusedError(
            f"{shown(path)} is attached to {', '.join(devices)}; nothing was changed.",
            remedy="Detach it (losetup -d) and run it again.",
        )
    by = f" by {', '.join(users)}" if users else ""
    return RefusedError(
        f"{shown(path)} is in use{by}; nothing was changed.",
        remedy="Shut the domain down, or end what uses the image, and run it again.",
    )
