# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a new file takes over from an old one, and what it must not."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import attributes

ACL, DEFAULT_ACL = "system.posix_acl_access", "system.posix_acl_default"
NOBODY = 0xFFFFFFFF
OWNER, USER, GROUP, MASK, OTHER = 1, 2, 4, 16, 32
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root")


def acl(*entries: tuple[int, int, int]) -> bytes:
    """linux/posix_acl_xattr.h: version 2, then tag, permissions and id of each entry."""
    return struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, rights, who) for tag, rights, who in entries
    )


LETS_1234_READ = acl(
    (OWNER, 6, NOBODY), (USER, 4, 1234), (GROUP, 0, NOBODY), (MASK, 4, NOBODY), (OTHER, 0, NOBODY)
)
LETS_1234_IN = acl(
    (OWNER, 7, NOBODY), (USER, 7, 1234), (GROUP, 5, NOBODY), (MASK, 7, NOBODY), (OTHER, 0, NOBODY)
)


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "old"
    path.touch(0o600)
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.fixture
def new(tmp_path, old):
    """Called when the folder is ready: a new file like the old one."""
    opened = []

    def new() -> int:
        opened.append(attributes.new_file_like(old, str(tmp_path / "new")))
        return opened[-1]

    yield new
    for fd in opened:
        os.close(fd)


def test_a_new_file_is_ours_alone(new):
    fd = new()
    status = os.fstat(fd)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert (status.st_uid, status.st_size) == (os.geteuid(), 0)
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
    assert not os.get_inheritable(fd)


@pytest.mark.parametrize("kind", ["file", "symlink", "dangling symlink"])
def test_a_name_that_is_taken(tmp_path, new, kind):
    (tmp_path / "victim").write_text("content")
    if kind == "file":
        (tmp_path / "new").write_text("content")
    else:
        os.symlink("victim" if kind == "symlink" else "nothing", tmp_path / "new")
    with pytest.raises(FileExistsError):
        new()
    assert (tmp_path / "victim").read_text() == "content"
    assert not (tmp_path / "nothing").exists()


@as_root
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o666, 0o4750])
@pytest.mark.parametrize("owner", [(1234, 5678), (os.geteuid(), 5678)])
def test_owner_and_mode(old, new, owner, mode):
    os.fchown(old, *owner)
    os.fchmod(old, mode)
    fd = new()
    attributes.copy_attributes(old, fd)
    status = os.fstat(fd)
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (*owner, mode)


def test_acl(old, new):
    os.setxattr(old, ACL, LETS_1234_READ)
    fd = new()
    attributes.copy_attributes(old, fd)
    assert os.getxattr(fd, ACL) == LETS_1234_READ
    assert os.fstat(fd).st_mode == os.fstat(old).st_mode


def test_an_acl_of_the_folder_lets_nobody_in_whom_the_image_kept_out(tmp_path, old, new):
    os.fchmod(old, 0o640)
    os.setxattr(tmp_path, DEFAULT_ACL, LETS_1234_IN)
    fd = new()
    assert ACL in os.listxattr(fd)
    attributes.copy_attributes(old, fd)
    assert ACL not in os.listxattr(fd)
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o640


def test_attributes_of_the_users_own_are_kept(old, new):
    os.setxattr(old, "user.backup", b"\0binary\xff")
    fd = new()
    attributes.copy_attributes(old, fd)
    assert os.getxattr(fd, "user.backup") == b"\0binary\xff"


@as_root
def test_what_libvirt_remembers_is_not_taken_along(old, new):
    """A stale count of users keeps the domain from starting."""
    for name in ("trusted.libvirt.security.ref_dac", "trusted.libvirt.security.dac"):
        os.setxattr(old, name, b"1")
    fd = new()
    attributes.copy_attributes(old, fd)
    assert [name for name in os.listxattr(fd) if name.startswith("trusted.")] == []


@as_root
def test_label(old, new):
    try:
        os.setxattr(old, "security.selinux", b"system_u:object_r:svirt_image_t:s0\0")
    except OSError:
        pytest.skip("this kernel takes no such label")
    fd = new()
    attributes.copy_attributes(old, fd)
    assert os.getxattr(fd, "security.selinux") == b"system_u:object_r:svirt_image_t:s0\0"


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EPERM])
def test_a_file_system_that_knows_no_attributes(old, new, monkeypatch, number):
    """Then there is nothing to lose; what is forbidden is an error."""
    os.setxattr(old, "user.backup", b"1")
    fd = new()

    def refuse(*_arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "setxattr", refuse)
    if number == errno.EPERM:
        with pytest.raises(PermissionError):
            attributes.copy_attributes(old, fd)
    else:
        attributes.copy_attributes(old, fd)


def test_no_copy_on_write_is_told_to_the_empty_file(old, new, monkeypatch):
    """As chattr +C; the kernel's flags are an int."""
    asked = []
    nocow = 0x00800000

    def ioctl(fd, request, argument):
        if request == 0x80086601:
            assert len(argument) == 8
            return struct.pack("@i4x", nocow if fd == old else 0x80000)
        asked.append((os.fstat(fd).st_size, request, struct.unpack("@i4x", argument)[0]))
        return argument

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    new()
    assert asked == [(0, 0x40086602, nocow | 0x80000)]


@pytest.mark.parametrize("number", [errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_flags(new, monkeypatch, number):
    def refuse(*_arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    new()
