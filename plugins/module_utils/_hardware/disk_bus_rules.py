# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each bus can take, and what of a disk's XML it knows (pure).

Sources: https://libvirt.org/formatdomain.html, and what libvirt and QEMU refuse
(src/conf/domain_validate.c, src/qemu/qemu_validate.c; hw/ide/ide-dev.c, hw/scsi/scsi-disk.c).
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import machine
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.xml import (
    bus_of,
    remove_child,
    remove_if_empty,
    target_of,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware.boot import (
    disk_index,
    disk_name,
)

#: Models of a scsi controller that are virtio-scsi; lsilogic and its like are other hardware.
VIRTIO_SCSI = ("virtio-scsi", "virtio-transitional", "virtio-non-transitional")


@dataclasses.dataclass(frozen=True)
class Limits:
    """A bus.

    :param prefix: of the names of its disks.
    :param buses: of one controller.
    :param units: on each of them that libvirt uses itself; 0 where each disk is its own controller.
    """

    prefix: str
    buses: int
    units: int


BUSES: t.Mapping[str, Limits] = {
    "virtio": Limits("vd", 0, 0),
    "scsi": Limits("sd", 1, 7),
    "sata": Limits("sd", 1, 6),
    "ide": Limits("hd", 2, 2),
}


@dataclasses.dataclass(frozen=True)
class Slot:
    """A place on a controller."""

    controller: int
    bus: int
    unit: int


@dataclasses.dataclass(frozen=True)
class Dropped:
    """A setting that the new bus does not know.

    :param setting: where it was in the ``<disk>``, such as ``driver/@queues``.
    """

    setting: str
    value: str
    reason: str


#: Of virtio-blk's ``<driver>``; virtio-scsi has these in the ``<driver>`` of its controller.
_FOR_CONTROLLER = (
    *("queues", "iothread", "ioeventfd"),
    *("iommu", "ats", "packed", "page_per_vq"),
)
_VIRTIO_ONLY = (*_FOR_CONTROLLER, "event_idx", "queue_size")
_VIRTUAL_SERIAL = 20
_SCSI_SERIAL = 36


def slot_of(disk: t.Any) -> Slot | None:
    """Where a disk is on its controller; what libvirt makes of its name if it does not say."""
    address = disk.find("address")
    if address is not None:
        if address.get("type") != "drive":
            return None
        numbers = (address.get(name, "0") for name in ("controller", "bus", "unit"))
        return Slot(*map(int, numbers))
    limits, index = BUSES.get(bus_of(disk)), disk_index(target_of(disk))
    if limits is None or not limits.units or index < 0:
        return None
    controller, rest = divmod(index, limits.buses * limits.units)
    return Slot(controller, *divmod(rest, limits.units))


def taken_slots(tree: t.Any, bus: str) -> set[Slot]:
    """The places on the controllers of one bus that something has."""
    holders = [
        disk for disk in tree.findall("devices/disk") if bus_of(disk) == bus and target_of(disk)
    ]
    if bus == "scsi":  # devices of the host that the guest has on its own scsi controller
        holders += tree.findall("devices/hostdev[@type='scsi']")
    return {slot for slot in map(slot_of, holders) if slot is not None}


def free_target(tree: t.Any, before: str, bus: str) -> str:
    """A name for a disk on its new bus: with the letters that it had if they are free."""
    taken = {target_of(disk) for disk in tree.findall("devices/disk")}
    prefix = BUSES[bus].prefix
    kept = disk_name(prefix, disk_index(before)) if disk_index(before) >= 0 else ""
    if kept and kept not in taken:
        return kept
    index = next(n for n in range(len(taken) + 1) if disk_name(prefix, n) not in taken)
    return disk_name(prefix, index)


def has_builtin_controller(tree: t.Any, bus: str) -> bool:
    """Whether controller 0 of a bus is part of the machine itself."""
    builtin = {"i440fx": "ide", "q35": "sata"}
    return builtin.get(machine.family(_machine(tree))) == bus


def controller_model(disk: t.Any) -> str:
    """The model of a scsi controller that is added for a disk of virtio-blk, say."""
    model = disk.get("model", "")
    return model if model in VIRTIO_SCSI else "virtio-scsi"


def for_controller(disk: t.Any) -> dict[str, str]:
    """What virtio-blk has in the disk's ``<driver>`` and virtio-scsi in its controller's."""
    driver = disk.find("driver")
    if driver is None or bus_of(disk) != "virtio":
        return {}
    return {name: driver.get(name) for name in _FOR_CONTROLLER if name in driver.attrib}


def refuse(tree: t.Any, disk: t.Any, bus: str) -> None:
    """Refuse to move a disk to where it would not work, or not with the content that it has.

    :raises RefusedError: that is so.
    """
    machine_name = _machine(tree)
    arch = tree.find("os/type").get("arch", "") if tree.find("os/type") is not None else ""
    device = disk.get("device", "disk")
    blockio = disk.find("blockio")
    sector = blockio.get("logical_block_size", "512") if blockio is not None else "512"
    serial = disk.findtext("serial") or ""
    like_ide = bus in ("ide", "sata")
    readonly = device == "disk" and disk.find("readonly") is not None
    reasons = (
        (
            bus == "ide" and machine.family(machine_name) != "i440fx",
            f"machine type {machine_name or 'of no name'} has no ide",
            "Use sata, scsi or virtio.",
        ),
        (
            bus == "sata" and arch not in ("x86_64", "i686", ""),
            f"sata is not known to work on {arch}",
            "Use scsi or virtio.",
        ),
        (device == "floppy", "it is a floppy drive", "Leave it out of disks."),
        (
            bus_of(disk) == "fdc" or not target_of(disk),
            "it is on no bus of disks",
            "Leave it out of disks.",
        ),
        (
            device == "cdrom" and bus == "virtio",
            "it is a CD drive, which virtio-blk does not know",
            "Use scsi or sata, or leave it out of disks.",
        ),
        (
            device == "lun" and bus != "scsi",
            "it passes SCSI commands to a device of the host (lun)",
            "Make it device='disk' first, or leave it out of disks.",
        ),
        (
            disk.get("type") in ("vhostuser", "vhostvdpa") and bus != "virtio",
            f"it is of type {disk.get('type')}, which is virtio-blk by its nature",
            "Leave it out of disks.",
        ),
        (
            readonly and like_ide,
            f"it is read-only, and QEMU knows no such disks on {bus}",
            "Use scsi or virtio.",
        ),
        (
            sector != "512" and like_ide,
            f"its sectors have {sector} bytes and those of {bus} 512: its partitions would be lost",
            "Use scsi or virtio.",
        ),
        (
            len(serial) > _SCSI_SERIAL and bus == "scsi",
            f"its serial number is longer than the {_SCSI_SERIAL} characters that QEMU allows",
            "Shorten it first, or use virtio.",
        ),
    )
    for applies, reason, remedy in reasons:
        if applies:
            raise RefusedError(
                f"Refused: disk {target_of(disk)} of domain {tree.findtext('name')} cannot be "
                f"moved to {bus}: {reason}; nothing was changed.",
                remedy=remedy,
            )


def cut_serial(disk: t.Any, bus: str) -> str:
    """A serial number of which the guest sees only the beginning on this bus; empty if whole."""
    serial = disk.findtext("serial") or ""
    return serial if bus != "scsi" and len(serial) > _VIRTUAL_SERIAL else ""


def drop_unknown(
    disk: t.Any, *, bus_before: str, bus: str, carried: t.Collection[str]
) -> list[Dropped]:
    """Take out what a bus does not know: libvirt would refuse the domain.

    :param carried: what a controller has taken over: attributes of ``<driver>``, or ``model``.
    """
    dropped: list[Dropped] = []
    on = f"{bus} does not know it"
    if bus != "virtio":
        of_controller = "virtio-scsi has it in the driver of its controller"
        for name in _VIRTIO_ONLY:
            moved = bus == "scsi" and name in _FOR_CONTROLLER
            _drop(dropped, disk, "driver", name, of_controller if moved else on, silent=carried)
        _drop_child(dropped, disk, "driver/iothreads", on)
        _drop_child(dropped, disk, "acpi", "it is of a PCI device")
    if bus != "virtio" or not disk.get("model", "").startswith("virtio"):
        model = disk.attrib.pop("model", None)
        if model is not None and "model" not in carried:
            dropped.append(Dropped("@model", model, on))
    if bus == "virtio":
        _drop(dropped, disk, "target", "rotation_rate", on)
    if bus not in ("ide", "scsi"):  # seen with libvirt 9.0: not on sata either
        _drop_child(dropped, disk, "wwn", on)
    for applies, child, name in (
        (bus != bus_before, "target", "removable"),
        (bus != "ide", "geometry", "trans"),
        (bus in ("ide", "sata"), "transient", "shareBacking"),
    ):
        if applies:
            _drop(dropped, disk, child, name, on)
    for child in ("vendor", "product") if bus != "scsi" else ():
        _drop_child(dropped, disk, child, on)
    return dropped


def _drop(
    dropped: list[Dropped],
    disk: t.Any,
    child: str,
    name: str,
    reason: str,
    *,
    silent: t.Collection[str] = (),
) -> None:
    element = disk.find(child)
    if element is None or name not in element.attrib:
        return
    value = element.attrib.pop(name)
    if name not in silent:
        dropped.append(Dropped(f"{child}/@{name}", value, reason))
    if child == "driver":
        remove_if_empty(disk, element)


def _drop_child(dropped: list[Dropped], disk: t.Any, path: str, reason: str) -> None:
    element = disk.find(path)
    if element is None:
        return
    value = (element.text or "").strip() or ", ".join(f"{k}={v}" for k, v in element.items())
    dropped.append(Dropped(path, value, reason))
    remove_child(element.getparent(), element)


def _machine(tree: t.Any) -> str:
    os_type = tree.find("os/type")
    return os_type.get("machine", "") if os_type is not None else ""
