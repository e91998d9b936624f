# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run of ours at a time on a domain.

Whoever changes a domain's disks holds a flock(2) on a file of that domain's, in a folder where no
other user can make one.  The kernel releases it when the process ends, however it does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import Guest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown

_MAX_BYTES = 64


def lock_folder(*, uid: int, environment: t.Mapping[str, str]) -> str:
    """Where a user's locks lie (pure)."""
    if uid == 0:
        return "/run/thinvirt"
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/"):
        return f"{runtime}/thinvirt"
    return f"{environment.get('HOME') or '/nonexistent'}/.local/state/thinvirt"


@contextlib.contextmanager
def only_run(guest: Guest) -> t.Iterator[None]:
    """Be the only run of ours that changes a domain meanwhile.

    :raises RefusedError: another one is at work on it; nothing was changed.
    """
    if guest.uri.startswith("test:"):  # such domains are no two processes' at once
        yield
        return
    folder = lock_folder(uid=os.geteuid(), environment=os.environ)
    name = os.path.join(folder, f"{guest.uuid}.lock")
    try:
        fd = _locked(folder, name, guest)
    except OSError as error:
        raise failure(name, "locked", error) from error
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode("ascii"), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)
        os.close(fd)


def _locked(folder: str, name: str, guest: Guest) -> int:
    os.makedirs(folder, mode=0o700, exist_ok=True)
    status = os.lstat(folder)
    writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or writable:
        raise RefusedError(
            f"{shown(folder)} is not a folder of this user's alone; domain {guest.name} was left "
            "as it is.",
            remedy="Find out where it comes from, and remove it.",
        )
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        fd = os.open(name, flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid = os.pread(fd, _MAX_BYTES, 0).decode("ascii", "replace")
            os.close(fd)
            raise RefusedError(
                f"Another run (process {pid}) is at work on domain {guest.name}; nothing was "
                "changed.",
                remedy="Wait for it to end, and run it again.",
            ) from error
        except BaseException:
            os.close(fd)
            raise
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.lstat(name), os.fstat(fd)):
                return fd
        os.close(fd)  # its holder was done with it and removed it meanwhile
