# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""domain_discard with apply=save_restore on a guest that writes all the time.

A program in the guest appends numbered, checksummed records with fsync, and a beat to the serial
console, whose log on the host tells when the guest stood still. Blocks are counted with stat,
settings are read with virsh.
"""

from __future__ import annotations

import os
import threading
import time

import pytest
from lab import GuestSpec
from save_lab import (
    AFTER,
    BEFORE,
    NAMESPACE,
    arguments,
    assert_nothing_left,
    kill_at,
    other_setting,
    restart_libvirtd,
)
from support import run_module

MIB = 1 << 20
# The functional test has all moments; a guest that runs is restored here from the decisive ones.
MOMENTS = [("managedSave", 0.2), ("managedSaveDefineXML", BEFORE), ("create", 0.1)]
WRITER = """
import hashlib, itertools, os, threading, time
def beat():
    with open("/dev/ttyS0", "wb", buffering=0) as console:
        while True:
            console.write(b".")
            time.sleep(0.05)
threading.Thread(target=beat, daemon=True).start()
with open("/records", "a") as file:
    for number in itertools.count():
        file.write(f"{number} {hashlib.sha256(str(number).encode()).hexdigest()}\\n")
        file.flush()
        os.fsync(file.fileno())
        time.sleep(0.02)
"""
READER = """
import hashlib
lines = open("/records").read().splitlines()[:-1]
for number, line in enumerate(lines):
    assert line == f"{number} {hashlib.sha256(str(number).encode()).hexdigest()}", (number, line)
print(len(lines))
"""


@pytest.fixture
def guest(lab):
    """One for each test, as each changes its settings."""
    try:
        guest = lab.warm(GuestSpec("s-r"))
        guest.run("systemd-run", "--unit=writer", "python3", "-c", WRITER)
        guest.run("sh", "-c", "until [ -s /records ]; do sleep 0.1; done")
        yield guest
    finally:
        lab.forget("s-r")


class Watch(threading.Thread):
    """What is seen on the host meanwhile, in seconds of its one clock that cannot be set.

    ``silent``: the longest time for which the guest's console was silent.  ``saved``: how long its
    memory was in a file, which is made when it stands still, and removed when it runs again.
    """

    def __init__(self, lab, guest):
        super().__init__(daemon=True)
        self._log = lab.state / "log" / f"{guest.name}-serial.log"
        folder = "lib" if lab.root else "etc/libvirt"
        self._memory = lab.state / folder / "qemu" / "save" / f"{guest.name}.save"
        self._end = threading.Event()
        self.silent = self.saved = 0.0

    def run(self):
        size, since, begin = -1, time.monotonic(), None
        while not self._end.wait(0.01):
            asked = time.monotonic()
            if self._memory.exists():
                begin = begin or time.monotonic()
                self.saved = asked - begin
            now = os.stat(self._log).st_size
            if now != size:
                size, since = now, time.monotonic()
            self.silent = max(self.silent, time.monotonic() - since)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_error):
        self._end.set()
        self.join()


def identity(guest):
    """What a reboot would change: the boot and the writer's process."""
    pid = guest.run("systemctl", "show", "--property=MainPID", "writer").stdout
    assert pid.strip() != "MainPID=0"
    return guest.run("cat", "/proc/sys/kernel/random/boot_id").stdout, pid


def records(guest):
    return int(guest.run("python3", "-c", READER).stdout)


def test_discards_reach_the_host_without_a_reboot(lab, guest):
    before, written = identity(guest), records(guest)
    checked = run_module("domain_discard", check=True, **arguments(lab, guest))
    assert checked["domains"][0]["actions"] == ["configured", "saved", "restored"]
    assert "discard=" not in guest.xml()
    guest.run("date", "--set", "1 hour ago")
    asked, begin = time.time(), time.monotonic()
    with Watch(lab, guest) as watch:
        result = run_module("domain_discard", **arguments(lab, guest))
    took = time.monotonic() - begin
    (entry,) = result["domains"]
    assert entry["actions"] == checked["domains"][0]["actions"]
    assert not entry["restart_required"]
    assert entry["clock_set"]
    # The pause that is told, in tenths, is no shorter than what was seen of it, and within the run.
    assert min(watch.silent, watch.saved) > 0.3
    assert watch.saved - 0.05 <= entry["pause_seconds"] <= took + 0.05
    assert "discard='unmap'" in guest.xml()
    assert identity(guest) == before
    assert records(guest) > written
    assert_nothing_left(lab, guest)
    # It was set to what the host's clock said some time in the run, and goes on from there.
    assert asked < float(guest.run("date", "+%s.%N").stdout) < time.time() + 1

    guest.run("dd", "if=/dev/urandom", "of=/waste", "bs=1M", "count=64", "conv=fsync")
    path = guest.disk("sda").path
    full = os.stat(path).st_blocks * 512
    guest.run("sh", "-c", "rm /waste; sync; fstrim /", timeout=120)
    assert full - os.stat(path).st_blocks * 512 >= 50 * MIB

    assert not run_module("domain_discard", **arguments(lab, guest))["changed"]


@pytest.mark.parametrize(("call", "delay"), MOMENTS)
@pytest.mark.slow("a guest with a system each; tests/functional has all moments")
def test_killed(lab, guest, call, delay):
    before = identity(guest)
    given = kill_at(lab, guest, call, delay)
    assert NAMESPACE in guest.xml(inactive=True)
    result = run_module("domain_discard", **given)
    assert not result["failed"], result
    assert result["domains"][0]["actions"][0] == "recovered"
    assert f"detect_zeroes='{given['detect_zeroes']}'" in guest.xml()
    assert identity(guest) == before
    assert_nothing_left(lab, guest)
    records(guest)


@pytest.mark.slow("a guest with a system each; tests/functional has all moments")
def test_killed_and_started_by_hand(lab, guest):
    before = identity(guest)
    given = kill_at(lab, guest, "managedSaveDefineXML", AFTER)
    assert guest.state() == "shut off"
    lab.virsh("start", guest.name)
    assert identity(guest) == before
    result = run_module("domain_discard", **given)
    assert result["domains"][0]["actions"] == ["recovered"]
    assert_nothing_left(lab, guest)
    records(guest)


@pytest.mark.parametrize("delay", [0.1, 0.6])
@pytest.mark.slow("a guest with a system each; tests/functional has all moments")
def test_libvirtd_is_killed_meanwhile(lab, guest, delay):
    """The run that it happens to, or the next one, brings the guest back as it was."""
    before = identity(guest)
    given = arguments(lab, guest, detect_zeroes=other_setting(guest))
    thread = restart_libvirtd(lab, guest, delay=delay)
    run_module("domain_discard", **given)
    thread.join()
    again = run_module("domain_discard", **given)
    assert not again["failed"], again
    assert f"detect_zeroes='{given['detect_zeroes']}'" in guest.xml()
    assert identity(guest) == before
    assert_nothing_left(lab, guest)
    records(guest)
