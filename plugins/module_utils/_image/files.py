# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Open an image for reading so that no name leads anywhere else than it seems to."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    ImageError,
    NotFoundError,
    RefusedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.holders import file_key
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFLNK: "a symbolic link",
}


@dataclasses.dataclass(frozen=True)
class OpenImage:
    """An image open for reading.

    :param path: the name that was opened, symlinks in its last part resolved.
    :param key: ``holders.file_key``: the same file, whatever its name.
    """

    fd: int
    path: str
    key: tuple[int, int]
    block_device: bool


@contextlib.contextmanager
def open_image(path: str) -> t.Iterator[OpenImage]:
    """Open a regular file or a block device, and nothing else; nothing is ever waited for.

    A symlink is followed only within its own folder: in a pool that others may write to it
    could lead to any file of the host.  Below /dev, where udev alone makes links and names
    of logical volumes are links, /dev counts as one folder.

    :param path: absolute.
    :raises NotFoundError: nothing has that name.
    :raises RefusedError: a symlink leads out of its folder.
    :raises ImageError: the name is relative, or the file is of another kind.
    :raises ThinvirtError: the kernel refuses.
    """
    if not os.path.isabs(path) or "\0" in path:
        raise ImageError(f"{shown(path)} is not an absolute path.", remedy="Name it from / on.")
    try:
        target = _target(path)
        _check_kind(path, os.lstat(target).st_mode)
        fd = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise failure(path, "opened", error) from error
    except UnicodeEncodeError as error:
        raise ImageError(f"{shown(path)} is no name that a file can have.") from error
    try:
        status = os.fstat(fd)
        _check_kind(path, status.st_mode)  # it may have been exchanged in between
        block_device = stat.S_ISBLK(status.st_mode)
        yield OpenImage(fd, target, file_key(status), block_device)
    finally:
        os.close(fd)


def _target(path: str) -> str:
    if not stat.S_ISLNK(os.lstat(path).st_mode):
        return path
    target = os.path.realpath(path)
    folder = os.path.realpath(os.path.dirname(path))
    if not os.path.lexists(target):
        raise NotFoundError(f"{shown(path)} is a symlink to {shown(target)}, which does not exist.")
    if os.path.dirname(target) != folder and not (
        is_below(target, "/dev") and is_below(folder, "/dev")
    ):
        raise RefusedError(
            f"{shown(path)} is a symlink that leads out of its folder, to {shown(target)}.",
            remedy="Name the target itself if it is the right one.",
        )
    return target


def is_below(path: str, folder: str) -> bool:
    """Whether a path without symlinks lies in a folder, at any depth, or is the folder."""
    return os.path.commonpath((path, folder)) == folder


def _check_kind(path: str, mode: int) -> None:
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "of an unknown kind")
        raise ImageError(
            f"{shown(path)} is {kind}, not an image.", remedy="Name a file or a block device."
        )
