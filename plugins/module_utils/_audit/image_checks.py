# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an image's own shape says, and what could come back of it (pure)."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.model import DiskAudit, Image
from ansible_collections.thinvirt.kvm.plugins.module_utils._findings import Finding

_MIB = 1 << 20
_GIB = 1 << 30
#: A file in more pieces than this, and pieces smaller than that, is read slowly.
_MANY_EXTENTS = 1_000
_SMALL_EXTENT_BYTES = 256 << 10
#: Of an image that takes more than its disk: so much is left for bitmaps and the like.
_METADATA_BYTES = 64 * _MIB
#: Bytes of tables for a cluster: entries of 16 bytes (extended_l2), counts of at most 8.
_TABLE_BYTES = 24
#: What is less than both is not worth a finding.
_WORTH_BYTES = _GIB
_WORTH_PERCENT = 10

Estimate = t.Literal["guest", "measure", "zeros", ""]


def reclaimable(disk: DiskAudit) -> tuple[int | None, Estimate]:
    """What could come back of a disk at least, in bytes, and how that was found out.

    The guest knows best.  A walk through the tables finds clusters that nothing refers to, and the
    file system blocks that were never written; neither knows which blocks are free in the guest.
    """
    image = disk.image
    if disk.guest_excess_bytes is not None:
        return disk.guest_excess_bytes, "guest"
    found = image.measured.reclaimable_bytes if image.measured is not None else None
    if found is not None and image.qcow2 is not None:
        return found, "measure"
    # Of a raw image both tell the same, but for blocks that somebody has just read.
    zeros = max(found or 0, image.unwritten_bytes or 0)
    return (zeros, "zeros") if zeros else (None, "")


def findings(domain: str, target: str, image: Image) -> tuple[Finding, ...]:
    """What the image's shape says, whatever the guest does."""
    return tuple(
        dataclasses.replace(finding, domain=domain, disk=target) for finding in _findings(image)
    )


def to_reclaim(disk: DiskAudit, *, domain: str, active: bool) -> tuple[Finding, ...]:
    """A finding if it is worth while to get back what a disk holds for nothing."""
    size, how = reclaimable(disk)
    allocated = disk.image.occupied_bytes or 0
    if size is None or size < max(_WORTH_BYTES, allocated * _WORTH_PERCENT // 100):
        return ()
    return (
        Finding(
            id="space-to-reclaim",
            severity="info",
            reason=f"At least {size / _GIB:.1f} of the {allocated / _GIB:.1f} GiB that it takes on "
            f"the host could come back{_BECAUSE[how]}.",
            remedy=_how_to_reclaim(disk, how, active=active),
            domain=domain,
            disk=disk.disk.target,
        ),
    )


_BECAUSE = {
    "guest": ": the guest's file systems use less",
    "measure": ": nothing in the image refers to it",
    "zeros": ": it was allocated and never written",
}


def _how_to_reclaim(disk: DiskAudit, how: Estimate, *, active: bool) -> str:
    if how != "guest":
        when = "power=live or power=cycle" if active else "it can stay off"
        return f"Run thinvirt.kvm.domain_compact ({when}), unless it was preallocated on purpose."
    if disk.verdict == "broken":
        return "Mend the broken link that this report names, then run thinvirt.kvm.domain_trim."
    return (
        "Run thinvirt.kvm.domain_trim; have the guest trim every week with the role linux_guest or "
        "windows_guest."
    )


def _findings(image: Image) -> t.Iterator[Finding]:
    if image.qcow2 is not None and image.qcow2.bitmap_count:
        yield Finding(
            id="backup-bitmaps",
            severity="info",
            reason=f"The image has {image.qcow2.bitmap_count} bitmaps of incremental backups: what "
            "a trim frees counts as changed, so the next backup is larger, and a rewrite of the "
            "image would lose them.",
            remedy="Trim just before a full backup. Bitmaps of no use any more go with qemu-img "
            "bitmap --remove while the guest is off.",
        )
    if image.qcow2 is not None and not image.qcow2.snapshot_count and _is_oversized(image):
        yield Finding(
            id="image-oversized",
            severity="info",
            reason=f"The image takes {(image.occupied_bytes or 0) / _GIB:.1f} GiB for a disk of "
            f"{(image.promised_bytes or 0) / _GIB:.1f} GiB: clusters that nothing refers to stay "
            "in it, as after deleted snapshots.",
            remedy="Rewrite it with thinvirt.kvm.domain_compact and method=rewrite. Where guests "
            "discard small pieces, discard_no_unref in thinvirt.kvm.domain_discard keeps it from "
            "growing again.",
        )
    extents, allocated = image.file_extents or 0, image.allocated_bytes or 0
    if extents > _MANY_EXTENTS and allocated // extents < _SMALL_EXTENT_BYTES:
        yield Finding(
            id="image-fragmented",
            severity="info",
            reason=f"The file lies in {extents} pieces of {allocated // extents >> 10} KiB on "
            "average: reading it in order is slow on spinning disks, and its file system keeps a "
            "long list.",
            remedy="Rewrite it with thinvirt.kvm.domain_compact, method=rewrite and force=true. On "
            "solid state storage it can stay as it is.",
        )
    if image.measure_error:
        yield Finding(
            id="image-not-measured",
            severity="info",
            reason=f"Its tables were not walked through: {image.measure_error}",
            remedy="Look at the image with thinvirt.kvm.image_info.",
        )


def _is_oversized(image: Image) -> bool:
    if image.qcow2 is None or image.allocated_bytes is None or image.promised_bytes is None:
        return False
    tables = image.promised_bytes // image.qcow2.cluster_size_bytes * _TABLE_BYTES
    return image.allocated_bytes > image.promised_bytes + tables + _METADATA_BYTES
