# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Domain XML of lab guests, a pure function of what is asked for."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET
from pathlib import Path

from .image import SUITE

GIB = 1 << 30
# Without mitigations a guest under TCG boots in two thirds of the time.
CMDLINE = "root=LABEL=root rw console=ttyS0 quiet mitigations=off"


@dataclasses.dataclass(frozen=True, kw_only=False)
class Disk:
    """One disk. A root disk is a copy of the guest image, any other one is empty.

    discard and the attributes after it are left out of the XML when None. ``path`` is filled in by
    :meth:`Lab.create` unless it names an image that exists already.
    """

    target: str
    bus: str = "scsi"
    path: Path | None = None
    root: bool = False
    size_bytes: int = GIB
    format: str = "qcow2"
    discard: str | None = None
    detect_zeroes: str | None = None
    device: str = "disk"
    serial: str | None = None
    readonly: bool = False


@dataclasses.dataclass(frozen=True)
class GuestSpec:
    """A guest: name, machine type (any that ``qemu-system-x86_64 -machine help`` lists), disks.

    ``suite`` is the release of Debian that its root disk holds.
    """

    name: str
    machine: str = "q35"
    disks: tuple[Disk, ...] = (Disk("sda", root=True),)
    memory_mib: int = 512
    vcpus: int = 1
    suite: str = SUITE


@dataclasses.dataclass(frozen=True)
class Boot:
    """How a guest boots: kernel and initrd on the host, and where its serial console is logged.

    ``cpu_mode`` is that of libvirt; empty leaves the CPU to QEMU.
    """

    kernel: Path
    initrd: Path
    serial_log: Path
    kvm: bool = False
    cpu_mode: str = "maximum"


def _add(parent: ET.Element, tag: str, text: str | None = None, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element


def disk_element(disk: Disk) -> ET.Element:
    """A disk as a domain has it.

    :raises ValueError: it has no path.
    """
    if disk.path is None:
        raise ValueError(f"disk {disk.target} has no path")
    element = ET.Element("disk", type="file", device=disk.device)
    driver = _add(element, "driver", name="qemu", type=disk.format)
    for name in ("discard", "detect_zeroes"):
        if (value := getattr(disk, name)) is not None:
            driver.set(name, value)
    _add(element, "source", file=str(disk.path))
    _add(element, "target", dev=disk.target, bus=disk.bus)
    if disk.serial:
        _add(element, "serial", disk.serial)
    if disk.readonly:
        _add(element, "readonly")
    return element


def domain_xml(spec: GuestSpec, boot: Boot) -> str:
    """The XML that defines *spec*: no network, no graphics, guest agent, ACPI, serial log.

    The CPU is ``maximum`` unless *boot* says otherwise: under TCG the default model lacks what
    newer distributions need.

    :raises ValueError: a disk without a path.
    """
    domain = ET.Element("domain", type="kvm" if boot.kvm else "qemu")
    _add(domain, "name", spec.name)
    _add(domain, "memory", str(spec.memory_mib), unit="MiB")
    _add(domain, "vcpu", str(spec.vcpus))
    os_ = _add(domain, "os")
    _add(os_, "type", "hvm", arch="x86_64", machine=spec.machine)
    _add(os_, "kernel", str(boot.kernel))
    _add(os_, "initrd", str(boot.initrd))
    _add(os_, "cmdline", CMDLINE)
    _add(_add(domain, "features"), "acpi")
    if boot.cpu_mode:
        _add(domain, "cpu", mode=boot.cpu_mode)
    devices = _add(domain, "devices")
    for disk in spec.disks:
        devices.append(disk_element(disk))
    if any(disk.bus == "scsi" for disk in spec.disks):
        _add(devices, "controller", type="scsi", model="virtio-scsi")
    _add(devices, "controller", type="usb", model="none")
    serial = _add(devices, "serial", type="file")
    _add(serial, "source", path=str(boot.serial_log))
    channel = _add(devices, "channel", type="unix")
    _add(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    rng = _add(devices, "rng", model="virtio")
    _add(rng, "backend", "/dev/urandom", model="random")
    _add(devices, "memballoon", model="none")
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode") + "\n"
