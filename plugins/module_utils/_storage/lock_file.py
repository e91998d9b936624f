# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that one process at a time holds by a flock(2), and removes when it is done with them.

The kernel releases the lock when the process ends, however it does.
"""

from __future__ import annotations

import fcntl
import os
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure


def locked(
    name: str,
    *,
    busy: t.Callable[[int], Exception],
    refuse: t.Callable[[int], None] = lambda _fd: None,
) -> int:
    """Open a file, made if it isn't there, and be the one who holds it.

    :param busy: what is raised if another one does, from the open file.
    :param refuse: raises if the open file must not be used.
    :returns: its descriptor; to close it gives the lock back.
    :raises ThinvirtError: it can't be opened, as where its name is a symlink, or locked.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    while True:
        try:
            fd = os.open(name, flags, 0o600)
        except OSError as error:
            raise failure(name, "opened", error) from error
        try:
            refuse(fd)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            try:
                raise busy(fd) from error
            finally:
                os.close(fd)
        except OSError as error:
            os.close(fd)
            raise failure(name, "locked", error) from error
        except BaseException:
            os.close(fd)
            raise
        if is_at(fd, name):
            return fd
        os.close(fd)  # its holder was done with it and removed it meanwhile


def is_at(fd: int, name: str) -> bool:
    """Whether an open file still has its name."""
    try:
        status = os.lstat(name)
    except FileNotFoundError:
        return False
    return os.path.samestat(status, os.fstat(fd))
