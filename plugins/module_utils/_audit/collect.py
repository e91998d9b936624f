# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read every disk of every domain, from libvirt down to the host's storage.

Cheap enough for a thousand domains in one call: one list of the domains, their XML, and for each
image two short reads of its header.  No process is started, but where images are to be measured.
"""

from __future__ import annotations

import dataclasses
import os
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._audit import checks, image_checks
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.model import (
    BackingFile,
    DiskAudit,
    DomainAudit,
    Image,
    Measured,
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
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.extents import (
    allocated_extents,
    extent_count,
    file_usage,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.filesystem import (
    FileSystem,
    file_system_of,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.punch import (
    PunchProbe,
    can_discard,
    can_punch_holes,
)

#: More extents than this are not walked through: it would take longer than the rest of the audit.
_MAX_EXTENTS = 10_000
_NOT_PROBED = PunchProbe(None, "The storage was not tried, since probe_storage is off.")


#: Called for each running domain, as it is read: the guest, what it runs with, and the XML of that.
OnRunning = t.Callable[[Guest, xml.Domain, str], None]


def _nobody(_guest: Guest, _live: xml.Domain, _text: str) -> None:
    """For who has no question."""


class Auditor:
    """Reads a host's domains; what many images share is asked only once.

    :param allowed_dirs: folders, besides an image's own, where backing files may lie.
    :param probe_storage: try out whether each file system frees a punched hole.
    :param measure: what a walk through an image's tables shows; it gets the image's path and its
        format, and raises ThinvirtError.
    :param on_running: is told of each running domain.
    """

    def __init__(
        self,
        hypervisor: Hypervisor,
        *,
        allowed_dirs: t.Sequence[str],
        probe_storage: bool,
        measure: t.Callable[[str, str], Measured | None] | None = None,
        on_running: OnRunning = _nobody,
    ) -> None:
        self._hypervisor = hypervisor
        self._allowed_dirs = tuple(allowed_dirs)
        self._probe_storage = probe_storage
        self._measure = measure
        self._on_running = on_running
        self._file_systems: dict[int, FileSystem] = {}
        self._punches: dict[str, PunchProbe] = {}
        self._folders: dict[str, str] = {}

    def domains(self, patterns: t.Sequence[str]) -> list[DomainAudit]:
        """Audit the domains that match; what goes wrong with one is in its entry.

        :raises ThinvirtError: a domain that was named does not exist, or libvirt fails.
        """
        return [self._domain(guest) for guest in self._hypervisor.guests(patterns)]

    def _domain(self, guest: Guest) -> DomainAudit:
        active = guest.was_active
        try:
            configured = xml.parse_domain(guest.configured_xml(with_secrets=False))
            live = None
            if active:
                text = guest.live_xml()
                live = xml.parse_domain(text)
                self._on_running(guest, live, text)
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
        image = self._image(disk, in_use=live is not None)
        chain = checks.links(judged, disk, image, configured=next_start, running=live is not None)
        running = disk.settings if live else None
        return DiskAudit(
            disk=disk,
            live=running,
            configured=next_start,
            image=image,
            links=chain,
            findings=checks.disk_findings(
                judged.name, disk, image, links=chain, live=running, configured=next_start
            )
            + image_checks.findings(judged.name, disk.target, image),
        )

    def _image(self, disk: xml.Disk, *, in_use: bool) -> Image:
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
            real = self._real(path) if os.path.isabs(path) else path
            with open_image(real) as opened:
                return self._read(image, opened, in_use=in_use)
        except ThinvirtError as error:
            return dataclasses.replace(image, error=str(error))

    def _real(self, path: str) -> str:
        """The path without symlinks.  Many images share a folder, and to ask for it takes long."""
        folder, name = os.path.split(path)
        if name in ("", ".", ".."):
            return os.path.realpath(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        real = os.path.join(self._folders[folder], name)
        return os.path.realpath(path) if os.path.islink(real) else real

    def _read(self, image: Image, opened: OpenImage, *, in_use: bool) -> Image:
        system = None if opened.block_device else self._file_system(opened)
        known = image.format in ("raw", "qcow2")
        facts: dict[str, t.Any] = {
            "path": image.path,
            "format": image.format,
            "key": opened.key,
            "block_device": opened.block_device,
            "real_path": opened.path,
            "file_system": system,
            "punch": can_discard(opened.path)
            if system is None
            else self._punch(system, os.path.dirname(opened.path)),
        }
        try:
            # A format of others has no size that could be read here, but its blocks can be counted.
            header = read_open_header(
                opened, path=image.path, image_format=image.format if known else "raw"
            )
            facts.update(
                promised_bytes=header.virtual_size_bytes if known else None,
                allocated_bytes=header.allocated_bytes,
                length_bytes=header.length_bytes,
                qcow2=header.qcow2,
                **_layout(opened, in_use=in_use),
            )
            facts.update(self._measured(opened.path, image.format, known=known))
        except ThinvirtError as error:
            return Image(**facts, error=str(error))
        try:
            facts.update(self._files_below(image.path, opened, header))
        except ThinvirtError as error:
            facts["backing_error"] = str(error)
        return Image(**facts)

    def _measured(self, path: str, image_format: str, *, known: bool) -> dict[str, t.Any]:
        if self._measure is None or not known:
            return {}
        try:
            return {"measured": self._measure(path, image_format)}
        except ThinvirtError as error:
            return {"measure_error": str(error)}

    def _files_below(self, path: str, opened: OpenImage, header: ImageHeader) -> dict[str, t.Any]:
        qcow2 = header.qcow2
        if qcow2 is None or (qcow2.backing_file is None and qcow2.data_file is None):
            return {}
        # QEMU looks for backing files beside a symlink, not beside the file that it leads to.
        places = Places.of(path, allowed_dirs=self._allowed_dirs)
        data_file = data_file_path(header, places=places)
        named = dataclasses.replace(opened, path=path)
        chain = backing_chain(named, header, places=places)
        headers = [header, *(link.header for link in chain if link.header is not None)]
        data_files = [
            data_file_path(each, places=places)
            for each in headers
            if each.qcow2 is not None and "external_data_file" in each.qcow2.features
        ]
        # Only names that may be followed have come this far.
        below = [*(link.path for link in chain), *filter(None, data_files)]
        missing = next((name for name in below if not os.path.lexists(name)), "")
        return {
            "backing": tuple(self._backing_file(link.path) for link in chain if not link.error),
            "data_file": self._backing_file(data_file)
            if data_file and data_file != missing
            else None,
            "backing_error": chain[-1].error if chain else "",
            "missing": missing,
        }

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


def _layout(opened: OpenImage, *, in_use: bool) -> dict[str, t.Any]:
    """How a file lies on its file system.  One that does not tell is no error."""
    if opened.block_device:
        return {}
    try:
        extents = extent_count(opened.fd)
        few = extents is not None and extents <= _MAX_EXTENTS
        return {
            "file_extents": extents,
            "unwritten_bytes": _unwritten_bytes(opened.fd) if few and not in_use else None,
        }
    except OSError:
        return {}


def _unwritten_bytes(fd: int) -> int:
    """Blocks that were allocated and never written.

    What is on its way to the disk may look like that, so what is found is asked for again after it
    was written there.
    """
    for flush in (False, True):
        extents = allocated_extents(fd, flush=flush)
        unwritten = sum(extent.length for extent in extents if extent.unwritten)
        if not unwritten:
            break
    return unwritten
