# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a new domain of a version that ``domain_backup`` has made."""

from __future__ import annotations

import contextlib
import dataclasses
import os

from ansible_collections.thinvirt.kvm.plugins.module_utils._backup import clone
from ansible_collections.thinvirt.kvm.plugins.module_utils._backup.copy import copy_small
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import (
    disk_safety,
    known_disk,
    xml,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import Hypervisor
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    HypervisorError,
    ImageError,
    RefusedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import archive
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.archive_manifest import Manifest
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.convert import Request, convert
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.files import open_image
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.manifest import (
    SUFFIX,
    read_manifest,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.replace import Stages
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.trust import (
    refuse_exchangeable,
)

_MAX_NAME_BYTES = 200


@dataclasses.dataclass
class Outcome:
    """What became of it; in check mode, what would.

    :param uuid: the new domain's; empty if it is only to be defined.
    :param dropped: targets of disks of which there is no copy in the version.
    :param xml: the new domain's configuration, without passwords.
    """

    name: str
    uuid: str = ""
    changed: bool = False
    reason: str = ""
    version: str = ""
    created: str = ""
    consistency: str = ""
    disks: dict[str, str] = dataclasses.field(default_factory=dict)
    nvram: str = ""
    dropped: list[str] = dataclasses.field(default_factory=list)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    xml: str = ""


@dataclasses.dataclass(frozen=True)
class Restore:
    """One domain to be made.

    :param src: a version's folder, or that of a domain, whose newest version is meant.
    :param name: of the new domain.
    :param folder: for its disks.
    :param keep_uuid: for one that takes the place of the old one.
    :param keep_macs: likewise.
    :param accept_plain_text: disks may be plain text where the original's are encrypted.
    """

    hypervisor: Hypervisor
    src: str
    name: str
    folder: str
    keep_uuid: bool
    keep_macs: bool
    accept_plain_text: bool
    min_free_bytes: int
    timeout: float
    check_mode: bool
    stages: Stages

    def run(self) -> Outcome:
        """Make it.

        :raises RefusedError: a domain or a file has the name already, or another user could have
            written the version; nothing was changed.
        :raises ImageError: the version is not as it was when it was made; nothing was changed.
        :raises ThinvirtError: it could not be done; there is no new domain.
        """
        _refuse_name(self.name)
        refuse_exchangeable(self.src)
        version = newest(self.src)
        archive.refuse_writable(version)
        with archive.being_read(version):
            return self._run(version)

    def _run(self, version: str) -> Outcome:
        manifest = archive.read_manifest(version)
        outcome = Outcome(
            name=self.name,
            version=version,
            created=manifest.created,
            consistency=manifest.consistency,
            seconds=self.stages.seconds,
        )
        for disk in manifest.disks:
            path = os.path.join(self.folder, f"{self.name}-{disk.target}.qcow2")
            outcome.disks[disk.target] = path
        if manifest.nvram:
            outcome.nvram = os.path.join(self.folder, f"{self.name}-{manifest.nvram}")
        outcome.dropped = clone.dropped_disks(manifest.xml, outcome.disks)
        existing = self._existing()
        if existing is not None:
            if not _is_this(existing, outcome):
                raise RefusedError(
                    f"There is a domain {self.name} already; nothing was changed.",
                    remedy="Choose another name, or undefine it first if it is of no use any more.",
                )
            outcome.uuid, outcome.reason = existing.uuid, "It was restored before."
            return outcome
        self._refuse_unsafe(manifest, outcome)
        self._refuse_uuid(manifest)
        self._refuse_files(version, manifest, outcome)
        outcome.changed = True
        if self.check_mode:
            self._verify(version, manifest)
            return outcome
        self._verify(version, manifest)
        self._copy(version, manifest, outcome)
        self._define(manifest, outcome)
        return outcome

    def _existing(self) -> xml.Domain | None:
        for guest in self.hypervisor.all_guests():
            if guest.name == self.name:
                return xml.parse_domain(guest.configured_xml(with_secrets=False))
        return None

    def _refuse_unsafe(self, manifest: Manifest, outcome: Outcome) -> None:
        """Refuse what the copies would not be the same with; see ``known_disk``."""
        operation = known_disk.RESTORE if manifest.is_of_running else known_disk.RESTORE_IMAGE
        disk_safety.refuse_disks(
            manifest.xml, outcome.disks, operation, plain_text=self.accept_plain_text
        )
        disk_safety.refuse_firmware(manifest.xml, operation)

    def _refuse_uuid(self, manifest: Manifest) -> None:
        if not self.keep_uuid:
            return
        for guest in self.hypervisor.all_guests():
            if guest.uuid == manifest.uuid:
                raise RefusedError(
                    f"Domain {guest.name} has the UUID {manifest.uuid} already; nothing was "
                    "changed.",
                    remedy="Leave out keep_uuid, or undefine that domain first.",
                )

    def _refuse_files(self, version: str, manifest: Manifest, outcome: Outcome) -> None:
        """Refuse to write over a file, unless a killed run of this very restore has made it."""
        for disk in manifest.disks:
            path = outcome.disks[disk.target]
            note = read_manifest(path)
            ours = note is not None and note.src == os.path.join(version, disk.file)
            if os.path.lexists(path) and not ours:
                raise _taken(path)
        if outcome.nvram and os.path.lexists(outcome.nvram):
            raise _taken(outcome.nvram)

    def _verify(self, version: str, manifest: Manifest) -> None:
        """The files are as they were when they were verified.

        :raises ImageError: one is not.
        """
        with self.stages.stage("verify") as report:
            for stored in manifest.files:
                path = os.path.join(version, stored.name)
                with open_image(path) as image, open(os.dup(image.fd), "rb", buffering=0) as file:
                    try:
                        size = os.fstat(image.fd).st_size
                        checksum = archive.sha256_of(file, report=report)
                    except OSError as error:
                        raise failure(path, "read", error) from error
                if (size, checksum) != (stored.size_bytes, stored.sha256):
                    raise ImageError(
                        f"{shown(path)} is not what it was when it was made: its checksum is "
                        "another one; nothing was changed.",
                        remedy="Restore another version, and check the disks of this host.",
                    )

    def _copy(self, version: str, manifest: Manifest, outcome: Outcome) -> None:
        request = Request(
            src_format="qcow2",
            compression="none",
            min_free_bytes=self.min_free_bytes,
            timeout=self.timeout,
        )
        for disk in manifest.disks:
            src = os.path.join(version, disk.file)
            convert(src, outcome.disks[disk.target], request, check_mode=False, stages=self.stages)
        if manifest.nvram:
            copy_small(os.path.join(version, manifest.nvram), outcome.nvram)

    def _define(self, manifest: Manifest, outcome: Outcome) -> None:
        """Only now, as the disks are whole."""
        text = clone.cloned_xml(
            manifest.xml,
            name=self.name,
            disks={
                target: clone.CopiedDisk(path, "qcow2") for target, path in outcome.disks.items()
            },
            nvram=outcome.nvram,
            uuid=manifest.uuid if self.keep_uuid else "",
            keep_macs=self.keep_macs,
        )
        try:
            guest = self.hypervisor.define_new(text)
        except HypervisorError as error:
            if outcome.nvram:
                with contextlib.suppress(OSError):
                    os.unlink(outcome.nvram)
            raise HypervisorError(
                f"The disks of domain {self.name} were copied to {shown(self.folder)}, and the "
                f"domain could not be defined: {error.message}",
                remedy="Once the reason is gone, run it again: the copies are used then.",
            ) from error
        outcome.uuid = guest.uuid
        for path in outcome.disks.values():
            with contextlib.suppress(OSError):
                os.unlink(path + SUFFIX)  # from now on it is a disk like any other
        self.hypervisor.refresh_pools([self.folder])


def newest(src: str) -> str:
    """The version's folder that is meant: itself, or the newest one in a domain's folder.

    :raises NotFoundError: there is none.
    """
    folder = os.path.realpath(src)
    if os.path.lexists(os.path.join(folder, archive.MANIFEST)):
        return folder
    return archive.newest(folder).path


def _is_this(existing: xml.Domain, outcome: Outcome) -> bool:
    """Whether a domain is what this restore would make."""
    disks = {disk.target: disk.path for disk in existing.disks if disk.device == "disk"}
    return disks == outcome.disks


def _refuse_name(name: str) -> None:
    """Refuse a name that cannot be that of a domain and of files.

    :raises RefusedError: it is such a name.
    """
    plain = name.isprintable() and "/" not in name and not name.startswith((".", "-"))
    if not name or not plain or len(os.fsencode(name)) > _MAX_NAME_BYTES:
        raise RefusedError(
            f"{shown(name)} cannot be the name of a domain and of its files; nothing was changed.",
            remedy="Name it without slashes, and with no dot or hyphen in front.",
        )


def _taken(path: str) -> RefusedError:
    return RefusedError(
        f"{shown(path)} exists already; nothing was changed.",
        remedy="Choose another name or dest_dir, or remove the file if it is of no use any more.",
    )
