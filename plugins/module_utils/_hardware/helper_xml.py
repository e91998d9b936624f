# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A helper disk on virtio-scsi, and a CD drive, in a domain's XML (pure).

Ours are known by their aliases, which libvirt keeps for whoever sets them (``ua-…``), so exactly
what was added is taken out again.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import machine
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.xml import (
    append_child,
    parse_tree,
    remove_child,
    serialize,
    target_of,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware import (
    boot,
    disk_bus,
    disk_bus_rules,
)

SERIAL = "thinvirt-helper"
_DISK, _CD, _CONTROLLER = "ua-thinvirt-helper", "ua-thinvirt-cd", "ua-thinvirt-scsi"
_OURS = {_DISK: "helper disk", _CD: "CD"}


@dataclasses.dataclass(frozen=True)
class Devices:
    """What a domain has of ours.

    :param disk: file of the helper disk, empty if there is none.
    :param cd: the ISO in our CD drive; empty if there is none.
    :param targets: names of both.
    :param controller: whether the virtio-scsi controller is ours as well.
    """

    disk: str = ""
    cd: str = ""
    targets: tuple[str, ...] = ()
    controller: bool = False


def devices(text: str) -> Devices:
    """What a domain has of ours, configured or live."""
    tree = parse_tree(text)
    found = {name: _with_alias(tree, "disk", name) for name in _OURS}
    return Devices(
        disk=_file(found[_DISK]),
        cd=_file(found[_CD]),
        targets=tuple(target_of(each) for each in found.values() if each is not None),
        controller=_with_alias(tree, "controller", _CONTROLLER) is not None,
    )


def with_devices(text: str, *, disk: str, iso: str) -> str:
    """The XML with a helper disk and a CD drive; what is there already stays.

    :param disk: file of the helper disk; empty for none.
    :param iso: empty for no CD drive.
    :raises RefusedError: there is no room for the drive.
    """
    tree = parse_tree(text)
    firsts = boot.first_devices(tree)
    known = tree.findall("devices/controller")
    changed = False
    if disk and _with_alias(tree, "disk", _DISK) is None:
        _add(tree, device="disk", file=disk, bus="scsi", alias=_DISK, serial=SERIAL)
        changed = True
    if iso:
        drive = _with_alias(tree, "disk", _CD)
        if drive is None:
            _add(tree, device="cdrom", file=iso, bus=_cd_bus(tree), alias=_CD)
            changed = True
        elif _file(drive) != iso:
            drive.find("source").set("file", iso)
            changed = True
    if not changed:
        return text
    for controller in tree.findall("devices/controller[@type='scsi']"):
        if controller not in known:
            append_child(controller, "alias", {"name": _CONTROLLER})
    if firsts and boot.first_devices(tree) != firsts:
        boot.spell_out(tree, firsts)
    return serialize(tree)


def without_devices(text: str) -> str:
    """The XML without them; a controller that other disks use by now stays."""
    if devices(text) == Devices():
        return text
    tree = parse_tree(text)
    for name in _OURS:
        element = _with_alias(tree, "disk", name)
        if element is not None:
            remove_child(element.getparent(), element)
    controller = _with_alias(tree, "controller", _CONTROLLER)
    if controller is not None:
        index = int(controller.get("index", "0"))
        if index in {slot.controller for slot in disk_bus_rules.taken_slots(tree, "scsi")}:
            remove_child(controller, controller.find("alias"))
        else:
            remove_child(controller.getparent(), controller)
    return serialize(tree)


def _with_alias(tree: t.Any, tag: str, name: str) -> t.Any:
    found = tree.xpath("devices/*[name() = $tag][alias/@name = $alias]", tag=tag, alias=name)
    return found[0] if found else None


def _file(element: t.Any) -> str:
    source = element.find("source") if element is not None else None
    return source.get("file", "") if source is not None else ""


def _cd_bus(tree: t.Any) -> str:
    os_type = tree.find("os/type")
    family = machine.family(os_type.get("machine", "") if os_type is not None else "")
    return {"i440fx": "ide", "q35": "sata"}.get(family, "scsi")


def _add(tree: t.Any, *, device: str, file: str, bus: str, alias: str, serial: str = "") -> None:
    parent = tree.find("devices")
    element = parent.makeelement("disk", {"type": "file", "device": device})
    disks = parent.findall("disk")
    if disks:
        element.tail = disks[-1].tail
        parent.insert(parent.index(disks[-1]) + 1, element)
    else:
        parent.append(element)
    append_child(element, "driver", {"name": "qemu", "type": "raw"})
    append_child(element, "source", {"file": file})
    append_child(element, "target", {"dev": "", "bus": bus})
    if serial:
        append_child(element, "serial", {}).text = serial
    if device == "cdrom":
        append_child(element, "readonly", {})
    append_child(element, "alias", {"name": alias})
    disk_bus.settle_new(tree, element, bus)
