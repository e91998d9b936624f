# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Has a trim left behind what it should have freed?  (pure)

A guest that trimmed while the host dropped its discards takes those blocks for done: ext4 remembers
what it has trimmed until it is mounted anew, and sends nothing.  It shows in the host holding much
more, after a trim, than the guest's file systems use.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._findings import Finding
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown

#: More than any sane guest has; what lies beyond is not looked at.
_MAX_FILE_SYSTEMS = 1_000
_MAX_TEXT = 1_000
#: Free extents smaller than an image's cluster stay on the host.
_FRAGMENTS_PERCENT = 10
#: libvirt's element <address type='pci'>: domain, bus, slot, function.
_PCI = ("domain", "bus", "slot", "function")


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a disk hangs.

    :param pci: of the disk itself, or of its controller.
    :param unit: bus, target and unit behind the controller; None for a PCI disk (virtio-blk).
    """

    pci: tuple[int, ...]
    unit: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class GuestFileSystem:
    """What the guest says of a mounted file system.

    :param device: its block device in the guest, such as ``sda1`` or ``dm-0``.
    :param used_bytes: what it counts as in use.
    :param addresses: of the disks that it lies on.
    """

    device: str
    mount_point: str
    type: str
    total_bytes: int
    used_bytes: int
    addresses: tuple[Address, ...]


@dataclasses.dataclass(frozen=True)
class Held:
    """A disk on the host after the trim.

    :param allocated_bytes: what the host holds for it.
    :param capacity_bytes: its size as the guest sees it.
    """

    allocated_bytes: int
    capacity_bytes: int


@dataclasses.dataclass(frozen=True)
class Untrimmed:
    """Disks that hold more, after a trim, than the guest's file systems on them explain.

    :param targets: the disks; several if a file system spans them.
    :param allocated_bytes: what the host holds for them.
    :param used_bytes: what the guest's file systems on them use.
    :param outside_bytes: of the disks, what these file systems do not count as theirs: journals
        and tables of inodes, LUKS headers, swap, partitions that are not mounted.  All of it may be
        on the host, and no trim frees it.  ext4, XFS and btrfs leave their own tables out of their
        size: 61 of 512 MiB with ext4, 16 more with LUKS (seen on Debian 12).
    """

    targets: tuple[str, ...]
    mount_points: tuple[str, ...]
    types: tuple[str, ...]
    allocated_bytes: int
    used_bytes: int
    outside_bytes: int

    @property
    def excess_bytes(self) -> int:
        return self.allocated_bytes - self.used_bytes - self.outside_bytes

    def result(self) -> dict[str, t.Any]:
        return {
            "targets": list(self.targets),
            "mount_points": list(self.mount_points),
            "types": list(self.types),
            "allocated_bytes": self.allocated_bytes,
            "used_bytes": self.used_bytes,
            "outside_bytes": self.outside_bytes,
            "excess_bytes": self.excess_bytes,
        }

    def finding(self, domain: str) -> Finding:
        """It is a suspicion: snapshots in the image look the same."""
        disks = ", ".join(self.targets)
        return Finding(
            id="untrimmed",
            severity="warning",
            reason=f"After the trim the host still holds {self.allocated_bytes >> 20} MiB for "
            f"{disks}, and the guest's file systems there use {self.used_bytes >> 20} MiB; what "
            f"lies beside them may hold {self.outside_bytes >> 20} MiB. If the guest trimmed "
            "before while the host dropped its discards, ext4 does not send them again until it "
            "is mounted anew. Or there are snapshots in the image.",
            remedy="Mount the file systems anew, or reboot the guest, and trim again: the role "
            "linux_guest does it with linux_guest_untrimmed.",
            domain=domain,
            disk=self.targets[0],
        )


def disk_addresses(live_xml: str) -> dict[Address, str]:
    """The targets of a running domain's disks by their addresses."""
    devices = xml.parse_tree(live_xml).find("devices")
    elements = [] if devices is None else devices
    controllers = {
        (element.get("type"), element.get("index")): _pci(element.find("address"))
        for element in elements
        if element.tag == "controller"
    }
    found = {}
    for element in (element for element in elements if element.tag == "disk"):
        target, address = element.find("target"), element.find("address")
        if target is None or address is None:
            continue
        pci, unit = _pci(address), None
        if address.get("type") == "drive":
            kind = {"fd": "fdc"}.get(str(target.get("bus")), target.get("bus"))
            pci = controllers.get((kind, address.get("controller")))
            unit = _numbers(address, ("bus", "target", "unit"))
        if pci is not None:
            found[Address(pci, unit)] = str(target.get("dev"))
    return found


def parse_fsinfo(answer: t.Any) -> tuple[GuestFileSystem, ...]:
    """The answer to ``guest-get-fsinfo``; what is malformed or tells too little is left out.

    ``used-bytes`` is there since QEMU's agent 3.0.  A file system that is mounted several times
    counts once.
    """
    found: dict[str, GuestFileSystem] = {}
    for entry in (answer if isinstance(answer, list) else [])[:_MAX_FILE_SYSTEMS]:
        if not isinstance(entry, dict):
            continue
        device = _text(entry.get("name"))
        total, used = _count(entry.get("total-bytes")), _count(entry.get("used-bytes"))
        disks = entry.get("disk")
        if not device or total is None or used is None or not isinstance(disks, list):
            continue
        addresses = [_address(disk) for disk in disks[:_MAX_FILE_SYSTEMS]]
        known = tuple(address for address in addresses if address is not None)
        found.setdefault(
            device,
            GuestFileSystem(
                device=device,
                mount_point=_text(entry.get("mountpoint")),
                type=_text(entry.get("type")),
                total_bytes=total,
                used_bytes=used,
                # on a disk that is not known, nothing can be said of the others either
                addresses=known if len(known) == len(addresses) else (),
            ),
        )
    return tuple(found.values())


def find(
    disks: t.Mapping[str, Held],
    systems: t.Iterable[GuestFileSystem],
    addresses: t.Mapping[Address, str],
    *,
    min_bytes: int,
) -> tuple[Untrimmed, ...]:
    """The disks that a trim should have made smaller.

    More has to be left than *min_bytes*, and than a tenth of the file systems' size.  Disks on
    which no file system is mounted are left alone: nothing is known of what lies there.

    :param disks: by target; without those whose discards the host drops.
    """
    return tuple(
        one
        for one, total in compared(disks, systems, addresses)
        if one.excess_bytes > max(min_bytes, total * _FRAGMENTS_PERCENT // 100)
    )


def compared(
    disks: t.Mapping[str, Held],
    systems: t.Iterable[GuestFileSystem],
    addresses: t.Mapping[Address, str],
) -> list[tuple[Untrimmed, int]]:
    """What the host holds for disks, beside what the guest uses on them, and the size of its
    file systems there; by target.

    Disks that one file system spans stand together.  A group is left out if one of its disks is
    not in *disks*, or not known.
    """
    groups: list[tuple[set[str], list[GuestFileSystem]]] = []
    for system in systems:
        targets = {addresses.get(address, "") for address in system.addresses}
        members = [system]
        for group in [group for group in groups if group[0] & targets]:
            groups.remove(group)
            targets |= group[0]
            members = group[1] + members
        groups.append((targets, members))
    found = []
    for targets, members in groups:
        if not targets or not targets <= disks.keys():
            continue
        total = sum(system.total_bytes for system in members)
        capacity = sum(disks[target].capacity_bytes for target in targets)
        one = Untrimmed(
            targets=tuple(sorted(targets)),
            mount_points=tuple(system.mount_point for system in members),
            types=tuple(sorted({system.type for system in members})),
            allocated_bytes=sum(disks[target].allocated_bytes for target in targets),
            used_bytes=sum(system.used_bytes for system in members),
            # thin volumes may promise more than their disks have
            outside_bytes=max(0, capacity - total),
        )
        found.append((one, total))
    return sorted(found, key=lambda each: each[0].targets)


def _address(disk: t.Any) -> Address | None:
    controller = disk.get("pci-controller") if isinstance(disk, dict) else None
    if not isinstance(controller, dict):
        return None
    pci = [_count(controller.get(name)) for name in _PCI]
    unit = [_count(disk.get(name)) for name in ("bus", "target", "unit")]
    if None in pci:
        return None  # -1: the agent could not find out
    if disk.get("bus-type") == "virtio":
        return Address(tuple(number or 0 for number in pci))
    if None in unit:
        return None
    return Address(tuple(n or 0 for n in pci), tuple(n or 0 for n in unit))


def _pci(element: t.Any) -> tuple[int, ...] | None:
    return _numbers(element, _PCI) if element is not None and element.get("type") == "pci" else None


def _numbers(element: t.Any, names: t.Iterable[str]) -> tuple[int, ...]:
    """Attributes that libvirt itself wrote: hexadecimal with 0x, or decimal."""
    return tuple(int(element.get(name, "0"), 0) for name in names)


def _text(value: t.Any) -> str:
    return shown(value[:_MAX_TEXT]) if isinstance(value, str) else ""


def _count(value: t.Any) -> int | None:
    valid = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63
    return value if valid else None
