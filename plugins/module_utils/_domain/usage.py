# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who uses an image, as libvirt and the headers of other images say, and what that forbids."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import (
    Guest,
    Hypervisor,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    HypervisorError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact_policy import Obstacle
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.files import OpenImage
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.header import (
    read_image_header,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.holders import file_key
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown

Key = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Use:
    """A domain that has an image as one of its disks, now or at its next start.

    :param format: of the image, as the domain says; it decides what the guest's data is.
    """

    guest: Guest
    target: str
    format: str


@contextlib.contextmanager
def users_at(uri: str) -> t.Iterator[Users]:
    """The users of images on this host, for as long as libvirt can be asked.

    :param uri: empty on a host without libvirt.
    :raises RefusedError: the URI leads to another machine.
    :raises ThinvirtError: libvirt does not answer.
    """
    if not uri:
        yield Users(None)
        return
    with Hypervisor(uri, local_only=True) as hypervisor:
        yield Users(hypervisor)


class Users:
    """The domains of a host by the files that they use; libvirt is asked for them once.

    :param hypervisor: None on a host without libvirt: then only images know of each other.
    """

    def __init__(self, hypervisor: Hypervisor | None) -> None:
        self._hypervisor = hypervisor
        self._by_key: dict[Key, list[Use]] = {}
        self._images: set[str] = set()
        self._backing: dict[tuple[str, int, int], str] = {}
        for guest in hypervisor.all_guests() if hypervisor else ():
            domains = [xml.parse_domain(guest.configured_xml(with_secrets=False))]
            if guest.is_active():
                domains.append(xml.parse_domain(guest.live_xml()))
            for disk in (disk for domain in domains for disk in domain.disks):
                self._add(hypervisor, guest, disk)

    def refresh_pools(self, paths: t.Iterable[str]) -> None:
        """Have the storage pools of these images look at their new sizes."""
        if self._hypervisor is not None:
            self._hypervisor.refresh_pools(paths)

    def _add(self, hypervisor: Hypervisor | None, guest: Guest, disk: xml.Disk) -> None:
        try:
            path = hypervisor.disk_path(disk) if hypervisor else ""
            status = os.stat(path)
        except (HypervisorError, OSError):
            return  # no such volume or file: it can't be the image that is asked about
        self._images.add(os.path.realpath(path))
        uses = self._by_key.setdefault(file_key(status), [])
        if all(use.guest.uuid != guest.uuid for use in uses):
            uses.append(Use(guest, disk.target, disk.format or "raw"))

    def obstacles(self, image: OpenImage, *, off: str = "") -> list[Obstacle]:
        """What forbids to change an image, the worst first.

        :param off: UUID of a domain that is taken for shut off, as it will be.
        """
        uses = self._by_key.get(image.key, [])
        found = [o for use in uses for o in _of_domain(use, off=use.guest.uuid == off)]
        if len(uses) > 1:
            names = ", ".join(use.guest.name for use in uses)
            found.append(
                Obstacle(
                    f"is shared by the domains {names}",
                    "Give each domain a disk of its own, or use method=punch.",
                )
            )
        found += [_of_format(use) for use in uses]
        overlays = self._overlays(image)
        if overlays:
            found.append(
                Obstacle(
                    f"is the backing file of {', '.join(map(shown, overlays[:5]))}",
                    "Use method=punch, or commit or remove the overlays first.",
                )
            )
        return sorted(found, key=lambda obstacle: not obstacle.forbids_punch)

    def _overlays(self, image: OpenImage) -> list[str]:
        """Images, of domains and in the image's own folder, whose header names it."""
        own = os.path.realpath(image.path)
        folder = os.path.dirname(own)
        neighbours = (entry.path for entry in os.scandir(folder) if _is_candidate(entry))
        candidates = self._images.union(neighbours) - {own}
        return sorted(path for path in candidates if self._depends_on(path, own))

    def _depends_on(self, path: str, own: str) -> bool:
        """Whether an image's header names another, whose path has no symlinks, as backing file."""
        spelled = self._backing_of(path)
        if not spelled:
            return False
        # Only names that could be meant are looked up: to ask for /net/HOST can mount something.
        near = os.path.realpath(os.path.dirname(spelled)) == os.path.dirname(own)
        return near and os.path.realpath(spelled) == own

    def _backing_of(self, path: str) -> str:
        """The path of an image's backing file as its header spells it; read once per change."""
        try:
            status = os.lstat(path)
        except OSError:
            return ""
        key = (path, status.st_ino, status.st_mtime_ns)
        if key not in self._backing:
            self._backing[key] = _backing_file(path)
        return self._backing[key]


def _is_candidate(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file(follow_symlinks=False) and not entry.name.endswith(".thinvirt-journal")
    except OSError:
        return False


def _backing_file(path: str) -> str:
    try:
        header = read_image_header(path).qcow2
    except ThinvirtError:
        return ""  # no image, or none that QEMU could open
    if header is None or header.backing_file is None or ":" in header.backing_file.split("/", 1)[0]:
        return ""
    return os.path.normpath(os.path.join(os.path.dirname(path), header.backing_file))


def _of_format(use: Use) -> Obstacle:
    """A guest can write a header of qcow2 into its raw disk; what it says is not the disk."""
    return Obstacle(
        f"is of format {use.format} for domain {use.guest.name}, and not what it seems to be",
        f"Say so with format={use.format}, or use method=punch.",
        unless_format=use.format,
    )


def _of_domain(use: Use, *, off: bool) -> list[Obstacle]:
    name = use.guest.name
    found = []
    if not off and use.guest.is_active():
        found.append(
            Obstacle(
                f"is disk {use.target} of domain {name}, which is not shut off",
                f"Shut {name} down, or use thinvirt.kvm.domain_compact with power=cycle.",
                forbids_punch=True,
            )
        )
    if use.guest.has_managed_save():
        found.append(
            Obstacle(
                f"belongs to domain {name}, whose memory was saved (managed save)",
                f"Start {name} and shut it down, or use method=punch.",
            )
        )
    if use.guest.snapshot_count():
        found.append(
            Obstacle(
                f"belongs to domain {name}, which has snapshots",
                "Delete the snapshots (virsh snapshot-delete), or use method=punch.",
            )
        )
    if use.guest.checkpoint_count():
        found.append(
            Obstacle(
                f"belongs to domain {name}, which has checkpoints of incremental backups",
                "Delete them (virsh checkpoint-delete), or use method=punch.",
            )
        )
    return found
