# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read every disk of every domain, from libvirt down to the host's storage.

Cheap enough for a thousand domains in one call: one list of the domains, their XML, and for each
image two short reads of its header.  No process is started.
"""

from __future__ import annotations

import dataclasses
import os
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._audit import checks
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.model import (
    BackingFile,
    DiskAudit,
    DomainAudit,
    Image,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import policy, xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import (
    Guest,
    Hypervisor,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.chain import (
    Places,
    backing_chain,
    data_file_path,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.files import (
    OpenImage,
    open_image,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.header import (
    ImageHeader,
    read_open_header,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.extents import file_usage
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.filesystem import (
    FileSystem,
    file_system_of,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.punch import (
    PunchProbe,
    can_discard,
    can_punch_holes,
)

_NOT_PROBED = PunchProbe(None, "The storage was not tried, since probe_storage is off.")


class Auditor:
    """Reads a host's domains; what many images share is asked only once.

    :param allowed_dirs: folders, besides an image's own, where backing files may lie.
    :param probe_storage: try out whether each file system frees a punched hole.
    """

    def __init__(
        self, hypervisor: Hypervisor, *, allowed_dirs: t.Sequence[str], probe_storage: bool
    ) -> None:
        self._hypervisor = hypervisor
        self._allowed_dirs = tuple(allowed_dirs)
        self._probe_storage = probe_storage
        self._file_systems: dict[int, FileSystem] = {}
        self._punches: dict[str, PunchProbe] = {}

    def domains(self, patterns: t.Sequence[str]) -> list[DomainAudit]:
        """Audit the domains that match; what goes wrong with one is in its entry.

        :raises ThinvirtError: a domain that was named does not exist, or libvirt fails.
        """
        return [self._domain(guest) for guest in self._hypervisor.guests(patterns)]

    def _domain(self, guest: Guest) -> DomainAudit:
        active = guest.was_active
        try:
            configured = xml.parse_domain(guest.configured_xml(with_secrets=False))
            live = xml.parse_domain(guest.live_xml()) if active else None
        except ThinvirtError as error:
            return DomainAudit(guest.name, guest.uuid, active, error=error)
        judged = live or configured
        return DomainAudit(
            name=guest.name,
            uuid=guest.uuid,
            active=active,
            machine=judged.machine,
            agent_channel=judged.agent_channel,
            agent_connected=live.agent_connected if live else None,
            disks=tuple(
                self._disk(judged, disk, live=live, configured=configured)
                for disk in judged.disks
                if policy.is_written(disk)
            ),
            findings=checks.domain_findings(judged, active=active),
        )

    def _disk(
        self, judged: xml.Domain, disk: xml.Disk, *, live: xml.Domain | None, configured: xml.Domain
    ) -> DiskAudit:
        later = configured.disk(disk.target)
        next_start = later.settings if later else None
        image = self._image(disk)
        chain = checks.links(judged, disk, image, configured=next_start)
        running = disk.settings if live else None
        return DiskAudit(
            disk=disk,
            live=running,
            configured=next_start,
            image=image,
            links=chain,
            findings=checks.disk_findings(
                judged.name, disk, image, links=chain, live=running, configured=next_start
            ),
        )

    def _image(self, disk: xml.Disk) -> Image:
        name = disk.format or ("" if disk.source_type == "volume" else "raw")
        try:
            path = self._hypervisor.disk_path(disk)
        except ThinvirtError as error:
            # A path that is empty would say that the data is elsewhere.
            return Image(f"{disk.pool}/{disk.volume}", name, error=str(error))
        image = Image(path, name)
        if not path:
            return image
        try:
            # QEMU opens what the administrator's domain names, links followed; so do we.
            real = os.path.realpath(path) if os.path.isabs(path) else path
            with open_image(real) as opened:
                return self._read(image, opened)
        except ThinvirtError as error:
            return dataclasses.replace(image, error=str(error))

    def _read(self, image: Image, opened: OpenImage) -> Image:
        image = dataclasses.replace(image, key=opened.key, block_device=opened.block_device)
        if opened.block_device:
            punch = can_discard(opened.path)
            image = dataclasses.replace(image, punch=punch)
        else:
            system = self._file_system(opened)
            punch = self._punch(system, os.path.dirname(opened.path))
            image = dataclasses.replace(image, file_system=system, punch=punch)
        known = image.format in ("raw", "qcow2")
        # A format of others has no size that could be read here, but its blocks can be counted.
        header = read_open_header(
            opened, path=image.path, image_format=image.format if known else "raw"
        )
        image = dataclasses.replace(
            image,
            promised_bytes=header.virtual_size_bytes if known else None,
            allocated_bytes=header.allocated_bytes,
            length_bytes=header.length_bytes,
            qcow2=header.qcow2,
        )
        try:
            return self._with_files_below(image, opened, header)
        except ThinvirtError as error:
            return dataclasses.replace(image, backing_error=str(error))

    def _with_files_below(self, image: Image, opened: OpenImage, header: ImageHeader) -> Image:
        # QEMU looks for backing files beside a symlink, not beside the file that it leads to.
        places = Places.of(image.path, allowed_dirs=self._allowed_dirs)
        data_file = data_file_path(header, places=places)
        named = dataclasses.replace(opened, path=image.path)
        chain = backing_chain(named, header, places=places)
        return dataclasses.replace(
            image,
            backing=tuple(self._backing_file(link.path) for link in chain if not link.error),
            data_file=self._backing_file(data_file) if data_file else None,
            backing_error=chain[-1].error if chain else "",
        )

    def _backing_file(self, path: str) -> BackingFile:
        with open_image(path) as opened:
            return BackingFile(
                path=path,
                key=opened.key,
                allocated_bytes=file_usage(opened.fd).allocated_bytes or 0,
                file_system=None if opened.block_device else self._file_system(opened),
            )

    def _file_system(self, opened: OpenImage) -> FileSystem:
        """Files of one ``st_dev`` lie on one file system; btrfs has several for one."""
        number = opened.key[0]
        if number not in self._file_systems:
            self._file_systems[number] = file_system_of(opened.fd)
        return self._file_systems[number]

    def _punch(self, system: FileSystem, directory: str) -> PunchProbe:
        if not self._probe_storage:
            return _NOT_PROBED
        # What one folder has shown holds for its file system; what could not be found out does not.
        for place in (system.device, directory):
            if place in self._punches:
                return self._punches[place]
        probe = can_punch_holes(directory)
        self._punches[directory if probe.works is None else system.device] = probe
        return probe
