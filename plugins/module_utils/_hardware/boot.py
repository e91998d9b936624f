# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which devices a domain boots from, when it only says of which kind (pure).

``<os><boot dev='hd'/>`` means the first disk in libvirt's own order, in which disks of the same bus
stand together, sorted by name (virDomainDiskInsert in domain_conf.c).  A disk that gets another bus
or name may come before another one there, and the guest would boot from the wrong disk.
"""

from __future__ import annotations

import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.xml import (
    append_child,
    bus_of,
    remove_child,
    target_of,
)

_PREFIXES = ("xvd", "ubd", "vd", "sd", "hd", "fd")
#: What a kind of ``<os><boot>`` means among the disks' ``device``.
_DEVICES = {"hd": ("disk", "lun"), "cdrom": ("cdrom",), "fd": ("floppy",)}


def disk_index(target: str) -> int:
    """0 for ``vda``, 25 for ``sdz``, 26 for ``sdaa``; -1 for what is no name of a disk."""
    prefix = next((prefix for prefix in _PREFIXES if target.startswith(prefix)), None)
    letters = target[len(prefix) :] if prefix else ""
    if not letters or not all("a" <= letter <= "z" for letter in letters):
        return -1
    index = 0
    for letter in letters:
        index = index * 26 + ord(letter) - ord("a") + 1
    return index - 1


def disk_name(prefix: str, index: int) -> str:
    """The inverse of :func:`disk_index`."""
    letters = ""
    number = index + 1
    while number:
        number, rest = divmod(number - 1, 26)
        letters = chr(ord("a") + rest) + letters
    return prefix + letters


def libvirt_order(tree: t.Any) -> list[t.Any]:
    """The ``<disk>`` elements in the order in which libvirt keeps them."""
    kept: list[t.Any] = []
    for disk in tree.findall("devices/disk"):
        mine = disk_index(target_of(disk))
        same = [n for n, other in enumerate(kept) if bus_of(other) == bus_of(disk)]
        later = [n for n in same if disk_index(target_of(kept[n])) > mine]
        if later:
            kept.insert(later[0], disk)
        elif same:
            kept.insert(same[-1] + 1, disk)
        else:
            kept.append(disk)
    return kept


def first_devices(tree: t.Any) -> dict[str, t.Any]:
    """The device that each ``<boot>`` below ``<os>`` means, by its kind, in their order."""
    disks = libvirt_order(tree)
    found: dict[str, t.Any] = {}
    for kind in (element.get("dev", "") for element in tree.findall("os/boot")):
        if kind == "network":
            devices = tree.findall("devices/interface")
        else:
            meant = _DEVICES.get(kind, ())
            devices = [disk for disk in disks if disk.get("device", "disk") in meant]
        if devices and kind not in found:
            found[kind] = devices[0]
    return found


def spell_out(tree: t.Any, firsts: t.Mapping[str, t.Any]) -> tuple[str, ...]:
    """Give these devices boot orders of their own, which libvirt takes only instead of the others.

    :param firsts: see :func:`first_devices`.
    :returns: the target or the kind of each, in order.
    """
    for element in tree.findall("os/boot"):
        remove_child(element.getparent(), element)
    for number, device in enumerate(firsts.values(), start=1):
        append_child(device, "boot", {"order": str(number)})
    return tuple(target_of(device) or kind for kind, device in firsts.items())
