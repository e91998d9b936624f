# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Leases of the kernel, on real files: who is found, and who is let in."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
import threading
import time

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import GaveWayError
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage import lease
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.lease import READ, WRITE

#: Another program; it says when it has opened a file, and stays until its input ends.
CHILD = """
import os, sys
print("here", flush=True)
fd = os.open(sys.argv[1], eval(sys.argv[2]))
print("opened", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes(4096))
    return str(path)


@contextlib.contextmanager
def comes(path, flags):
    """Somebody who opens a file, and who may have to wait for that."""
    argv = [sys.executable, "-c", CHILD, path, flags]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"here\n"
        yield child
        child.stdin.close()
        assert child.stdout.readline() in (b"opened\n", b"")  # a test may have read it


@contextlib.contextmanager
def leased(path, kind, mode=os.O_RDONLY):
    fd = os.open(path, mode)
    try:
        with lease.heeded(lease.Lease(fd, path)) as mine:
            assert mine.place(kind)
            yield mine
    finally:
        os.close(fd)


def is_asked(*, seconds=10.0):
    """Wait until we are to give way, as whoever works does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        lease.give_way_if_asked()
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("flags", "writes"), [("os.O_RDONLY", False), ("os.O_WRONLY", True), ("os.O_RDWR", True)]
)
def test_who_has_it(image, flags, writes):
    with open(image) as ours, comes(image, flags) as child:
        child.stdout.readline()
        mine = lease.Lease(ours.fileno(), image)
        assert lease.has_writer(ours.fileno()) is writes
        assert mine.place(READ) is not writes
        assert not mine.place(WRITE)
        assert not mine.missing
    with leased(image, WRITE):
        pass


@pytest.mark.parametrize(("kind", "flags"), [(READ, "os.O_RDWR"), (WRITE, "os.O_RDWR")])
def test_who_comes_is_let_in_and_it_is_said_once(image, kind, flags):
    mode = os.O_RDWR if kind == WRITE else os.O_RDONLY
    what = "its content was not" if kind == WRITE else "nothing was"
    with leased(image, kind, mode) as mine:
        lease.give_way_if_asked()
        with comes(image, flags):
            with pytest.raises(GaveWayError, match=rf"/x meanwhile.*let in first; {what} changed"):
                is_asked()
            assert mine.is_wanted()
            lease.give_way_if_asked()  # what is cleaned up now is not interrupted again
            mine.give_back()


def test_readers_do_not_matter_to_who_reads(image):
    with leased(image, READ) as mine, comes(image, "os.O_RDONLY"):
        is_asked(seconds=0.2)
        assert not mine.is_wanted()


def test_who_only_looks_at_what_is_written(image):
    called = []
    with leased(image, WRITE, os.O_RDWR) as mine:
        mine.pause = lambda: called.append(mine.kind == WRITE)
        mine.resume = lambda: called.append(mine.kind == WRITE)
        with comes(image, "os.O_RDONLY") as child:
            threading.Timer(0.2, child.stdin.close).start()
            is_asked(seconds=1)
        assert mine.kind == WRITE
        assert not mine.is_wanted()
        assert called == [True, True]


def test_who_stays_with_what_is_written(image):
    """QEMU reads at first, and wants to write a moment later."""
    with leased(image, WRITE, os.O_RDWR) as mine, comes(image, "os.O_RDONLY"):
        with pytest.raises(GaveWayError, match="let in first; its content was not changed"):
            is_asked()
        assert mine.kind != WRITE


def test_asking_does_not_end_a_lease_of_ours(image):
    with leased(image, READ) as mine:
        assert lease.has_writer(mine._fd) is False
        with comes(image, "os.O_RDWR"):
            with pytest.raises(GaveWayError):
                is_asked()
            mine.give_back()


def test_other_threads_are_not_told(image):
    told = []

    def ask():
        try:
            is_asked(seconds=0.3)
        except GaveWayError as error:
            told.append(error)

    with leased(image, READ) as mine, comes(image, "os.O_RDWR"):
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        assert told == []
        mine.give_back()


def test_a_lease_that_the_kernel_has_taken_back(image):
    """After lease-break-time."""
    with leased(image, READ) as mine:
        fcntl.fcntl(mine._fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        assert mine.is_wanted()
        with pytest.raises(GaveWayError):
            lease.give_way_if_asked()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EACCES, errno.EPERM, errno.ENOSYS])
def test_a_file_system_without_leases_is_named(image, monkeypatch, number):
    def refuse(*_arguments):
        raise OSError(number, os.strerror(number))

    with open(image) as file:
        kind = lease.mount_of_fd(file.fileno()).type
        monkeypatch.setattr(fcntl, "fcntl", refuse)
        mine = lease.Lease(file.fileno(), image)
        assert mine.place(READ)
        assert mine.missing == f"its file system ({kind}) has no leases"
        assert not mine.is_wanted()
        assert lease.has_writer(file.fileno()) is None
        mine.give_back()


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
def test_what_a_lease_says_of_other_machines_counts_for_nothing(image, monkeypatch, kind):
    monkeypatch.setattr(lease, "mount_of_fd", lambda _fd: type("Mount", (), {"type": kind}))
    with open(image) as file:
        mine = lease.Lease(file.fileno(), image)
        assert mine.place(READ)
        assert kind in mine.missing
        assert fcntl.fcntl(file, fcntl.F_GETLEASE) == fcntl.F_UNLCK
        with open(image, "r+b"):
            assert mine.place(READ)
            assert lease.has_writer(file.fileno()) is None
