# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which file system a file lies on, and how full that is."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import re
import time

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure

#: How long XFS may take until it has freed a file that was removed.
_XFS_SECONDS = 0.2
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclasses.dataclass(frozen=True)
class Mount:
    """One line of /proc/self/mountinfo.

    :param id: the mount's number, unique at a time.
    :param device: ``major:minor`` as the kernel lists it; btrfs subvolumes share one.
    :param root: the folder of the file system that is mounted here; not / for bind mounts.
    :param read_only: the mount or the file system under it takes no writes.
    :param options: of this mount.
    :param super_options: of the file system, the same wherever it is mounted.
    """

    id: int
    device: str
    root: str
    mount_point: str
    type: str
    source: str
    read_only: bool
    options: tuple[str, ...] = ()
    super_options: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class FileSystem:
    """The mounted file system that holds a file.

    :param device: ``major:minor``; files with the same one share its free space.
    :param total_bytes: its size.
    :param free_bytes: what unprivileged users may still allocate (``f_bavail``, as in ``df``).
    """

    mount_point: str
    source: str
    type: str
    device: str
    read_only: bool
    total_bytes: int
    free_bytes: int


def parse_mountinfo(text: str) -> dict[int, Mount]:
    """Parse the text of /proc/self/mountinfo, mounts by their number (man 5 proc).

    :raises ThinvirtError: a line is not in that format.
    """
    return {mount.id: mount for mount in map(_parse_line, text.splitlines())}


def _parse_line(line: str) -> Mount:
    try:
        # Any number of optional fields stands before the lone hyphen.
        head, tail = line.split(" - ", 1)
        number, _parent, device, root, mount_point, options, *_optional = head.split(" ")
        fs_type, source, super_options = tail.split(" ", 2)
        return Mount(
            id=int(number),
            device=device,
            root=_unescape(root),
            mount_point=_unescape(mount_point),
            type=_unescape(fs_type),
            source=_unescape(source),
            read_only="ro" in options.split(",") or "ro" in super_options.split(","),
            options=tuple(_unescape(options).split(",")),
            super_options=tuple(_unescape(super_options).split(",")),
        )
    except ValueError as error:
        raise ThinvirtError(f"A line of mountinfo is not understood: {line!r}.") from error


def _unescape(field: str) -> str:
    r"""Undo the kernel's octal escapes: ``\040`` is a blank, ``\134`` a backslash."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field)


def file_system_of(path_or_fd: str | int) -> FileSystem:
    """The file system that a path (symlinks are followed) or an open file lies on.

    The kernel names the mount of an open file in its fdinfo.  Comparing ``st_dev`` was
    rejected: it finds nothing on btrfs, whose subvolumes have device numbers of their own.
    In a chroot that is no mount point, mountinfo lacks the mount: then ``type``, ``source``
    and ``mount_point`` are ``unknown``, and the figures are right all the same.

    :raises NotFoundError: nothing has that name.
    :raises ThinvirtError: the kernel refuses to tell.
    """
    try:
        if isinstance(path_or_fd, int):
            return _file_system_of_fd(path_or_fd)
        fd = os.open(path_or_fd, os.O_PATH | os.O_CLOEXEC)
        try:
            return _file_system_of_fd(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise failure(path_or_fd, "examined", error) from error


def _file_system_of_fd(fd: int) -> FileSystem:
    figures = os.statvfs(fd)
    mount = mount_of_fd(fd)
    return FileSystem(
        mount_point=mount.mount_point,
        source=mount.source,
        type=mount.type,
        device=mount.device,
        read_only=mount.read_only,
        total_bytes=figures.f_blocks * figures.f_frsize,
        free_bytes=figures.f_bavail * figures.f_frsize,
    )


@dataclasses.dataclass(frozen=True)
class Free:
    """What is free on a file system at a time.

    :param size_bytes: for root as well.
    :param frees_whole_extents: what is given back within an extent is not free before the last
        part of that is, though the file has no blocks there any more (btrfs).
    """

    size_bytes: int
    frees_whole_extents: bool


def free_now(folder: str) -> Free | None:
    """What is free on the file system of a folder; None if it can't be told."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        kind = mount_of_fd(fd).type
        if kind == "btrfs":  # it counts when it commits
            ctypes.CDLL(None).syncfs(fd)
        if kind == "xfs":  # it frees a file a moment after that is gone; to ask hurries it up
            os.fstatvfs(fd)
            time.sleep(_XFS_SECONDS)
        figures = os.fstatvfs(fd)
        return Free(figures.f_bfree * figures.f_frsize, kind == "btrfs")
    except (OSError, ThinvirtError):
        return None
    finally:
        os.close(fd)


def mount_of_fd(fd: int) -> Mount:
    """The mount that an open file was reached through; of ``unknown`` type in some chroots."""
    number = None
    for line in _read(f"/proc/self/fdinfo/{fd}").splitlines():
        key, _colon, value = line.partition(":")
        if key == "mnt_id":
            number = int(value)
    mount = parse_mountinfo(_read("/proc/self/mountinfo")).get(-1 if number is None else number)
    if mount is not None:
        return mount
    status = os.stat(fd)
    return Mount(
        id=-1,
        device=f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}",
        root="unknown",
        mount_point="unknown",
        type="unknown",
        source="unknown",
        read_only=bool(os.statvfs(fd).f_flag & os.ST_RDONLY),
    )


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()
