# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fill the free space of mounted file systems with zeros, and leave nothing behind.

The zeros go to a file that has no name, so the kernel frees them whatever ends this process.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import mmap
import os
import stat
import time
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    NotFoundError,
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest import zero_policy
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest.zero_policy import Layer
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import (
    StoppedError,
    signals_wait,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.filesystem import (
    Mount,
    mount_of_fd,
    parse_mountinfo,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown

#: The file's name for the instant between its creation and its removal, on file systems that make
#: none without a name.  A process killed just then leaves it, empty, and the next run removes it.
NAME = ".thinvirt-zero-fill"

#: Zeros that are flushed together, so that the disk under the guest gets them before the end.
_FLUSH_BYTES = 64 * zero_policy.MIB
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_REPORT_SECONDS = 10
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclasses.dataclass(frozen=True)
class Wish:
    """What is asked for.

    :param max_bytes: for all paths together.
    :param keep_free_bytes: in each file system; None for a careful default.
    :param force: also file systems whose free blocks zeros may miss.
    """

    paths: tuple[str, ...]
    max_bytes: int
    keep_free_bytes: int | None
    force: bool


@dataclasses.dataclass(frozen=True)
class Target:
    """A file system that is to be filled, as it was found.

    :param planned_bytes: what would be written if nobody else wrote.
    """

    path: str
    mount: Mount
    free_bytes: int
    keep_free_bytes: int
    planned_bytes: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one path.

    :param stopped_by: ``reserve`` or ``budget`` if it went as far as it should, ``full``,
        ``timeout`` or ``stopped`` if not; empty if nothing was tried.
    """

    target: Target
    written_bytes: int = 0
    free_after_bytes: int | None = None
    stopped_by: str = ""
    seconds: float = 0.0

    def result(self) -> dict[str, t.Any]:
        target = self.target
        free_after = target.free_bytes if self.free_after_bytes is None else self.free_after_bytes
        return {
            "path": target.path,
            "source": target.mount.source,
            "type": target.mount.type,
            "planned_bytes": target.planned_bytes,
            "written_bytes": self.written_bytes,
            "keep_free_bytes": target.keep_free_bytes,
            "free_before_bytes": target.free_bytes,
            "free_after_bytes": free_after,
            "stopped_by": self.stopped_by,
            "seconds": round(self.seconds, 1),
        }


def decide(wish: Wish) -> list[Target]:
    """What would be filled, in the order of the paths; writes nothing.

    :raises RefusedError: one of the paths can't or must not be filled.
    :raises NotFoundError: one does not exist.
    """
    targets: list[Target] = []
    left = wish.max_bytes
    for path in wish.paths:
        target = _target(path, wish, budget=left)
        for other in targets:
            if other.mount.device == target.mount.device:
                raise RefusedError(
                    f"{shown(other.path)} and {shown(path)} are one file system. "
                    "Nothing was written.",
                    remedy="Name it once.",
                )
        targets.append(target)
        left -= target.planned_bytes
    return targets


def _target(path: str, wish: Wish, *, budget: int) -> Target:
    with _open_mount(path) as fd:
        mount = mount_of_fd(fd)
        if mount.mount_point != path:
            raise RefusedError(
                f"{shown(path)} is not a mount point, it lies on {shown(mount.mount_point)}. "
                "Nothing was written.",
                remedy="Name the mount point, as findmnt shows it.",
            )
        refusal = zero_policy.refusal(mount, list(layers_of(mount.device)))
        if refusal is not None and (refusal.final or not wish.force):
            raise RefusedError(
                f"{shown(path)} {refusal.reason}. Nothing was written.",
                remedy="" if refusal.final else "force=true fills it all the same.",
            )
        figures = os.fstatvfs(fd)
    keep = zero_policy.reserve(figures.f_blocks * figures.f_frsize, wish.keep_free_bytes)
    free = figures.f_bavail * figures.f_frsize
    return Target(
        path=path,
        mount=mount,
        free_bytes=free,
        keep_free_bytes=keep,
        planned_bytes=zero_policy.planned(
            free_bytes=free, keep_free_bytes=keep, budget_bytes=budget
        ),
    )


def layers_of(device: str, sysfs: str = "/sys") -> t.Iterator[Layer]:
    """The block devices that ``major:minor`` is made of, itself first; none if it is no device."""
    folder = os.path.join(sysfs, "dev", "block", device)
    if not os.path.isdir(folder):
        return
    uuid = ""
    with contextlib.suppress(FileNotFoundError):
        uuid = _read(os.path.join(folder, "dm", "uuid"))
    yield Layer(os.path.basename(os.path.realpath(folder)), uuid)
    slaves = os.path.join(folder, "slaves")  # a partition has none
    for name in sorted(os.listdir(slaves)) if os.path.isdir(slaves) else ():
        yield from layers_of(_read(os.path.join(slaves, name, "dev")), sysfs)


def fill(
    targets: t.Sequence[Target], *, max_bytes: int, timeout: float, say: t.Callable[[str], None]
) -> list[Outcome]:
    """Fill one after the other; where a signal or the time limit stops it, all end there.

    :param max_bytes: what may be written in all.
    :param say: is told from time to time how far it is.
    :raises ThinvirtError: a file system failed; its file is gone like any other.
    """
    outcomes: list[Outcome] = []
    deadline = time.monotonic() + timeout
    for target in targets:
        left = max_bytes - sum(outcome.written_bytes for outcome in outcomes)
        stopped = outcomes[-1].stopped_by if outcomes else ""
        if stopped in ("stopped", "timeout"):
            outcomes.append(Outcome(target, stopped_by=stopped))
            continue
        outcomes.append(_fill_one(target, _Filler(target, left, deadline, say)))
        done = outcomes[-1]
        say(f"{target.path}: {done.written_bytes} bytes of zeros, ended by {done.stopped_by}")
    return outcomes


def _fill_one(target: Target, filler: _Filler) -> Outcome:
    started = time.monotonic()
    with _open_mount(target.path) as fd:
        if mount_of_fd(fd) != target.mount:
            raise RefusedError(
                f"{shown(target.path)} was mounted anew meanwhile. Nothing was written to it.",
                remedy="Run it again, once nobody mounts it any more.",
            )
        remove_leftover(fd)
        try:
            stopped_by = filler.run(fd)
        except StoppedError:
            stopped_by = "stopped"
        except OSError as error:
            raise failure(target.path, "filled to the end", error) from error
        finally:
            filler.close()
            _sync_file_system(fd)  # only then are the blocks free again for others
        figures = os.fstatvfs(fd)
    return Outcome(
        target,
        written_bytes=filler.written,
        free_after_bytes=figures.f_bavail * figures.f_frsize,
        stopped_by=stopped_by,
        seconds=time.monotonic() - started,
    )


class _Filler:
    """The files of zeros of one file system. What was written is known whatever ends it."""

    def __init__(
        self, target: Target, budget: int, deadline: float, say: t.Callable[[str], None]
    ) -> None:
        self.written = 0
        self._target = target
        self._budget = budget
        self._deadline = deadline
        self._say = say
        self._fds: list[int] = []
        # Around the guest's cache: what it has there stays, a stop takes effect at once, and XFS
        # does not allocate far ahead, which would undercut the reserve.
        self._direct = os.O_DIRECT
        self._zeros = memoryview(mmap.mmap(-1, zero_policy.STEP_BYTES))  # aligned, as that needs
        self._reported = time.monotonic()

    def run(self, directory: int) -> str:
        """Write zeros until something says stop; returns what did."""
        try:
            stopped_by = self._write(directory)
            os.fsync(self._fds[-1])
        except OSError as error:
            if error.errno not in _FULL:
                raise
            with contextlib.suppress(OSError):
                os.fsync(self._fds[-1])
            return "full"
        return stopped_by

    def _write(self, directory: int) -> str:
        self._open(directory)
        in_file = flushed = 0
        while True:
            size, stopped_by = self._next(directory)
            if stopped_by:
                return stopped_by
            try:
                count = os.write(self._fds[-1], self._zeros[:size])
            except OSError as error:
                if error.errno == errno.EINVAL and self._direct:
                    self._direct = 0  # not with this file system, or not with this size
                elif error.errno != errno.EFBIG or not in_file:
                    raise
                os.fsync(self._fds[-1])
                self._open(directory)  # also if no file can be larger here
                in_file = flushed = 0
                continue
            self.written += count
            in_file += count
            if in_file - flushed >= _FLUSH_BYTES:
                os.fdatasync(self._fds[-1])
                flushed = in_file
                self._report()

    def _open(self, directory: int) -> None:
        try:
            self._fds.append(_nameless_file(directory, self._direct))
        except OSError as error:
            if error.errno != errno.EINVAL or not self._direct:
                raise
            self._direct = 0
            self._fds.append(_nameless_file(directory, 0))

    def _next(self, directory: int) -> tuple[int, str]:
        figures = os.fstatvfs(directory)  # each time: others write too
        size, stopped_by = zero_policy.step(
            free_bytes=figures.f_bavail * figures.f_frsize,
            keep_free_bytes=self._target.keep_free_bytes,
            budget_bytes=self._budget - self.written,
        )
        if not stopped_by and time.monotonic() >= self._deadline:
            return 0, "timeout"
        return size, stopped_by

    def close(self) -> None:
        """Give all of it back now; XFS frees a file that is only closed some time later."""
        while self._fds:
            fd = self._fds.pop()
            with contextlib.suppress(OSError):
                os.ftruncate(fd, 0)
            os.close(fd)

    def _report(self) -> None:
        if time.monotonic() - self._reported >= _REPORT_SECONDS:
            self._reported = time.monotonic()
            planned = self._target.planned_bytes
            self._say(f"{self._target.path}: {self.written} of {planned} bytes of zeros")


def _nameless_file(directory: int, flags: int) -> int:
    flags |= os.O_WRONLY | os.O_CLOEXEC
    try:
        # With O_EXCL nobody can give it a name later.
        return os.open(".", flags | os.O_TMPFILE | os.O_EXCL, 0o600, dir_fd=directory)
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
    with signals_wait():
        flags |= os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        fd = os.open(NAME, flags, 0o600, dir_fd=directory)
        os.unlink(NAME, dir_fd=directory)
    return fd


def _sync_file_system(fd: int) -> None:
    """Python has no syncfs(2). Its own sync() would wait for every other file system too."""
    try:
        syncfs = ctypes.CDLL(None, use_errno=True).syncfs
    except AttributeError:
        os.sync()
        return
    if syncfs(fd) != 0:
        number = ctypes.get_errno()
        raise ThinvirtError(f"A file system cannot be flushed: {os.strerror(number)}.")


def leftovers(paths: t.Sequence[str]) -> list[str]:
    """Those of the mount points that hold what a killed run left."""
    return [path for path in paths if _has_leftover(path)]


def _has_leftover(path: str) -> bool:
    with _open_mount(path) as fd:
        return _is_leftover(fd)


def remove_leftovers(paths: t.Sequence[str]) -> None:
    """Remove from these mount points what a killed run left."""
    for path in paths:
        with _open_mount(path) as fd:
            remove_leftover(fd)


def remove_leftover(directory: int) -> None:
    """Remove what a killed run left in a folder, and nothing else that has its name."""
    if not _is_leftover(directory):
        return
    try:
        os.unlink(NAME, dir_fd=directory)
    except OSError as error:
        raise failure(NAME, "removed", error) from error


def _is_leftover(directory: int) -> bool:
    """Ours has lost its name before it gets its first byte."""
    try:
        status = os.stat(NAME, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_size


def fillable_mount_points() -> list[str]:
    """The mount points where a killed run may have left something."""
    mounts = parse_mountinfo(_read("/proc/self/mountinfo", strip=False)).values()
    return sorted(
        {
            mount.mount_point
            for mount in mounts
            if not mount.read_only and zero_policy.FILLABLE.count(mount.type)
        }
    )


@contextlib.contextmanager
def _open_mount(path: str) -> t.Iterator[int]:
    if not os.path.isabs(path) or os.path.normpath(path) != path:
        raise RefusedError(
            f"{shown(path)} is not an absolute path in its shortest form.",
            remedy="Name the mount point, as findmnt shows it.",
        )
    try:
        fd = os.open(path, _DIRECTORY)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and os.path.lexists(path):
            raise RefusedError(
                f"{shown(path)} is no folder.",
                remedy="Name the mount point, as findmnt shows it.",
            ) from error
        if error.errno == errno.ENOENT:
            raise NotFoundError(f"{shown(path)} does not exist.") from error
        raise failure(path, "opened", error) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _read(path: str, *, strip: bool = True) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        text = file.read()
    return text.strip() if strip else text
