# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A note beside an image of what a run has begun on it, so that the next run can end or undo it.

``.NAME.thinvirt-journal`` is the lock as well: whoever works on the image holds a flock(2) on it,
which the kernel releases when the process ends, however it does.  A journal that nobody holds is
what a killed run has left.  Each line is one whole state; a line that was cut short counts for
nothing, and the line before it holds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import re
import secrets
import stat
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.durable import sync_folder
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown

#: A journal has a few lines of some hundred bytes; no more than this is read of one.
MAX_JOURNAL_BYTES = 64 * 1024
_MARK = r"\.thinvirt-[0-9a-f]{16}"


@dataclasses.dataclass(frozen=True)
class Identity:
    """What tells a file, and that nobody wrote to it; times in nanoseconds."""

    dev: int
    ino: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def is_still(self, other: Identity | None) -> bool:
        """Whether it is the same, a reboot later: the device may have another number by then."""
        return other is not None and dataclasses.replace(other, dev=self.dev) == self


@dataclasses.dataclass(frozen=True)
class Live:
    """What else is to be known where a running domain's image is compacted.

    :param domain: its UUID.
    :param target: the disk.
    :param overlay: name of the first overlay, beside the image.
    :param second: name of the second one, which lies on the copy; empty before it is made.
    :param source: where the domain's configuration had the disk (``xml.source_of``).
    :param image_format: of the image, and of its copy.
    :param base: path of an image that is moved to another folder; empty for one that is not.
    :param dest: path of its copy there.  A journal beside that says the same, so that the run is
        found from either side; the image's own is the one that counts.
    """

    domain: str
    target: str
    overlay: str
    source: str
    image_format: str
    second: str = ""
    base: str = ""
    dest: str = ""


@dataclasses.dataclass(frozen=True)
class Record:
    """How far a run has come.

    :param operation: ``rewrite``, ``punch``, ``convert`` or ``live``.
    :param stage: the stage that has begun, for people; ``swap`` is the only one that matters for
        recovery: from there on the image's name may mean the copy already.
    :param pid: of the run.
    :param source: the image that had the name; None if there was none.
    :param temp: name of the copy in the same folder; empty if none is made.
    :param kept: name of the link to the original in the same folder; empty before it is made.
    :param keep_original: leave that link behind in the end.
    :param copy: the copy, known from the stage ``swap`` on.
    :param live: for the operation ``live``.
    """

    operation: str
    stage: str
    pid: int
    source: Identity | None
    temp: str = ""
    kept: str = ""
    keep_original: bool = False
    copy: Identity | None = None
    live: Live | None = None


def journal_path(path: str) -> str:
    """Where the journal of an image lies."""
    return os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.thinvirt-journal")


def temp_name(path: str) -> str:
    """A new name, in the image's folder, for a copy of it."""
    return f".{os.path.basename(path)}.thinvirt-{secrets.token_hex(8)}.tmp"


def is_temp_name(name: str, path: str) -> bool:
    """Whether :func:`temp_name` makes such names for this image: others are never removed."""
    return bool(re.fullmatch(rf"\.{re.escape(os.path.basename(path))}{_MARK}\.tmp", name))


def overlay_name(path: str) -> str:
    """A new name, in the image's folder, for an overlay that a guest writes to for a while.

    Not a hidden one: whoever looks into the folder is to see that it belongs to the image.
    """
    return f"{os.path.basename(path)}.thinvirt-{secrets.token_hex(8)}.overlay"


def overlaid(path: str) -> str:
    """The image that an overlay with such a name lies on; empty if it is no such name."""
    found = re.fullmatch(rf"(.+){_MARK}\.overlay", os.path.basename(path), re.DOTALL)
    return os.path.join(os.path.dirname(path), found[1]) if found else ""


class Journal:
    """The journal of one image, locked by this process."""

    def __init__(
        self, path: str, fd: int, left: Record | None, *, error: ThinvirtError | None = None
    ) -> None:
        self.path = path
        #: What a killed run has left, None if the last one ended well.
        self.left = left
        self._fd = fd
        self._error = error

    def write(self, record: Record) -> None:
        """Add a state; returns when it is on the disk.

        :raises ThinvirtError: it can't be written.
        """
        if self._error is not None:
            raise self._error
        # A line that a crash has cut short is closed by the first newline.
        line = b"\n" + json.dumps(dataclasses.asdict(record)).encode("utf-8") + b"\n"
        try:
            # A full disk may take a part, and complain only when asked to take more.
            while line:
                line = line[os.write(self._fd, line) :]
            os.fsync(self._fd)
            sync_folder(os.path.dirname(self.path))
        except OSError as error:
            raise failure(self.path, "written", error) from error

    def clear(self) -> None:
        """All is done, or undone."""
        if self._error is not None:
            return
        try:
            os.ftruncate(self._fd, 0)
            os.fsync(self._fd)
        except OSError as error:
            raise failure(self.path, "cleared", error) from error
        self.left = None

    def remove(self) -> None:
        try:
            os.unlink(self.path)
            sync_folder(os.path.dirname(self.path))
        except OSError as error:
            raise failure(self.path, "removed", error) from error


class Part(Journal):
    """A journal's part for work within other work: what it says is added to the whole's record.

    :param whole: the record of the whole, as it is before and after this part.
    """

    def __init__(self, journal: Journal, whole: Record) -> None:
        super().__init__(journal.path, -1, None)
        self._journal = journal
        self._whole = whole

    def write(self, record: Record) -> None:
        whole = dataclasses.replace(
            self._whole, stage=record.stage, source=record.source, temp=record.temp
        )
        self._journal.write(whole)

    def clear(self) -> None:
        self._journal.write(self._whole)

    def remove(self) -> None:
        """The whole does that."""


def no_journal(error: ThinvirtError) -> Journal:
    """In place of one for which the disk has no room: it locks nothing, and takes not a word.

    For work that needs none, since there is nothing to undo.

    :param error: why there is none; what writing to it raises.
    """
    return Journal("", -1, None, error=error)


def is_full(error: ThinvirtError) -> bool:
    """Whether a journal could not be made or written for want of room."""
    return getattr(error.__cause__, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def open_journal(path: str) -> t.Iterator[Journal]:
    """Lock the journal of an image; made if it isn't there.

    A journal that is empty in the end is removed; one that is not is for the next run.

    :raises RefusedError: another run is at work on this image, or the journal is not ours.
    :raises ThinvirtError: it can't be made or read.
    """
    name = journal_path(path)
    fd = _locked(name, path)
    try:
        journal = Journal(name, fd, _last_record(os.pread(fd, MAX_JOURNAL_BYTES, 0)))
        try:
            yield journal
        finally:
            if _is_at(fd, name) and os.fstat(fd).st_size == 0:
                journal.remove()
    finally:
        os.close(fd)


def peek(path: str) -> Record | None:
    """What a killed run has left on an image; nothing is locked and nothing is changed.

    :raises RefusedError: another run is at work on this image, or the journal is not ours.
    """
    name = journal_path(path)
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise failure(name, "opened", error) from error
    try:
        _refuse_foreign(fd, name)
        record = _last_record(os.pread(fd, MAX_JOURNAL_BYTES, 0))
        try:
            # Read locks of two that peek do not disturb each other.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _busy(path, record) from error
        return record
    finally:
        os.close(fd)


def _locked(name: str, path: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    while True:
        try:
            fd = os.open(name, flags, 0o600)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _foreign(name) from error
            raise failure(name, "opened", error) from error
        try:
            _refuse_foreign(fd, name)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            record = _last_record(os.pread(fd, MAX_JOURNAL_BYTES, 0))
            os.close(fd)
            raise _busy(path, record) from error
        except OSError as error:
            os.close(fd)
            raise failure(name, "locked", error) from error
        except BaseException:
            os.close(fd)
            raise
        if _is_at(fd, name):
            return fd
        os.close(fd)  # its holder was done with it and removed it meanwhile


def _is_at(fd: int, name: str) -> bool:
    try:
        status = os.lstat(name)
    except FileNotFoundError:
        return False
    return os.path.samestat(status, os.fstat(fd))


def _refuse_foreign(fd: int, name: str) -> None:
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


def _last_record(data: bytes) -> Record | None:
    """The last whole line of a journal."""
    for line in reversed(data.split(b"\n")):
        try:
            fields = json.loads(line)
            files = {
                name: Identity(**fields[name]) if fields[name] else None
                for name in ("source", "copy")
            }
            live = Live(**fields["live"]) if fields.get("live") else None
            return Record(**{**fields, **files, "live": live})
        except (ValueError, TypeError, KeyError):
            continue
    return None
