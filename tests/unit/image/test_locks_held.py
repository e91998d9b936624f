# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writers are kept out, and those that no lock keeps out are found; tried on real files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import subprocess
import sys

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import locks

FLOCK = struct.Struct("@hhqqi0q")
#: Another program; it opens a file as its argument says, and keeps it so until its input ends.
CHILD = """
import fcntl, os, sys
fd = os.open(sys.argv[1], eval(sys.argv[2]))
if len(sys.argv) > 3:
    fcntl.lockf(fd, fcntl.LOCK_EX)
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes(512))
    return str(path)


@pytest.fixture
def fd(image):
    """Open for reading, as the collection opens images."""
    fd = os.open(image, os.O_RDONLY)
    yield fd
    os.close(fd)


@contextlib.contextmanager
def another(path, flags, *more):
    argv = [sys.executable, "-c", CHILD, path, flags, *more]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        yield child
        child.stdin.close()


class Opened:
    """Another open file of the same image, read-only, that locks as QEMU does."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY)

    def lock(self, *numbers: int, kind: int = fcntl.F_RDLCK) -> None:
        for number in numbers:
            request = FLOCK.pack(kind, os.SEEK_SET, number, 1, 0)
            fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, request)

    def sees(self) -> set[int]:
        """The bytes that others have locked."""
        found = set()
        for number in range(90, 220):
            question = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, number, 1, 0)
            answer = fcntl.fcntl(self.fd, fcntl.F_OFD_GETLK, question)
            if FLOCK.unpack(answer)[0] != fcntl.F_UNLCK:
                found.add(number)
        return found


@pytest.fixture
def other(image):
    other = Opened(image)
    yield other
    os.close(other.fd)


def test_it_does_not_share_writing_and_resizing(image, fd, other):
    with locks.writers_kept_out(fd, image):
        assert other.sees() == {201, 203}
    assert other.sees() == set()


@pytest.mark.parametrize("number", [101, 103])
def test_a_writer_is_refused(image, fd, other, number):
    other.lock(number)
    with pytest.raises(RefusedError, match=r"/x is in use.*Shut the domain down"):  # noqa: SIM117
        with locks.writers_kept_out(fd, image):
            raise AssertionError
    assert other.sees() == set()


@pytest.mark.parametrize("number", [100, 102, 104, 200, 201, 203])
def test_who_only_reads_is_not(image, fd, other, number):
    other.lock(number)
    with locks.writers_kept_out(fd, image):
        assert {201, 203} - {number} <= other.sees()


def test_the_lock_is_taken_before_it_is_asked_who_writes(image, fd, other, monkeypatch):
    """A domain that starts in between sees our lock, or we see its one; never neither."""
    seen = []
    real = locks._is_locked

    def is_locked(fd, byte):
        seen.append((byte, other.sees()))
        return real(fd, byte)

    monkeypatch.setattr(locks, "_is_locked", is_locked)
    with locks.writers_kept_out(fd, image):
        pass
    assert seen == [(101, {201, 203}), (103, {201, 203})]


def test_a_child_that_inherits_the_file_does_not_end_the_lock(image, fd, other):
    with locks.writers_kept_out(fd, image):
        subprocess.run(["true"], pass_fds=(fd,), check=True)
        os.close(os.open(image, os.O_RDONLY))
        assert other.sees() == {201, 203}


def test_another_program_that_has_locked_all_of_it(image, fd):
    with (
        another(image, "os.O_RDWR", "lock") as child,
        pytest.raises(RefusedError, match=rf"is in use by .* \({child.pid}\)"),
        locks.writers_kept_out(fd, image),
    ):
        raise AssertionError


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_such_locks(image, fd, monkeypatch, number):
    def refuse(*_arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    says = r"no locks that QEMU heeds.*nothing was changed.*local file system"
    with pytest.raises(RefusedError, match=says), locks.writers_kept_out(fd, image):
        raise AssertionError


@pytest.mark.parametrize(
    ("numbers", "writer", "reader"),
    [
        ((), False, False),
        ((100, 201, 203), False, True),
        ((100, 101), True, True),
        ((103,), True, True),
        ((201, 203), False, False),
    ],
)
def test_refusals_by_lock(image, fd, other, numbers, *, writer, reader):
    other.lock(*numbers)
    for refuse, expected in ((locks.refuse_writer, writer), (locks.refuse_reader, reader)):
        if expected:
            with pytest.raises(RefusedError, match="is in use"):
                refuse(fd, image)
        else:
            refuse(fd, image)
    assert other.sees() == set()
