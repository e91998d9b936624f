# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""All that can be known about one image without changing it.

Our own reader looks at the header, the chain and the locks first.  ``qemu-img`` is started
only on an image that passed, and for what needs a walk through its tables.
"""

from __future__ import annotations

import dataclasses
import os
import time
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    CommandError,
    ImageError,
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import qcow2
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.chain import (
    BackingLink,
    DataFile,
    Places,
    backing_chain,
    data_file_of,
    refuse_relative,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.files import (
    OpenImage,
    open_image,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.header import (
    ImageHeader,
    read_image_header,
    read_open_header,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.locks import (
    LockState,
    probe_locks,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.process import Runner, run
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_argv import (
    Storage,
    image_spec,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_img import QemuImg
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_output import (
    Bitmap,
    CheckResult,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.table_size import (
    spare_table_bytes,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.extents import (
    data_extents,
    extent_count,
    shared_bytes,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown

__all__ = ["ImageHeader", "ImageInfo", "Layout", "Options", "inspect_image", "read_image_header"]

#: The most that is read of a snapshot table: some 10,000 snapshots.
_MAX_SNAPSHOT_TABLE_BYTES = 1024 * 1024
#: The block of nearly every file system.
_BLOCK_BYTES = 4096


@dataclasses.dataclass(frozen=True)
class Options:
    """How an image is looked at.

    :param image_format: ``auto``, ``raw`` or ``qcow2``; see :func:`read_image_header`.
    :param allowed_dirs: folders, besides the image's own, where backing and data files may lie.
    :param timeout: seconds for one image, all programs together.
    :param check: run ``qemu-img check``, which walks through all tables.
    """

    image_format: str = "auto"
    allowed_dirs: tuple[str, ...] = ()
    timeout: float = 120.0
    check: bool = True

    def __post_init__(self) -> None:
        """Refuse what can't be meant.

        :raises RefusedError: the time limit is not positive, or a folder is relative.
        """
        if self.timeout <= 0:
            raise RefusedError(f"timeout is {self.timeout:g}.", remedy="Allow at least 1 second.")
        refuse_relative(self.allowed_dirs)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a file lies on the host's file system.

    :param data_bytes: outside of holes.
    :param extents: as the file system counts them; None where it does not.
    """

    hole_count: int
    hole_bytes: int
    data_bytes: int
    extents: int | None
    shared_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class ImageInfo:
    """One image, inspected.

    :param key: ``(st_dev, st_ino)``, for finding the processes that hold it.
    :param layout: None for a block device.
    :param locks: as they were before any program was started.
    :param check: None when ``qemu-img check`` was not run.
    :param check_skipped: why it was not, one sentence; empty otherwise.
    :param reclaimable_bytes: what a rewrite would save at least, by an estimate that reads no
        data; None where nothing can be promised.
    """

    header: ImageHeader
    key: tuple[int, int]
    layout: Layout | None
    snapshots: tuple[qcow2.Snapshot, ...]
    bitmaps: tuple[Bitmap, ...]
    chain: tuple[BackingLink, ...]
    data_file: DataFile | None
    locks: LockState
    check: CheckResult | None
    check_skipped: str
    reclaimable_bytes: int | None


def inspect_image(path: str, options: Options, *, runner: Runner = run) -> ImageInfo:
    """Inspect one image, read-only; safe on images in use and on hostile ones.

    :param path: absolute.
    :raises RefusedError: it names a backing or data file in a place that is not allowed.
    :raises ThinvirtError: it can't be opened or read, or a program failed.
    """
    deadline = time.monotonic() + options.timeout
    with open_image(path) as image:
        header = read_open_header(image, path=path, image_format=options.image_format)
        places = Places.of(image.path, allowed_dirs=options.allowed_dirs)
        data_file = data_file_of(header, places=places)
        chain = tuple(backing_chain(image, header, places=places))
        try:
            locks = probe_locks(image.fd)
            layout = None if image.block_device else _layout(image, header, deadline)
            snapshots = _snapshots(image.fd, header)
            tool = QemuImg(timeout=max(0.1, deadline - time.monotonic()), runner=runner)
            info = ImageInfo(
                header=header,
                key=image.key,
                layout=layout,
                snapshots=snapshots,
                bitmaps=(),
                chain=chain,
                data_file=data_file,
                locks=locks,
                check=None,
                check_skipped="A raw image has no tables that could be checked.",
                reclaimable_bytes=_raw_reclaimable(header, layout, locks),
            )
            return info if header.qcow2 is None else _ask_qemu(image, info, options, tool)
        except OSError as error:
            raise failure(path, "read", error) from error


def _layout(image: OpenImage, header: ImageHeader, deadline: float) -> Layout:
    data_bytes, hole_count, position = 0, 0, 0
    for offset, length in data_extents(image.fd):
        hole_count += offset > position
        data_bytes += length
        position = offset + length
        if time.monotonic() > deadline:
            raise ThinvirtError(f"{shown(header.path)} has too many extents to count in time.")
    length_bytes = max(header.length_bytes, position)
    return Layout(
        hole_count=hole_count + (length_bytes > position),
        hole_bytes=length_bytes - data_bytes,
        data_bytes=data_bytes,
        extents=extent_count(image.fd),
        shared_bytes=shared_bytes(image.fd, flush=False),
    )


def _snapshots(fd: int, header: ImageHeader) -> tuple[qcow2.Snapshot, ...]:
    if header.qcow2 is None or not header.qcow2.snapshot_count:
        return ()
    table = os.pread(fd, _MAX_SNAPSHOT_TABLE_BYTES, header.qcow2.snapshots_offset)
    try:
        return tuple(qcow2.parse_snapshots(table, count=header.qcow2.snapshot_count))
    except ImageError as error:
        raise ImageError(f"{shown(header.path)}: {error.message}") from error


def _raw_reclaimable(header: ImageHeader, layout: Layout | None, locks: LockState) -> int | None:
    """Blocks of a raw file that were allocated and never written: a sparse copy has none."""
    if header.qcow2 or layout is None or header.allocated_bytes is None or locks.writer:
        return None
    # The last block of a file is allocated as a whole.
    whole = -(-layout.data_bytes // _BLOCK_BYTES) * _BLOCK_BYTES
    return _at_least(header.allocated_bytes - layout.shared_bytes - whole)


def _at_least(found: int) -> int | None:
    """None instead of 0: zeros that the guest has written were not looked for."""
    return found if found > 0 else None


def _ask_qemu(image: OpenImage, info: ImageInfo, options: Options, tool: QemuImg) -> ImageInfo:
    """Add what only a walk through the tables of a qcow2 image tells."""
    header = t.cast("qcow2.Qcow2Header", info.header.qcow2)
    spec = image_spec(
        Storage(image.path, image.block_device),
        "qcow2",
        data_file=info.data_file.storage if info.data_file else None,
    )
    try:
        if header.bitmap_count:
            answer = tool.info(spec, force_share=info.locks.in_use)
            info = dataclasses.replace(info, bitmaps=answer.bitmaps)
        if closed := _why_closed(info):
            return dataclasses.replace(info, check_skipped=closed)
        return dataclasses.replace(
            info,
            check=tool.check(spec) if options.check else None,
            check_skipped="" if options.check else "It was not asked for.",
            reclaimable_bytes=_reclaimable(image.fd, info, tool, spec),
        )
    except CommandError:
        # A guest that started meanwhile has the image now, and qemu-img could not have it.
        locks = probe_locks(image.fd)
        if locks.writer and not info.locks.writer:
            info = dataclasses.replace(info, locks=locks)
            return dataclasses.replace(info, check_skipped=_why_closed(info))
        raise


def _why_closed(info: ImageInfo) -> str:
    """Why qemu-img may not, or can't, walk through the tables; empty if it can."""
    if info.locks.writer:
        return "The image is in use, and leaks found in it now would be false."
    if info.header.qcow2 and info.header.qcow2.encryption != "none":
        return "The image is encrypted, and qemu-img cannot read its tables without the key."
    return ""


def _reclaimable(fd: int, info: ImageInfo, tool: QemuImg, spec: str) -> int | None:
    header = info.header.qcow2
    if header is None or info.header.allocated_bytes is None:
        return None
    if header.snapshot_count or info.data_file:
        return None  # a rewrite would lose the snapshots, or pull the data in
    options = {"cluster_size": str(header.cluster_size_bytes), "compat": header.compat}
    if "extended_l2" in header.features:
        options["extended_l2"] = "on"
    measured = tool.measure(spec, target_format="qcow2", options=options)
    needed = measured.required_bytes + measured.bitmaps_bytes
    needed -= spare_table_bytes(fd, info.header, tool, options)
    shared = info.layout.shared_bytes if info.layout is not None else 0
    return _at_least(info.header.allocated_bytes - shared - needed)
