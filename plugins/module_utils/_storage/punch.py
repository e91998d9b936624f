# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether storage takes space back: punched holes in files, discards on block devices.

Tried out, not looked up in a list of file systems: NFS before 4.2, odd FUSE servers and
stacked file systems make every list wrong.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import functools
import os
import secrets
import stat
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown

#: The file that is punched: small, and yet several blocks of every common file system.
PROBE_BYTES = 64 * 1024

#: fallocate(2), linux/falloc.h
_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02


@dataclasses.dataclass(frozen=True)
class PunchProbe:
    """What a trial showed.

    :param works: space comes back; None when that could not be found out.
    :param reason: one sentence about how that is known, or what stood in the way.
    """

    works: bool | None
    reason: str


def can_punch_holes(directory: str) -> PunchProbe:
    """Punch a hole into a real file of 64 KiB in a directory and see whether blocks come back.

    The file has no name, or loses it at once: nothing is left behind, whatever happens.
    Raises nothing: whatever stands in the way makes ``works`` None and is the reason.
    """
    try:
        fd = _nameless_file(directory)
    except OSError as error:
        return PunchProbe(None, f"No file can be made in {shown(directory)}: {error.strerror}.")
    try:
        return _probe(fd, shown(directory))
    except OSError as error:
        return PunchProbe(None, f"The trial in {shown(directory)} failed: {error.strerror}.")
    finally:
        os.close(fd)


def _nameless_file(directory: str) -> int:
    flags = os.O_RDWR | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(directory, flags | os.O_TMPFILE, 0o600)
    except OSError as error:
        # vfat, NFS and FUSE: EOPNOTSUPP; file systems that never heard of it: EISDIR.
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise
    name = os.path.join(directory, f".thinvirt-probe-{secrets.token_hex(8)}")
    fd = os.open(name, flags | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        os.unlink(name)
    except OSError:
        os.close(fd)
        raise
    return fd


def _probe(fd: int, directory: str) -> PunchProbe:
    # Random bytes: a file system that compresses or deduplicates would keep others nowhere.
    os.write(fd, os.urandom(PROBE_BYTES))
    os.fsync(fd)  # delayed allocation happens now
    before = os.fstat(fd).st_blocks
    if before == 0:
        return PunchProbe(None, f"{directory}: its file system counts blocks too late to tell.")
    try:
        punch_hole(fd, offset=0, length=PROBE_BYTES)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            return PunchProbe(False, f"The file system of {directory} cannot punch holes.")
        raise
    os.fsync(fd)
    after = os.fstat(fd).st_blocks
    if after < before:
        return PunchProbe(True, f"A hole punched in {directory} freed its blocks.")
    return PunchProbe(False, f"A hole punched in {directory} was accepted and freed nothing.")


def punch_hole(fd: int, *, offset: int, length: int) -> None:
    """Free a range of a file open for writing, in bytes; its length stays, it reads as zeros.

    :raises OSError: EOPNOTSUPP where the file system can't.
    """
    if _fallocate()(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@functools.cache
def _fallocate() -> t.Callable[..., int]:
    """fallocate(2): Python's ``os`` knows only ``posix_fallocate``, hence ctypes."""
    libc = ctypes.CDLL(None, use_errno=True)
    # glibc: off_t is 64 bits only in fallocate64 on 32-bit machines; musl has just the one.
    fallocate = getattr(libc, "fallocate64", None) or libc.fallocate
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    fallocate.restype = ctypes.c_int
    return t.cast("t.Callable[..., int]", fallocate)


def can_discard(device: str, *, sysfs: str = "/sys") -> PunchProbe:
    """Whether a block device passes discards on, from its queue's ``discard_max_bytes``.

    Nothing is written to the device.  Raises nothing, as :func:`can_punch_holes`.
    """
    try:
        status = os.stat(device)
    except OSError as error:
        return PunchProbe(None, failure(device, "examined", error).message)
    if not stat.S_ISBLK(status.st_mode):
        return PunchProbe(None, f"{shown(device)} is not a block device.")
    limit = discard_max_bytes(status.st_rdev, sysfs=sysfs)
    if limit is None:
        return PunchProbe(None, f"The kernel does not tell what {shown(device)} can discard.")
    if limit == 0:
        return PunchProbe(False, f"{shown(device)} takes no discards (discard_max_bytes is 0).")
    return PunchProbe(True, f"{shown(device)} discards up to {limit} bytes at once.")


def discard_max_bytes(device_number: int, *, sysfs: str = "/sys") -> int | None:
    """The longest discard in bytes that a device takes, 0 for none; None if unknown.

    :param device_number: ``st_rdev`` of the device.  A partition has its parent's queue.
    """
    number = f"{os.major(device_number)}:{os.minor(device_number)}"
    folder = os.path.realpath(os.path.join(sysfs, "dev", "block", number))
    if os.path.exists(os.path.join(folder, "partition")):
        folder = os.path.dirname(folder)
    try:
        with open(os.path.join(folder, "queue", "discard_max_bytes"), encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None
