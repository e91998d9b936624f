# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of the host a domain needs to start, as its XML names it (pure)."""

from __future__ import annotations

import dataclasses
import re
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.xml import parse_tree

#: As libvirt prints memory; it takes more units, and prints KiB.
_UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}

#: XPath below <domain>, its attribute (empty for the text), and what the file is to people.
_FILES = (
    ("os/loader", "", "the firmware"),
    ("os/nvram", "template", "the template of the firmware's variables"),
    ("os/kernel", "", "the kernel"),
    ("os/initrd", "", "the initrd"),
    ("os/dtb", "", "the device tree"),
    ("devices/emulator", "", "QEMU"),
    ("devices/filesystem/source", "dir", "the shared folder"),
    ("devices/rng/backend[@model='random']", "", "the random source"),
    ("devices/tpm/backend[@type='passthrough']/device", "path", "the TPM"),
    ("devices/input/source", "dev", "the input device"),
    ("devices/input/source", "evdev", "the input device"),
    ("devices/memory/source/path", "", "the memory's file"),
    ("devices/hostdev/source/block", "", "the host device"),
    ("devices/hostdev/source/char", "", "the host device"),
    *(
        (f"devices/{device}[@type='dev']/source", "path", "the host's port")
        for device in ("serial", "parallel", "console", "channel")
    ),
)


@dataclasses.dataclass(frozen=True)
class Need:
    """Something that has to be there.

    :param kind: ``file``, ``link`` (a network interface), ``network``, ``volume``, ``pci``,
        ``usb`` or ``mdev``.
    :param name: its path or name; ``POOL/VOLUME``, ``VENDOR:PRODUCT``.
    :param words: what it is to people.
    """

    kind: str
    name: str
    words: str


def needs_of(text: str) -> list[Need]:
    """What a domain needs, each once; what libvirt does without (startupPolicy) is left out."""
    tree = parse_tree(text)
    found: list[Need] = []
    for path, attribute, words in _FILES:
        for element in tree.findall(path):
            name = (element.get(attribute, "") if attribute else element.text) or ""
            if name.startswith("/"):
                found.append(Need("file", name, f"{words} {name}"))
    for disk in tree.findall("devices/disk"):
        found += _of_disk(disk)
    for interface in tree.findall("devices/interface"):
        found += _of_interface(interface)
    for hostdev in tree.findall("devices/hostdev"):
        found += _of_hostdev(hostdev)
    return list(dict.fromkeys(found))


def chains_of(live_text: str, needed: t.Iterable[Need]) -> list[Need]:
    """The backing files of running disks that are needed: a configuration does not list them."""
    names = {need.name for need in needed}
    found: list[Need] = []
    for disk in parse_tree(live_text).findall("devices/disk"):
        source = disk.find("source")
        if source is not None and {source.get("file"), source.get("dev")} & names:
            found += _of_disk(disk)
    return found


def _of_disk(disk: t.Any) -> t.Iterator[Need]:
    target = disk.find("target")
    where = target.get("dev", "") if target is not None else ""
    for source in disk.iter("source"):
        above = {parent.tag for parent in source.iterancestors()}
        if source.get("startupPolicy") == "optional" or above & {"mirror", "reservations"}:
            continue
        path = source.get("file") or source.get("dev") or ""
        if path.startswith("/"):
            yield Need("file", path, f"{path}, of disk {where},")
        if source.get("pool") and source.get("volume"):
            name = f"{source.get('pool')}/{source.get('volume')}"
            yield Need("volume", name, f"volume {name}, of disk {where},")


def _of_interface(interface: t.Any) -> t.Iterator[Need]:
    source = interface.find("source")
    if source is None:
        return
    kind = interface.get("type")
    if kind == "network" and source.get("network"):
        name = source.get("network")
        yield Need("network", name, f"network {name}")
    elif kind == "bridge" and source.get("bridge"):
        yield Need("link", source.get("bridge"), f"bridge {source.get('bridge')}")
    elif kind == "direct" and source.get("dev"):
        yield Need("link", source.get("dev"), f"network interface {source.get('dev')}")
    elif kind == "hostdev":
        yield from _pci(source)


def _of_hostdev(hostdev: t.Any) -> t.Iterator[Need]:
    source = hostdev.find("source")
    if source is None or source.get("startupPolicy") == "optional":
        return
    kind, address = hostdev.get("type"), source.find("address")
    if kind == "pci":
        yield from _pci(source)
    elif kind == "mdev" and address is not None:
        name = address.get("uuid", "")
        yield Need("mdev", name, f"mediated device {name}")
    elif kind == "usb" and source.find("vendor") is not None and source.find("product") is not None:
        ids = [_hex(source.find(tag).get("id"), 4) for tag in ("vendor", "product")]
        yield Need("usb", ":".join(ids), f"USB device {':'.join(ids)}")


def _pci(source: t.Any) -> t.Iterator[Need]:
    address = source.find("address")
    if address is not None and address.get("bus") is not None:
        parts = [_hex(address.get("domain"), 4), _hex(address.get("bus"), 2)]
        parts.append(f"{_hex(address.get('slot'), 2)}.{_hex(address.get('function'), 1)}")
        yield Need("pci", ":".join(parts), f"PCI device {':'.join(parts)}")


def _hex(text: str | None, width: int) -> str:
    try:
        return f"{int(text or '0', 0):0{width}x}"
    except ValueError:
        return text or ""


@dataclasses.dataclass(frozen=True)
class Memory:
    """:param huge: it is to lie in huge pages."""

    size_bytes: int
    huge: bool


def memory_of(text: str) -> Memory:
    """The memory that a domain has, or is to have."""
    tree = parse_tree(text)
    element = tree.find("memory")
    size = 0
    if element is not None and (element.text or "").strip().isdecimal():
        size = int(element.text) * _UNITS.get(element.get("unit", "KiB"), 1 << 10)
    return Memory(size, tree.find("memoryBacking/hugepages") is not None)


def too_little_memory(wanted: Memory, running: Memory, meminfo: str) -> str:
    """Why there is not enough of it, once the guest has given back what it has; empty if there is.

    :param meminfo: ``/proc/meminfo``.
    """
    figures = {
        name: int(number) * (1024 if unit else 1)
        for name, number, unit in re.findall(r"^(\w+):\s+(\d+)( kB)?$", meminfo, re.MULTILINE)
    }
    if wanted.huge:
        names = ("HugePages_Free", "Hugepagesize")
        if not all(name in figures for name in names):
            return ""
        free = figures["HugePages_Free"] * figures["Hugepagesize"]
    else:
        if "MemAvailable" not in figures:
            return ""
        free = figures["MemAvailable"] + figures.get("SwapFree", 0)
    free += running.size_bytes if running.huge == wanted.huge else 0
    if wanted.size_bytes <= free:
        return ""
    kind = " in huge pages" if wanted.huge else ""
    mib = 1 << 20
    return (
        f"it is to have {wanted.size_bytes // mib:,} MiB of memory{kind}, and the host would have "
        f"{free // mib:,} MiB"
    )
