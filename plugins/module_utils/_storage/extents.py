# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a file really occupies: blocks, data, holes and extents, asked from the kernel."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import stat
import struct
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure

#: The unit of ``st_blocks``, whatever the block size of the file system (man 2 stat).
STAT_BLOCK_BYTES = 512

#: ``FS_IOC_FIEMAP`` and the head of its ``struct fiemap`` (linux/fiemap.h): start, length,
#: flags, mapped extents, extent count, reserved.
_FIEMAP = 0xC020660B
_FIEMAP_HEAD = struct.Struct("=QQIIII")
_WHOLE_FILE = 2**64 - 1
#: ``struct fiemap_extent``: where it begins in the file and on the disk, length, flags.
_FIEMAP_EXTENT = struct.Struct("=QQQ16xI12x")
_FIEMAP_SYNC = 0x1
_FIEMAP_LAST = 0x1
_FIEMAP_UNWRITTEN = 0x800
_FIEMAP_SHARED = 0x2000
_EXTENTS_AT_A_TIME = 512
_NO_FIEMAP = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS)


@dataclasses.dataclass(frozen=True)
class FileUsage:
    """What a file occupies and how long it is, in bytes.

    :param allocated_bytes: blocks allocated on the host, what ``du`` counts; None for a block
        device, which does not tell.
    :param length_bytes: the length, what ``ls`` shows; a device's capacity.
    """

    allocated_bytes: int | None
    length_bytes: int


def file_usage(fd_or_path: int | str) -> FileUsage:
    """The usage of an open file, or of a path (symlinks are followed).

    :raises NotFoundError: nothing has that name.
    :raises ThinvirtError: the kernel refuses to tell.
    """
    try:
        status = os.stat(fd_or_path)
        if not stat.S_ISBLK(status.st_mode):
            return FileUsage(status.st_blocks * STAT_BLOCK_BYTES, status.st_size)
        if isinstance(fd_or_path, int):
            return FileUsage(None, _device_length(fd_or_path))
        fd = os.open(fd_or_path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return FileUsage(None, _device_length(fd))
        finally:
            os.close(fd)
    except OSError as error:
        raise failure(fd_or_path, "examined", error) from error


def _device_length(fd: int) -> int:
    position = os.lseek(fd, 0, os.SEEK_CUR)
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.lseek(fd, position, os.SEEK_SET)


def data_extents(fd: int) -> t.Iterator[tuple[int, int]]:
    """Yield (offset, length) in bytes of each run of data, in order; the rest are holes.

    Preallocated blocks that were never written count as holes though they are allocated;
    a file system without holes yields the whole file.  Moves the file position.

    :raises OSError: the file can't be read.
    """
    offset = 0
    while True:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        offset = os.lseek(fd, start, os.SEEK_HOLE)
        if offset <= start:  # the file shrank meanwhile
            return
        yield start, offset - start


def extent_count(fd: int) -> int | None:
    """The number of extents that the file system keeps for the file.

    None where it can't tell (no FIEMAP: vfat, tmpfs, NFS, devices).  Nothing is flushed
    before, so that asking disturbs nobody: a file being written may count more later.
    """
    request = _FIEMAP_HEAD.pack(0, _WHOLE_FILE, 0, 0, 0, 0)
    try:
        answer = fcntl.ioctl(fd, _FIEMAP, request)
    except OSError as error:
        if error.errno in _NO_FIEMAP:
            return None
        raise
    return int(_FIEMAP_HEAD.unpack(answer)[3])


@dataclasses.dataclass(frozen=True)
class Extent:
    """A part of a file for which blocks are allocated; in bytes.

    :param unwritten: it was never written, and reads as zeros: programs preallocate, and QEMU
        allocates a whole cluster for a small write.
    :param shared: other files have the same blocks, by a reflink or a snapshot: they stay allocated
        whatever becomes of this file.
    """

    offset: int
    length: int
    unwritten: bool
    shared: bool = False


def allocated_extents(fd: int, *, flush: bool = False) -> t.Iterator[Extent]:
    """The extents of a file up to its end, in order; those that touch each other are one.

    Where the file system can't tell (see :func:`extent_count`), the runs of data.  Moves the file
    position.

    :param flush: have what was written on the disk before: until then an extent may seem to be
        unwritten.
    :raises OSError: the file can't be read.
    """
    size = os.fstat(fd).st_size
    last: Extent | None = None
    for start, length, flags in _extents_of(fd, flush=flush):
        unwritten, shared = bool(flags & _FIEMAP_UNWRITTEN), bool(flags & _FIEMAP_SHARED)
        end = min(start + length, size)
        if start >= end:
            continue
        if last is not None:
            same = (last.unwritten, last.shared) == (unwritten, shared)
            if same and last.offset + last.length == start:
                last = dataclasses.replace(last, length=end - last.offset)
                continue
            yield last
        last = Extent(start, end - start, unwritten, shared)
    if last is not None:
        yield last


def shared_bytes(fd: int, *, flush: bool) -> int:
    """What an open file shares with others; 0 where the file system does not tell.

    Moves the file position.

    :param flush: as for :func:`allocated_extents`.
    :raises OSError: the file can't be read.
    """
    return sum(e.length for e in allocated_extents(fd, flush=flush) if e.shared)


def own_bytes(path: str) -> int | None:
    """What a file has allocated that others don't share; None for a block device.

    Symlinks are followed; what was written a moment ago may not be seen to be its own yet.

    :raises NotFoundError: nothing has that name.
    :raises ThinvirtError: the kernel refuses to tell.
    """
    allocated = file_usage(path).allocated_bytes
    if not allocated:
        return allocated
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return max(0, allocated - shared_bytes(fd, flush=False))
        finally:
            os.close(fd)
    except OSError as error:
        raise failure(path, "examined", error) from error


def _extents_of(fd: int, *, flush: bool) -> t.Iterator[tuple[int, int, int]]:
    start = 0
    while True:
        request = bytearray(_FIEMAP_HEAD.size + _EXTENTS_AT_A_TIME * _FIEMAP_EXTENT.size)
        head = (start, _WHOLE_FILE - start, _FIEMAP_SYNC if flush else 0, 0, _EXTENTS_AT_A_TIME, 0)
        _FIEMAP_HEAD.pack_into(request, 0, *head)
        try:
            fcntl.ioctl(fd, _FIEMAP, request)
        except OSError as error:
            if error.errno in _NO_FIEMAP:
                yield from ((offset, length, 0) for offset, length in data_extents(fd))
                return
            raise
        mapped = _FIEMAP_HEAD.unpack_from(request)[3]
        flags = _FIEMAP_LAST
        for number in range(mapped):
            at = _FIEMAP_HEAD.size + number * _FIEMAP_EXTENT.size
            begin, _on_disk, length, flags = _FIEMAP_EXTENT.unpack_from(request, at)
            start = begin + length
            yield begin, length, flags
        if flags & _FIEMAP_LAST:
            return


def holes_within(fd: int, start: int, end: int) -> t.Iterator[tuple[int, int, bool]]:
    """Yield (offset, length, is a hole) in bytes of parts of a range, in order.

    Of an unwritten extent, what is in memory alone is data.  Moves the file position.

    :raises OSError: the file can't be read.
    """
    while start < end:
        try:
            data = min(end, os.lseek(fd, start, os.SEEK_DATA))
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            data = end
        if data > start:
            yield start, data - start, True
        if data < end:
            hole = min(end, os.lseek(fd, data, os.SEEK_HOLE))
            if hole <= data:  # the file shrank meanwhile
                return
            yield data, hole - data, False
            data = hole
        start = data
