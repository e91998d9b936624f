# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an audit knows, built by hand: good in every respect but for what a test says."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._audit import checks
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.model import (
    BackingFile,
    DiskAudit,
    DomainAudit,
    Image,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.xml import (
    Disk,
    DiskSettings,
    Domain,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qcow2 import Qcow2Header
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.filesystem import FileSystem
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.punch import PunchProbe

GIB = 1 << 30
UNMAP = DiskSettings(discard="unmap")
IGNORE = DiskSettings()
PUNCHES = PunchProbe(True, "A hole punched in /srv freed its blocks.")


def file_system(mount_point: str = "/srv", **values: t.Any) -> FileSystem:
    """One with 100 GiB, of which 50 are free; its device is made from its name."""
    good = FileSystem(
        mount_point=mount_point,
        source="/dev/sdx1",
        type="ext4",
        device=f"8:{sum(map(ord, mount_point))}",
        read_only=False,
        total_bytes=100 * GIB,
        free_bytes=50 * GIB,
    )
    return dataclasses.replace(good, **values)


def qcow2(**values: t.Any) -> Qcow2Header:
    """The header of a plain new image of 10 GiB."""
    good = Qcow2Header(
        version=3,
        virtual_size_bytes=10 * GIB,
        cluster_size_bytes=65536,
        features=frozenset(),
        refcount_bits=16,
        encryption="none",
        compression_type="zlib",
        snapshot_count=0,
        snapshots_offset=0,
        backing_file=None,
        backing_format=None,
        data_file=None,
        bitmap_count=0,
    )
    return dataclasses.replace(good, **values)


def image(number: int = 1, **values: t.Any) -> Image:
    """A qcow2 image of 10 GiB that occupies 2; the same number is the same file."""
    good = Image(
        path=f"/srv/{number}.qcow2",
        format="qcow2",
        promised_bytes=10 * GIB,
        allocated_bytes=2 * GIB,
        length_bytes=3 * GIB,
        key=(2049, number),
        qcow2=qcow2(),
        file_system=file_system(),
        punch=PUNCHES,
    )
    return dataclasses.replace(good, **values)


def backing(number: int, **values: t.Any) -> BackingFile:
    """A backing file that occupies 1 GiB."""
    good = BackingFile(
        path=f"/srv/{number}.qcow2",
        key=(2049, number),
        allocated_bytes=GIB,
        file_system=file_system(),
    )
    return dataclasses.replace(good, **values)


def disk(target: str = "vda", bus: str = "virtio", **values: t.Any) -> Disk:
    """A disk in a qcow2 file that passes discards on."""
    good = Disk(
        target=target,
        bus=bus,
        device="disk",
        source_type="file",
        path="/srv/1.qcow2",
        pool="",
        volume="",
        format="qcow2",
        readonly=False,
        shareable=False,
        controller=0 if bus == "scsi" else None,
        settings=UNMAP,
    )
    return dataclasses.replace(good, **values)


def domain(*disks: Disk, **values: t.Any) -> Domain:
    """A domain whose agent is connected, with a virtio-scsi controller."""
    good = Domain(
        name="web1",
        uuid="f4e2b079-09dd-4204-b81e-9bec7bc31162",
        kind="kvm",
        arch="x86_64",
        machine="pc-q35-7.2",
        disks=disks,
        scsi_models={0: "virtio-scsi"},
        agent_channel=True,
        agent_connected=True,
    )
    return dataclasses.replace(good, **values)


def audit_disk(
    of: Domain,
    which: Disk,
    its_image: Image | None = None,
    *,
    live: DiskSettings | None = None,
    configured: DiskSettings | None = UNMAP,
) -> DiskAudit:
    """Links and findings of a disk, as the collector puts them together."""
    its_image = image() if its_image is None else its_image
    running = live is not None
    links = checks.links(of, which, its_image, configured=configured, running=running)
    findings = checks.disk_findings(
        of.name, which, its_image, links=links, live=live, configured=configured
    )
    return DiskAudit(which, live, configured, its_image, links, findings)


def audit_domain(name: str, *images: Image, **values: t.Any) -> DomainAudit:
    """A domain that is off, with a good disk on each image."""
    its_disks = [disk(f"vd{letter}") for letter, _image in zip("abcdefgh", images, strict=False)]
    of = domain(*its_disks, name=name)
    return DomainAudit(
        name=name,
        uuid=of.uuid,
        active=False,
        machine=of.machine,
        agent_channel=True,
        disks=tuple(
            audit_disk(of, which, its_image)
            for which, its_image in zip(its_disks, images, strict=True)
        ),
        **values,
    )
