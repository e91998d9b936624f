# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""method=trim: virt-sparsify frees deleted files that are not zeros, of Linux and of Windows."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest
from compact_lab import answer, start_module, users_of, wait_for
from image_lab import run
from lab.appliance import appliance
from lab.cache import CACHE
from support import assert_explains, run_module

pytestmark = pytest.mark.slow("libguestfs boots its appliance, without KVM")

MIB = 1 << 20
EXT4_AT, EXT4_MIB = MIB, 512
NTFS_AT, NTFS_MIB = 520 * MIB, 64


@pytest.fixture
def libguestfs(monkeypatch):
    with appliance(CACHE) as env:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        yield


@pytest.fixture
def disk(tmp_path):
    """A raw disk with ext4 and NTFS, a file that is kept in each, and deleted data.

    100 MiB were deleted from ext4; all that is free in NTFS was written once.
    """
    files, path, ntfs = tmp_path / "files", tmp_path / "disk.raw", tmp_path / "ntfs"
    files.mkdir()
    (files / "keep").write_bytes(os.urandom(8 * MIB))
    (files / "waste").write_bytes(os.urandom(100 * MIB))
    ntfs.write_bytes(os.urandom(NTFS_MIB * MIB))
    run("mkntfs", "-q", "-F", "-Q", "-L", "windows", ntfs)
    run("ntfscp", "-q", "-f", ntfs, files / "keep", "keep")
    with open(path, "wb") as file:
        file.seek(NTFS_AT)
        file.write(ntfs.read_bytes())
        file.truncate(NTFS_AT + (NTFS_MIB + 8) * MIB)
    ntfs.unlink()
    table = "".join(
        f"start={at // 512}, size={mib * MIB // 512}, type={kind}\n"
        for at, mib, kind in ((EXT4_AT, EXT4_MIB, "83"), (NTFS_AT, NTFS_MIB, "7"))
    )
    (tmp_path / "table").write_text(f"label: dos\n{table}")
    run("sh", "-c", 'sfdisk -q "$0" <"$1"', path, tmp_path / "table")
    options = f"lazy_itable_init=0,offset={EXT4_AT}"
    run("mke2fs", "-q", "-t", "ext4", "-E", options, "-d", files, path, f"{EXT4_MIB}m")
    run("debugfs", "-w", "-R", "rm waste", f"{path}?offset={EXT4_AT}")
    return path


def blocks(path):
    return os.stat(path).st_blocks * 512


def assert_kept(path, tmp_path):
    """Both file systems are in order and have their file."""
    keep, dumped = (tmp_path / "files" / "keep").read_bytes(), tmp_path / "dumped"
    ext4 = f"{path}?offset={EXT4_AT}"
    run("e2fsck", "-f", "-n", ext4)
    run("debugfs", "-R", f"dump keep {dumped}", ext4)
    assert dumped.read_bytes() == keep
    with open(path, "rb") as file:
        file.seek(NTFS_AT)
        dumped.write_bytes(file.read(NTFS_MIB * MIB))
    run("ntfsfix", "--no-action", dumped)
    run("sh", "-c", 'ntfscat -f "$0" keep >"$0.keep"', dumped)
    assert Path(f"{dumped}.keep").read_bytes() == keep


def compact(path, **arguments):
    given = {"uri": "", "format": "raw", "method": "trim", **arguments}
    return run_module("image_compact", paths=[str(path)], patience=300, **given)


def has_it_open(path):
    """The appliance's QEMU."""
    for pid in users_of(path.parent):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().startswith("qemu-system"):
                return True
    return False


def test_without_consent_nothing_happens(disk):
    before = os.stat(disk)
    assert_explains(compact(disk), "no way back", "accept_no_rollback")
    assert os.stat(disk) == before


@pytest.mark.usefixtures("libguestfs")
def test_deleted_files_come_back(disk, tmp_path):
    # What is zeros is punched first; what is left only who reads the file system knows to be free.
    compact(disk, method="punch", min_reclaim_bytes=0)
    before = blocks(disk)
    assert before >= 170 * MIB
    checked = compact(disk, accept_no_rollback=True, check=True)
    assert not checked["changed"]
    assert "virt-sparsify" in checked["summary"][0]

    given = {"uri": "", "format": "raw", "method": "trim", "accept_no_rollback": True}
    process = start_module("image_compact", paths=[str(disk)], **given)
    wait_for(lambda: has_it_open(disk))
    time.sleep(1)  # it takes its locks; its system takes much longer to come up
    # A domain that starts meanwhile gets no lock, and another run does not begin.
    said = run("sh", "-c", 'qemu-io -f raw -c "write 0 512" "$0" 2>&1', disk, rc=1)
    assert 'Failed to get "write" lock' in said
    assert_explains(compact(disk, method="punch"), f"process {process.pid} (trim, trim)")
    result = answer(process, patience=300)
    assert not result["failed"], result
    assert result["images"][0]["method"] == "trim"
    assert result["freed_bytes"] == before - blocks(disk) >= 145 * MIB
    assert_kept(disk, tmp_path)

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
