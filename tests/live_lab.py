# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks of running domains that are written to all the while, and proofs that nothing is lost.

The domain has no system: its QEMU is told to write, with FUA, and what it has acknowledged counts.
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
import typing as t
from pathlib import Path

import libvirt
import libvirt_qemu
from compact_lab import leftovers
from image_lab import run
from lab import Guest, Lab, processes
from lxml import etree
from support import run_module

# It prints every error besides raising it.
libvirt.registerErrorHandler(lambda _context, _error: None, None)

MIB = 1 << 20
BLOCK = 4096
#: The disk, as QEMU calls the device.
DEVICE = "scsi0-0-0-0"
#: What is written to: the end of the zeros, all of the sevens, and what was never written.
FIRST, LAST = 30 * MIB // BLOCK, 40 * MIB // BLOCK
CONTENT = ("write -P 0 0 32M", "write -P 7 32M 4M")


def compact_live(lab: Lab, *names: str, check: bool = False, **arguments):
    """What domain_compact returns, for small file systems."""
    given = {"power": "live", "min_free_bytes": 0, "trim": False, **arguments}
    return run_module("domain_compact", uri=lab.uri, domains=list(names), check=check, **given)


def pid_of(guest: Guest, state: Path) -> int:
    """The QEMU of a guest."""
    for pid in processes.owned_pids(state):
        with contextlib.suppress(OSError):
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"guest=%s,debug-threads=on" % guest.name.encode() in argv:
                return pid
    raise AssertionError(f"{guest.name} does not run")


def is_alive(guest: Guest, state: Path) -> bool:
    """Whether a guest has a QEMU, whatever libvirt says."""
    with contextlib.suppress(AssertionError):
        return bool(pid_of(guest, state))
    return False


def medium(domain: libvirt.virDomain) -> str:
    """The file of the disk that is written to, as QEMU says; empty if it has closed it."""
    answer = libvirt_qemu.qemuMonitorCommand(domain, '{"execute": "query-block"}', 0)
    (device,) = (d for d in json.loads(answer)["return"] if d.get("qdev") == DEVICE)
    return str(device["inserted"]["file"]) if "inserted" in device else ""


class Writer:
    """Has a guest's QEMU write random blocks, and knows what each must hold."""

    def __init__(self, lab: Lab, guest: Guest, chance: random.Random) -> None:
        self.lab = lab
        self.guest = guest
        self.path = guest.disk("sda").path
        self.chance = chance
        self.acknowledged = {
            block: (0 if block < 32 * MIB // BLOCK else 7 if block < 36 * MIB // BLOCK else 0)
            for block in range(FIRST, LAST)
        }
        #: What was asked for and not answered: it may be there or not.
        self.asked: dict[int, set[int]] = {}
        self.count = 0
        self.errors: list[str] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Writer:
        self._stop.clear()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        domain = None
        while not self._stop.is_set():
            try:
                if domain is None:
                    domain = libvirt.open(self.lab.uri).lookupByName(self.guest.name)
                self._write(domain)
            except libvirt.libvirtError:
                domain = None  # killed, or restarted
                time.sleep(0.05)

    def _write(self, domain) -> None:
        block, value = self.chance.randrange(FIRST, LAST), self.chance.randrange(1, 256)
        self.asked.setdefault(block, set()).add(value)
        command = f'qemu-io -d {DEVICE} "write -q -f -P {value} {block * BLOCK} {BLOCK}"'
        answer = libvirt_qemu.qemuMonitorCommand(
            domain, command, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
        )
        if answer.strip():
            self.errors.append(answer)
            return
        # A QEMU that was told to end closes its disks, then answers what had come in meanwhile:
        # as if it had been written, for it prints "No medium found" into its log only.
        if not medium(domain):
            return
        self.acknowledged[block] = value
        del self.asked[block]
        self.count += 1

    def assert_whole(self, path: object = None) -> None:
        """A disk holds all that was acknowledged; the chain is read as QEMU would."""
        assert self.errors == []
        raw = self.path.parent / f"{self.guest.name}.raw"
        run("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", path or self.path, raw)
        try:
            with raw.open("rb") as file:
                data = file.read()
        finally:
            raw.unlink()
        assert data[: FIRST * BLOCK].count(0) == FIRST * BLOCK
        assert data[LAST * BLOCK :].count(0) == len(data) - LAST * BLOCK
        there = {}
        for block, value in self.acknowledged.items():
            content = data[block * BLOCK : (block + 1) * BLOCK]
            found = content[0]
            assert content.count(found) == BLOCK, f"block {block} is torn"
            assert found == value or found in self.asked.get(block, ()), (block, value, found)
            there[block] = found
        # What was asked for and is there may have come later than what was acknowledged.
        self.acknowledged = there

    def is_whole(self, path: object) -> bool:
        """Whether a disk holds all that was acknowledged."""
        try:
            self.assert_whole(path)
        except AssertionError:
            return False
        return True

    def is_elsewhere(self) -> bool:
        """Whether libvirt has lost track of where QEMU writes: it was killed at a switch."""
        if self.guest.state() == "shut off":
            return is_alive(self.guest, self.lab.state)
        domain = libvirt.open(self.lab.uri).lookupByName(self.guest.name)
        return medium(domain) != str(self.top())

    def top(self) -> Path:
        return source_of(self.guest)


def source_of(guest: Guest) -> Path:
    """The file that a domain's disk is on, or would start with, as libvirt says."""
    return Path(guest.xml().partition("<source file='")[2].partition("'")[0])


def put_on(lab: Lab, guest: Guest, path: Path, *, without: t.Sequence[str]) -> None:
    """Have a domain start with another file, as with ``virsh edit``.

    :param without: elements of the disk that are taken out besides.
    """
    domain = etree.fromstring(guest.xml(inactive=True))
    (disk,) = domain.findall("devices/disk[@device='disk']")
    disk.find("source").set("file", str(path))
    for element in [child for child in disk if child.tag in without]:
        disk.remove(element)
    changed = lab.state / f"{guest.name}.xml"
    changed.write_bytes(etree.tostring(domain))
    lab.virsh("define", str(changed))
    changed.unlink()


def assert_one_file(guest: Guest, path: Path | None = None) -> None:
    """The domain is on its one file, and nothing is beside it."""
    path = path or guest.disk("sda").path
    for inactive in (False, True):
        assert f"<source file='{path}'" in guest.xml(inactive=inactive)
    left = [name for name in leftovers(path.parent) if path.name in name]
    assert left == []
    assert path.stat().st_nlink == 1
