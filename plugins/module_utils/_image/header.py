# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an image says about itself: two short reads, no process, nothing else opened."""

from __future__ import annotations

import dataclasses
import errno
import os

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    ImageError,
    UnsupportedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import qcow2
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.containers import (
    HEAD_BYTES,
    TAIL_BYTES,
    container_of,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.files import (
    OpenImage,
    open_image,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.extents import file_usage
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown

FORMATS = ("auto", "raw", "qcow2")
_SECTOR_BYTES = 512


@dataclasses.dataclass(frozen=True)
class ImageHeader:
    """An image at a glance; sizes in bytes.

    :param path: as it was asked for.
    :param format: ``qcow2`` or ``raw``.
    :param virtual_size_bytes: the disk that the guest sees.
    :param allocated_bytes: blocks on the host; None for a block device.
    :param length_bytes: the file's length or the device's capacity.
    :param qcow2: the rest of the header; None for a raw image.  The names of other files in
        it are only reported: nothing was opened, nothing is checked.
    :param probed: only its own first bytes say that it is qcow2.  A guest can write those into its
        raw disk: what they name must not get into any copy.
    """

    path: str
    format: str
    block_device: bool
    virtual_size_bytes: int
    allocated_bytes: int | None
    length_bytes: int
    qcow2: qcow2.Qcow2Header | None
    probed: bool = False


def read_image_header(path: str, *, image_format: str = "auto") -> ImageHeader:
    """Read the header of one image; cheap enough for thousands.

    :param path: absolute; see :func:`open_image` for what is refused.
    :param image_format: ``raw`` or ``qcow2`` where it is known, for example from the domain's
        XML.  ``auto`` takes a file that begins with qcow2's magic number for qcow2 and all
        others for raw.  A guest can write that number into its raw disk: what the header
        then says is the guest's word.
    :raises ImageError: the header is malformed, or not of that format.
    :raises UnsupportedError: ``auto`` finds a container of another hypervisor.
    :raises ThinvirtError: the file can't be opened or read.
    """
    with open_image(path) as image:
        return read_open_header(image, path=path, image_format=image_format)


def read_open_header(image: OpenImage, *, path: str, image_format: str) -> ImageHeader:
    """The same for an image that is open already; ``path`` is its name in messages."""
    usage = file_usage(image.fd)
    try:
        header = _qcow2_header(image.fd, usage.length_bytes, image_format)
    except OSError as error:
        raise failure(path, "read", error) from error
    except UnsupportedError as error:
        raise UnsupportedError(f"{shown(path)}: {error.message}", remedy=error.remedy) from error
    except ImageError as error:
        remedy = "" if image_format == "raw" else "If it is a raw disk, say so with format=raw."
        raise ImageError(f"{shown(path)}: {error.message}", remedy=remedy) from error
    # QEMU counts in sectors and rounds a raw file up.
    sectors = -(-usage.length_bytes // _SECTOR_BYTES)
    return ImageHeader(
        path=path,
        format="qcow2" if header else "raw",
        block_device=image.block_device,
        virtual_size_bytes=header.virtual_size_bytes if header else sectors * _SECTOR_BYTES,
        allocated_bytes=usage.allocated_bytes,
        length_bytes=usage.length_bytes,
        qcow2=header,
        probed=header is not None and image_format == "auto",
    )


def _qcow2_header(fd: int, length: int, image_format: str) -> qcow2.Qcow2Header | None:
    if image_format == "raw":
        return None
    data = os.pread(fd, qcow2.USUAL_HEADER_BYTES, 0)
    if image_format == "auto" and not qcow2.is_qcow2(data):
        _refuse_container(fd, length, data)
        return None
    try:
        return qcow2.parse_header(data, file_length=length)
    except qcow2.ShortHeaderError:
        size = qcow2.cluster_size_of(data)
        if size <= len(data):
            raise
        return qcow2.parse_header(os.pread(fd, size, 0), file_length=length)


def _refuse_container(fd: int, length: int, data: bytes) -> None:
    """Refuse a file that holds a disk in the manner of others, rather than take it for the disk."""
    found = container_of(data[:HEAD_BYTES], _tail(fd, max(0, length - TAIL_BYTES)))
    if found is not None:
        raise UnsupportedError(
            f"It is a {found[1]} image, which is not read here; nothing was changed.",
            remedy=f"Convert it first (qemu-img convert -f {found[0]} -O qcow2). If it is a raw "
            "disk, whose guest wrote that, say so with format=raw (image_convert: src_format=raw).",
        )


def _tail(fd: int, offset: int) -> bytes:
    """What stands behind an offset; nothing if nobody ever wrote there.

    To read a block that was never written makes it look as if it had been (SEEK_DATA).
    """
    try:
        os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return b""
    return os.pread(fd, TAIL_BYTES, offset)
