# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of an image in use forbids to compact it, and whether there is room."""

from __future__ import annotations

import dataclasses
import os
import time
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import Guest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    HypervisorError,
    RefusedError,
    UnsupportedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact_policy import (
    Facts,
    Request,
    copy_of,
    refuse_any_change,
    refuse_rewrite,
    refuse_too_little_space,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.estimate import facts_in_use
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.files import (
    OpenImage,
    open_image,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.header import read_open_header
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.locks import probe_locks
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_argv import image_spec
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_img import QemuImg
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.replace import fd_storage
from ansible_collections.thinvirt.kvm.plugins.module_utils._live import policy
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.filesystem import (
    file_system_of,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown

#: What storage is taken to copy in a second, to foresee how long a guest writes to an overlay.
_SLOW_STORAGE_BYTES = 50 << 20


@dataclasses.dataclass(frozen=True)
class Bounds:
    """How much a run may take.

    :param bandwidth_bytes: a second, of each copy; 0 for as much as there is.
    :param written_bytes: what the guest writes in a second, as far as that can be foreseen.
    """

    bandwidth_bytes: int = 0
    written_bytes: float = 0.0


class WriteRate:
    """How fast a guest writes to a disk, from now on."""

    def __init__(self, guest: Guest, target: str) -> None:
        self._guest = guest
        self._target = target
        self._begin = time.monotonic()
        self._written_bytes = guest.written_bytes(target)

    def bytes_per_second(self) -> float:
        """Since it was made; what came within less than a second counts for a whole one."""
        seconds = max(1.0, time.monotonic() - self._begin)
        return (self._guest.written_bytes(self._target) - self._written_bytes) / seconds


def refuse(
    path: str, image_format: str, request: Request, bounds: Bounds, *, tool: QemuImg
) -> None:
    """Refuse what can be seen before anything is changed.

    :raises RefusedError: it must not be done; nothing was changed.
    """
    with open_image(path) as image:
        header = read_open_header(image, path=image.path, image_format=image_format)
        facts = facts_in_use(image, header)
        refuse_any_change(path, facts, request)
        policy.refuse_image(path, header)
        refuse_rewrite(path, facts, request)
        if not probe_locks(image.fd).known:
            raise UnsupportedError(
                f"The file system of {shown(path)} has no locks that QEMU heeds; nothing "
                "was changed.",
                remedy="Use power=cycle.",
            )
        _refuse_too_little_space(image, facts, request, bounds, tool=tool)


def _refuse_too_little_space(
    image: OpenImage, facts: Facts, request: Request, bounds: Bounds, *, tool: QemuImg
) -> None:
    """Refuse what the copy, and what the guest writes meanwhile, could fill the disk with."""
    copy = copy_of(facts.header, request, compressed=False)
    spec = image_spec(fd_storage(image.fd), facts.header.format)
    measured = tool.measure(
        spec,
        target_format=copy.format,
        options=copy.options,
        pass_fds=(image.fd,),
        force_share=True,
    )
    needed = measured.required_bytes if copy.format == "qcow2" else facts.data_bytes
    if copy.options.get("preallocation") in ("falloc", "full"):
        needed = measured.fully_allocated_bytes
    seconds = needed / (bounds.bandwidth_bytes or _SLOW_STORAGE_BYTES)
    # In both overlays, and in the copy.
    growth = int(min(3 * seconds * bounds.written_bytes, facts.header.virtual_size_bytes))
    system = file_system_of(image.fd)
    wanted = [(system, needed + growth)]
    if request.moves(image.path):
        wanted = [(file_system_of(request.dest_dir), needed + growth), (system, growth)]
    for place, size in wanted:
        refuse_too_little_space(
            image.path,
            needed_bytes=size,
            free_bytes=place.free_bytes,
            min_free_bytes=request.min_free_bytes,
            mount_point=place.mount_point,
        )


def refuse_disagreement(guest: Guest, target: str, path: str) -> None:
    """Don't go on unless a disk is on a file, live and configured.

    :raises HypervisorError: it is on another one.
    """
    texts = [guest.live_xml()]
    if guest.is_persistent():
        texts.append(guest.configured_xml(with_secrets=False))
    for text in texts:
        disk = xml.parse_domain(text).disk(target)
        if disk is None or os.path.realpath(disk.path) != os.path.realpath(path):
            raise HypervisorError(
                f"libvirt did not switch disk {target} of domain {guest.name} as it said."
            )


def refuse_full(folders: t.Iterable[str], name: str, min_free_bytes: int) -> None:
    """Called all the while: full storage pauses running guests.

    :param name: of the domain.
    :raises RefusedError: one of their file systems has less than ``min_free_bytes`` free.
    """
    for folder in folders:
        figures = os.statvfs(folder)
        free = figures.f_bavail * figures.f_frsize
        if free < min_free_bytes:
            raise RefusedError(
                f"While the disk of domain {name} was compacted the file system of {shown(folder)} "
                f"came down to {free} bytes free, less than min_free_bytes={min_free_bytes}.",
                remedy="Free space, or lower min_free_bytes.",
            )
