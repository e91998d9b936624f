# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run of ours at a time on a domain.

Whoever changes a domain's disks holds a file of that domain's (``lock_file``), in a folder where no
other user can make one.
"""

from __future__ import annotations

import contextlib
import os
import stat
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import Guest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage import lock_file
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
    _make_folder(folder, guest)
    fd = lock_file.locked(name, busy=lambda fd: _busy(fd, guest))
    try:
        os.ftruncate(fd, 0)
        os.write(fd, str(os.getpid()).encode("ascii"))
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)
        os.close(fd)


def _make_folder(folder: str, guest: Guest) -> None:
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        status = os.lstat(folder)
    except OSError as error:
        raise failure(folder, "made", error) from error
    writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or writable:
        raise RefusedError(
            f"{shown(folder)} is not a folder of this user's alone; domain {guest.name} was left "
            "as it is.",
            remedy="Find out where it comes from, and remove it.",
        )


def _busy(fd: int, guest: Guest) -> RefusedError:
    pid = os.pread(fd, _MAX_BYTES, 0).decode("ascii", "replace")
    return RefusedError(
        f"Another run (process {pid}) is at work on domain {guest.name}; nothing was changed.",
        remedy="Wait for it to end, and run it again.",
    )
