# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Can a guest's discard reach the host's storage?  Each link of its way, judged (pure).

"Measured" says: a guest's fstrim, or qemu-io's discard, and allocated blocks on the host before
and after, with QEMU 7.2 of Debian 12.
"""

from __future__ import annotations

import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.model import Image, Link
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import machine, policy
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.xml import (
    Disk,
    DiskSettings,
    Domain,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._findings import Finding
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown

_VIRTIO_SCSI = ("virtio-scsi", "virtio-transitional", "virtio-non-transitional")
#: Measured: virtio, scsi on virtio-scsi, and ide.  sata shares ide's code (hw/ide/core.c).
_BUSES_THAT_DISCARD = ("virtio", "ide", "sata")
#: Measured: QEMU takes the discard, says that all is well, and frees nothing.  LUKS without qcow2
#: around it does the same.
_FORMATS_THAT_KEEP_ALL = ("vmdk", "vdi", "vhdx", "vpc", "qed")

_PROVE_IT = "Find out: trim the guest with thinvirt.kvm.domain_trim and look at freed_bytes."


def links(
    domain: Domain,
    disk: Disk,
    image: Image,
    *,
    configured: DiskSettings | None,
    running: bool = False,
) -> tuple[Link, ...]:
    """The way of a discard, from the guest down to the storage.

    :param domain: as it runs, or as configured if it is off; ``disk`` is one of its disks.
    :param configured: the disk's settings at the next start.
    :param running: it runs, with files open that may have lost their names.
    """
    return (
        _machine(domain, disk),
        _bus(domain, disk),
        _discard(domain, disk, configured),
        _incomplete(image) if image.missing and not running else _format(disk, image),
        _storage(disk, image),
    )


def disk_findings(
    domain: str,
    disk: Disk,
    image: Image,
    *,
    links: t.Iterable[Link],
    live: DiskSettings | None,
    configured: DiskSettings | None,
) -> tuple[Finding, ...]:
    """What stands in the way of a disk's space coming back, and what soon will."""
    judged = [*links, *([_incomplete(image)] if image.missing else [])]
    found = [
        Finding(
            id=link.finding,
            severity="error" if link.state == "broken" else "warning",
            reason=link.reason,
            remedy=link.remedy,
            domain=domain,
            disk=disk.target,
        )
        for link in {link.finding: link for link in judged if link.state != "works"}.values()
    ]
    passes_now = live is not None and live.discard == "unmap" and not policy.passes_qemu_by(disk)
    if passes_now and configured is not None and configured.discard != "unmap":
        found.append(
            Finding(
                id="discard-not-configured",
                severity="warning",
                reason="The running domain passes discards on, and its configuration does not: "
                "that ends with its next start. Reverting to a snapshot does this.",
                remedy="Set discard with thinvirt.kvm.domain_discard; no restart is needed.",
                domain=domain,
                disk=disk.target,
            )
        )
    if image.qcow2 is not None and image.qcow2.snapshot_count:
        found.append(
            Finding(
                id="internal-snapshots",
                severity="info",
                reason=f"The image has {image.qcow2.snapshot_count} internal snapshots: what they "
                "hold stays allocated, whatever the guest discards.",
                remedy="Delete the snapshots that are no longer needed (virsh snapshot-delete), "
                "and run thinvirt.kvm.domain_compact with method=rewrite.",
                domain=domain,
                disk=disk.target,
            )
        )
    if image.backing_error and not image.missing:
        found.append(
            Finding(
                id="backing-file-not-read",
                severity="warning",
                reason=f"{image.backing_error} The sums of its file system lack it.",
                remedy="Name its folder in allowed_dirs of thinvirt.kvm.thin_info "
                "(thin_report_allowed_dirs), if it is where it should be.",
                domain=domain,
                disk=disk.target,
            )
        )
    return tuple(found)


def domain_findings(domain: Domain, *, active: bool) -> tuple[Finding, ...]:
    """Whether the host could ask the guest to trim; a guest may trim by itself all the same."""
    install = (
        "Install and start qemu-guest-agent in the guest, as the roles thinvirt.kvm.linux_guest "
        "and thinvirt.kvm.windows_guest do."
    )
    if not domain.agent_channel:
        return (
            Finding(
                id="agent-missing",
                severity="warning",
                reason="The domain has no guest agent channel, so the host cannot have it trim.",
                remedy="Add a virtio channel named org.qemu.guest_agent.0 (virsh edit "
                f"{shown(domain.name)}). {install}",
                domain=domain.name,
            ),
        )
    if active and not domain.agent_connected:
        return (
            Finding(
                id="agent-disconnected",
                severity="warning",
                reason="No agent has opened the channel in the guest, so the host cannot have it "
                "trim.",
                remedy=install,
                domain=domain.name,
            ),
        )
    return ()


def _machine(domain: Domain, disk: Disk) -> Link:
    name = domain.machine
    if disk.bus == "virtio" and disk.source_type != "vhostuser":  # that has its own device
        discards = machine.virtio_blk_discards(name)
        if discards is False:
            return Link(
                name="machine",
                value=name,
                state="broken",
                finding="machine-too-old",
                reason=f"virtio-blk cannot discard on machine type {name}, which is older than "
                "4.0.",
                remedy="Power the guest off and raise its machine type with "
                "thinvirt.kvm.domain_machine; the disk can stay where it is then. Where the host "
                "has no newer type, move the disk to bus=scsi with thinvirt.kvm.domain_disk_bus.",
            )
        if discards is None:
            return Link(
                name="machine",
                value=name,
                state="unknown",
                finding="machine-of-unknown-age",
                reason=f"virtio-blk discards on machine types from 4.0 on, and {name or 'none'} "
                "does not tell its version.",
                remedy=_PROVE_IT,
            )
    return Link(name="machine", value=name)


def _bus(domain: Domain, disk: Disk) -> Link:
    if disk.bus == "scsi":
        model = domain.scsi_models.get(disk.controller or 0, "")
        if model in _VIRTIO_SCSI and disk.device == "disk":
            return Link(name="bus", value=f"scsi ({model})")
        value = f"scsi ({model or 'controller of no model'})"
    elif disk.bus in _BUSES_THAT_DISCARD and disk.device == "disk":
        return Link(name="bus", value=disk.bus)
    else:
        value = disk.bus
    if disk.device == "lun":
        reason = "The guest speaks to the SCSI device itself, past QEMU's block layer."
    else:
        reason = f"Whether discards pass {value} is not known to this collection."
    return Link(
        name="bus",
        value=value,
        state="unknown",
        finding="bus-not-verified",
        reason=reason,
        remedy=f"{_PROVE_IT} virtio-scsi and virtio-blk are known to pass them.",
    )


def _discard(domain: Domain, disk: Disk, configured: DiskSettings | None) -> Link:
    value = disk.settings.discard
    if policy.passes_qemu_by(disk):
        return Link(name="discard", value="past QEMU")
    ignored = policy.discard_ignored(domain.name, disk)
    if ignored is None:
        return Link(name="discard", value=value)
    if configured is not None and configured.discard == "unmap":
        return Link(
            name="discard",
            value=value,
            state="broken",
            finding="restart-required",
            reason="discard=unmap is configured, and the running QEMU still drops the guest's "
            "discards.",
            remedy="Power the guest off and on (a reboot is not enough), or run "
            "thinvirt.kvm.domain_discard with apply=save_restore or apply=power_cycle.",
        )
    return Link(
        name="discard",
        value=value,
        state="broken",
        finding=ignored.id,
        reason=ignored.reason,
        remedy=ignored.remedy,
    )


def _incomplete(image: Image) -> Link:
    """QEMU would not open it; one that has it open does not notice."""
    return Link(
        name="format",
        value=f"{image.format} (without a file that it needs)",
        state="broken",
        finding="backing-file-not-read",
        reason=f"{shown(image.missing)} does not exist, and the image needs it: the domain cannot "
        "start, or not again.",
        remedy="Put the file back where the image names it (qemu-img info --backing-chain tells), "
        "or restore the disk with thinvirt.kvm.domain_restore.",
    )


def _unreadable(name: str, value: str, image: Image) -> Link:
    return Link(
        name=name,
        value=value,
        state="unknown",
        finding="image-unreadable",
        reason=image.error,
        remedy="Look at the image with thinvirt.kvm.image_info, as root (become).",
    )


def _format(disk: Disk, image: Image) -> Link:
    name, header = image.format, image.qcow2
    encryption = "luks" if name == "luks" else disk.encryption
    if encryption and name != "qcow2":
        return Link(
            name="format",
            value=f"{name} ({encryption})",
            state="broken",
            finding="format-without-discard",
            reason=f"QEMU's driver for {encryption} drops discards, and encrypted qcow2 passes "
            "them on.",
            remedy="With the guest off, convert the image to encrypted qcow2 with qemu-img convert "
            "(-O qcow2 -o encrypt.format=luks).",
        )
    if image.path and image.error:
        return _unreadable("format", name, image)
    if header is not None and header.version == 2 and header.backing_file is not None:
        return Link(
            name="format",
            value="qcow2 (compat 0.10, with a backing file)",
            state="broken",
            finding="overlay-too-old",
            reason="qcow2 of compat 0.10 knows no zero clusters, so an overlay drops discards: "
            "what lies in its backing file would show through.",
            remedy="With the guest off: qemu-img amend -f qcow2 -o compat=1.1 IMAGE.",
        )
    if name in _FORMATS_THAT_KEEP_ALL:
        return Link(
            name="format",
            value=name,
            state="broken",
            finding="format-without-discard",
            reason=f"QEMU frees nothing in images of format {name}.",
            remedy="With the guest off, convert the image to qcow2 or raw with qemu-img convert.",
        )
    if name not in ("raw", "qcow2"):
        return Link(
            name="format",
            value=name,
            state="unknown",
            finding="format-not-verified",
            reason=f"Whether QEMU frees space in images of format {name or 'unknown'} is not "
            "known to this collection.",
            remedy=_PROVE_IT,
        )
    value = name if header is None else f"{name} (compat {header.compat})"
    return Link(name="format", value=value)


def _storage(disk: Disk, image: Image) -> Link:
    if not image.path:
        return Link(
            name="storage",
            value=disk.source_type,
            state="unknown",
            finding="storage-not-local",
            reason=f"A disk of type {disk.source_type} lies in no file or block device of this "
            "host.",
            remedy="Compare what the storage itself reports before and after a trim by "
            "thinvirt.kvm.domain_trim.",
        )
    system = image.file_system
    value = "block device" if image.block_device else "unknown"
    if system is not None:
        value = f"{system.type} at {shown(system.mount_point)}"
    if image.punch.works:
        return Link(name="storage", value=value)
    if image.error:
        return _unreadable("storage", value, image)
    if image.punch.works is None:
        return Link(
            name="storage",
            value=value,
            state="unknown",
            finding="storage-not-verified",
            reason=image.punch.reason,
            remedy=_PROVE_IT,
        )
    return Link(
        name="storage",
        value=value,
        state="broken",
        finding="storage-cannot-punch",
        reason=image.punch.reason,
        remedy="Move the image to storage that frees discarded blocks, such as ext4, xfs, or NFS "
        "4.2, with thinvirt.kvm.domain_compact and dest_dir (power=live for a domain that runs).",
    )
