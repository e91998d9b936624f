# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The punch probe where the kernel plays tricks; real file systems are in tests/functional."""

from __future__ import annotations

import errno
import os

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage import punch


@pytest.fixture
def sysfs(tmp_path):
    """A disk 8:0 with a partition 8:1, and a device 9:9 without a queue."""
    disk = tmp_path / "devices" / "sda"
    (disk / "queue").mkdir(parents=True)
    (disk / "sda1").mkdir()
    (disk / "sda1" / "partition").write_text("1\n")
    (tmp_path / "dev" / "block").mkdir(parents=True)
    (tmp_path / "dev" / "block" / "8:0").symlink_to("../../devices/sda")
    (tmp_path / "dev" / "block" / "8:1").symlink_to("../../devices/sda/sda1")
    return tmp_path


@pytest.mark.parametrize("minor", [0, 1])
@pytest.mark.parametrize(("text", "limit"), [("2147450880\n", 2147450880), ("0\n", 0), ("x", None)])
def test_discard_limit_of_disk_and_partition(sysfs, minor, text, limit):
    (sysfs / "devices/sda/queue/discard_max_bytes").write_text(text)
    assert punch.discard_max_bytes(os.makedev(8, minor), sysfs=str(sysfs)) == limit


def test_discard_limit_unknown(sysfs):
    assert punch.discard_max_bytes(os.makedev(9, 9), sysfs=str(sysfs)) is None


@pytest.mark.parametrize("path", ["/nowhere", "/etc/passwd", "/dev/null"])
def test_discard_of_what_is_no_block_device(path):
    assert punch.can_discard(path).works is None


def test_without_o_tmpfile_a_name_is_used_and_gone(tmp_path, monkeypatch):
    real_open, names = os.open, []

    def no_tmpfile(path, flags, mode=0o777):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        names.append(path)
        assert flags & os.O_EXCL
        assert mode == 0o600
        return real_open(path, flags, mode)

    monkeypatch.setattr(os, "open", no_tmpfile)
    assert punch.can_punch_holes(str(tmp_path)).works
    assert len(names) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "works"), [(errno.EOPNOTSUPP, False), (errno.EPERM, None), (errno.EIO, None)]
)
def test_what_the_kernel_may_answer(tmp_path, monkeypatch, number, works):
    def refuse(_fd, **_range):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(punch, "punch_hole", refuse)
    assert punch.can_punch_holes(str(tmp_path)).works is works


def test_a_hole_that_frees_nothing_is_no_hole(tmp_path, monkeypatch):
    monkeypatch.setattr(punch, "punch_hole", lambda _fd, **_range: None)
    probe = punch.can_punch_holes(str(tmp_path))
    assert probe.works is False
    assert "freed nothing" in probe.reason


@pytest.mark.parametrize("directory", ["/nowhere", "/proc", "/etc/passwd", "/a\nb"])
def test_where_nothing_can_be_made(directory):
    probe = punch.can_punch_holes(directory)
    assert probe.works is None
    assert "\n" not in probe.reason
