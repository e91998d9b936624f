# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What somebody should know who moves a disk to another bus (pure)."""

from __future__ import annotations

import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import guest_os, machine
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.xml import (
    parse_tree,
    target_of,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._findings import Finding
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware import disk_bus_rules
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware.disk_bus import (
    Moved,
    MovedDisk,
)

_DRIVERS = {
    "scsi": "virtio_scsi (Windows: vioscsi)",
    "virtio": "virtio_blk (Windows: viostor)",
    "sata": "ahci",
    "ide": "ata_piix",
}


def findings(moved: Moved) -> tuple[Finding, ...]:
    """Advice on each disk that moves."""
    tree = parse_tree(moved.xml)
    os_type = tree.find("os/type")
    machine_name = os_type.get("machine", "") if os_type is not None else ""
    found: list[Finding] = []
    for disk in moved.disks:
        found += _of_discard(disk, machine_name)
        found.append(_of_driver(disk, windows=guest_os.is_windows(tree)))
        element = next(e for e in tree.findall("devices/disk") if target_of(e) == disk.target)
        found += _of_serial(disk, disk_bus_rules.cut_serial(element, disk.bus))
    if moved.disks and guest_os.is_uefi(tree):
        found.append(
            Finding(
                id="uefi-boot-entries",
                severity="info",
                reason="The domain boots by UEFI, whose boot entries in NVRAM name the old bus.",
                remedy="The firmware finds the disk by its boot order, or by EFI/BOOT/BOOTX64.EFI. "
                "If it does not boot, enter the firmware's boot manager once.",
            )
        )
    if moved.boot_orders:
        found.append(
            Finding(
                id="boot-order-spelled-out",
                severity="info",
                reason="The domain boots from the first disk, and that would be another one now.",
                remedy="Nothing: each device has got a boot order of its own, in the old order "
                f"({', '.join(moved.boot_orders)}).",
            )
        )
    name = tree.findtext("name") or ""
    return tuple(Finding(**{**each.result(), "domain": name}) for each in found)


def _of_discard(disk: MovedDisk, machine_name: str) -> t.Iterator[Finding]:
    discards = machine.virtio_blk_discards(machine_name)
    if disk.bus_before == "virtio" and discards:
        yield Finding(
            id="virtio-blk-discards",
            severity="info",
            reason=f"virtio-blk can discard on machine type {machine_name}: for thin disks alone "
            "there is no need to leave it.",
            remedy="Set discard with thinvirt.kvm.domain_discard, or go on if you have another "
            "reason.",
            disk=disk.target,
        )
    if disk.bus == "virtio" and discards is False:
        yield Finding(
            id="machine-too-old",
            severity="warning",
            reason=f"virtio-blk cannot discard on machine type {machine_name}, which is older than "
            "4.0.",
            remedy="Raise the machine type with thinvirt.kvm.domain_machine, or use bus=scsi.",
            disk=disk.target,
        )


def _of_driver(disk: MovedDisk, *, windows: bool) -> Finding:
    remedy = (
        "Windows stops with 0x7B if the driver of its boot disk was never bound. Let it see a "
        "second disk on the new bus first, and shut it down completely (shutdown /s /t 0)."
        if windows
        else "Before it starts, its initramfs must have the driver, and fstab, crypttab and boot "
        "loader must name disks by UUID or label. state=restored brings the old bus back."
    )
    return Finding(
        id="driver-needed",
        severity="warning" if windows else "info",
        reason=f"The guest needs the driver {_DRIVERS[disk.bus]}, and finds the disk under another "
        "name.",
        remedy=remedy,
        disk=disk.target,
    )


def _of_serial(disk: MovedDisk, serial: str) -> t.Iterator[Finding]:
    if serial:
        yield Finding(
            id="serial-cut",
            severity="warning",
            reason=f"Of the serial number {serial} the guest sees only the first 20 characters on "
            f"{disk.bus}, so names in /dev/disk/by-id change.",
            remedy="Name the disk by UUID or label in the guest.",
            disk=disk.target,
        )
