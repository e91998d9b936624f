# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests that run at once: one is booted and saved, once per machine, and the others restore that.

A boot takes 25 s of CPU without KVM, a restore takes 2 s. Each guest has a name, UUID, root disk (a
full copy), clock and random numbers of its own; its machine-id and boot_id are those of the save.
Afterwards it is a domain like any other, whose next start is a cold boot.

The root disk is the scsi disk sda. Further disks, scsi or virtio, are plugged in. For each machine
type, memory, number of processors and release of Debian there is another save.

Where booting is the proof a test boots: ``create()`` and ``start()``.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import os
import shutil
import struct
import tempfile
import time
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .cache import note_use, remove_unused
from .domain import Boot, Disk, GuestSpec, disk_element, domain_xml
from .errors import LabError, call
from .guest import Guest

if TYPE_CHECKING:
    from .daemon import Lab

#: How a file of ``virsh save`` begins: magic, version, bytes of XML and cookie, whether the guest
#: ran, compression, where the cookie begins (0: there is none). XML, cookie and memory follow.
HEADER = struct.Struct("=16s5I56x")
BUSES = ("scsi", "virtio")
#: PCI Express has a slot for a disk of the bus virtio only where a port was left free.
FREE_PORTS = 4
#: To be raised where _boot_and_save() makes another save of the same script and XML.
EDITION = 1
#: What this guest has read, those that are restored have in their memory. Its clock is an hour
#: slow, so that everybody sees where it was not set afterwards.
SETTLE = """
systemctl is-system-running --wait || true
for program in mkfs.ext4 mkfs.xfs fstrim lsblk systemd-run; do "$program" --version || true; done
python3 -c 'import hashlib, json, os, random, sqlite3, threading'
date --set '1 hour ago'
sync
"""
#: Arguments: random bytes, how many disks there are to be, serial numbers.
WAKE = """
import fcntl, os, sys, time
seed, count, *serials = sys.argv[1:]
with open("/dev/urandom", "wb", buffering=0) as random:
    random.write(bytes.fromhex(seed))
    fcntl.ioctl(random, 0x5207)  # RNDRESEEDCRNG: now, and not within the next minute
def all_there():
    disks = [name for name in os.listdir("/sys/block") if name[:2] in ("sd", "sr", "vd")]
    links = os.listdir("/dev/disk/by-id") if serials else []
    return len(disks) == int(count) and all(
        any(link.endswith(("_" + serial, "-" + serial)) for link in links) for serial in serials
    )
while not all_there():
    time.sleep(0.05)
os.execvp("udevadm", ["udevadm", "settle"])
"""


class Save:
    """What is kept of the guest that was booted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disk = folder / "root.qcow2"
        self.memory = folder / "memory"
        self.definition = folder / "domain.xml"


def guest(lab: Lab, spec: GuestSpec, say: Callable[[str], None]) -> Guest:
    """What :meth:`Lab.warm` returns."""
    _check(spec)
    kept = save(lab, spec, say)
    lab.forget(spec.name)
    try:
        return _restore(lab, spec, kept)
    except BaseException:
        lab.forget(spec.name)
        raise


def _check(spec: GuestSpec) -> None:
    root, *others = spec.disks or (None,)
    plain = Disk("sda", root=True)
    if root is None or plain != dataclasses.replace(
        root, format=plain.format, discard=None, detect_zeroes=None, size_bytes=plain.size_bytes
    ):
        raise LabError(f"guest {spec.name}: a warm guest's first disk is Disk('sda', root=True)")
    for disk in others:
        if disk.root or disk.bus not in BUSES:
            raise LabError(f"guest {spec.name}: disk {disk.target} can't be plugged in: create()")


def save(lab: Lab, spec: GuestSpec, say: Callable[[str], None]) -> Save:
    """The save of such a guest, made if it isn't there yet; others wait for the first."""
    spec = GuestSpec(
        "warm-save",
        machine=spec.machine,
        memory_mib=spec.memory_mib,
        vcpus=spec.vcpus,
        suite=spec.suite,
    )
    folder = lab.cache / f"warm-{_key(lab, spec)}"
    if folder.is_dir():
        note_use(folder)
        return Save(folder)
    with (lab.cache / "warm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            say(f"==> Booting a guest to save it, {_shape(spec)} (about 40 s, once)")
            for leftover in lab.cache.glob("saving-*"):  # of a killed one: we have the lock
                shutil.rmtree(leftover)
            with tempfile.TemporaryDirectory(prefix="saving-", dir=lab.cache) as temp:
                done = Path(temp, "done")
                done.mkdir()
                _boot_and_save(lab, spec, Save(done))
                os.rename(done, folder)
            remove_unused(lab.cache, "warm-*")
    return Save(folder)


def _shape(spec: GuestSpec) -> str:
    return f"{spec.machine}, {spec.memory_mib} MiB, {spec.vcpus} CPU, {spec.suite}"


def _key(lab: Lab, spec: GuestSpec) -> str:
    """Changes with everything on which it depends whether QEMU can restore the save."""
    kvm = lab.boot(spec).kvm
    disks = tuple(dataclasses.replace(disk, path=Path("disk")) for disk in spec.disks)
    boot = Boot(kernel=Path("kernel"), initrd=Path("initrd"), serial_log=Path("log"), kvm=kvm)
    parts = [
        f"{EDITION}",
        SETTLE,
        with_free_ports(domain_xml(dataclasses.replace(spec, disks=disks), boot)),
        lab.image(spec.suite).disk.parent.name,
        lab.virsh("version", "--daemon"),
        call(["qemu-system-x86_64", "--version"], timeout=30),
        _processor() if kvm else "tcg",
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(("model name", "flags")))


def _boot_and_save(lab: Lab, spec: GuestSpec, save: Save) -> None:
    call(
        ["cp", "--reflink=auto", "--sparse=always", lab.image(spec.suite).disk, save.disk],
        timeout=120,
    )
    spec = dataclasses.replace(spec, disks=(Disk("sda", root=True, path=save.disk),))
    lab.forget(spec.name)
    try:
        lab.define(spec.name, with_free_ports(domain_xml(spec, lab.boot(spec))))
        booted = Guest(spec, lab.virsh)
        booted.start()
        booted.wait_for_agent(timeout=600)
        booted.run("sh", "-euc", SETTLE, timeout=300)
        save.definition.write_text(booted.xml(inactive=True), encoding="utf-8")
        lab.virsh("save", spec.name, str(save.memory), timeout=300)
    finally:
        lab.forget(spec.name)


def with_free_ports(text: str) -> str:
    """A domain to which disks of the bus virtio can be plugged."""
    domain = ET.fromstring(text)  # noqa: S314 (libvirt's, or our own)
    if "q35" in _found(domain, "os/type").get("machine", ""):
        for model in ("pcie-root", *["pcie-root-port"] * FREE_PORTS):
            ET.SubElement(_found(domain, "devices"), "controller", type="pci", model=model)
    return ET.tostring(domain, encoding="unicode")


def _restore(lab: Lab, spec: GuestSpec, save: Save) -> Guest:
    root = lab.make_disk(spec, spec.disks[0], root=save.disk)
    others = [lab.make_disk(spec, disk) for disk in spec.disks[1:]]
    spec = dataclasses.replace(spec, disks=(root, *others))
    own, boot = str(uuid.uuid4()), lab.boot(spec)
    lab.define(spec.name, adopted(save.definition.read_text(encoding="utf-8"), spec, own, boot))
    memory = lab.state / "tmp" / f"{spec.name}.save"
    try:
        copy_save(save.memory, memory, lambda text: adopted(text, spec, own, boot))
        lab.virsh("restore", str(memory), timeout=300)
    except LabError as exc:
        raise LabError(f"{exc} (to have that save made anew, remove {save.folder})") from exc
    finally:
        memory.unlink(missing_ok=True)
    restored = Guest(spec, lab.virsh)
    restored.wait_for_agent()
    for disk in others:
        _plug(lab, restored, disk)
    _wake(restored)
    return restored


def adopted(text: str, spec: GuestSpec, own: str, boot: Boot) -> str:
    """The XML of the saved guest as that of another one.

    :param own: its UUID.
    :raises ValueError: its root disk has no path.
    """
    domain = ET.fromstring(text)  # noqa: S314 (libvirt's, or our own)
    _found(domain, "name").text = spec.name
    _found(domain, "uuid").text = own
    _found(domain, "os/kernel").text = str(boot.kernel)
    _found(domain, "os/initrd").text = str(boot.initrd)
    disk = _found(domain, "devices/disk")
    # An empty backingStore says that there is none, and an overlay of it would read as zeros.
    for tag in ("driver", "source", "backingStore"):
        for child in disk.findall(tag):
            disk.remove(child)
    mine = disk_element(spec.disks[0])
    disk[:0] = [_found(mine, "driver"), _found(mine, "source")]
    for source in domain.findall("devices/*/source[@path]"):
        source.set("path", str(boot.serial_log))
    for channel in domain.findall("devices/channel"):  # libvirt has a path of its own for each
        for source in channel.findall("source"):
            channel.remove(source)
    return ET.tostring(domain, encoding="unicode")


def _found(element: ET.Element, path: str) -> ET.Element:
    found = element.find(path)
    if found is None:
        raise LabError(f"the domain that was saved has no {path}")
    return found


def copy_save(source: Path, target: Path, change: Callable[[str], str]) -> None:
    """Copy a file of ``virsh save`` with its XML changed; libvirt would change no name or UUID."""
    with source.open("rb") as old, target.open("wb") as new:
        magic, version, size, ran, compression, cookie_at = HEADER.unpack(old.read(HEADER.size))
        data = old.read(size)
        end = cookie_at or size
        text = change(data[:end].rstrip(b"\0").decode()).encode() + b"\0"
        cookie = data[end:]
        where = len(text) if cookie_at else 0
        size = len(text) + len(cookie)
        new.write(HEADER.pack(magic, version, size, ran, compression, where) + text + cookie)
        shutil.copyfileobj(old, new, 1 << 24)


def _plug(lab: Lab, guest: Guest, disk: Disk) -> None:
    """While it runs and for every later start."""
    path = lab.state / "tmp" / f"{guest.name}-{disk.target}.xml"
    path.write_text(ET.tostring(disk_element(disk), encoding="unicode"), encoding="utf-8")
    lab.virsh("attach-device", guest.name, str(path), "--live", "--config")
    path.unlink()


def _wake(guest: Guest) -> None:
    """Make different what guests of one save have in common, and wait until it sees its disks."""
    disks = guest.spec.disks
    serials = [disk.serial for disk in disks if disk.serial]
    seed = os.urandom(32).hex()
    guest.run("python3", "-ISc", WAKE, seed, str(len(disks)), *serials, timeout=180)
    guest.agent("guest-set-time", timeout=60, time=time.time_ns())
