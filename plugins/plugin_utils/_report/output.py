# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a report in their folder: only what differs is written, each whole or not at all."""

from __future__ import annotations

import dataclasses
import errno
import grp
import hashlib
import os
import pwd
import stat
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._plan import Change
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.durable import write_whole
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown


@dataclasses.dataclass(frozen=True)
class Access:
    """Whom the files belong to, and who may read them; None leaves it as it is.

    :param mode: permission bits.
    """

    mode: int
    uid: int | None = None
    gid: int | None = None


@dataclasses.dataclass(frozen=True)
class Output:
    """A file of the report.

    :param changes: what differs from what is there; none if it is as it is to be.
    """

    path: str
    text: str
    changes: tuple[Change, ...]

    @property
    def size_bytes(self) -> int:
        return len(self.text.encode())


def access(*, mode: str, owner: str | None, group: str | None) -> Access:
    """The options of these names.

    :raises RefusedError: the mode is no octal number, or there is no such user or group.
    """
    try:
        bits = int(mode, 8)
    except ValueError:
        bits = -1
    if not 0 <= bits <= 0o777:
        raise RefusedError(
            f"The mode {shown(mode)} is no octal number up to 0777; nothing was written.",
            remedy="Write it with quotes, such as '0640'.",
        )
    try:
        uid = pwd.getpwnam(owner).pw_uid if owner else None
        gid = grp.getgrnam(group).gr_gid if group else None
    except KeyError as error:
        raise RefusedError(
            f"The controller has no such user or group: {error.args[0]}; nothing was written.",
            remedy="Make it there, or name one that is there.",
        ) from error
    return Access(bits, uid, gid)


def plan(folder: str, texts: t.Mapping[str, str], wanted: Access) -> list[Output]:
    """What there is to do for each file; changes nothing.

    :param texts: by the names of the files.
    :raises RefusedError: the folder's name is taken, or the folder can't be made where it is to be.
    """
    parent = os.path.dirname(folder)
    if not os.path.isdir(folder) and (os.path.lexists(folder) or not os.path.isdir(parent)):
        raise RefusedError(
            f"{shown(folder)} is no folder and can't be made one; nothing was written.",
            remedy=f"Make {shown(parent)} first, or choose another dest_dir.",
        )
    return [_output(os.path.join(folder, name), text, wanted) for name, text in texts.items()]


def apply(folder: str, outputs: t.Iterable[Output], wanted: Access) -> None:
    """Make the folder and write what has changes.

    :raises ThinvirtError: the kernel refuses. Files that were written before stay, each whole.
    """
    changed = [output for output in outputs if output.changes]
    if changed and not os.path.isdir(folder):
        _make_folder(folder, wanted)
    for output in changed:
        if any(change.setting == "content" for change in output.changes):
            write_whole(output.path, output.text)
        _set_access(output.path, wanted)


def _output(path: str, text: str, wanted: Access) -> Output:
    content = text.encode()
    existing = _existing(path)
    if existing is None:
        return Output(path, text, (Change(path, "content", "absent", _told(content)),))
    status, before = existing
    changes = [] if before == content else [Change(path, "content", _told(before), _told(content))]
    found = {"mode": stat.S_IMODE(status.st_mode), "uid": status.st_uid, "gid": status.st_gid}
    for name, value in found.items():
        goal = getattr(wanted, name)
        if goal is not None and goal != value:
            write = "0{:o}".format if name == "mode" else int
            changes.append(Change(path, name, write(value), write(goal)))
    return Output(path, text, tuple(changes))


def _existing(path: str) -> tuple[os.stat_result, bytes] | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise _not_plain(path)
            with open(fd, "rb", closefd=False) as file:
                return status, file.read()
        finally:
            os.close(fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _not_plain(path) from error
        raise failure(path, "read", error) from error


def _not_plain(path: str) -> RefusedError:
    return RefusedError(
        f"{shown(path)} is no plain file; nothing was written.",
        remedy="Find out what it is, and remove it.",
    )


def _told(content: bytes) -> str:
    """A file in a diff: a report is too long for one."""
    return f"{len(content)} bytes, SHA-256 {hashlib.sha256(content).hexdigest()[:12]}"


def _make_folder(folder: str, wanted: Access) -> None:
    # Whoever may read the files may enter the folder.
    mode = wanted.mode | (wanted.mode & 0o444) >> 2 | stat.S_IRWXU
    try:
        os.mkdir(folder, 0o700)
        os.chown(folder, _or_same(wanted.uid), _or_same(wanted.gid), follow_symlinks=False)
        os.chmod(folder, mode)
    except OSError as error:
        raise failure(folder, "made", error) from error


def _set_access(path: str, wanted: Access) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ThinvirtError(f"{shown(path)} was exchanged meanwhile; it was left.")
            os.fchown(fd, _or_same(wanted.uid), _or_same(wanted.gid))
            os.fchmod(fd, wanted.mode)
        finally:
            os.close(fd)
    except OSError as error:
        raise failure(path, "given its owner and mode", error) from error


def _or_same(number: int | None) -> int:
    return -1 if number is None else number
