# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an audit knows of a disk, from the guest down to the host's storage (pure)."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.xml import (
    Disk,
    DiskSettings,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.module_utils._findings import Finding
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qcow2 import Qcow2Header
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.filesystem import FileSystem
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.punch import PunchProbe

#: Of a link of the chain, and of the disk as a whole.
State = t.Literal["works", "broken", "unknown"]


#: ``(st_dev, st_ino)``: the same file, whatever its name.
FileKey = tuple[int, int]

NOT_LOOKED_AT = PunchProbe(None, "The storage was not looked at.")


@dataclasses.dataclass(frozen=True)
class BackingFile:
    """A file below an image: one of its chain, or its data file.

    :param file_system: None for a block device.
    """

    path: str
    key: FileKey
    allocated_bytes: int
    file_system: FileSystem | None


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a walk through an image's tables has shown.

    :param reclaimable_bytes: what a rewrite would save at least; None if that can't be told.
    :param fragmented_clusters: clusters that do not follow the one before; None for a raw image.
    """

    reclaimable_bytes: int | None
    fragmented_clusters: int | None


@dataclasses.dataclass(frozen=True)
class Image:
    """What holds a disk's data on this host.

    :param path: as the domain names it, or where the storage volume lies; empty for a disk
        whose data is not on this host.
    :param format: as the domain configures it, never probed.
    :param promised_bytes: the disk that the guest sees; None if it can't be read.
    :param allocated_bytes: blocks on the host; None for a block device.
    :param length_bytes: the file's length, or the device's capacity.
    :param qcow2: its header; None for other formats.
    :param backing: the backing files, as far as they could be followed.
    :param data_file: the external data file, which holds the guest's data in the image's place.
    :param file_system: None for a block device.
    :param punch: whether the storage under it takes space back.
    :param real_path: the file that was opened, symlinks resolved; empty if none was.
    :param file_extents: pieces that the file lies in; None where that can't be told.
    :param unwritten_bytes: allocated and never written, as after a preallocation; None if that
        was not looked at, as for an image in use.
    :param measured: what a walk through its tables has shown; None if there was none.
    :param measure_error: why there was none though it was asked for; empty otherwise.
    :param error: why the image could not be read; empty otherwise.
    :param backing_error: why its backing or data files could not be followed; empty otherwise.
    :param missing: a backing or data file that is not there; empty if none was missed.
    """

    path: str
    format: str
    block_device: bool = False
    promised_bytes: int | None = None
    allocated_bytes: int | None = None
    length_bytes: int | None = None
    key: FileKey | None = None
    qcow2: Qcow2Header | None = None
    backing: tuple[BackingFile, ...] = ()
    data_file: BackingFile | None = None
    file_system: FileSystem | None = None
    punch: PunchProbe = NOT_LOOKED_AT
    real_path: str = ""
    file_extents: int | None = None
    unwritten_bytes: int | None = None
    measured: Measured | None = None
    measure_error: str = ""
    error: str = ""
    backing_error: str = ""
    missing: str = ""

    @property
    def occupied_bytes(self) -> int | None:
        """Blocks on the host, those of an external data file included."""
        if self.data_file is None or self.allocated_bytes is None:
            return self.allocated_bytes
        return self.allocated_bytes + self.data_file.allocated_bytes


@dataclasses.dataclass(frozen=True)
class Link:
    """One link of the way that a discard takes, judged.

    :param name: ``machine``, ``bus``, ``discard``, ``format`` or ``storage``.
    :param value: what is there, such as ``pc-q35-7.2`` or ``unmap``.
    :param finding: stable id of the finding if it does not work, empty if it does.
    :param reason: why it does not work, one sentence.
    :param remedy: what to do.
    """

    name: str
    value: str
    state: State = "works"
    finding: str = ""
    reason: str = ""
    remedy: str = ""


@dataclasses.dataclass(frozen=True)
class DiskAudit:
    """One disk.

    :param disk: as it is judged: of the running domain, or as configured if that is off.
    :param live: settings of the running QEMU; None if the domain is off.
    :param configured: settings of the next start; None for a disk that is gone by then.
    :param links: from guest to storage.
    :param findings: what stands in the way, and what soon will.
    :param guest_used_bytes: what the guest's file systems on it use, as the guest says.
    :param guest_excess_bytes: what the host holds more than that can explain.
    """

    disk: Disk
    live: DiskSettings | None
    configured: DiskSettings | None
    image: Image
    links: tuple[Link, ...]
    findings: tuple[Finding, ...]
    guest_used_bytes: int | None = None
    guest_excess_bytes: int | None = None

    @property
    def verdict(self) -> State:
        """One broken link breaks the chain, whatever is unknown besides."""
        states: set[State] = {link.state for link in self.links}
        if "broken" in states:
            return "broken"
        return "unknown" if "unknown" in states else "works"

    @property
    def culprit(self) -> Link | None:
        """The first link that is as bad as the verdict, counted from the guest."""
        if self.verdict == "works":
            return None
        return next(link for link in self.links if link.state == self.verdict)


@dataclasses.dataclass(frozen=True)
class GuestFileSystem:
    """A mounted file system, by the guest's word.

    :param device: in the guest, such as ``sda1``.
    :param targets: the domain's disks that it lies on; empty if the guest does not tell.
    """

    mount_point: str
    type: str
    device: str
    total_bytes: int
    used_bytes: int
    targets: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class DomainAudit:
    """One domain.

    :param agent_connected: an agent has opened the channel; None if the domain is off.
    :param guest_file_systems: what the guest says of its file systems; None if it says nothing.
    :param error: why it could not be audited; then the rest is empty.
    """

    name: str
    uuid: str
    active: bool
    machine: str = ""
    agent_channel: bool = False
    agent_connected: bool | None = None
    disks: tuple[DiskAudit, ...] = ()
    findings: tuple[Finding, ...] = ()
    guest_file_systems: tuple[GuestFileSystem, ...] | None = None
    error: ThinvirtError | None = None
