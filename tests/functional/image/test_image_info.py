# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What image_info tells of sound images, against qemu-img, du, stat and filefrag."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.inspect import read_image_header
from compact_lab import with_dead_clusters
from image_lab import create, error_of, image_info, info_of, qemu_io, run

MIB = 1024 * 1024


def reported_by_qemu_img(path: str, image_format: str = "qcow2") -> dict:
    return json.loads(run("qemu-img", "info", "-f", image_format, "--output=json", path))


VARIANTS = {
    "v3": {},
    "v2": {"compat": "0.10"},
    "extended_l2": {"extended_l2": "on"},
    "zstd": {"compression_type": "zstd"},
    "lazy": {"lazy_refcounts": "on"},
    "cluster_512": {"cluster_size": "512"},
    "cluster_2m": {"cluster_size": "2M"},
    "refcount_1": {"refcount_bits": "1"},
    "refcount_64": {"refcount_bits": "64"},
    "metadata": {"preallocation": "metadata"},
    "falloc": {"preallocation": "falloc"},
    "full": {"preallocation": "full"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_agrees_with_other_tools(tmp_path, variant):
    path = create(tmp_path / "x.qcow2", **VARIANTS[variant])
    qemu_io(path, "write 0 3M", "write -z 1M 1M", "write 10M 64k", "discard 2M 512k")
    entry = info_of(path)
    other = reported_by_qemu_img(path)
    specific = other["format-specific"]["data"]
    assert entry["virtual_size_bytes"] == other["virtual-size"]
    assert entry["cluster_size_bytes"] == other["cluster-size"]
    assert entry["compat"] == specific["compat"]
    assert entry["compression_type"] == specific["compression-type"]
    assert entry["refcount_bits"] == specific["refcount-bits"]
    assert ("extended_l2" in entry["features"]) is specific.get("extended-l2", False)
    assert ("lazy_refcounts" in entry["features"]) is specific.get("lazy-refcounts", False)
    assert entry["corrupt"] is specific.get("corrupt", False)
    assert entry["dirty"] is False
    assert entry["encryption"] == "none"
    assert entry["allocated_bytes"] == int(run("du", "-B1", path).split()[0])
    assert entry["length_bytes"] == int(run("stat", "-c", "%s", path))
    holes, hole_bytes = holes_by_xfs_io(path)
    assert entry["holes"] == {"count": holes, "bytes": hole_bytes}
    # filefrag joins extents that touch each other.
    assert entry["file_extents"] >= int(run("filefrag", path).rsplit(":", 1)[1].split()[0])
    checked = json.loads(run("qemu-img", "check", "-f", "qcow2", "--output=json", path))
    assert entry["check"]["result"] == "clean"
    assert entry["check"]["image_end_offset_bytes"] == checked["image-end-offset"]
    for name in ("total", "allocated", "compressed", "fragmented"):
        assert entry[f"{name}_clusters"] == checked.get(f"{name}-clusters", 0)
    assert (entry["in_use"], entry["writer"], entry["holders"]) == (False, False, [])


def holes_by_xfs_io(path: str) -> tuple[int, int]:
    """(count, bytes) from ``seek -a -r``, whose lines are "HOLE 4096" and "DATA 8192"."""
    lines = run("xfs_io", "-r", "-c", "seek -a -r 0", path).splitlines()
    found = [(words[0], int(words[1])) for words in map(str.split, lines) if words[1].isdigit()]
    length = os.stat(path).st_size
    ends = [offset for _kind, offset in found[1:]] + [length]
    sizes = [
        end - offset
        for (kind, offset), end in zip(found, ends, strict=True)
        if kind == "HOLE" and offset < length
    ]
    return len(sizes), sum(sizes)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 1000, 3 * MIB])
def test_raw(tmp_path, size):
    path = tmp_path / "x.raw"
    path.write_bytes(b"x" * size)
    os.truncate(path, size * 2)
    entry = info_of(path)
    assert entry["format"] == "raw"
    assert entry["virtual_size_bytes"] == reported_by_qemu_img(path, "raw")["virtual-size"]
    assert entry["length_bytes"] == size * 2
    assert entry["allocated_bytes"] == int(run("du", "-B1", path).split()[0])
    assert entry["check"]["result"] == "skipped"
    assert entry["cluster_size_bytes"] is None
    assert entry["reclaimable_bytes"] is None  # zeros were not looked for


def test_raw_with_blocks_that_were_never_written(tmp_path):
    path = tmp_path / "x.raw"
    run("fallocate", "-l", 8 * MIB, path)
    run("dd", "if=/dev/urandom", f"of={path}", "bs=1M", "count=2", "conv=notrunc,fsync")
    assert info_of(path)["reclaimable_bytes"] == 6 * MIB


def test_reclaimable_is_what_a_rewrite_saves(tmp_path):
    # Clusters that are allocated on the host, and referred to by nobody.
    path = with_dead_clusters(tmp_path / "x.qcow2")
    entry = info_of(path)
    run("qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", path, tmp_path / "copy")
    saved = entry["allocated_bytes"] - int(run("du", "-B1", tmp_path / "copy").split()[0])
    assert saved >= entry["reclaimable_bytes"]
    assert entry["reclaimable_bytes"] > saved - MIB


def test_compressed_clusters(tmp_path):
    plain = create(tmp_path / "plain.qcow2")
    qemu_io(plain, "write -P 7 0 8M")
    run("qemu-img", "convert", "-c", "-f", "qcow2", "-O", "qcow2", plain, tmp_path / "packed")
    entry = info_of(tmp_path / "packed")
    assert entry["compressed_clusters"] == entry["allocated_clusters"] == 128
    assert entry["reclaimable_bytes"] is None  # zeros were not looked for


def test_snapshots(tmp_path):
    path = create(tmp_path / "x.qcow2")
    for name in ("before upgrade", "größe\n, 2"):
        run("qemu-img", "snapshot", "-c", name, path)
    entry = info_of(path)
    other = reported_by_qemu_img(path)["snapshots"]
    assert [s["name"] for s in entry["snapshots"]] == ["before upgrade", r"gr\xf6\xdfe\n, 2"]
    assert [s["id"] for s in entry["snapshots"]] == [s["id"] for s in other]
    assert [s["created"] for s in entry["snapshots"]] == [s["date-sec"] for s in other]
    assert [s["disk_bytes"] for s in entry["snapshots"]] == [64 * MIB] * 2
    assert entry["reclaimable_bytes"] is None


def test_bitmaps(tmp_path):
    path = create(tmp_path / "x.qcow2")
    run("qemu-img", "bitmap", "--add", "-g", "128k", path, "b0")
    entry = info_of(path)
    assert entry["bitmaps"] == [{"name": "b0", "granularity_bytes": 131072, "flags": ["auto"]}]
    assert "bitmaps" in entry["features"]


def test_chain(tmp_path):
    golden = tmp_path / "golden"
    golden.mkdir()
    create(golden / "base.qcow2")
    create(tmp_path / "middle.qcow2", backing="golden/base.qcow2")
    path = create(tmp_path / "top.qcow2", backing="middle.qcow2")
    qemu_io(golden / "base.qcow2", "write 0 5M")
    assert "lies in no allowed folder" in error_of(path)
    chain = info_of(path, allowed_dirs=[str(golden)])["backing_chain"]
    assert [link["path"] for link in chain] == [
        f"{tmp_path}/middle.qcow2",
        f"{tmp_path}/golden/base.qcow2",
    ]
    assert [link["name"] for link in chain] == ["middle.qcow2", "golden/base.qcow2"]
    assert [link["declared_format"] for link in chain] == ["qcow2", "qcow2"]
    assert chain[1]["allocated_bytes"] == int(run("du", "-B1", chain[1]["path"]).split()[0])
    assert [link["error"] for link in chain] == ["", ""]


def test_a_missing_backing_file_is_reported_and_the_image_still_inspected(tmp_path):
    path = create(tmp_path / "top.qcow2", backing="gone.qcow2")
    entry = info_of(path)
    (link,) = entry["backing_chain"]
    assert link["error"] == f"{tmp_path}/gone.qcow2 does not exist."
    assert link["allocated_bytes"] is None
    assert entry["check"]["result"] == "clean"


def test_a_backing_file_whose_format_is_not_declared(tmp_path):
    base = create(tmp_path / "base.qcow2")
    top = tmp_path / "top.qcow2"
    shutil.copy(base, top)
    run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", top)
    data = bytearray(top.read_bytes())
    at = data.index(bytes.fromhex("e2792aca"))
    data[at : at + 4] = bytes.fromhex("e2792acb")
    top.write_bytes(data)
    (link,) = info_of(top)["backing_chain"]
    assert (link["declared_format"], link["format"]) == (None, "qcow2")


def test_luks(tmp_path):
    path = tmp_path / "x.qcow2"
    secret = ("--object", "secret,id=s,data=abc")
    options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=500"
    argv = ["qemu-img", "create", "-q", *secret, "-f", "qcow2", "-o", options, path, "64M"]
    for _attempt in range(10):  # "Unable to get accurate CPU usage" on a busy machine
        if subprocess.run(argv, capture_output=True, check=False).returncode == 0:
            break
    entry = info_of(path)
    assert (entry["encryption"], entry["encrypted"]) == ("luks", True)
    assert entry["check"]["result"] == "skipped"
    assert "encrypted" in entry["check"]["reason"]
    assert entry["reclaimable_bytes"] is None


def test_data_file(tmp_path):
    path = create(tmp_path / "x.qcow2", data_file=f"{tmp_path}/x.raw", data_file_raw="on")
    qemu_io(path, "write 0 3M")
    entry = info_of(path)
    assert entry["data_file"] == {
        "path": f"{tmp_path}/x.raw",
        "allocated_bytes": int(run("du", "-B1", tmp_path / "x.raw").split()[0]),
        "length_bytes": 64 * MIB,
    }
    assert {"external_data_file", "data_file_raw"} <= set(entry["features"])
    assert entry["check"]["result"] == "clean"
    assert entry["reclaimable_bytes"] is None
    (tmp_path / "x.raw").unlink()
    assert f"its data file {tmp_path}/x.raw does not exist" in error_of(path)


def test_leaks_and_corruption_are_results_not_failures(tmp_path):
    path = create(tmp_path / "x.qcow2")
    qemu_io(path, "write 0 4M")
    with open(path, "r+b") as file:  # forget the first L2 table: its clusters leak
        file.seek(0x30000)
        file.write(bytes(8))
    assert info_of(path)["check"]["result"] == "leaks"
    assert info_of(path)["check"]["leaks"] > 0
    with open(path, "r+b") as file:  # an L1 entry that leads out of the file
        file.seek(0x30000)
        file.write((1 << 63 | 0x7FFF0000).to_bytes(8, "big"))
    assert info_of(path)["check"]["result"] == "corrupt"


def test_dirty_bit(tmp_path):
    path = create(tmp_path / "x.qcow2", lazy_refcounts="on")
    with open(path, "r+b") as file:
        file.seek(79)
        file.write(b"\1")
    assert info_of(path)["dirty"] is True


def test_a_header_that_fills_its_cluster(tmp_path):
    name = "b" * 200
    create(tmp_path / name)
    path = create(tmp_path / "x.qcow2", backing="/".join(["."] * 400 + [name]))
    (link,) = info_of(path)["backing_chain"]
    assert link["path"] == str(tmp_path / name)


def test_block_device(tmp_path):
    path = create(tmp_path / "x.qcow2")
    run("truncate", "-s", "32M", path)
    device = run("losetup", "-f", "--show", path).strip()
    try:
        entry = info_of(device)
    finally:
        run("losetup", "-d", device)
    assert entry["block_device"] is True
    assert entry["format"] == "qcow2"
    assert entry["allocated_bytes"] is None
    assert entry["holes"] is None
    assert entry["length_bytes"] == 32 * MIB
    assert entry["check"]["result"] == "clean"


def test_check_can_be_left_out(tmp_path):
    entry = info_of(create(tmp_path / "x.qcow2"), check=False)
    assert entry["check"]["result"] == "skipped"
    assert entry["check"]["reason"] == "It was not asked for."
    assert entry["reclaimable_bytes"] is None  # zeros were not looked for


def test_many_images_one_bad(tmp_path):
    for number in range(5):
        create(tmp_path / f"{number}.qcow2")
    (tmp_path / "3.qcow2").write_bytes(b"QFI\xfb\0\0\0\x03")
    result = image_info(tmp_path / "*.qcow2", tmp_path / "gone", tmp_path / "*.vmdk")
    assert result["failed"]
    assert result["msg"].startswith("2 of 6 images failed.")
    assert [("error" in entry) for entry in result["images"]] == [False] * 3 + [True, False, True]
    assert result["images"][5]["error"] == f"{tmp_path}/gone does not exist."


def test_headers_of_a_thousand_images_are_cheap(tmp_path):
    path = create(tmp_path / "x.qcow2")
    begin = time.process_time()  # of ours alone: others may be busy
    for _number in range(1000):
        read_image_header(path)
    assert time.process_time() - begin < 1
