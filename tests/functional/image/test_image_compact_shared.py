# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Freed is what the host has: images that share blocks with others, and originals that are kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from compact_lab import (
    MIB,
    allocated,
    assert_same,
    compact,
    entry_of,
    image,
    leftovers,
    raw_image,
    refused,
    sha256,
    with_dead_clusters,
)
from image_lab import info_of, run


@pytest.fixture(scope="module", params=["xfs", "btrfs"])
def shares(request, tmp_path_factory):
    """A file system whose files can share blocks."""
    make = f"mkfs.{request.param}"
    if shutil.which(make) is None:
        pytest.skip(f"{make} is not installed")
    folder = tmp_path_factory.mktemp("shares")
    disk, point = folder / "disk", folder / "mnt"
    point.mkdir()
    with open(disk, "wb") as file:
        file.truncate(1024 * MIB)
    run(make, "-q", disk)
    run("mount", "-o", "loop", disk, point)
    yield point
    run("umount", point)


@pytest.fixture
def point(shares, tmp_path):
    folder = shares / tmp_path.name
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def free(folder: Path) -> int:
    """By df, once all is on the disk."""
    run("sync", "-f", folder)
    return int(run("df", "-B1", "--output=avail", folder).split()[1])


def clone(path: Path, name: str) -> Path:
    run("cp", "--reflink=always", path, path.parent / name)
    return path.parent / name


#: What a file system changes for its own tables.
SLACK = 4 * MIB


def host_gains(folder: Path, path: Path, **parameters) -> dict:
    """Compact; what is told as freed is what the file system has."""
    before = free(folder)
    entry = entry_of(path, **parameters)
    gained = free(folder) - before
    assert abs(entry["freed_bytes"] - gained) <= SLACK, (entry, gained)
    return entry


@pytest.mark.parametrize("method", ["punch", "auto"])
def test_zeros_that_others_have_too_do_not_count(point, method):
    path = raw_image(point / "a.raw", data_mib=8, zeros_mib=32)
    clone(path, "b.raw")
    checksum = sha256(path)
    for check in (True, False):
        entry = host_gains(point, path, method=method, check=check)
        assert (entry["method"], entry["freed_bytes"]) == ("none", 0)
        assert "0 bytes are zeros" in entry["reason"]
        assert f"It shares {40 * MIB} bytes with other files, which do not count" in entry["reason"]
        assert entry["before"]["shared_bytes"] == 40 * MIB
    assert sha256(path) == checksum


def test_zeros_of_its_own_are_freed_and_the_others_stay_shared(point):
    path = raw_image(point / "a.raw", data_mib=8, zeros_mib=16)
    other = clone(path, "b.raw")
    with open(path, "ab") as file:
        file.write(bytes(24 * MIB))
    run("sync", "-f", point)
    with open(path, "ab") as file:  # an extent of its own: btrfs frees none but whole ones
        file.write(b"x")
    both = sha256(path), sha256(other)
    predicted = entry_of(path, method="punch", check=True)
    entry = host_gains(point, path, method="punch")
    assert entry["method"] == "punch"
    assert entry["freed_bytes"] >= 23 * MIB
    assert abs(predicted["freed_bytes"] - entry["freed_bytes"]) <= MIB
    assert entry["after"]["shared_bytes"] == 24 * MIB
    assert (sha256(path), sha256(other)) == both


def test_once_the_other_is_gone_they_count(point):
    path = raw_image(point / "a.raw", data_mib=0, zeros_mib=32)
    clone(path, "b.raw").unlink()
    run("sync", "-f", point)
    assert host_gains(point, path, method="punch")["freed_bytes"] >= 31 * MIB


def test_what_the_file_system_does_not_give_back_is_not_told_as_freed(point):
    """btrfs keeps the whole of an extent that is in use in part; xfs frees what is not."""
    path = raw_image(point / "a.raw", data_mib=8, zeros_mib=32)
    host_gains(point, path, method="punch")


def test_a_rewrite_is_refused_with_what_it_would_cost(point):
    path = image(point / "a.qcow2", data_mib=16, zeros_mib=24)
    clone(path, "b.qcow2")
    says = "bytes with other files (reflinks or snapshots), which would not come back; a copy may"
    refused(path, says, "accept_unsharing=true, or use method=punch", method="rewrite")
    entry = entry_of(path, compression="zlib")
    assert not entry["changed"]
    assert "A rewrite was refused" in entry["reason"]


def test_a_rewrite_with_consent_says_that_the_host_is_fuller(point):
    path = image(point / "a.qcow2", data_mib=16, zeros_mib=24)
    clone(path, "b.qcow2")
    wish = {"method": "rewrite", "accept_unsharing": True}
    predicted = entry_of(path, check=True, **wish)
    entry = host_gains(point, path, **wish)
    assert entry["method"] == "rewrite"
    assert -18 * MIB < entry["freed_bytes"] < -14 * MIB
    assert abs(predicted["freed_bytes"] - entry["freed_bytes"]) <= MIB
    assert entry["reclaimable_bytes"] == 0
    assert entry["free_after_bytes"] - entry["free_before_bytes"] < 0
    assert_same(path, point / "b.qcow2")
    assert leftovers(point) == []


def test_an_estimate_does_not_promise_what_others_have_too(point):
    path = with_dead_clusters(point / "a.qcow2")
    run("sync", "-f", point)
    assert info_of(path)["reclaimable_bytes"] >= 20 * MIB
    clone(path, "b")
    run("sync", "-f", point)
    assert info_of(path)["reclaimable_bytes"] is None


def test_an_original_that_is_kept_is_counted(tmp_path):
    path = image(tmp_path / "x.qcow2", data_mib=16, zeros_mib=24)
    for check in (True, False):
        result = compact(path, method="rewrite", keep_original=True, check=check)
        (entry,) = result["images"]
        assert -17 * MIB < entry["freed_bytes"] == result["freed_bytes"] < -15 * MIB
        assert entry["kept"] == f"{path}.thinvirt-original"
        more = "more to be taken" if check else "more taken"
        assert ": rewrite, 16." in result["summary"][0]
        assert f"MiB {more}. " in result["summary"][0]
    assert allocated(path) == -entry["freed_bytes"]


@pytest.mark.parametrize("method", ["punch", "rewrite"])
def test_the_file_system_is_the_second_witness(point, method):
    path = image(point / "x.qcow2", data_mib=1, zeros_mib=120)
    run("sync", "-f", point)
    predicted = entry_of(path, method=method, check=True)
    assert (predicted["free_before_bytes"], predicted["free_after_bytes"]) == (None, None)
    entry = entry_of(path, method=method)
    gained = entry["free_after_bytes"] - entry["free_before_bytes"]
    assert abs(gained - entry["freed_bytes"]) <= SLACK
    assert gained > 100 * MIB


def test_what_is_left_as_it_is_has_not_been_estimated_as_nothing(tmp_path):
    """What was not looked for is not known."""
    path = raw_image(tmp_path / "x.raw", data_mib=8, zeros_mib=0)
    run("fallocate", "-l", 8 * MIB, path)
    entry = entry_of(path, method="rewrite", preallocation="falloc")
    assert "is preallocated" in entry["reason"]
    assert entry["reclaimable_bytes"] is None
