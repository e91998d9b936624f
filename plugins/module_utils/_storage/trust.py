# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who could have a name mean another file while we work with it.

As sshd does with ``StrictModes``: every folder on the way to a file, those of symlinks included,
may be changed by nobody but root, ourselves, and users whom the administrator trusts.  In a sticky
folder nobody can exchange what he does not own.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    NotFoundError,
    RefusedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown

#: As the kernel has it (linux/namei.h).
_MAX_LINKS = 40
_ACL = "system.posix_acl_access"
#: User IDs that the administrator trusts besides; a process does the work of one task.
_trusted: set[int] = set()


def trust(owners: t.Iterable[str]) -> None:
    """Trust these users, and no others besides root and ourselves, from now on.

    :param owners: their names, or their numbers.
    :raises NotFoundError: there is no such user.
    """
    _trusted.clear()
    for owner in owners:
        try:
            _trusted.add(int(owner) if owner.isdecimal() else pwd.getpwnam(owner).pw_uid)
        except KeyError as error:
            raise NotFoundError(
                f"There is no user {shown(owner)}, whom trusted_owners names; nothing was changed."
            ) from error


def is_trusted(uid: int) -> bool:
    return uid in (0, os.geteuid()) or uid in _trusted


def refuse_exchangeable(path: str) -> None:
    """Refuse a path on which another user can exchange a name.

    :param path: absolute; what does not exist, and what would be below it, is not looked at.
    :raises RefusedError: somebody can.
    :raises ThinvirtError: the kernel refuses to tell.
    """
    folder, left, links = "/", _parts(path), 0
    while True:
        try:
            sticky = _refuse_folder(path, folder)
            if not left:
                return
            name = os.path.join(folder, left.pop(0))
            status = os.lstat(name)
            if sticky and not is_trusted(status.st_uid):
                raise _refused(path, name, status, "belongs to")
            if stat.S_ISLNK(status.st_mode):
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                target = os.readlink(name)
                folder = "/" if target.startswith("/") else folder
                left = _parts(target) + left
            elif stat.S_ISDIR(status.st_mode):
                folder = name
            else:
                return
        except FileNotFoundError:
            return
        except OSError as error:
            raise failure(path, "examined", error) from error


def could_write(status: os.stat_result) -> bool:
    """Whether a file, by its owner and mode, may have been written by a user who is not trusted."""
    shared = bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    return shared or not is_trusted(status.st_uid)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _refuse_folder(path: str, folder: str) -> bool:
    """Refuse a folder that others own, or may change unless it is sticky; whether it is one."""
    status = os.lstat(folder)
    if not is_trusted(status.st_uid):
        raise _refused(path, folder, status, "belongs to")
    if not _others_write(folder, status):
        return False
    if not status.st_mode & stat.S_ISVTX:
        raise _refused(path, folder, status, "may be written to by others than")
    return True


def _others_write(folder: str, status: os.stat_result) -> bool:
    if status.st_mode & stat.S_IWOTH:
        return True
    if not status.st_mode & stat.S_IWGRP:
        return False
    # With an ACL these bits stand for whomever it names.
    return _ACL in os.listxattr(folder) or not _is_trusted_group(status.st_gid)


def _is_trusted_group(gid: int) -> bool:
    """Whether all of a group are; one without members may be anybody's, unless it is root's."""
    members = {user.pw_uid for user in pwd.getpwall() if user.pw_gid == gid}
    try:
        members.update(pwd.getpwnam(name).pw_uid for name in grp.getgrgid(gid).gr_mem)
    except KeyError:
        return False
    return all(map(is_trusted, members)) and (bool(members) or gid == 0)


def _refused(path: str, name: str, status: os.stat_result, says: str) -> RefusedError:
    where = "" if name == path else f", on the way to {shown(path)},"
    return RefusedError(
        f"Refused: {shown(name)}{where} {says} {_name_of(status.st_uid)} (mode "
        f"{stat.S_IMODE(status.st_mode):04o}), so another user could exchange files while they are "
        "worked on; nothing was changed.",
        remedy="Give it to root and take the right to write from others (chown root, chmod go-w), "
        "or name who may write to it in trusted_owners.",
    )


def _name_of(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"
