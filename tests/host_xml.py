# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host of our own making for libvirt's test driver: domains without QEMU, on real files."""

from __future__ import annotations

import typing as t
from pathlib import Path
from xml.etree import ElementTree as ET

_NAMESPACE = "http://libvirt.org/schemas/domain/test/1.0"
_SHUT_OFF = "5"


def disk(
    target: str,
    path: object,
    *,
    bus: str = "virtio",
    form: str | None = "qcow2",
    kind: str = "file",
    device: str = "disk",
    discard: str | None = "unmap",
) -> ET.Element:
    """A ``<disk>`` in a file or on a block device; a path of None leaves the source out."""
    element = ET.Element("disk", type=kind, device=device)
    driver = ET.SubElement(element, "driver", name="qemu")
    for name, value in (("type", form), ("discard", discard)):
        if value is not None:
            driver.set(name, value)
    if path is not None:
        ET.SubElement(element, "source", {"dev" if kind == "block" else "file": str(path)})
    ET.SubElement(element, "target", dev=target, bus=bus)
    return element


def disk_with_source(target: str, kind: str, /, **source: str) -> ET.Element:
    """A ``<disk>`` of another type, by the attributes of its source."""
    element = disk(target, None, form="raw", kind=kind)
    element.insert(1, ET.Element("source", source))
    return element


def domain(
    name: str, *devices: ET.Element, machine: str = "pc-q35-7.2", running: bool = False
) -> ET.Element:
    """A ``<domain>`` with an agent channel; off unless it is to run."""
    element = ET.Element("domain", type="test")
    ET.SubElement(element, "name").text = name
    ET.SubElement(element, "memory").text = "65536"
    os_ = ET.SubElement(element, "os")
    ET.SubElement(os_, "type", arch="x86_64", machine=machine).text = "hvm"
    its_devices = ET.SubElement(element, "devices")
    its_devices.extend(devices)
    if any(each.find("target[@bus='scsi']") is not None for each in devices):
        ET.SubElement(its_devices, "controller", type="scsi", model="virtio-scsi")
    channel = ET.SubElement(its_devices, "channel", type="unix")
    ET.SubElement(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    if not running:
        ET.SubElement(element, f"{{{_NAMESPACE}}}runstate").text = _SHUT_OFF
    return element


def pool(
    pool_name: str, kind: str, volumes: t.Mapping[str, object], /, **source: str
) -> ET.Element:
    """A storage ``<pool>`` with the paths of its volumes by name."""
    element = ET.Element("pool", type=kind)
    ET.SubElement(element, "name").text = pool_name
    its_source = ET.SubElement(element, "source")
    for tag, value in source.items():
        if tag == "host":
            ET.SubElement(its_source, tag, name=value)
        else:
            ET.SubElement(its_source, tag).text = value
    ET.SubElement(ET.SubElement(element, "target"), "path").text = "/nowhere"
    for volume, path in volumes.items():
        its_volume = ET.SubElement(element, "volume")
        ET.SubElement(its_volume, "name").text = volume
        ET.SubElement(its_volume, "capacity").text = "1"
        ET.SubElement(ET.SubElement(its_volume, "target"), "path").text = str(path)
    return element


def host(path: Path, *parts: ET.Element) -> str:
    """Write the host's XML; the URI at which the test driver serves it."""
    node = ET.Element("node")
    node.extend(parts)
    path.write_text(ET.tostring(node, encoding="unicode"), encoding="utf-8")
    return f"test://{path}"
