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
    """Another open file of the same image, that locks as QEMU does."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR)

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
        os.close(os.open(image, os.O_RDWR))
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


@pytest.mark.parametrize(
    ("flags", "refused"),
    [
        ("os.O_RDONLY", False),
        ("os.O_WRONLY", True),
        ("os.O_RDWR", True),
        ("os.O_WRONLY | os.O_APPEND", True),
    ],
)
def test_programs_that_know_no_locks(image, fd, flags, refused):
    with another(image, flags) as child:
        status = os.stat(image)
        key = (status.st_dev, status.st_ino)
        (holder,) = locks.find_holders([key])[key]
        assert (holder.pid, holder.writes) == (child.pid, refused)
        if refused:
            with pytest.raises(RefusedError, match=rf"in use by .* \({child.pid}\); nothing"):
                locks.refuse_other_writers(fd, image)
        else:
            locks.refuse_other_writers(fd, image)


def test_one_that_has_it_open_twice(image):
    code = "import os, sys; a = os.open(sys.argv[1], 0); b = os.open(sys.argv[1], 1); print(flush=True); input()"  # noqa: E501
    with subprocess.Popen(
        [sys.executable, "-c", code, image], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        status = os.stat(image)
        key = (status.st_dev, status.st_ino)
        (holder,) = locks.find_holders([key])[key]
        assert holder.writes
        child.kill()


def test_a_busy_host_is_searched_to_the_end(image, fd, monkeypatch):
    """Whoever is not found because time is up would be written over."""
    monkeypatch.setattr(locks, "MAX_SCAN_SECONDS", -1)
    with another(image, "os.O_RDWR"), pytest.raises(RefusedError, match="is in use"):
        locks.refuse_other_writers(fd, image)


def test_what_a_loop_device_has_no_process_holds(image, fd, monkeypatch):
    monkeypatch.setattr(locks, "loop_devices_of", lambda _key: ["/dev/loop7"])
    with pytest.raises(RefusedError, match="attached to /dev/loop7; nothing was changed"):
        locks.refuse_other_writers(fd, image)


@pytest.fixture
def sysfs(tmp_path):
    """Three loop devices, of which one has lost its file."""
    for number, backing in enumerate(["image\n", "other\n", "gone (deleted)\n"]):
        folder = tmp_path / "sys" / f"loop{number}" / "loop"
        folder.mkdir(parents=True)
        (folder / "backing_file").write_text(f"{tmp_path}/{backing}")
    (tmp_path / "sys" / "loop9").mkdir()
    (tmp_path / "image").touch()
    (tmp_path / "other").touch()
    return str(tmp_path / "sys")


def test_loop_devices(tmp_path, sysfs):
    def loops(name):
        status = os.stat(tmp_path / name)
        return locks.loop_devices_of((status.st_dev, status.st_ino), sysfs=sysfs)

    assert loops("image") == ["/dev/loop0"]
    assert loops("other") == ["/dev/loop1"]
    assert loops("sys") == []


def test_loop_devices_by_another_name(tmp_path, sysfs):
    os.link(tmp_path / "image", tmp_path / "link")
    os.rename(tmp_path / "link", tmp_path / "other")
    status = os.stat(tmp_path / "image")
    found = locks.loop_devices_of((status.st_dev, status.st_ino), sysfs=sysfs)
    assert found == ["/dev/loop0", "/dev/loop1"]
