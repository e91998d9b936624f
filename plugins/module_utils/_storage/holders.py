# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who has a file, by name: processes, their mappings, and loop devices.

All of /proc is read for that, so it is for naming somebody whose presence is known (see
``lease``), and for file systems where nothing else tells.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import glob
import math
import os
import stat
import struct
import time
import typing as t

#: Tells a file, whatever its name and its mount namespace.
Key = tuple[int, int]

#: Scanning /proc for holders stops after this many seconds; what was found by then counts.
MAX_SCAN_SECONDS = 5.0

#: linux/loop.h: LOOP_GET_STATUS64; struct loop_info64 begins with device, inode, rdevice, offset,
#: size limit, number, two words about encryption, and flags.
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_INFO = struct.Struct("=QQQQQIIII168x")
_LOOP_READ_ONLY = 1


@dataclasses.dataclass(frozen=True)
class Holder:
    """A process that has a file open, or mapped.

    :param command: the kernel's name for it, 15 bytes at most, such as ``qemu-system-x86``.
    :param writes: it may write to it.
    """

    pid: int
    command: str
    writes: bool = False


def file_key(status: os.stat_result) -> Key:
    """A block device by its number: libvirt's QEMUs each have a /dev of their own."""
    if stat.S_ISBLK(status.st_mode):
        return status.st_rdev, -1
    return status.st_dev, status.st_ino


def find_holders(
    wanted: t.Collection[Key],
    *,
    proc: str = "/proc",
    max_seconds: float | None = None,
) -> dict[Key, list[Holder]]:
    """The processes that have files open or mapped, for all files in one scan of /proc.

    :param wanted: :func:`file_key` of the files; nothing is scanned without any.
    :param max_seconds: :data:`MAX_SCAN_SECONDS` by default.
    :returns: an entry for each that somebody has; this process, those that we may not look into,
        and those that a scan of ``max_seconds`` did not reach, are missing.
    """
    found: dict[Key, list[Holder]] = {}
    deadline = time.monotonic() + (MAX_SCAN_SECONDS if max_seconds is None else max_seconds)
    for pid in _other_processes(proc) if wanted else ():
        if time.monotonic() > deadline:
            break
        writes = _mapped(f"{proc}/{pid}", wanted)
        for key, names in _open_files(f"{proc}/{pid}/fd", wanted).items():
            opened = any(_may_write(f"{proc}/{pid}/fdinfo/{name}") for name in names)
            writes[key] = writes.get(key, False) or opened
        for key, may_write in writes.items():
            holder = Holder(pid, _command(f"{proc}/{pid}/comm"), may_write)
            found.setdefault(key, []).append(holder)
    return found


def writers_seen(fd: int) -> list[str]:
    """Who else may write to an open file, as far as can be seen: root sees all of this host.

    :returns: names for people, such as ``qemu-system-x86 (4711)`` and ``/dev/loop0``.
    """
    key = file_key(os.fstat(fd))
    holders = find_holders([key], max_seconds=math.inf).get(key, ())
    return [*loop_devices_of(key), *(named(one) for one in holders if one.writes)]


def users_seen(fd: int) -> list[str]:
    """The processes that have an open file in any way, as far as can be seen soon."""
    key = file_key(os.fstat(fd))
    return [named(holder) for holder in find_holders([key]).get(key, ())]


def named(holder: Holder) -> str:
    return f"{holder.command} ({holder.pid})"


def is_mounted(fd: int) -> bool:
    """Whether the kernel itself has an open block device: mounted, or part of another device."""
    try:
        os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return True
    return False


def loop_devices_of(key: Key, *, sysfs: str = "/sys/block", dev: str = "/dev") -> list[str]:
    """The loop devices that may write to a file; the kernel holds it for them, no process.

    Asked for the inode: the name in sysfs is one of another mount namespace, or gone.
    """
    found = []
    for name in sorted(glob.glob(f"{sysfs}/loop*/loop")):
        device = f"{dev}/{name.split('/')[-2]}"
        try:
            fd = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # detached meanwhile, or not in this /dev
            continue
        try:
            answer = fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_LOOP_INFO.size))
        except OSError:
            continue
        finally:
            os.close(fd)
        major_minor, inode, behind, *_more, flags = _LOOP_INFO.unpack(answer)
        same = (behind, -1) == key if behind else (major_minor, inode) == key
        if same and not flags & _LOOP_READ_ONLY:
            found.append(device)
    return found


def has_open(key: Key) -> bool:
    """Whether this process itself has a file open for writing."""
    return any(
        _may_write(f"/proc/self/fdinfo/{name}")
        for name in _open_files("/proc/self/fd", [key]).get(key, ())
    )


def _other_processes(proc: str) -> list[int]:
    try:
        names = os.listdir(proc)
    except OSError:  # no /proc here: nobody can be named
        return []
    numbers = (int(name) for name in names if name.isdigit())
    return sorted(pid for pid in numbers if pid != os.getpid())


def _open_files(folder: str, wanted: t.Collection[Key]) -> dict[Key, list[str]]:
    """Which of the wanted files a process has open, and under which descriptors."""
    found: dict[Key, list[str]] = {}
    try:
        names = os.listdir(folder)
    except OSError:  # the process ended, or is not ours to look into
        return found
    for name in names:
        link = os.path.join(folder, name)
        try:
            if not os.readlink(link).startswith("/"):  # a pipe, a socket, an anonymous inode
                continue
            key = file_key(os.stat(link))
        except OSError:  # closed meanwhile
            continue
        if key in wanted:
            found.setdefault(key, []).append(name)
    return found


def _mapped(process: str, wanted: t.Collection[Key]) -> dict[Key, bool]:
    """Which of the wanted files a process has mapped, and whether it may write to them so."""
    found: dict[Key, bool] = {}
    inodes = {str(inode) for _device, inode in wanted if inode > 0}
    for line in _text(f"{process}/maps").splitlines():
        place, permissions, _offset, _device, inode, *_name = line.split(None, 5)
        if inode not in inodes:
            continue
        try:
            key = file_key(os.stat(f"{process}/map_files/{place}"))
        except OSError:  # unmapped meanwhile
            continue
        if key in wanted:
            found[key] = found.get(key, False) or {"w", "s"} <= set(permissions)
    return found


def _may_write(fdinfo: str) -> bool:
    flags = [line.split()[1] for line in _text(fdinfo).splitlines() if line.startswith("flags:")]
    return any(int(flag, 8) & os.O_ACCMODE != os.O_RDONLY for flag in flags)


def _command(path: str) -> str:
    return _text(path).rstrip("\n")


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="backslashreplace") as file:
            return file.read()
    except OSError:  # closed or ended meanwhile, or not ours to look into
        return ""
