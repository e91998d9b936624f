# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""image_compact: zeros become holes in place, auto's choice, when it is worth it, check mode."""

from __future__ import annotations

import os
import shutil

import pytest
from compact_lab import (
    MIB,
    allocated,
    assert_same,
    compact,
    entry_of,
    forget,
    image,
    info,
    leftovers,
    raw_image,
    sha256,
    state,
    with_dead_clusters,
)
from image_lab import create, qemu_io, run


def punched(path, **parameters) -> dict:
    """Punch, in check mode first; the file is the same byte by byte, and a second run is idle."""
    before, checksum = allocated(path), sha256(path)
    all_before = state(path.parent)
    predicted = entry_of(path, method="punch", check=True, **parameters)
    assert state(path.parent) == all_before
    entry = entry_of(path, method="punch", **parameters)
    assert sha256(path) == checksum
    assert entry["method"] == predicted["method"] == "punch"
    assert entry["reason"] == predicted["reason"]
    assert entry["before"] == predicted["before"]
    assert entry["before"]["allocated_bytes"] == before
    assert entry["after"]["allocated_bytes"] == allocated(path)
    assert entry["freed_bytes"] == before - allocated(path)
    # What the file system needs for itself, to find the pieces, is not foreseen.
    assert abs(entry["freed_bytes"] - predicted["freed_bytes"]) < 64 * 1024
    assert (entry["compared"], entry["kept"], entry["recovered"]) == (False, "", "")
    again = entry_of(path, method="punch", **parameters)
    assert (again["changed"], again["method"], again["freed_bytes"]) == (False, "none", 0)
    assert again["before"] == again["after"] == entry["after"]
    assert leftovers(path.parent) == []
    return entry


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compat": "0.10"},
        {"extended_l2": "on"},
        {"cluster_size": "512"},
        {"cluster_size": "2M"},
    ],
    ids=str,
)
def test_punch_qcow2(tmp_path, options):
    path = image(tmp_path / "x.qcow2", **options)
    shutil.copy(path, tmp_path / "pristine")
    entry = punched(path)
    assert entry["freed_bytes"] >= 20 * MIB  # small clusters need many tables in between
    assert_same(path, tmp_path / "pristine")


@pytest.mark.parametrize("tail", [0, 4096, 1000, 1])
def test_punch_raw(tmp_path, tail):
    path = raw_image(tmp_path / "x.raw", tail=tail)
    assert abs(punched(path)["freed_bytes"] - 24 * MIB) <= 8192


def test_punch_a_raw_image_that_is_all_zeros_to_its_odd_end(tmp_path):
    path = raw_image(tmp_path / "x.raw", data_mib=0, zeros_mib=24)
    with open(path, "ab") as file:
        file.write(bytes(1000))
    punched(path, min_reclaim_bytes=0)
    assert allocated(path) <= 4096
    assert path.stat().st_size == 24 * MIB + 1000


def test_punch_leaves_snapshots_bitmaps_chain_and_features_alone(tmp_path):
    image(tmp_path / "base.qcow2", zeros_mib=0)
    path = tmp_path / "x.qcow2"
    create(path, "128M", backing="base.qcow2", extended_l2="on", lazy_refcounts="on")
    qemu_io(path, "write -P 7 0 4M", "write -P 0 4M 16M", "write -z 20M 1M", "discard 30M 1M")
    run("qemu-img", "snapshot", "-c", "before", path)
    run("qemu-img", "bitmap", "--add", "-g", "128k", path, "b0")
    qemu_io(path, "write -P 0 0 4M", "write -P 9 24M 1M")
    before = info(path)
    assert before["snapshots"]
    assert before["format-specific"]["data"]["bitmaps"]
    entry = punched(path)
    assert entry["freed_bytes"] >= 20 * MIB
    assert info(path) == before
    run("qemu-img", "check", "-q", path)
    # The zeros of an overlay still hide what lies below, and the snapshot has its data.
    read = ("qemu-io", "-r", "-f", "qcow2", path, "-c")
    assert "failed" not in run(*read, "read -P 0 0 4M")
    run("qemu-img", "bitmap", "--remove", path, "b0")
    run("qemu-img", "snapshot", "-a", "before", path)
    assert "failed" not in run(*read, "read -P 7 0 4M")


@pytest.mark.parametrize("method", ["punch", "auto"])
def test_an_image_that_was_punched_by_its_symlink(tmp_path, method):
    path = image(tmp_path / "x.qcow2")
    os.symlink("x.qcow2", tmp_path / "link")
    entry = entry_of(tmp_path / "link", method=method)
    assert entry["method"] == "punch"
    assert (tmp_path / "link").is_symlink()
    assert allocated(path) < 17 * MIB


def test_an_image_that_others_read_is_punched(tmp_path):
    path = image(tmp_path / "x.qcow2")
    with open(path, "rb") as reader:
        before = reader.read()
        punched(path)
        reader.seek(0)
        assert reader.read() == before


def test_consent_to_make_a_preallocated_raw_image_thin(tmp_path):
    path = tmp_path / "x.raw"
    run("fallocate", "-l", 32 * MIB, path)
    run("dd", "if=/dev/urandom", f"of={path}", "bs=1M", "count=4", "conv=notrunc,fsync")
    assert punched(path, preallocation="off")["freed_bytes"] == 28 * MIB
    assert not entry_of(path)["changed"]


def test_a_preallocated_image_that_was_filled_just_now(tmp_path):
    """The file system calls its blocks unwritten until they are on the disk."""
    path = tmp_path / "x.raw"
    run("fallocate", "-l", 32 * MIB, path)
    with open(path, "r+b") as file:
        file.write(os.urandom(32 * MIB))
    assert not entry_of(path)["changed"]


def test_clusters_that_a_guest_has_written_to_only_in_part(tmp_path):
    """QEMU allocates the whole cluster: that looks like a preallocated one, and is not."""
    path = tmp_path / "x.qcow2"
    create(path, "1G")
    qemu_io(path, *(f"write -P 7 {number * 64}k 4k" for number in range(200)))
    shutil.copy(path, tmp_path / "pristine")
    before = allocated(path)
    assert before > 12 * MIB
    assert punched(path)["freed_bytes"] > 0.9 * before
    assert_same(path, tmp_path / "pristine")


@pytest.mark.parametrize("method", ["auto", "rewrite"])
def test_consent_to_make_preallocated_images_thin(tmp_path, method):
    path = image(tmp_path / "x.qcow2", zeros_mib=0, preallocation="falloc")
    shutil.copy(path, tmp_path / "pristine")
    entry = entry_of(path, method=method, preallocation="off")
    assert entry["freed_bytes"] > 100 * MIB
    assert_same(path, tmp_path / "pristine")
    assert not entry_of(path, method=method, preallocation="off")["changed"]


# When it is worth it: 24 of 40 MiB are zeros


@pytest.mark.parametrize(
    ("least", "percent", "worth"),
    [
        (24 * MIB, 100, True),
        (25 * MIB, 100, False),
        (1 << 40, 60, True),
        (1 << 40, 61, False),
        (25 * MIB, 61, False),
        (24 * MIB, 61, True),
        (0, 100, True),
        (1 << 40, 0, True),
    ],
)
@pytest.mark.parametrize("method", ["punch", "auto"])
def test_below_both_thresholds_nothing_is_done(tmp_path, method, least, percent, worth):
    path = raw_image(tmp_path / "x.raw")
    before = state(tmp_path)
    entry = entry_of(path, method=method, min_reclaim_bytes=least, min_reclaim_percent=percent)
    assert entry["changed"] is worth
    assert entry["reclaimable_bytes"] == 24 * MIB
    if not worth:
        enough = min(least, -(-40 * MIB * percent // 100))
        assert state(tmp_path) == before
        assert str(24 * MIB) in entry["reason"]
        assert str(enough) in entry["reason"]


def test_what_a_rewrite_would_save_is_told_too(tmp_path):
    path = image(tmp_path / "x.qcow2")
    before = state(tmp_path)
    entry = entry_of(path, method="rewrite", min_reclaim_percent=99)
    assert not entry["changed"]
    assert abs(entry["reclaimable_bytes"] - 24 * MIB) < MIB
    assert f"A rewrite would save {entry['reclaimable_bytes']} bytes at most" in entry["reason"]
    assert state(tmp_path) == before


# auto


def test_auto_punches_where_zeros_are_worth_it(tmp_path):
    path = with_dead_clusters(tmp_path / "x.qcow2", zeros_mib=16)
    entry = entry_of(path)
    assert entry["method"] == "punch"
    assert entry["reason"].endswith("were zeros: no copy is needed to give them back.")


def test_auto_rewrites_where_clusters_are_of_no_use(tmp_path):
    path = with_dead_clusters(tmp_path / "x.qcow2")
    shutil.copy(path, tmp_path / "pristine")
    predicted = entry_of(path, check=True)
    entry = entry_of(path)
    assert entry["method"] == predicted["method"] == "rewrite"
    assert entry["reason"] == predicted["reason"]
    assert "clusters of no use" in entry["reason"]
    assert entry["compared"]
    assert abs(entry["freed_bytes"] - 24 * MIB) < MIB
    assert abs(entry["freed_bytes"] - predicted["freed_bytes"]) < MIB
    assert_same(path, tmp_path / "pristine")
    assert not entry_of(path)["changed"]


def test_auto_does_nothing_where_nothing_is_to_be_had(tmp_path):
    path = image(tmp_path / "x.qcow2", zeros_mib=0)
    before = state(tmp_path)
    entry = entry_of(path)
    assert (entry["changed"], entry["method"]) == (False, "none")
    assert "less than the" in entry["reason"]
    assert state(tmp_path) == before


def test_auto_leaves_alone_what_it_may_not_rewrite_and_says_why(tmp_path):
    path = image(tmp_path / "x.qcow2", zeros_mib=0)
    run("qemu-img", "snapshot", "-c", "s", path)
    entry = entry_of(path)
    assert not entry["changed"]
    assert "bytes are zeros, less than the" in entry["reason"]
    assert "A rewrite was refused" in entry["reason"]
    assert "1 internal snapshots" in entry["reason"]


@pytest.mark.parametrize(
    "wish",
    [{"compression": "zstd"}, {"cluster_size_bytes": 1 << 20}, {"preallocation": "metadata"}],
    ids=str,
)
def test_auto_gives_another_form_at_once_and_not_at_the_second_run(tmp_path, wish):
    path = image(tmp_path / "x.qcow2")
    assert entry_of(path, **wish)["method"] == "rewrite"
    for _number in range(2):
        again = entry_of(path, **wish)
        assert (again["changed"], again["freed_bytes"]) == (False, 0), again


def test_scattered_zeros_do_not_come_back_with_the_second_run(tmp_path):
    """Smaller than a cluster: QEMU writes them into the copy, and there they are dug out."""
    path = tmp_path / "x.qcow2"
    create(path, "128M")
    data = b"".join(os.urandom(48 * 1024) + bytes(16 * 1024) for _number in range(256))
    (tmp_path / "data").write_bytes(data)
    qemu_io(path, *(f"write -s {tmp_path}/data {at}M 16M" for at in (0, 16, 32)))
    forget(path, "0 32M")
    entry = entry_of(path, method="rewrite")
    assert entry["freed_bytes"] > 35 * MIB
    for method in ("rewrite", "auto", "punch"):
        again = entry_of(path, method=method)
        assert not again["changed"], again


# Many


def test_one_bad_image_does_not_stop_the_others(tmp_path):
    for name in ("a", "c"):
        image(tmp_path / f"{name}.qcow2")
    (tmp_path / "b.qcow2").write_bytes(b"QFI\xfb\0\0\0\x03")
    result = compact(f"{tmp_path}/*.qcow2")
    assert result["failed"]
    assert result["msg"].startswith("1 of 3 images failed.")
    assert result["changed"]
    assert [entry.get("method", "failed") for entry in result["images"]] == [
        *("punch", "failed", "punch")
    ]
    freed = sum(entry["freed_bytes"] for entry in result["images"] if "error" not in entry)
    assert result["freed_bytes"] == freed
    assert set(result["diff"]["after"]) == {f"{tmp_path}/a.qcow2", f"{tmp_path}/c.qcow2"}
    assert len(result["summary"]) == 3


def test_nothing_matches(tmp_path):
    result = compact(f"{tmp_path}/*.qcow2")
    assert (result["failed"], result["changed"], result["images"]) == (False, False, [])
    assert f"Nothing matches {tmp_path}/*.qcow2." in str(result["warnings"])
