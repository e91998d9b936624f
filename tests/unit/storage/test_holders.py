# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who has a file, by name: found in /proc and among real loop devices."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
import sys

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage import holders

#: Another program that opens a file, perhaps maps it and closes it, and waits.
CHILD = """
import mmap, os, sys
fd = os.open(sys.argv[1], eval(sys.argv[2]))
if len(sys.argv) > 3:
    kept = mmap.mmap(fd, 4096, *eval(sys.argv[3]))
    os.close(fd)
    for name in os.listdir("/proc/self/fd"):  # Python keeps one of its own
        if os.path.exists(f"/proc/self/fd/{name}") and int(name) > 2:
            os.close(int(name))
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(bytes(8192))
    return path


@contextlib.contextmanager
def another(path, *arguments):
    argv = [sys.executable, "-c", CHILD, path, *arguments]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        yield child
        child.stdin.close()


def found(path) -> list[holders.Holder]:
    key = holders.file_key(path.stat())
    return holders.find_holders({key, (0, 0)}).get(key, [])


@pytest.mark.parametrize(
    ("arguments", "writes"),
    [
        (["os.O_RDONLY"], False),
        (["os.O_WRONLY"], True),
        (["os.O_RDWR"], True),
        (["os.O_WRONLY | os.O_APPEND"], True),
        (["os.O_RDWR", "(mmap.MAP_SHARED,)"], True),
        (["os.O_RDONLY", "(mmap.MAP_SHARED, mmap.PROT_READ)"], False),
        (["os.O_RDONLY", "(mmap.MAP_PRIVATE,)"], False),
    ],
)
def test_by_inode_whatever_the_name(image, tmp_path, arguments, writes):
    other = tmp_path / "hard link"
    os.link(image, other)
    with another(other, *arguments) as child, open(image):  # our own does not count
        with open(f"/proc/{child.pid}/comm") as file:
            command = file.read().strip()
        assert found(image) == [holders.Holder(child.pid, command, writes)]
        with open(image) as ours:
            names = [f"{command} ({child.pid})"]
            assert holders.users_seen(ours.fileno()) == names
            assert holders.writers_seen(ours.fileno()) == (names if writes else [])
    assert found(image) == []


def test_one_that_has_it_open_twice(image):
    code = "import os, sys; a = os.open(sys.argv[1], 0); b = os.open(sys.argv[1], 1); print(flush=True); input()"  # noqa: E501
    with subprocess.Popen(
        [sys.executable, "-c", code, image], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        (holder,) = found(image)
        assert holder.writes
        child.kill()


def test_our_own(image):
    key = holders.file_key(image.stat())
    with open(image):
        assert not holders.has_open(key)
    with open(image, "r+b"):
        assert holders.has_open(key)


def test_nothing_is_scanned_for_nothing():
    assert holders.find_holders(set(), proc="/nowhere") == {}
    assert holders.find_holders({(1, 2)}, proc="/nowhere") == {}


def test_the_scan_is_bounded(monkeypatch):
    monkeypatch.setattr(holders, "MAX_SCAN_SECONDS", -1)
    monkeypatch.setattr(holders, "_open_files", None)
    assert holders.find_holders({(1, 2)}) == {}


def test_who_writes_is_searched_to_the_end(image, monkeypatch):
    """Whoever is not found because time is up would be written over."""
    monkeypatch.setattr(holders, "MAX_SCAN_SECONDS", -1)
    with another(image, "os.O_RDWR"), open(image) as ours:
        assert holders.writers_seen(ours.fileno())


def test_a_block_device_by_its_number():
    """libvirt's QEMUs have nodes of their own for it."""

    def status(**more):
        given = {"st_mode": 0o060600, "st_dev": 5, "st_ino": 9, "st_rdev": 1793, **more}
        return type("Status", (), given)()

    assert holders.file_key(status()) == holders.file_key(status(st_dev=77, st_ino=3))
    assert holders.file_key(status()) != holders.file_key(status(st_rdev=1794))
    assert holders.file_key(status(st_mode=0o100600)) == (5, 9)


# Loop devices: the kernel's answers are given, the devices are not there


@pytest.fixture
def loops(tmp_path, monkeypatch):
    """Loop devices with what the kernel says of each: device, inode, number of a device, flags."""
    answers: dict[str, tuple[int, int, int, int]] = {}

    def ioctl(fd, _request, _empty):
        answer = answers[os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))]
        return struct.pack("=QQQQQIIII168x", *answer[:3], 0, 0, 0, 0, 0, answer[3])

    def add(name, *answer):
        (tmp_path / "sys" / name / "loop").mkdir(parents=True)
        (tmp_path / name).touch()
        answers[name] = answer

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    (tmp_path / "sys" / "loop9").mkdir(parents=True)  # nothing is attached
    return add


def test_loop_devices_by_inode(tmp_path, loops):
    loops("loop0", 5, 9, 0, 0)
    loops("loop1", 5, 8, 0, 0)
    loops("loop2", 5, 9, 0, 1)  # read-only
    loops("loop3", 6, 9, 1793, 0)
    loops("loop4", 5, 9, 0, 12)
    (tmp_path / "loop4").unlink()

    def of(key):
        names = holders.loop_devices_of(key, sysfs=tmp_path / "sys", dev=tmp_path)
        return [os.path.basename(name) for name in names]

    assert of((5, 9)) == ["loop0"]
    assert of((1793, -1)) == ["loop3"]
    assert of((6, 9)) == []
