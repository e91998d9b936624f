# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One disk's copy in a version: made, checked, and compared with what it was made from."""

from __future__ import annotations

import os
import shutil
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    ImageError,
    RefusedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.convert import Request, convert
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.files import open_image
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.manifest import SUFFIX
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_argv import (
    Copy,
    image_spec,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_img import QemuImg
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.replace import (
    Stages,
    fd_storage,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.extents import file_usage
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.filesystem import (
    file_system_of,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.writeback import (
    begin_writeback,
)

_MAX_SMALL_BYTES = 256 << 20


class Room:
    """Watches that copies and scratch files leave the host what it needs.

    :param folders: where something is written.
    :param min_free_bytes: what their file systems must have free.
    """

    def __init__(self, folders: t.Sequence[str], min_free_bytes: int) -> None:
        self._folders = tuple(dict.fromkeys(folders))
        self._min_free_bytes = min_free_bytes

    def check(self) -> None:
        """Called all the while.

        :raises RefusedError: one has less.
        """
        for folder in self._folders:
            figures = os.statvfs(folder)
            free = figures.f_bavail * figures.f_frsize
            if free < self._min_free_bytes:
                mount = file_system_of(folder).mount_point
                raise RefusedError(
                    f"{shown(mount)}, which holds {shown(folder)}, has {free} bytes free, less "
                    f"than min_free_bytes={self._min_free_bytes}; no version was made.",
                    remedy="Free space, name another dest_dir or scratch_dir, or lower "
                    "min_free_bytes.",
                )


def copy_export(
    spec: str, path: str, *, copy: Copy, tool: QemuImg, room: Room, stages: Stages
) -> None:
    """Copy what QEMU exports to a new file; whole and on the disk when it returns.

    :param spec: names the export to QEMU's tools.
    :raises ThinvirtError: it could not be copied, or the copy is not like it.
    """
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        raise failure(path, "made", error) from error
    try:
        with stages.stage("copy") as report:
            tool.convert(
                spec,
                fd_storage(fd).path,
                copy=copy,
                pass_fds=(fd,),
                report=lambda percent: report(percent, file_usage(fd).allocated_bytes),
                watch=room.check,
            )
            report(100, file_usage(fd).allocated_bytes)
        begin_writeback(fd)
        _prove(spec, fd, path, tool=tool, room=room, stages=stages)
        with stages.stage("flush"):
            os.fsync(fd)
    except OSError as error:
        raise failure(path, "written", error) from error
    finally:
        os.close(fd)


def _prove(spec: str, fd: int, path: str, *, tool: QemuImg, room: Room, stages: Stages) -> None:
    made = image_spec(fd_storage(fd), "qcow2")
    with stages.stage("check"):
        result = tool.check(made, pass_fds=(fd,)).result
    if result != "clean":
        raise ImageError(f"The copy {shown(path)} is {result}; it was removed.")
    with stages.stage("compare") as report:
        same = tool.compare(spec, made, pass_fds=(fd,), report=report, watch=room.check)
    if not same:
        raise ImageError(
            f"The copy {shown(path)} has another content than the disk; it was removed.",
            remedy="Check the memory and the disks of this host.",
        )


def copy_image(src: str, path: str, request: Request, *, stages: Stages) -> None:
    """Copy an image that is not in use to a new file; whole and on the disk when it returns.

    :raises ThinvirtError: it could not be copied, or the copy is not like it.
    """
    convert(src, path, request, check_mode=False, stages=stages)
    try:
        os.unlink(path + SUFFIX)  # the version has a manifest of its own
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            # Whoever may read the disk need not be allowed to read its versions.
            os.fchown(fd, os.geteuid(), os.getegid())
            os.fchmod(fd, 0o600)
        finally:
            os.close(fd)
    except OSError as error:
        raise failure(path, "finished", error) from error


def copy_small(src: str, path: str) -> None:
    """Copy a small file as it is, such as the variables of a firmware, to a new one.

    :raises RefusedError: it is not small.
    :raises ThinvirtError: it can't be copied.
    """
    try:
        with open_image(src) as image:
            if os.fstat(image.fd).st_size > _MAX_SMALL_BYTES:
                raise RefusedError(
                    f"{shown(src)} is larger than any firmware's variables; no version was made.",
                    remedy="Look what the domain has as its nvram.",
                )
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as target, open(os.dup(image.fd), "rb") as source:
                shutil.copyfileobj(source, target)
                target.flush()
                os.fsync(fd)
    except OSError as error:
        raise failure(src, "copied", error) from error
