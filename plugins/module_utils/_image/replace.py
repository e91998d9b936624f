# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put a new image in the place of an old one so that nothing can be lost.

At every instant the name is a whole image with the right content.  A copy is made beside it,
checked, compared with its source and put on the disk before it gets the name, in one rename.  The
journal says what was begun; ``recover`` ends or undoes what a killed run has left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import time
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    CommandError,
    ImageError,
    NotFoundError,
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.attributes import new_file_like
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.files import open_image
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import (
    Identity,
    Journal,
    Record,
    naming,
    temp_name,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.locks import (
    place_or_refuse,
    probe_locks,
    refuse_reader,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.progress import Report
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_argv import (
    Copy,
    Storage,
    image_spec,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_img import QemuImg
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import (
    signals_wait,
    stop_if_asked,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.durable import sync_folder
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.exchange import exchange_names
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.extents import (
    FileUsage,
    file_usage,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.holders import writers_seen
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.lease import (
    READ,
    WRITE,
    Lease,
    give_way_if_asked,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.writeback import (
    begin_writeback,
)

#: Seconds to wait for programs that had the old file open when it lost its name; a domain that
#: starts at that moment gets no lock and ends at once.
LEAVE_SECONDS = 10.0


@dataclasses.dataclass
class Stages:
    """Seconds by stage, in the order in which they were begun, and a way to follow them.

    :param report: takes the stage, its per cent and its bytes, None where one is not known.
    :param moved_bytes: what stages have moved, as far as they tell.
    """

    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    report: t.Callable[[str, float | None, int | None], None] = lambda *_far: None
    moved_bytes: dict[str, int] = dataclasses.field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str) -> t.Iterator[Report]:
        begin = time.monotonic()
        before = self.moved_bytes.get(name, 0)  # of another disk, or an earlier attempt

        def report(percent: float | None, done_bytes: int | None = None) -> None:
            stop_if_asked()
            give_way_if_asked()
            if done_bytes is not None:
                self.moved_bytes[name] = before + done_bytes
            self.report(name, percent, done_bytes)

        report(None)
        try:
            yield report
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begin


@dataclasses.dataclass(frozen=True)
class Source:
    """The image that is copied, held open so that nobody writes to it.

    :param spec: names it to QEMU, as ``/proc/self/fd/N`` of an open file: no name can be exchanged
        meanwhile.
    """

    path: str
    fd: int
    spec: str


@dataclasses.dataclass
class NewCopy:
    """A copy beside the name that it may get, verified and on the disk."""

    name: str
    fd: int
    usage: FileUsage
    swapping: bool = False
    #: Its name means a file of somebody else by now, which must not go.
    is_theirs: bool = False


def fd_storage(fd: int) -> Storage:
    """An open file by the name that a program has for it, when it is passed on to it."""
    return Storage(f"/proc/self/fd/{fd}")


@contextlib.contextmanager
def verified_copy(
    source: Source,
    path: str,
    *,
    copy: Copy,
    min_free_bytes: int,
    journal: Journal,
    tool: QemuImg,
    stages: Stages,
    finish: t.Callable[[int], None] | None = None,
) -> t.Iterator[tuple[NewCopy, Record]]:
    """Copy an image beside ``path`` and prove that the copy is whole; removed if it isn't used.

    :param path: the name that the copy may get; an image that has it lends the copy its owner,
        mode, ACL and label.
    :param min_free_bytes: give up when the file system has less than this free.
    :param finish: does something more to the copy's open file, before it is compared.
    :yields: the copy, and the journal's record for :func:`swap_in`.
    :raises ThinvirtError: the copy could not be made, or is not like its source; nothing was
        changed.
    """
    folder, name = os.path.dirname(path), temp_name(path)
    if len(os.fsencode(name)) > os.pathconf(folder, "PC_NAME_MAX"):
        raise RefusedError(
            f"{shown(path)} has too long a name for a copy beside it; nothing was changed.",
            remedy="Give it a shorter one.",
        )
    record = Record(
        # An image is rewritten in its own place, or converted to another.
        operation="rewrite" if source.path == path else "convert",
        stage="copy",
        pid=os.getpid(),
        # Of the open file, not of a name that may mean another one by now.
        source=Identity.of(os.fstat(source.fd)) if source.path == path else identity_at(path),
        temp=name,
    )
    temp = os.path.join(folder, name)
    new = None
    try:
        journal.write(record)
        fd = _new_file(source, temp)
        try:
            room = _Room(temp, fd, min_free_bytes)
            before = Identity.of(os.fstat(source.fd))
            _fill(source, fd, copy=copy, room=room, tool=tool, stages=stages)
            if finish is not None:
                finish(fd)
            _prove(source, fd, before, copy=copy, tool=tool, stages=stages)
            new = NewCopy(temp, fd, file_usage(fd))
            yield new, record
        finally:
            os.close(fd)
    finally:
        with signals_wait():
            if new is None or not new.is_theirs:
                remove_name(temp)
            if new is None or not new.swapping:
                journal.clear()


def _new_file(source: Source, path: str) -> int:
    try:
        return new_file_like(source.fd, path)
    except OSError as error:
        raise failure(path, "made", error) from error


def identity_at(path: str) -> Identity | None:
    """What has a name now, symlinks not followed; None if nothing has."""
    try:
        return Identity.of(os.lstat(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise failure(path, "examined", error) from error


class _Room:
    """Watches that a copy leaves the host what it needs: full storage pauses running guests."""

    def __init__(self, path: str, fd: int, min_free_bytes: int) -> None:
        self._path = path
        self._fd = fd
        self._min_free_bytes = min_free_bytes

    def check(self) -> None:
        figures = os.fstatvfs(self._fd)
        free = figures.f_bavail * figures.f_frsize
        if free < self._min_free_bytes:
            raise RefusedError(
                f"While {shown(self._path)} was written its file system came down to {free} bytes "
                f"free, less than min_free_bytes={self._min_free_bytes}; the copy was removed, the "
                "image is as it was.",
                remedy="Free space, or lower min_free_bytes.",
            )


def _fill(
    source: Source, fd: int, *, copy: Copy, room: _Room, tool: QemuImg, stages: Stages
) -> None:
    def watch() -> None:
        begin_writeback(fd)  # what is written early need not be waited for later
        room.check()

    with stages.stage("copy") as report:
        try:
            tool.convert(
                source.spec,
                fd_storage(fd).path,
                copy=copy,
                pass_fds=(source.fd, fd),
                report=lambda percent: report(percent, file_usage(fd).allocated_bytes),
                watch=watch,
            )
            report(100, file_usage(fd).allocated_bytes)
        except CommandError as error:
            raise _copy_failed(source.path, error) from error


def _prove(
    source: Source, fd: int, before: Identity, *, copy: Copy, tool: QemuImg, stages: Stages
) -> None:
    """The copy is on the disk and whole, and nobody wrote to its source since ``before``."""
    # The disk is busy with the one, the processors with the other.
    begin_writeback(fd)
    _compare(source, fd, copy=copy, tool=tool, stages=stages)
    with stages.stage("flush"):
        _flush(source.path, fd)
    if Identity.of(os.fstat(source.fd)) != before:
        raise RefusedError(
            f"{shown(source.path)} was written to while it was copied; the copy was removed.",
            remedy="Find out who does so without QEMU's locks.",
        )


def _compare(source: Source, fd: int, *, copy: Copy, tool: QemuImg, stages: Stages) -> None:
    spec = image_spec(fd_storage(fd), copy.format)
    fds = (source.fd, fd)
    if copy.format == "qcow2":
        with stages.stage("check"):
            result = tool.check(spec, pass_fds=fds).result
        if result != "clean":
            raise ImageError(f"The copy of {shown(source.path)} is {result}; it was removed.")
    with stages.stage("compare") as report:
        if not tool.compare(source.spec, spec, pass_fds=fds, report=report):
            raise ImageError(
                f"The copy of {shown(source.path)} has another content; it was removed.",
                remedy="Check the memory and the disks of this host.",
            )


def _flush(path: str, fd: int) -> None:
    try:
        os.fsync(fd)
    except OSError as error:  # where blocks are allocated late, a full disk shows only now
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise ThinvirtError(
            f"{shown(path)} could not be copied; it is as it was, and the copy was removed: "
            f"{error.strerror}.",
            remedy="Free space on the file system." if full else "Check the disks of this host.",
        ) from error


def _copy_failed(path: str, error: CommandError) -> CommandError:
    full = "No space left on device" in error.stderr
    return CommandError(
        f"{shown(path)} could not be copied; it is as it was, and the copy was removed. "
        f"{error.message}",
        argv=error.argv,
        rc=error.rc,
        stderr=error.stderr,
        remedy="Free space on the file system." if full else "",
    )


def swap_in(
    copy: NewCopy,
    path: str,
    *,
    journal: Journal,
    record: Record,
    stages: Stages,
    keep: str = "",
) -> None:
    """Give a verified copy the name; the image that had it keeps another one, or goes.

    :param keep: a name in the same folder under which the original stays; empty to drop it.
    :raises RefusedError: the image is not the one that was copied any more, somebody has begun to
        use it, or ``keep`` exists.
    :raises ThinvirtError: the kernel refuses; then the image has its name as before.
    """
    folder = os.path.dirname(path)
    with contextlib.ExitStack() as stack, stages.stage("swap"), signals_wait():
        refuse_taken_name(path, keep)
        held = stack.enter_context(_hold_both(copy, path)) if record.source is not None else None
        if identity_at(path) != record.source:
            raise _exchanged(path)
        kept = keep or temp_name(path)
        record = dataclasses.replace(
            record,
            stage="swap",
            kept=kept if record.source else "",
            keep_original=bool(keep),
            copy=Identity.of(os.fstat(copy.fd)),
        )
        journal.write(record)
        copy.swapping = True  # from here on only the journal tells what is to be done
        try:
            _give_name(copy, path, record, held)
        except (OSError, ThinvirtError) as error:
            # All was undone, unless the name is the copy's and only the folder can't be flushed.
            now = identity_at(path)
            copy.swapping = now is not None and now.ino == os.fstat(copy.fd).st_ino
            if isinstance(error, OSError):
                raise failure(path, "replaced", error) from error
            raise
        if held is not None:
            left = held.nobody_came()
            with naming(journal):
                _refuse_late_use(os.path.join(folder, record.kept), path, record, left=left)
        if record.kept and not keep:
            remove_name(os.path.join(folder, record.kept))
        sync_folder(folder)
        journal.clear()


def refuse_taken_name(path: str, keep: str) -> None:
    """Refuse to keep an original under a name, beside the image, that something has already."""
    folder = os.path.dirname(path)
    if keep and os.path.lexists(os.path.join(folder, keep)):
        raise RefusedError(
            f"{shown(keep)} exists already in {shown(folder)}; nothing was changed.",
            remedy="Move it away, or do without keep_original.",
        )


def _exchanged(path: str) -> RefusedError:
    return RefusedError(
        f"{shown(path)} was changed or exchanged by somebody else; it was left as it is.",
        remedy="Run it again.",
    )


@dataclasses.dataclass(frozen=True)
class _Held:
    """An image and its copy at the moment when they exchange names: who comes has to wait.

    :param original: nobody writes to it.
    :param new: nobody else has it open.
    """

    fd: int
    original: Lease
    new: Lease

    def nobody_came(self) -> bool:
        """Whether nobody has opened the original by its old name, to write to it.

        Where there are no leases, programs that have done so are waited for while QEMU's locks are
        on it: a domain gets none and ends.  Who only reads may go on.
        """
        if self.original.kind == READ:
            return not self.original.is_wanted()
        deadline = time.monotonic() + LEAVE_SECONDS
        while writers_seen(self.fd):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def can_go_back(self) -> bool:
        """Whether nobody has seen the copy by its new name."""
        return self.new.kind == WRITE and not self.new.is_wanted()


@contextlib.contextmanager
def _hold_both(copy: NewCopy, path: str) -> t.Iterator[_Held]:
    with open_image(path) as image:
        # A domain may have it open for reading, as a backing file, and write to it later.
        refuse_reader(image.fd, path)
        held = _Held(image.fd, Lease(image.fd, path), Lease(copy.fd, path))
        try:
            place_or_refuse(held.original, image.fd, path)
            held.new.place(WRITE)
            yield held
        finally:
            held.new.give_back()
            held.original.give_back()


def _give_name(copy: NewCopy, path: str, record: Record, held: _Held | None) -> None:
    folder = os.path.dirname(path)
    kept = os.path.join(folder, record.kept) if record.kept else ""
    if kept:
        # A second name for the original, so that it can't be lost before all is on the disk.
        try:
            os.link(path, kept, follow_symlinks=False)
        except OSError:
            if record.keep_original:
                raise
            kept = ""  # vfat and some FUSE servers know no links: the rename is atomic there too
    try:
        # Both names as late as can be: they are all that the rename goes by.
        if (kept and identity_at(kept) != record.source) or identity_at(copy.name) != record.copy:
            raise _exchanged(path)
        if held is None:
            _name_anew(copy.name, path)
            sync_folder(folder)
        elif kept and not held.original.is_wanted() and exchange_names(copy.name, path):
            _go_back_if_seen(copy, path, record, held)
            sync_folder(folder)
            _go_back_if_seen(copy, path, record, held)
            remove_name(copy.name)  # the original, which has its other name
        elif held.original.is_wanted():
            raise held.original.gave_way()
        else:
            os.rename(copy.name, path)
            sync_folder(folder)
    except (OSError, ThinvirtError):
        if kept and not (held is not None and _is_at(path, record.copy)):
            remove_name(kept)
        raise


def _is_at(path: str, file: Identity | None) -> bool:
    now = identity_at(path)
    return now is not None and file is not None and (now.dev, now.ino) == (file.dev, file.ino)


def _go_back_if_seen(copy: NewCopy, path: str, record: Record, held: _Held) -> None:
    """Exchange the names once more if the image was not the one that was copied, or is wanted.

    :raises ThinvirtError: it was; the image has its name again.
    """
    changed = identity_at(copy.name) != record.source
    if not changed and not held.original.is_wanted():
        return
    copy.is_theirs = not _is_at(copy.name, record.source)
    # Somebody who has the copy by now goes on with it: then both files stay, and it is said so.
    if held.can_go_back() and exchange_names(copy.name, path):
        copy.is_theirs = False
        raise _exchanged(path) if changed else held.original.gave_way()
    if copy.is_theirs:
        raise RefusedError(
            f"{shown(path)} was exchanged by somebody else at the last moment; it is the copy now, "
            f"and what was put in its place was left as {shown(copy.name)}.",
            remedy="Decide which of the two is right, and give it the image's name.",
        )


def _name_anew(temp: str, path: str) -> None:
    """Give a copy a name that nothing has; a file that somebody has just made is not lost."""
    try:
        os.link(temp, path, follow_symlinks=False)
    except FileExistsError as error:
        raise _exchanged(path) from error
    except OSError:
        os.rename(temp, path)  # no links here
    else:
        os.unlink(temp)


def remove_name(path: str) -> None:
    """Unlink a file, if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise failure(path, "removed", error) from error


def _refuse_late_use(kept: str, path: str, record: Record, *, left: bool) -> None:
    """Don't drop an original that somebody opened just before it lost its name, and goes on with.

    :raises RefusedError: somebody has; both files and the journal are left.
    """
    try:
        with open_image(kept) as image:
            same = Identity.of(os.fstat(image.fd)) == record.source
            used = bool(probe_locks(image.fd).used)
    except NotFoundError:
        return  # it could get no second name
    if left and same and not used:
        return
    raise RefusedError(
        f"{shown(path)} is its copy now, but the original was opened at the last moment, and may "
        f"have been written to: it was left as {shown(kept)}.",
        remedy="End what uses that file, decide which of the two is right, give it the image's "
        "name, and remove the journal.",
    )
