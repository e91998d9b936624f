# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks, taken by another open file of this process."""

from __future__ import annotations

import fcntl
import os
import struct

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import locks

FLOCK = struct.Struct("@hhqqi0q")


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(b"x")
    return path


@pytest.fixture
def lock(image):
    """Lock bytes as QEMU does: a shared lock on each, bound to an open file."""
    fd = os.open(image, os.O_RDWR)

    def lock(*numbers: int) -> None:
        for number in numbers:
            request = FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, number, 1, 0)
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, request)

    yield lock
    os.close(fd)


def probe(path) -> locks.LockState:
    fd = os.open(path, os.O_RDONLY)
    try:
        return locks.probe_locks(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("numbers", "used", "unshared", "writer"),
    [
        ((), set(), set(), False),
        ((100,), {"consistent-read"}, set(), False),
        ((100, 201, 203), {"consistent-read"}, {"write", "resize"}, False),
        ((100, 101), {"consistent-read", "write"}, set(), True),
        ((103,), {"resize"}, set(), True),
        ((102,), {"write-unchanged"}, set(), False),
        ((201,), set(), {"write"}, False),
        ((99, 105, 199, 205), set(), set(), False),
    ],
)
def test_what_the_bytes_mean(image, lock, numbers, *, used, unshared, writer):
    lock(*numbers)
    state = probe(image)
    assert (state.used, state.unshared) == (used, unshared)
    assert state.in_use is bool(used or unshared)
    assert state.writer is writer
    assert state.known


def test_asking_takes_no_lock(image):
    probing = os.open(image, os.O_RDONLY)
    try:
        locks.probe_locks(probing)
        assert not probe(image).in_use
    finally:
        os.close(probing)


def test_a_file_without_such_locks_is_unknown(monkeypatch):
    def refuse(*_arguments):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    state = locks.probe_locks(0)
    assert not state.known
    assert not state.in_use
