# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Has the initial RAM disk of the running kernel the driver virtio_scsi?"""

from __future__ import annotations

import dataclasses
import os
import re
import zlib

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest.model import Initramfs
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest.reading import (
    output_of,
    read_text,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import process

_DRIVER = re.compile(r"/virtio[_-]scsi\.ko(\.(xz|zst|gz))?$", re.MULTILINE)
_IN_ARCHIVE = re.compile(rb"/virtio[_-]scsi\.ko(\.(xz|zst|gz))?\0")
#: Unpacked, a large one with firmware; what lies beyond is not read.
_MAX_UNPACKED_BYTES = 1 << 30
_PIECE = 1 << 20
#: Unpacking takes seconds, on an emulated processor tens of them.
_TIMEOUT = 180


def unknown() -> Initramfs:
    """Nothing is known, as nobody looked."""
    return Initramfs()


def examine(release: str) -> Initramfs:
    """What there is for a kernel; never an error: what can't be found out is unknown."""
    found = _find(release)
    if found is None:
        return Initramfs(virtio_scsi=True if _builtin(release) else None)
    generator, path, program = found
    known = Initramfs(generator, path, older_than_crypttab=is_older(path, "/etc/crypttab"))
    if _builtin(release):
        return dataclasses.replace(known, virtio_scsi=True)
    try:
        if generator == "mkinitfs":
            return dataclasses.replace(known, virtio_scsi=gzip_has_driver(path))
        listing = output_of(
            [process.find_program(program, package=generator), path], timeout=_TIMEOUT
        )
    except (ThinvirtError, OSError):
        return known
    return dataclasses.replace(known, virtio_scsi=listed(listing))


def is_older(path: str, other: str) -> bool:
    """Whether a file was written before another one was; not if one of them is not there."""
    try:
        return os.stat(path).st_mtime_ns < os.stat(other).st_mtime_ns
    except OSError:
        return False


def listed(listing: str) -> bool | None:
    """Whether a list of an initial RAM disk's files has the driver (pure).

    None for a list with no kernel modules at all: such a system loads them in another way.
    """
    if _DRIVER.search(listing):
        return True
    return False if ".ko" in listing else None


def gzip_has_driver(path: str) -> bool | None:
    """Look for the driver's name in a gzipped cpio archive; None if it is none."""
    with open(path, "rb") as file:
        if file.read(2) != b"\x1f\x8b":
            return None
        file.seek(0)
        unpack, tail, total = zlib.decompressobj(wbits=31), b"", 0
        while piece := file.read(_PIECE):
            try:
                text = unpack.decompress(piece, _MAX_UNPACKED_BYTES - total)
            except zlib.error:
                return None
            total += len(text)
            if _IN_ARCHIVE.search(tail + text):
                return True
            if total >= _MAX_UNPACKED_BYTES:
                return None
            tail = text[-256:]
    return False


def _builtin(release: str) -> bool:
    return (
        _DRIVER.search(read_text(f"/lib/modules/{release}/modules.builtin", missing="")) is not None
    )


def _find(release: str) -> tuple[str, str, str] | None:
    """Generator, file, and the program that lists it."""
    flavour = release.rpartition("-")[2]
    base = read_text(f"/lib/modules/{release}/pkgbase", missing="").strip()
    for generator, path, maker, lister in (
        ("initramfs-tools", f"/boot/initrd.img-{release}", "update-initramfs", "lsinitramfs"),
        ("dracut", f"/boot/initrd.img-{release}", "dracut", "lsinitrd"),
        ("dracut", f"/boot/initramfs-{release}.img", "dracut", "lsinitrd"),
        ("dracut", f"/boot/initrd-{release}", "dracut", "lsinitrd"),
        ("mkinitcpio", f"/boot/initramfs-{base}.img", "mkinitcpio", "lsinitcpio"),
        ("mkinitfs", f"/boot/initramfs-{flavour}", "mkinitfs", ""),
    ):
        if os.path.isfile(path) and _installed(maker):
            return generator, path, lister
    return None


def _installed(program: str) -> bool:
    try:
        process.find_program(program, package=program)
    except ThinvirtError:
        return False
    return True
