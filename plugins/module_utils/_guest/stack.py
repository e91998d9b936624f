# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The block devices of a guest, from the file system down to the disk (pure)."""

from __future__ import annotations

import dataclasses
import json
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError

#: What is asked of lsblk.  No PATH (util-linux 2.33) and no MOUNTPOINTS (2.37): Debian 11 has 2.36,
#: RHEL 8 has 2.32, and mounts are read from the kernel anyway.
COLUMNS = (
    "NAME",
    "KNAME",
    "MAJ:MIN",
    "TYPE",
    "FSTYPE",
    "UUID",
    "DISC-GRAN",
    "DISC-MAX",
    "SIZE",
    "SERIAL",
)
#: More devices than any sane guest has; a table beyond that is refused.
MAX_DEVICES = 10_000
#: Deepest nesting of devices; the kernel's own limits are far below.
MAX_DEPTH = 64
_MAX_TEXT = 256


@dataclasses.dataclass(frozen=True)
class Device:
    """A block device as lsblk lists it.

    :param kname: the kernel's name, such as ``dm-0``.
    :param name: the name that people know, such as ``vg-data``; often the same.
    :param type: ``disk``, ``part``, ``lvm``, ``crypt``, ``mpath``, ``raid1``, ...
    :param number: ``major:minor``.
    :param discard_max_bytes: the largest discard that it takes; 0 if it takes none.
    :param below: knames of the devices that it lies on, towards the disk.
    """

    kname: str
    name: str
    type: str
    number: str
    fstype: str = ""
    uuid: str = ""
    size_bytes: int = 0
    granularity_bytes: int = 0
    discard_max_bytes: int = 0
    serial: str = ""
    below: tuple[str, ...] = ()


Devices = t.Mapping[str, Device]


def parse_lsblk(text: str) -> dict[str, Device]:
    """The devices by their kname, from ``lsblk --json --bytes`` with :data:`COLUMNS`.

    A device on several others, such as an array, is listed below each of them.

    :raises ThinvirtError: this is no such table, or it is absurdly large.
    """
    try:
        roots = json.loads(text)["blockdevices"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ThinvirtError("lsblk printed no table of block devices.") from error
    devices: dict[str, Device] = {}
    todo = [(entry, "", 0) for entry in _entries(roots)]
    seen = 0
    while todo:
        entry, parent, depth = todo.pop(0)
        seen += 1
        if seen > MAX_DEVICES or depth > MAX_DEPTH:
            raise ThinvirtError("lsblk lists more block devices than can be examined.")
        device = _device(entry)
        known = devices.get(device.kname, device)
        if parent and parent not in known.below:
            known = dataclasses.replace(known, below=(*known.below, parent))
        devices[device.kname] = known
        todo += [(child, device.kname, depth + 1) for child in _entries(entry.get("children"))]
    return devices


def links(devices: Devices, kname: str) -> tuple[Device, ...]:
    """A device and all that it lies on, each once, from the top down to the disks."""
    found: dict[str, Device] = {}
    todo = [kname]
    while todo:
        name = todo.pop(0)
        if name in devices and name not in found:
            found[name] = devices[name]
            todo += devices[name].below
    return tuple(found.values())


def stops(devices: Devices, kname: str) -> Device | None:
    """The link that keeps discards of a device from its disks, or None if all pass them on.

    Discards that stop at one link are not offered by those above it either, so it is the lowest
    that counts: a volume on LUKS takes none because of LUKS.  An array takes them if only one of
    its members does, as the kernel has it.
    """
    device, seen = devices.get(kname), {kname}
    if device is None or device.discard_max_bytes:
        return None
    while True:
        below = next(
            (
                devices[name]
                for name in device.below
                if name in devices and name not in seen and not devices[name].discard_max_bytes
            ),
            None,
        )
        if below is None:
            return device
        seen.add(below.kname)
        device = below


def _entries(value: t.Any) -> list[dict[str, t.Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _device(entry: t.Mapping[str, t.Any]) -> Device:
    kname = _text(entry.get("kname")) or _text(entry.get("name"))
    if not kname:
        raise ThinvirtError("lsblk lists a block device without a name.")
    return Device(
        kname=kname,
        name=_text(entry.get("name")) or kname,
        type=_text(entry.get("type")),
        number=_text(entry.get("maj:min")).strip(),
        fstype=_text(entry.get("fstype")),
        uuid=_text(entry.get("uuid")),
        size_bytes=_count(entry.get("size")),
        granularity_bytes=_count(entry.get("disc-gran")),
        discard_max_bytes=_count(entry.get("disc-max")),
        serial=_text(entry.get("serial")),
    )


def _text(value: t.Any) -> str:
    return value[:_MAX_TEXT] if isinstance(value, str) else ""


def _count(value: t.Any) -> int:
    """A number, which older util-linux prints as a string."""
    if isinstance(value, str) and len(value) <= 20 and value.strip().isdecimal():
        value = int(value)
    valid = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64
    return value if valid else 0
