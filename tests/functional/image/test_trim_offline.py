# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""method=trim: virt-sparsify frees deleted files that are not zeros."""

from __future__ import annotations

import os

import pytest
from image_lab import run
from lab.appliance import appliance
from lab.daemon import CACHE
from support import assert_explains, run_module

MIB = 1 << 20


@pytest.fixture
def libguestfs(monkeypatch):
    with appliance(CACHE) as env:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        yield


@pytest.fixture
def disk(tmp_path):
    """A raw disk with ext4, a file that is kept and 100 MiB that were deleted."""
    files = tmp_path / "files"
    files.mkdir()
    (files / "keep").write_bytes(os.urandom(8 * MIB))
    (files / "waste").write_bytes(os.urandom(100 * MIB))
    path = tmp_path / "disk.raw"
    with open(path, "wb") as file:
        file.truncate(512 * MIB)
    run("mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=0", "-d", files, path)
    run("debugfs", "-w", "-R", "rm waste", path)
    return path


def blocks(path):
    return os.stat(path).st_blocks * 512


def kept(path, tmp_path):
    run("debugfs", "-R", f"dump keep {tmp_path}/dumped", path)
    return (tmp_path / "dumped").read_bytes() == (tmp_path / "files" / "keep").read_bytes()


def compact(path, **arguments):
    given = {"uri": "", "format": "raw", "method": "trim", **arguments}
    return run_module("image_compact", paths=[str(path)], patience=300, **given)


def test_without_consent_nothing_happens(disk):
    before = os.stat(disk)
    assert_explains(compact(disk), "no way back", "accept_no_rollback")
    assert os.stat(disk) == before


@pytest.mark.usefixtures("libguestfs")
def test_deleted_files_come_back(disk, tmp_path):
    # What is zeros is punched first; what is left only who reads the file system knows to be free.
    compact(disk, method="punch", min_reclaim_bytes=0)
    before = blocks(disk)
    assert before >= 105 * MIB
    checked = compact(disk, accept_no_rollback=True, check=True)
    assert not checked["changed"]
    assert "virt-sparsify" in checked["summary"][0]

    result = compact(disk, accept_no_rollback=True)
    assert not result["failed"], result
    assert result["images"][0]["method"] == "trim"
    assert result["freed_bytes"] == before - blocks(disk) >= 95 * MIB
    assert kept(disk, tmp_path)
    run("e2fsck", "-f", "-n", disk)

    again = compact(disk, accept_no_rollback=True)
    assert not again["changed"]
    assert [name for name in os.listdir(tmp_path) if "thinvirt" in name] == []


@pytest.mark.usefixtures("libguestfs")
def test_what_has_no_file_system_is_left_as_it_is(tmp_path):
    path = tmp_path / "noise.raw"
    path.write_bytes(os.urandom(16 * MIB))
    before = path.read_bytes()
    result = compact(path, accept_no_rollback=True)
    assert path.read_bytes() == before
    assert not result["changed"]
