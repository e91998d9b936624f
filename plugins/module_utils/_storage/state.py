# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder in which we write down what we have begun: our own, and nobody else's.

What stands there is carried out, so nobody else may write there: /var/lib/thinvirt for root, and
for any other user his state folder (XDG Base Directory Specification).
"""

from __future__ import annotations

import contextlib
import os
import stat
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.trust import (
    refuse_exchangeable,
)

SYSTEM = "/var/lib/thinvirt"
#: Takes its place; for tests, and for whoever runs without a home.
VARIABLE = "THINVIRT_STATE_DIR"
_BY_UUID = "/dev/disk/by-uuid"


def state_dir() -> str:
    """The folder's path; it need not exist yet."""
    given = os.environ.get(VARIABLE, "")
    if given:
        return given
    if os.geteuid() == 0:
        return SYSTEM
    home = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(home):
        home = os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(home, "thinvirt")


def own_folder(name: str, *, parent: str = "") -> str:
    """A folder in it; both are made if need be, for us alone.

    :param parent: another folder than :func:`state_dir`.
    :returns: its path, symlinks resolved.
    :raises RefusedError: it belongs to somebody else, or others may write to it.
    :raises ThinvirtError: it can't be made.
    """
    whole = parent or state_dir()
    if not os.path.isabs(whole) or "\0" in whole:
        raise RefusedError(
            f"{shown(whole)} is not the absolute path of a folder; nothing was changed.",
            remedy="Use an absolute path.",
        )
    for folder in (whole, os.path.join(whole, name)):
        try:
            refuse_exchangeable(os.path.dirname(folder))
            os.makedirs(folder, mode=0o700, exist_ok=True)
            _make_private(os.path.realpath(folder))
        except OSError as error:
            raise failure(folder, "made", error) from error
    return os.path.realpath(folder)


def _make_private(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise RefusedError(
                f"{shown(folder)} belongs to another user, or others may write to it; what stands "
                "there is not believed, and nothing was changed.",
                remedy="Find out who has written to it, and remove it or correct its owner and "
                "mode.",
            )
        if status.st_mode & 0o077:
            os.fchmod(fd, 0o700)
    finally:
        os.close(fd)


def file_system_ids(folder: str) -> dict[str, str]:
    """What tells the file system of a folder from others, as far as can be told.

    Its UUID, if udev names it, and the number that statvfs(3) gives: each may be missing, and the
    latter is another one after a reboot on some.

    :raises OSError: the folder can't be examined.
    """
    device, ids = os.stat(folder).st_dev, {}
    number = os.statvfs(folder).f_fsid
    if number:
        ids["fsid"] = f"{number:x}"
    with contextlib.suppress(OSError):
        for entry in os.scandir(_BY_UUID):
            with contextlib.suppress(OSError):
                if entry.stat().st_rdev == device:
                    ids["uuid"] = entry.name
    return ids


def is_same_file_system(
    one: t.Mapping[str, str], other: t.Mapping[str, str], *, unknown: bool
) -> bool:
    """Whether two answers of :func:`file_system_ids` are of one file system (pure).

    :param unknown: the answer where that can't be told.
    """
    common = one.keys() & other.keys()
    return any(one[key] == other[key] for key in common) if common else unknown
