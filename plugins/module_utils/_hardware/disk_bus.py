# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Move the disks of a domain to another bus, in its XML (pure).

What belongs to the disk moves along: source, serial, boot order, iotune, encryption.  What belongs
to its place on the old bus goes: address and target name.  What the new bus does not know goes too,
and is named.  Sources: https://libvirt.org/formatdomain.html#hard-drives-floppy-disks-cdroms and
what libvirt and QEMU refuse (qemu_validate.c, domain_validate.c, hw/ide/ide-dev.c).
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import (
    disk_safety,
    known_disk,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.xml import (
    append_child,
    bus_of,
    parse_tree,
    remove_child,
    serialize,
    target_of,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware import boot, disk_bus_rules
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware.disk_bus_rules import (
    BUSES,
    VIRTIO_SCSI,
    Dropped,
    Slot,
)


@dataclasses.dataclass(frozen=True)
class MovedDisk:
    """One disk that gets to another bus.

    :param place: type and indexes of its address on the new bus; empty where libvirt chooses.
    :param dropped: what the new bus does not know.
    :param carried: settings of the driver that the new controller has taken over.
    """

    target_before: str
    target: str
    bus_before: str
    bus: str
    place: str
    dropped: tuple[Dropped, ...]
    carried: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Moved:
    """The outcome.

    :param xml: with secrets, if they were in what was given.
    :param controllers: added, such as ``scsi 1 (virtio-scsi)``.
    :param boot_orders: target or kind of each device that got a boot order of its own, in that
        order; empty if the ``<boot>`` elements below ``<os>`` go on meaning the same.
    """

    xml: str
    disks: tuple[MovedDisk, ...]
    controllers: tuple[str, ...]
    boot_orders: tuple[str, ...]


def is_in_place(element: t.Any, bus: str, models: t.Mapping[int, str]) -> bool:
    """Whether a disk is where it is wanted; scsi means virtio-scsi.

    :param models: see :func:`scsi_models`.
    """
    if bus_of(element) != bus or bus != "scsi":
        return bus_of(element) == bus
    slot = disk_bus_rules.slot_of(element)
    return slot is not None and models.get(slot.controller) in VIRTIO_SCSI


def scsi_models(tree: t.Any) -> dict[int, str]:
    """Model of each scsi controller by its index, empty if not said."""
    return {
        int(controller.get("index", "0")): controller.get("model", "")
        for controller in tree.findall("devices/controller[@type='scsi']")
    }


def move_disks(text: str, targets: t.Collection[str], bus: str) -> Moved:
    """Move these disks of a domain; those that are there already stay as they are.

    :param targets: such as ``hda``; each is a disk of the domain.
    :param bus: one of :data:`disk_bus_rules.BUSES`.
    :raises RefusedError: a disk can't work on that bus, or not on this machine.
    """
    tree = parse_tree(text)
    models = scsi_models(tree)
    movers = [
        _Mover(element, target_of(element), bus_of(element))
        for element in tree.findall("devices/disk")
        if target_of(element) in targets and not is_in_place(element, bus, models)
    ]
    if not movers:
        return Moved(text, (), (), ())
    disk_safety.refuse_disks(text, [mover.target for mover in movers], known_disk.BUS)
    for mover in movers:
        disk_bus_rules.refuse(tree, mover.element, bus)
    firsts = boot.first_devices(tree)
    for mover in movers:
        mover.take_away()
    places = _Places(tree, bus, movers[0].element)
    disks = [_settle(tree, mover, bus, places) for mover in movers]
    orders: tuple[str, ...] = ()
    if boot.first_devices(tree) != firsts:
        orders = boot.spell_out(tree, firsts)
    return Moved(serialize(tree), tuple(disks), tuple(places.added), orders)


def settle_new(tree: t.Any, element: t.Any, bus: str) -> None:
    """Give a disk or drive that was just put into the tree a name and a place.

    :raises RefusedError: there is no room, or it can't work on that bus.
    """
    places = _Places(tree, bus, element)
    slot = places.free()
    element.find("target").set("dev", disk_bus_rules.free_target(tree, "", bus))
    _put(element, slot)


@dataclasses.dataclass(frozen=True)
class _Mover:
    """A disk on its way, and where it was."""

    element: t.Any
    target: str
    bus: str

    def take_away(self) -> None:
        """Off the old bus: its slot and its name are free for others."""
        for address in self.element.findall("address"):
            remove_child(self.element, address)
        self.element.find("target").set("dev", "")


def _settle(tree: t.Any, mover: _Mover, bus: str, places: _Places) -> MovedDisk:
    element = mover.element
    slot = places.free()
    name = disk_bus_rules.free_target(tree, mover.target, bus)
    target = element.find("target")
    target.set("dev", name)
    target.set("bus", bus)
    carried = places.carried if places.carried_from is element else {}
    dropped = disk_bus_rules.drop_unknown(
        element, bus_before=mover.bus, bus=bus, carried=tuple(carried)
    )
    _put(element, slot)
    return MovedDisk(
        target_before=mover.target,
        target=name,
        bus_before=mover.bus,
        bus=bus,
        place="" if slot is None else f"{slot.controller}:{slot.bus}:0:{slot.unit}",
        dropped=tuple(dropped),
        carried=tuple(carried),
    )


def _put(element: t.Any, slot: Slot | None) -> None:
    if slot is not None:
        append_child(
            element,
            "address",
            {
                "type": "drive",
                "controller": str(slot.controller),
                "bus": str(slot.bus),
                "target": "0",
                "unit": str(slot.unit),
            },
        )


class _Places:
    """Free slots on controllers of one bus; controllers are added when they are full.

    :param first: the first disk that moves: a scsi controller that is added for it takes over what
        virtio-blk has in the disk's own ``<driver>`` and virtio-scsi in the controller's.
    """

    def __init__(self, tree: t.Any, bus: str, first: t.Any) -> None:
        self.added: list[str] = []
        self.carried: dict[str, str] = {}
        self.carried_from: t.Any = None
        self._tree = tree
        self._bus = bus
        self._first = first
        self._limits = BUSES[bus]

    def free(self) -> Slot | None:
        """A free slot; None on a bus of which libvirt gives the addresses."""
        if self._limits.units == 0:
            return None
        taken = disk_bus_rules.taken_slots(self._tree, self._bus)
        for controller in self._controllers():
            for bus in range(self._limits.buses):
                for unit in range(self._limits.units):
                    slot = Slot(controller, bus, unit)
                    if slot not in taken:
                        return slot
        return Slot(self._add(), 0, 0)

    def _controllers(self) -> list[int]:
        """Indexes of the controllers that may be used, and of those that the machine brings."""
        usable = [
            int(controller.get("index", "0"))
            for controller in self._tree.findall(f"devices/controller[@type='{self._bus}']")
            if self._bus != "scsi" or controller.get("model", "") in VIRTIO_SCSI
        ]
        builtin = disk_bus_rules.has_builtin_controller(self._tree, self._bus)
        return sorted({*usable, *([0] if builtin else [])})

    def _add(self) -> int:
        if self._bus == "ide":
            raise RefusedError(
                f"Refused: domain {self._tree.findtext('name')} has no room for more than 4 disks "
                "and drives on ide; nothing was changed.",
                remedy="Use another bus.",
            )
        devices = self._tree.find("devices")
        same = devices.findall(f"controller[@type='{self._bus}']")
        known = {int(controller.get("index", "0")) for controller in same}
        index = next(number for number in range(len(known) + 1) if number not in known)
        controller = devices.makeelement("controller", {"type": self._bus, "index": str(index)})
        anchor = (same or devices.findall("controller") or devices.findall("disk"))[-1]
        controller.tail = anchor.tail
        devices.insert(devices.index(anchor) + 1, controller)
        label = f"{self._bus} {index}"
        if self._bus == "scsi":
            model = disk_bus_rules.controller_model(self._first)
            controller.set("model", model)
            label += f" ({model})"
            self._take_over(controller)
        self.added.append(label)
        return index

    def _take_over(self, controller: t.Any) -> None:
        if self.added:  # a second one: what was to be carried has its place already
            return
        values = disk_bus_rules.for_controller(self._first)
        if values:
            append_child(controller, "driver", values)
        if self._first.get("model") == controller.get("model"):
            values = {"model": controller.get("model"), **values}
        self.carried, self.carried_from = values, self._first
