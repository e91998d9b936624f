# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Back up one domain, running or shut off: all its disks as they were at one instant."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._backup import job as backup_job
from ansible_collections.thinvirt.kvm.plugins.module_utils._backup import policy as backup_policy
from ansible_collections.thinvirt.kvm.plugins.module_utils._backup.copy import (
    Room,
    copy_export,
    copy_image,
    copy_small,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._backup.freeze import Freeze
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import Guest
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.policy import Versions
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import archive, archive_manifest
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.convert import (
    Request,
    sources_of,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.files import open_image
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import Identity
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.locks import (
    refuse_other_writers,
    writers_kept_out,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.progress import progress_logger
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_img import QemuImg
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.replace import Stages
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.extents import file_usage
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.trust import (
    refuse_exchangeable,
)

_NVRAM = "nvram.fd"


@dataclasses.dataclass
class DiskOutcome:
    """One disk, and its copy.

    :param allocated_bytes: what it takes on the host: the size that is to be expected at most.
    :param plain_text: the disk is encrypted, and its copy is not.
    """

    target: str
    path: str
    virtual_size_bytes: int = 0
    allocated_bytes: int = 0
    file: str = ""
    sha256: str = ""
    copy_bytes: int = 0
    compared: bool = False
    plain_text: bool = False


@dataclasses.dataclass
class Outcome:
    """One domain.

    :param status: ``done``, ``unchanged``, ``skipped`` or ``failed``.
    :param version: the folder of the newest version; empty if there is none (check mode).
    :param left_out: disks that the guest writes and that were not meant: target and why.
    """

    guest: Guest
    status: str = "done"
    reason: str = ""
    running: bool = False
    changed: bool = False
    version: str = ""
    consistency: str = ""
    freeze: Freeze = dataclasses.field(default_factory=Freeze)
    disks: list[DiskOutcome] = dataclasses.field(default_factory=list)
    left_out: list[dict[str, str]] = dataclasses.field(default_factory=list)
    removed: list[str] = dataclasses.field(default_factory=list)
    recovered: str = ""
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    moved_bytes: dict[str, int] = dataclasses.field(default_factory=dict)
    error: ThinvirtError | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the domains of a host are backed up.

    :param folder: where the versions go; below it a folder for each domain.
    :param disks: targets or globs; empty for all that a guest writes.
    :param online: back up running domains too.
    :param quiesce: ``auto``, ``required`` or ``off``; see ``freeze``.
    :param keep: so many copies of each disk stay; 0 for all.
    :param scratch_dir: where the scratch files go; empty for the folder of the first image.
    :param with_secrets: put passwords into the manifest.
    :param accept_plain_text: copies of encrypted disks may be plain text.
    :param bandwidth_bytes: read no more than so many a second of a running domain's disk; 0: all.
    :param parallel: so many domains are backed up at once.
    :param request: what the copies are to be like, and their bounds.
    :param versions: of libvirt and QEMU.
    """

    versions: Versions
    folder: str
    disks: t.Sequence[str]
    online: bool
    quiesce: str
    keep: int
    scratch_dir: str
    with_secrets: bool
    accept_plain_text: bool
    bandwidth_bytes: int
    parallel: int
    request: Request
    check_mode: bool
    log: t.Callable[[str], None]


class Work:
    """One domain, while it is backed up."""

    def __init__(
        self,
        settings: Settings,
        outcome: Outcome,
        domain: xml.Domain,
        chosen: t.Sequence[xml.Disk],
        folder: str,
    ) -> None:
        self.settings = settings
        self.outcome = outcome
        self.guest = outcome.guest
        self.domain = domain
        self.chosen = chosen
        self.folder = folder
        self.stages = Stages(
            seconds=outcome.seconds,
            moved_bytes=outcome.moved_bytes,
            report=progress_logger(domain.name, settings.log),
        )
        self.tool = QemuImg(timeout=settings.request.timeout)
        self.copy = settings.request.copy(self.tool)
        self.versions = archive.versions_of(folder, uuid=domain.uuid)

    def scratch_parent(self) -> str:
        """Where the scratch files' folder goes: where QEMU has files already, unless told."""
        parent = self.settings.scratch_dir
        files = [d for d in self.outcome.disks if d.path and os.path.isfile(d.path)]
        if not parent and not files:
            raise RefusedError(
                f"Domain {self.guest.name} has no disk in a file, so it is not known where its "
                "scratch files may lie; nothing was changed.",
                remedy="Name a folder that QEMU can get to with scratch_dir.",
            )
        return os.path.realpath(parent or os.path.dirname(files[0].path))

    def recover(self) -> str:
        """End what a killed run has left of this domain; see :func:`backup_job.recover`."""
        try:
            parent = self.scratch_parent()
        except RefusedError:
            return ""
        return backup_job.recover(self.guest, parent, check_mode=self.settings.check_mode)

    def predict(self) -> None:
        """Tell what a run would do, and what is in its way."""
        self.outcome.recovered = self.outcome.recovered or self.recover()
        self._measure()
        if self.outcome.running:
            self.guest.refuse_no_backup(self.domain)
            if not self.outcome.recovered:
                backup_job.refuse_busy(self.guest, self.chosen)
            parent = self.scratch_parent()
            refuse_exchangeable(parent)
            self._room(parent).check()
        else:
            if self._is_unchanged():
                self._remove_surplus(fresh=0)
                return
            with contextlib.ExitStack() as stack:
                self._keep_writers_out(stack)
            self._room().check()
        self.outcome.changed = True
        self._remove_surplus(fresh=1)

    def run(self) -> None:
        self._measure()
        if not self.outcome.running and self._is_unchanged():
            self._remove_surplus(fresh=0)
            return
        with archive.new_version(self.folder) as partial:
            manifest = self._online(partial) if self.outcome.running else self._offline(partial)
            with self.stages.stage("finish"):
                version = partial.finish(manifest)
        self.outcome.changed = True
        self.outcome.version = version.path
        self.outcome.consistency = manifest.consistency
        self._remove_surplus(fresh=1)

    def _online(self, partial: archive.Partial) -> archive_manifest.Manifest:
        guest, parent = self.guest, self.scratch_parent()
        guest.refuse_no_backup(self.domain)
        room = self._room(parent)
        room.check()
        copy = dataclasses.replace(self.copy, bandwidth_bytes=self.settings.bandwidth_bytes)
        with backup_job.snapshot(
            guest, self.domain, self.chosen, parent=parent, quiesce=self.settings.quiesce
        ) as snapshot:
            self.outcome.freeze = snapshot.freeze
            configuration = backup_job.despite_restarts(guest, self._configuration)
            for disk in self.outcome.disks:
                disk.file = f"{disk.target}.qcow2"
                copy_export(
                    snapshot.specs[disk.target],
                    os.path.join(partial.path, disk.file),
                    copy=copy,
                    tool=self.tool,
                    room=room,
                    stages=self.stages,
                )
            nvram = self._nvram(partial)
        for disk in self.outcome.disks:
            disk.compared = True
        consistency = "frozen" if snapshot.freeze.state == "frozen" else "crash"
        return self._manifest(partial, configuration, nvram, consistency=consistency, sources={})

    def _offline(self, partial: archive.Partial) -> archive_manifest.Manifest:
        self._room().check()
        with contextlib.ExitStack() as stack:
            self._keep_writers_out(stack)
            if self.guest.is_active():
                raise RefusedError(
                    f"Domain {self.guest.name} was started meanwhile; nothing was changed.",
                    remedy="Run it again.",
                )
            sources = self._sources()
            configuration = self._configuration()
            for disk, image_format in self._formats():
                disk.file = f"{disk.target}.qcow2"
                copy_image(
                    disk.path,
                    os.path.join(partial.path, disk.file),
                    dataclasses.replace(self.settings.request, src_format=image_format),
                    stages=self.stages,
                )
                disk.compared = True
            nvram = self._nvram(partial)
        consistency = "crash" if self.guest.has_managed_save() else "off"
        return self._manifest(
            partial, configuration, nvram, consistency=consistency, sources=sources
        )

    def _formats(self) -> list[tuple[DiskOutcome, str]]:
        """What stands in the domain counts, not what a guest wrote into its disk."""
        formats = [disk.format or "raw" for disk in self.chosen]
        return list(zip(self.outcome.disks, formats))

    def _sources(self) -> dict[str, tuple[Identity, ...]]:
        """The images of each disk; nothing of one that does not tell whether it was written to."""
        return {
            disk.target: sources_of(
                disk.path, dataclasses.replace(self.settings.request, src_format=image_format)
            )
            or ()
            for disk, image_format in self._formats()
        }

    def _keep_writers_out(self, stack: contextlib.ExitStack) -> None:
        """All of them at once: a domain that starts between two disks would tear them apart."""
        for disk in self.outcome.disks:
            image = stack.enter_context(open_image(disk.path))
            stack.enter_context(writers_kept_out(image.fd, disk.path))
            refuse_other_writers(image.fd, disk.path)

    def _is_unchanged(self) -> bool:
        """Whether a new version of a domain that is shut off would be the same as the last one."""
        if not self.versions:
            return False
        latest = self.versions[-1]
        if not backup_policy.is_same(
            latest.manifest,
            configuration=self._configuration(),
            options=self._options(),
            sources=self._sources(),
            nvram_changed=self._nvram_changed(latest),
        ):
            return False
        self.outcome.status, self.outcome.version = "unchanged", latest.path
        self.outcome.consistency = latest.manifest.consistency
        self.outcome.reason = "Nothing has changed since the last version."
        return True

    def _options(self) -> dict[str, t.Any]:
        return {"format": self.copy.format, **self.copy.options}

    def _configuration(self) -> str:
        wanted = self.settings.with_secrets
        if self.guest.is_persistent():
            configured = self.guest.configured_xml(with_secrets=wanted)
        else:
            configured = self.guest.live_xml(with_secrets=wanted)
        return backup_policy.with_plugged_disks(configured, self.guest.live_xml())

    def _room(self, *more: str) -> Room:
        return Room((self.settings.folder, *more), self.settings.request.min_free_bytes)

    def _measure(self) -> None:
        for disk in self.outcome.disks:
            size = self.guest.size_of(disk.target)
            disk.virtual_size_bytes = size.capacity_bytes
            disk.allocated_bytes = size.allocation_bytes
            if disk.path and os.path.isfile(disk.path):
                disk.allocated_bytes = file_usage(disk.path).allocated_bytes or 0

    def _nvram(self, partial: archive.Partial) -> str:
        """Copy the variables of the firmware, if there are any; the name of the copy."""
        if not self._has_nvram():
            return ""
        copy_small(self.domain.nvram, os.path.join(partial.path, _NVRAM))
        return _NVRAM

    def _has_nvram(self) -> bool:
        return bool(self.domain.nvram) and os.path.isfile(self.domain.nvram)

    def _nvram_changed(self, version: archive_manifest.Version) -> bool:
        name = version.manifest.nvram
        if not self._has_nvram() or not name:
            return bool(name) is not self._has_nvram()
        now = archive.stored_file(self.domain.nvram, report=lambda _percent: None)
        return now.sha256 != version.manifest.file(name).sha256

    def _manifest(
        self,
        partial: archive.Partial,
        configuration: str,
        nvram: str,
        *,
        consistency: str,
        sources: t.Mapping[str, t.Sequence[Identity]],
    ) -> archive_manifest.Manifest:
        files = []
        with self.stages.stage("checksum") as report:
            for disk in self.outcome.disks:
                path = os.path.join(partial.path, disk.file)
                stored = archive.stored_file(path, report=report)
                disk.sha256, disk.copy_bytes = stored.sha256, stored.size_bytes
                files.append(stored)
            if nvram:
                path = os.path.join(partial.path, nvram)
                files.append(archive.stored_file(path, report=report))
        versions = self.settings.versions
        return archive_manifest.Manifest(
            created=partial.created,
            domain=self.domain.name,
            uuid=self.domain.uuid,
            consistency=consistency,
            freeze=dataclasses.asdict(self.outcome.freeze),
            xml=configuration,
            with_secrets=self.settings.with_secrets,
            verified=archive_manifest.verified(of_running=self.outcome.running),
            versions={
                "libvirt": ".".join(map(str, versions.libvirt)),
                "qemu": ".".join(map(str, versions.hypervisor)),
            },
            disks=self._stored_disks(sources),
            files=files,
            nvram=nvram,
        )

    def _stored_disks(
        self, sources: t.Mapping[str, t.Sequence[Identity]]
    ) -> list[archive_manifest.StoredDisk]:
        return [
            archive_manifest.StoredDisk(
                target=disk.target,
                file=disk.file,
                format="qcow2",
                virtual_size_bytes=disk.virtual_size_bytes,
                source=disk.path,
                options=self._options(),
                sources=tuple(sources.get(disk.target, ())),
            )
            for disk in self.outcome.disks
        ]

    def _remove_surplus(self, *, fresh: int) -> None:
        doomed = archive_manifest.doomed(
            self.versions, keep=self.settings.keep, fresh=fresh, disks=self._stored_disks({})
        )
        for version in doomed:
            archive.remove_version(version, check_mode=self.settings.check_mode)
            self.outcome.removed.append(version.path)
            self.outcome.changed = True
