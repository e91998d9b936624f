# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two names exchanged in one step: neither file is without a name at any instant."""

from __future__ import annotations

import ctypes
import errno
import os

_AT_FDCWD = -100
#: RENAME_EXCHANGE of renameat2(2).
_EXCHANGE = 2
#: What NFS, some FUSE servers and old kernels answer.
_NOT_HERE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


def exchange_names(one: str, other: str) -> bool:
    """Give each of two files the name of the other.

    :returns: false where the file system, or the C library, can't.
    :raises OSError: one of them isn't there, or the kernel refuses for another reason.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):  # glibc before 2.28, musl
        return False
    names = os.fsencode(one), os.fsencode(other)
    if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_EXCHANGE)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NOT_HERE:
        return False
    raise OSError(number, os.strerror(number))
