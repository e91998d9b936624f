# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A note of what a run has begun on an image, so that the next run can end or undo it.

It lies in our own folder (``state``), never beside the image, where others may write: what it says
is carried out.  It is the lock as well: whoever works on the image holds a flock(2) on it, which
the kernel releases when the process ends, however it does.  A journal that nobody holds is what a
killed run has left.  The first line says of which image it is (``journal_place``), each other one
is a whole state; a line that was cut short counts for nothing, and the line before it holds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    NotFoundError,
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal_file import (
    MAX_JOURNAL_BYTES,
    beside,
    find,
    locked,
    one_at_a_time,
    opened,
    read_places,
    refuse_foreign,
    refuse_held,
    refuse_older,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal_place import (
    Place,
    parse_place,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal_record import (
    Identity,
    Live,
    Record,
    is_temp_name,
    last_record,
    overlaid,
    overlay_name,
    temp_name,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage import lock_file, state
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.durable import sync_folder
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.trust import (
    refuse_exchangeable,
)

__all__ = [
    "Identity",
    "Live",
    "Record",
    "is_temp_name",
    "overlaid",
    "overlay_name",
    "temp_name",
]

_FOLDER = "journals"


def journal_path(path: str) -> str:
    """Where the journal of an image lies, or would.

    :raises RefusedError: there is one by another name of the same file.
    """
    folder = _folder()
    return os.path.join(folder, find(folder, Place.of(path)))


def has_journal(path: str) -> bool:
    """Whether there is a journal of an image, be it an empty one."""
    try:
        return os.path.lexists(journal_path(path))
    except NotFoundError:
        return False


def places() -> list[Place]:
    """Of what there are journals."""
    return [place for _name, place in read_places(_folder())]


def _folder() -> str:
    """Where journals lie; not made, but ours if it is there."""
    folder = os.path.join(state.state_dir(), _FOLDER)
    return state.own_folder(_FOLDER) if os.path.lexists(folder) else folder


class Journal:
    """The journal of one image, locked by this process."""

    def __init__(
        self,
        path: str,
        fd: int,
        left: Record | None,
        *,
        head_bytes: int = 0,
        error: ThinvirtError | None = None,
    ) -> None:
        self.path = path
        #: What a killed run has left, None if the last one ended well.
        self.left = left
        self._fd = fd
        self._head_bytes = head_bytes
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
            _write(self._fd, line)
            os.fsync(self._fd)
            sync_folder(os.path.dirname(self.path))
        except OSError as error:
            raise failure(self.path, "written", error) from error

    def clear(self) -> None:
        """All is done, or undone."""
        if self._error is not None:
            return
        try:
            os.ftruncate(self._fd, self._head_bytes)
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
def naming(journal: Journal) -> t.Iterator[None]:
    """Say where the journal is, if somebody is to remove it by hand."""
    try:
        yield
    except RefusedError as error:
        named = f"the journal ({shown(journal.path)})"
        error.remedy = error.remedy.replace("the journal", named)
        raise


@contextlib.contextmanager
def open_journal(path: str) -> t.Iterator[Journal]:
    """Lock the journal of an image; made if it isn't there.

    A journal that is empty in the end is removed; one that is not is for the next run.

    :raises RefusedError: another run is at work on this image, the journal is not ours, or another
        user could exchange the image.
    :raises ThinvirtError: it can't be made or read.
    """
    refuse_exchangeable(path)
    refuse_older(path)
    place = Place.of(path)
    folder = state.own_folder(_FOLDER)
    with one_at_a_time(folder):
        name = os.path.join(folder, find(folder, place))
        fd = locked(name, path)
        try:
            data = os.pread(fd, MAX_JOURNAL_BYTES, 0)
            record = last_record(data)
            head_bytes = _head(fd, name, place, data, record)
        except BaseException:
            os.close(fd)
            raise
    journal = Journal(name, fd, record, head_bytes=head_bytes)
    try:
        try:
            yield journal
        finally:
            if lock_file.is_at(fd, name) and os.fstat(fd).st_size <= head_bytes:
                journal.remove()
    finally:
        os.close(fd)


def peek(path: str) -> Record | None:
    """What a killed run has left on an image; nothing is locked and nothing is changed.

    :raises RefusedError: another run is at work on this image, or the journal is not ours.
    """
    refuse_older(path)
    try:
        name = journal_path(path)
        with opened(name) as fd:
            refuse_foreign(fd, name)
            data = os.pread(fd, MAX_JOURNAL_BYTES, 0)
            record = last_record(data)
            refuse_held(fd, path, record)
    except (FileNotFoundError, NotFoundError):
        return None
    except OSError as error:
        raise failure(name, "opened", error) from error
    _refuse_elsewhere(name, parse_place(data), Place.of(path), record)
    return record


@contextlib.contextmanager
def lock_beside(path: str) -> t.Iterator[None]:
    """A lock in a folder that is ours alone and that other hosts may see; it says nothing.

    :raises RefusedError: another run holds it.
    :raises ThinvirtError: it can't be made.
    """
    name = beside(path)
    fd = locked(name, path)
    try:
        yield
    finally:
        if lock_file.is_at(fd, name):
            Journal(name, fd, None).remove()
        os.close(fd)


def refuse_locked(path: str) -> None:
    """Refuse what another run has locked with :func:`lock_beside`; nothing is changed.

    :raises RefusedError: one has.
    """
    with contextlib.suppress(FileNotFoundError), opened(beside(path)) as fd:
        refuse_held(fd, path, None)


def _head(fd: int, name: str, place: Place, data: bytes, record: Record | None) -> int:
    """Have a journal begin with what it is of; how many bytes that is.

    :param data: what stands in it, and ``record`` what that says last.
    """
    found = parse_place(data)
    _refuse_elsewhere(name, found, place, record)
    if record is not None:
        return data.index(b"\n") + 1 if found is not None else 0
    line = place.line()
    try:
        os.ftruncate(fd, 0)
        _write(fd, line)
    except OSError as error:
        raise failure(name, "written", error) from error
    return len(line)


def _write(fd: int, data: bytes) -> None:
    # A full disk may take a part, and complain only when asked to take more.
    while data:
        data = data[os.write(fd, data) :]


def _refuse_elsewhere(name: str, found: Place | None, place: Place, record: Record | None) -> None:
    """Names in a journal mean files of one folder: not those of another that has its path now."""
    if record is None or found is None or place.is_same(found):
        return
    raise RefusedError(
        f"A run that was killed (process {record.pid}, {record.operation}) was at work on "
        f"{shown(place.path)} in another folder, which had this path then; nothing was changed.",
        remedy=f"Mount its file system there again, or remove {shown(name)} if the folder is gone "
        "for good.",
    )
