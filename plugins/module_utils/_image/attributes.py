# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a file is besides its content: owner, mode, ACL, label, the user's own attributes, and copy
on write on btrfs.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct

_ACL = "system.posix_acl_access"
#: Not among them: ``trusted.libvirt.security.*``.  libvirt remembers there whom to give the file
#: back to and counts its users; a stale count keeps the domain from starting.
_COPIED = ("security.selinux", _ACL)

#: linux/fs.h: FS_IOC_GETFLAGS, FS_IOC_SETFLAGS and FS_NOCOW_FL (chattr +C).
_GETFLAGS = 0x80086601
_SETFLAGS = 0x40086602
_NOCOW = 0x00800000
#: The kernel reads and writes an int, whatever the request's number says.
_FLAGS = struct.Struct("@i4x")

_NOT_THERE = (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS)


def new_file_like(fd: int, path: str) -> int:
    """Make an empty file that only we may read, open for reading and writing.

    A file on btrfs can be told not to copy on write only while it is empty: it becomes what the
    file of ``fd`` is.

    :raises FileExistsError: the name is taken, also by a symlink.
    :raises OSError: it can't be made.
    """
    new = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if _flags(fd) & _NOCOW:
        _add_flags(new, _NOCOW)
    return new


def copy_attributes(fd: int, new: int) -> None:
    """Give an open file the owner, mode, ACL, label and ``user.*`` attributes of another.

    :raises OSError: the kernel refuses one of them.
    """
    status = os.fstat(fd)
    mine = os.fstat(new)
    if (mine.st_uid, mine.st_gid) != (status.st_uid, status.st_gid):
        os.fchown(new, status.st_uid, status.st_gid)
    _remove_acl(new)
    os.fchmod(new, stat.S_IMODE(status.st_mode))
    for name in (*_COPIED, *_user_attributes(fd)):
        try:
            value = os.getxattr(fd, name)
        except OSError as error:
            if error.errno in _NOT_THERE:
                continue
            raise
        try:
            os.setxattr(new, name, value)
        except OSError as error:
            # A backup may go to a file system that knows no labels or ACLs.
            if error.errno not in _NOT_THERE:
                raise


def _remove_acl(fd: int) -> None:
    """A new file may have one from its folder's default ACL, which would let others in."""
    try:
        os.removexattr(fd, _ACL)
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise


def _user_attributes(fd: int) -> list[str]:
    try:
        return [name for name in os.listxattr(fd) if name.startswith("user.")]
    except OSError as error:
        if error.errno in _NOT_THERE:
            return []
        raise


def _flags(fd: int) -> int:
    try:
        answer = fcntl.ioctl(fd, _GETFLAGS, bytes(_FLAGS.size))
    except OSError as error:
        if error.errno in _NOT_THERE:
            return 0
        raise
    return int(_FLAGS.unpack(answer)[0])


def _add_flags(fd: int, flags: int) -> None:
    try:
        fcntl.ioctl(fd, _SETFLAGS, _FLAGS.pack(_flags(fd) | flags))
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
