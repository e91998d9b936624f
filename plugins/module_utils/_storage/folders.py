# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Folders of our own: private, flat, and removed without being led anywhere else."""

from __future__ import annotations

import os
import stat

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown


def make_private(path: str, *, uid: int = -1, gid: int = -1) -> None:
    """Make a folder that only its owner may use.

    :param uid: its owner, if it is to be another user than this one.
    :raises RefusedError: the name is taken.
    :raises ThinvirtError: it can't be made.
    """
    try:
        os.mkdir(path, 0o700)
        if uid >= 0 and (uid, gid) != (os.geteuid(), os.getegid()):
            os.chown(path, uid, gid, follow_symlinks=False)
    except FileExistsError as error:
        raise RefusedError(
            f"{shown(path)} exists already; nothing was changed.",
            remedy="Find out where it comes from, and remove it.",
        ) from error
    except OSError as error:
        raise failure(path, "made", error) from error


def refuse_foreign(path: str) -> None:
    """Refuse a folder to which somebody else may write.

    :raises RefusedError: it is such a folder, or none.
    :raises ThinvirtError: it can't be examined.
    """
    try:
        status = os.lstat(path)
    except OSError as error:
        raise failure(path, "examined", error) from error
    others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or others:
        raise RefusedError(
            f"{shown(path)} is not a folder that only this user may write to; nothing was changed.",
            remedy="Find out where it comes from; remove it, or correct its owner and mode.",
        )


def remove_flat(path: str) -> None:
    """Remove a folder and the files in it; nothing if it isn't there.

    A link in it is removed, not followed.

    :raises RefusedError: there is a folder in it, which is none of ours; it stays.
    :raises ThinvirtError: the kernel refuses.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        raise failure(path, "removed", error) from error
    try:
        names = os.listdir(fd)
        for name in names:
            if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                raise RefusedError(
                    f"{shown(path)} is to be removed and holds a folder, {shown(name)}; "
                    "both were left.",
                    remedy="Find out where it comes from, and remove it.",
                )
        for name in names:
            os.unlink(name, dir_fd=fd)
        os.rmdir(path)
    except OSError as error:
        raise failure(path, "removed", error) from error
    finally:
        os.close(fd)
