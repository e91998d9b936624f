# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A new domain around verified copies of another one's disks; the old one is not touched.

The copies are made first, each under its final name only when it is whole; then libvirt gets the
new domain in one call.  What fails takes its copies with it.  A run that was killed leaves whole
copies that the next run takes as they are, and never a domain.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import typing as t
import uuid

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import (
    disk_safety,
    known_disk,
    policy,
    save_folder,
    xml,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import (
    Guest,
    Hypervisor,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    HypervisorError,
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._findings import Finding
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware import compare, rebuild_xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import convert, manifest
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.attributes import (
    copy_attributes,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.disk_links import followed
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.files import open_image
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.replace import Stages
from ansible_collections.thinvirt.kvm.plugins.module_utils._plan import Change
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import signals_wait
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.durable import sync_folder
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown

_MAX_NVRAM_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Request:
    """What the new domain is to be like.

    :param dest_dir: for the copies, and for those of the firmware's variables.
    :param keep_mac: the interfaces keep their addresses.
    :param min_free_bytes: what the copies must leave free.
    :param timeout: seconds for one disk.
    """

    name: str
    dest_dir: str
    keep_mac: bool = False
    min_free_bytes: int = 1 << 30
    allowed_dirs: tuple[str, ...] = ()
    timeout: float = 6 * 3600.0

    def __post_init__(self) -> None:
        """Refuse names that libvirt or a file could not have.

        :raises RefusedError: it is one.
        """
        if not self.name or "/" in self.name or not self.name.isprintable() or self.name[0] == ".":
            raise RefusedError(
                f"{shown(self.name)} is no name for a domain and its files; nothing was changed.",
                remedy="Use letters, digits, dots and dashes.",
            )


@dataclasses.dataclass(frozen=True)
class DiskCopy:
    """One disk that is copied."""

    target: str
    src: str
    dest: str
    format: str


@dataclasses.dataclass
class Rebuild:
    """What is to be done, and what became of it.

    :param done: the new domain is there already.
    :param nvram_made: the copy of the firmware's variables is of this run.
    :param outcomes: of the copies, in the order of :attr:`copies`.
    """

    old: Guest
    now: str
    request: Request
    machine: str
    copies: tuple[DiskCopy, ...]
    nvram: tuple[str, str]
    findings: tuple[Finding, ...]
    done: bool = False
    nvram_made: bool = False
    uuid: str = ""
    outcomes: list[convert.Outcome] = dataclasses.field(default_factory=list)

    @property
    def changed(self) -> bool:
        return not self.done

    def changes(self) -> tuple[Change, ...]:
        if self.done:
            return ()
        name = self.request.name
        return (
            Change(name, "domain", None, f"{self.machine}, made of {self.old.name}"),
            *(Change(f"{name}/{copy.target}", "file", None, copy.dest) for copy in self.copies),
        )

    def result(self) -> dict[str, t.Any]:
        """What the module returns as ``rebuilt``."""
        return {
            "name": self.request.name,
            "uuid": self.uuid,
            "machine": self.machine,
            "nvram": self.nvram[1],
            "disks": [
                {"target": copy.target, "src": copy.src, "dest": copy.dest, "format": copy.format}
                for copy in self.copies
            ],
        }


def plan(
    hypervisor: Hypervisor, old: Guest, now: str, request: Request, *, machine: str
) -> Rebuild:
    """Decide what is copied where; nothing is changed.

    :raises RefusedError: it can't be done safely.
    """
    domain = xml.parse_domain(now)
    folder = convert.checked_folder(request.dest_dir)
    existing = _existing(hypervisor, request.name)
    nvram = rebuild_xml.nvram_path(now)
    copies = _copies(hypervisor, domain, request.name, folder, check=existing is None)
    if existing is None:
        disk_safety.refuse_disks(now, [copy.target for copy in copies], known_disk.REBUILD)
        disk_safety.refuse_firmware(now, known_disk.REBUILD)
    findings = rebuild_xml.shared(now, request.name)
    if rebuild_xml.firmware_has_variables(now):
        nvram = save_folder.nvram_file(hypervisor.local_uri(), old.name, nvram)
        if not os.path.exists(nvram):
            findings = (*findings, rebuild_xml.without_variables(request.name))
    work = Rebuild(
        old=old,
        now=now,
        request=request,
        machine=machine,
        copies=copies,
        nvram=(nvram, _nvram_name(folder, request.name)) if os.path.exists(nvram) else ("", ""),
        findings=findings,
    )
    if existing is not None:
        if rebuild_xml.rebuilt_of(existing.configured_xml(with_secrets=False)) != old.uuid:
            raise RefusedError(
                f"Refused: there is a domain {request.name} already, and it was not made of "
                f"{old.name}; nothing was changed.",
                remedy="Give the new one another name.",
            )
        work.done, work.uuid = True, existing.uuid
        return work
    if old.is_active() or old.has_managed_save():
        state = "is not shut off" if old.is_active() else "has its memory saved (managed save)"
        raise RefusedError(
            f"Refused: domain {old.name} {state}, so its disks are not at rest; nothing was "
            "changed.",
            remedy=f"Shut {old.name} down.",
        )
    if work.nvram[1]:
        _refuse_existing(work.nvram[1])
    for copy in work.copies:
        _convert(work, copy, check_mode=True)
    return work


def _existing(hypervisor: Hypervisor, name: str) -> Guest | None:
    return next((guest for guest in hypervisor.all_guests() if guest.name == name), None)


def _nvram_name(folder: str, name: str) -> str:
    return os.path.join(folder, f"{name}_VARS.fd")


def _copies(
    hypervisor: Hypervisor, domain: xml.Domain, name: str, folder: str, *, check: bool
) -> tuple[DiskCopy, ...]:
    copies = []
    for disk in filter(policy.is_written, domain.disks):
        path = hypervisor.disk_path(disk)
        form = disk.format or "raw"
        reason = (
            (disk.device == "lun" and "is a device that the guest speaks SCSI to")
            or (disk.shareable and "is shared with other domains")
            or (not path and f"of type {disk.source_type} lies in no file of this host")
            or (form not in ("raw", "qcow2") and f"is of format {form}")
        )
        if reason and check:
            raise RefusedError(
                f"Refused: disk {disk.target} of domain {domain.name} {reason}, and cannot be "
                "copied; nothing was changed.",
                remedy="Rebuild the domain by hand, or take the disk out first.",
            )
        dest = os.path.join(folder, f"{name}-{disk.target}.{form}")
        src = path if reason else followed(path, image_format=form)
        copies.append(DiskCopy(disk.target, src, dest, form))
    return tuple(copies)


def _convert(work: Rebuild, copy: DiskCopy, *, check_mode: bool) -> convert.Outcome:
    request = convert.Request(
        src_format=copy.format,
        format=copy.format,
        compression="none",
        min_free_bytes=work.request.min_free_bytes,
        allowed_dirs=work.request.allowed_dirs,
        timeout=work.request.timeout,
    )
    return convert.convert(copy.src, copy.dest, request, check_mode=check_mode, stages=Stages())


def carry_out(hypervisor: Hypervisor, work: Rebuild) -> None:
    """Copy, then define.

    :raises ThinvirtError: neither copies nor a domain are left.
    """
    if not work.done:
        try:
            for copy in work.copies:
                work.outcomes.append(_convert(work, copy, check_mode=False))
            _copy_nvram(work)
            _define(hypervisor, work)
        except BaseException:
            _clean(work)
            raise
    # From now on guests write to them: they are copies no more.
    for copy in work.copies:
        if manifest.read_manifest(copy.dest) is not None or work.outcomes:
            with contextlib.suppress(OSError):
                os.unlink(copy.dest + manifest.SUFFIX)


def _define(hypervisor: Hypervisor, work: Rebuild) -> None:
    count = rebuild_xml.interface_count(work.now)
    identity = rebuild_xml.Identity(
        name=work.request.name,
        uuid=str(uuid.uuid4()),
        genid=str(uuid.uuid4()),
        macs=() if work.request.keep_mac else tuple(_mac() for _number in range(count)),
        paths={copy.target: copy.dest for copy in work.copies},
        nvram=work.nvram[1],
    )
    text = rebuild_xml.rebuilt(work.now, identity, machine=work.machine)
    if work.old.configured_xml(with_secrets=True) != work.now:
        raise RefusedError(
            f"The configuration of domain {work.old.name} was changed by somebody else while its "
            "disks were copied; the copies were removed.",
            remedy="Run the task again.",
        )
    with signals_wait():
        new = hypervisor.define(text)
        if not compare.is_kept(text, new.configured_xml(with_secrets=True)):
            new.undefine()
            raise HypervisorError(
                f"libvirt did not keep the new domain {work.request.name} as it was given; it was "
                "removed again.",
                remedy="Look for hooks or for settings that this libvirt does not know.",
            )
        work.uuid = new.uuid


def _mac() -> str:
    """One of those that QEMU and libvirt give to guests."""
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3))


def _copy_nvram(work: Rebuild) -> None:
    src, dest = work.nvram
    if not src:
        return
    with open_image(src) as image:
        data = os.pread(image.fd, _MAX_NVRAM_BYTES + 1, 0)
        if len(data) > _MAX_NVRAM_BYTES:
            raise RefusedError(
                f"{shown(src)} is too large for variables of a firmware; the copies of the disks "
                "were removed.",
                remedy="Look at <nvram> in the domain's configuration: it names another file.",
            )
        try:
            _refuse_existing(dest)  # somebody may have made it since
            _write_like(image.fd, data, dest)
        except OSError as error:
            raise failure(dest, "written", error) from error
    work.nvram_made = True


def _refuse_existing(path: str) -> None:
    if os.path.lexists(path):
        raise RefusedError(
            f"{shown(path)} exists already; nothing was changed.",
            remedy="Remove it if a run that was killed has left it, or use another name.",
        )


def _write_like(fd: int, data: bytes, dest: str) -> None:
    """A new file with the owner, mode and label of an open one, whole or not at all."""
    temp = f"{dest}.thinvirt-tmp"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temp)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(temp, flags, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        copy_attributes(fd, file.fileno())
        os.fsync(file.fileno())
    os.rename(temp, dest)
    sync_folder(os.path.dirname(dest))


def _clean(work: Rebuild) -> None:
    """Remove what this run has copied: no domain has it."""
    for outcome in work.outcomes:
        if outcome.changed and manifest.read_manifest(outcome.dest) is not None:
            with contextlib.suppress(ThinvirtError):
                manifest.remove_with_manifest(outcome.dest)
    if work.nvram_made:
        with contextlib.suppress(OSError):
            os.unlink(work.nvram[1])
