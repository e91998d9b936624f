# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of journals: found by what they are of, ours alone, and held by one run at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal_place import (
    SUFFIX,
    Place,
    parse_place,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal_record import (
    Record,
    last_record,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage import lock_file
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown

#: A journal has a few lines of some hundred bytes; no more than this is read of one.
MAX_JOURNAL_BYTES = 64 * 1024


def beside(path: str) -> str:
    """Where older releases had the journal of an image; a lock may still lie there."""
    return os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.thinvirt-journal")


@contextlib.contextmanager
def opened(name: str) -> t.Iterator[int]:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def one_at_a_time(folder: str) -> t.Iterator[None]:
    """Of two runs that begin on one file by two names, the second sees the first."""
    with opened(folder) as fd:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError as error:
            raise failure(folder, "locked", error) from error
        yield


def read_places(folder: str) -> t.Iterator[tuple[str, Place]]:
    """The names of the journals in a folder, and what each is of."""
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(SUFFIX))
    except FileNotFoundError:
        return
    except OSError as error:
        raise failure(folder, "read", error) from error
    for name in names:
        place = None
        with contextlib.suppress(OSError), opened(os.path.join(folder, name)) as fd:
            place = parse_place(os.pread(fd, MAX_JOURNAL_BYTES, 0))
        if place is not None:
            yield name, place


def find(folder: str, place: Place) -> str:
    """How the journal of an image is called, or would be.

    :raises RefusedError: there is one of the same file by another name.
    """
    for name, other in read_places(folder):
        if place.is_same(other):
            return name
        if place.is_other_name(other):
            path = os.path.join(folder, name)
            with contextlib.suppress(FileNotFoundError), opened(path) as fd:
                record = last_record(os.pread(fd, MAX_JOURNAL_BYTES, 0))
                refuse_held(fd, place.path, record)
                if record is not None:
                    raise RefusedError(
                        f"A run that was killed (process {record.pid}, {record.operation}) was at "
                        f"work on {shown(place.path)} by the name {shown(other.path)}; nothing was "
                        "changed.",
                        remedy="Use that name. If it is of another file by now, remove "
                        f"{shown(path)}.",
                    )
    return place.file_name()


def refuse_older(path: str) -> None:
    """Don't obey what an older release has left beside an image, and don't pass over it either."""
    name = beside(path)
    try:
        status = os.lstat(name)
    except OSError:
        return
    ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
    if ours and status.st_size:
        raise RefusedError(
            f"{shown(name)} looks like the journal of an older release, whose run was killed; what "
            "lies beside an image is not obeyed, and nothing was changed.",
            remedy="Have the release that wrote it end that run, or look at the files that it "
            "names and remove it.",
        )


def refuse_held(fd: int, path: str, record: Record | None) -> None:
    try:
        # Read locks of two that peek do not disturb each other.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _busy(path, record) from error


def locked(name: str, path: str) -> int:
    """Hold a journal, made if it isn't there; see ``lock_file``.

    :raises RefusedError: another run does, or it is not ours.
    """
    try:
        return lock_file.locked(
            name,
            busy=lambda fd: _busy(path, last_record(os.pread(fd, MAX_JOURNAL_BYTES, 0))),
            refuse=lambda fd: refuse_foreign(fd, name),
        )
    except ThinvirtError as error:
        if getattr(error.__cause__, "errno", None) == errno.ELOOP:
            raise _foreign(name) from error
        raise


def refuse_foreign(fd: int, name: str) -> None:
    """What a journal says is carried out: only its owner may have written it."""
    status = os.fstat(fd)
    if (
        not stat.S_ISREG(status.st_mode)
        or status.st_uid != os.geteuid()
        or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        or status.st_nlink > 1
    ):
        raise _foreign(name)


def _foreign(name: str) -> RefusedError:
    return RefusedError(
        f"{shown(name)} is not a journal that this user has written; nothing was changed.",
        remedy="Find out where it comes from, and remove it.",
    )


def _busy(path: str, record: Record | None) -> RefusedError:
    by = f" process {record.pid} ({record.operation}, {record.stage})" if record else ""
    return RefusedError(
        f"Another run{by} is at work on {shown(path)}; nothing was changed.",
        remedy="Wait for it to end.",
    )
