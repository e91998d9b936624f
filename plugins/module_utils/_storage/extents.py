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
        if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS):
            return None
        raise
    return int(_FIEMAP_HEAD.unpack(answer)[3])
