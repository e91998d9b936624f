# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""image_compact: a new image keeps what it is not told to change, and is what it is told to be."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import time

import pytest
from compact_lab import (
    MIB,
    allocated,
    assert_same,
    compact,
    entry_of,
    fill,
    image,
    info,
    leftovers,
    raw_image,
    refused,
    sha256,
    state,
    with_dead_clusters,
)
from image_lab import create, qemu_io, run
from support import run_module


def rewritten(path, *, pristine=None, form="qcow2", **parameters) -> dict:
    """Rewrite, in check mode first; the content is the same, and a second run is idle."""
    folder = path.parent
    original = pristine or folder / "pristine"
    if pristine is None:
        shutil.copy(path, original)
        run("sync", original)  # which may take a block more
    before, all_before = allocated(path), state(folder)
    cluster = info(path)["cluster-size"] if form == "qcow2" else 65536
    predicted = entry_of(path, method="rewrite", check=True, **parameters)
    assert state(folder) == all_before
    entry = entry_of(path, method="rewrite", **parameters)
    assert_same(path, original, forms=(form, form))
    assert entry["method"] == predicted["method"] == "rewrite"
    assert entry["reason"] == predicted["reason"]
    assert entry["before"] == predicted["before"]
    assert entry["before"]["allocated_bytes"] == before
    assert entry["after"]["allocated_bytes"] == allocated(path)
    assert entry["after"]["length_bytes"] == path.stat().st_size
    kept = allocated(entry["kept"]) if entry["kept"] else 0
    assert entry["freed_bytes"] == before - allocated(path) - kept
    assert entry["compared"]
    assert {"copy", "flush", "compare", "swap"} <= set(entry["seconds"])
    if "compression" not in parameters:
        # Tables are foreseen as full: those of the largest and smallest clusters are not small.
        difference = entry["freed_bytes"] - predicted["freed_bytes"]
        assert -MIB < difference < 12 * MIB
        if parameters.get("cluster_size_bytes", cluster) == cluster == 65536:
            assert difference < MIB
    kept = parameters.pop("keep_original", False)
    again = entry_of(path, method="rewrite", **parameters)
    assert (again["changed"], again["freed_bytes"]) == (False, 0), again
    assert leftovers(folder) == []
    assert bool(entry["kept"]) is kept
    return entry


FEATURES = {
    "v3": {},
    "v2": {"compat": "0.10"},
    "extended_l2": {"extended_l2": "on", "cluster_size": "128k"},
    "lazy": {"lazy_refcounts": "on"},
    "cluster_512": {"cluster_size": "512"},
    "cluster_2m": {"cluster_size": "2M"},
    "refcount_1": {"refcount_bits": "1"},
    "refcount_64": {"refcount_bits": "64"},
    "zstd": {"compression_type": "zstd"},
}


@pytest.mark.parametrize("variant", FEATURES)
def test_features_are_kept(tmp_path, variant):
    path = image(tmp_path / "x.qcow2", **FEATURES[variant])
    before = info(path)
    assert rewritten(path)["freed_bytes"] > 20 * MIB
    assert info(path) == before


def test_bitmaps_are_kept_with_what_they_say(tmp_path):
    path = image(tmp_path / "x.qcow2", zeros_mib=0)
    for name, grain in (("b0", "128k"), ("b1", "64k"), ("off", "1M")):
        run("qemu-img", "bitmap", "--add", "-g", grain, path, name)
    run("qemu-img", "bitmap", "--disable", path, "off")
    fill(path, data_mib=3, at_mib=5, zeros_mib=24)
    run("qemu-img", "bitmap", "--disable", path, "b1")
    fill(path, data_mib=1, at_mib=100)
    before, dirty = info(path), {name: dirty_of(path, name) for name in ("b0", "b1", "off")}
    assert len({tuple(ranges) for ranges in dirty.values()}) == 3
    rewritten(path)
    assert info(path) == before
    assert {name: dirty_of(path, name) for name in dirty} == dirty


def dirty_of(path, bitmap: str) -> list[tuple[int, int]]:
    """What a bitmap of an image says, by QEMU's own NBD server."""
    socket = f"/tmp/nbd-{os.getpid()}"
    server = subprocess.Popen(
        ["qemu-nbd", "-r", "-f", "qcow2", "-B", bitmap, "-k", socket, path], text=True
    )
    try:
        while not os.path.exists(socket):
            assert server.poll() is None
            time.sleep(0.02)
        node = f"driver=nbd,server.type=unix,server.path={socket}"
        node += f",x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}"
        ranges = json.loads(run("qemu-img", "map", "--output=json", "--image-opts", node))
    finally:
        server.terminate()
        server.wait()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(socket)
    return [(entry["start"], entry["length"]) for entry in ranges if not entry["data"]]


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
def test_what_is_compressed_stays_so(tmp_path, kind):
    plain, path = tmp_path / "plain", tmp_path / "x.qcow2"
    create(plain, "128M")
    qemu_io(plain, "write -P 7 0 64M")
    options = ("-c", "-o", f"compression_type={kind}")
    run("qemu-img", "convert", *options, "-O", "qcow2", "-f", "qcow2", plain, path)
    fill(path, data_mib=0, at_mib=64, zeros_mib=24)
    rewritten(path)
    checked = json.loads(run("qemu-img", "check", "--output=json", path))
    assert checked["compressed-clusters"] == checked["allocated-clusters"] == 1024
    assert info(path)["format-specific"]["data"]["compression-type"] == kind


@pytest.mark.parametrize("kind", ["zlib", "zstd", "none"])
@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_compression_on_demand(tmp_path, kind, compat):
    path = tmp_path / "x.qcow2"
    create(path, "128M", compat=compat)
    qemu_io(path, "write -P 7 0 64M")
    if kind == "none":
        run("qemu-img", "convert", "-c", "-O", "qcow2", "-o", f"compat={compat}", path, f"{path}2")
        os.rename(f"{path}2", path)
    rewritten(path, compression=kind)
    checked = json.loads(run("qemu-img", "check", "--output=json", path))
    assert checked.get("compressed-clusters", 0) == (0 if kind == "none" else 1024)
    data = info(path)["format-specific"]["data"]
    assert data["compression-type"] == ("zstd" if kind == "zstd" else "zlib")
    assert data["compat"] == ("1.1" if kind == "zstd" else compat)


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
def test_data_that_cannot_be_compressed_is_not_rewritten_each_time(tmp_path, kind):
    path = image(tmp_path / "x.qcow2", zeros_mib=0)
    for _number in range(2):
        entry_of(path, compression=kind)
        before = state(tmp_path)
        entry = entry_of(path, compression=kind)
        assert not entry["changed"]
        assert "it was dropped" in entry["reason"]
        assert state(tmp_path) == before


@pytest.mark.parametrize("size", [512, 4096, 1 << 20, 2 << 20])
def test_cluster_size_on_demand(tmp_path, size):
    path = image(tmp_path / "x.qcow2", data_mib=4, lazy_refcounts="on", refcount_bits="8")
    rewritten(path, cluster_size_bytes=size)
    now = info(path)
    assert now["cluster-size"] == size
    assert now["format-specific"]["data"]["lazy-refcounts"]
    assert now["format-specific"]["data"]["refcount-bits"] == 8


@pytest.mark.parametrize("kind", ["metadata", "falloc", "full"])
def test_preallocation_on_demand(tmp_path, kind):
    path = image(tmp_path / "x.qcow2", data_mib=4)
    rewritten(path, preallocation=kind)
    checked = json.loads(run("qemu-img", "check", "--output=json", path))
    assert checked["allocated-clusters"] == checked["total-clusters"]
    assert (allocated(path) >= 128 * MIB) is (kind != "metadata")
    before = state(tmp_path)
    for method in ("auto", "rewrite"):
        entry = entry_of(path, method=method, preallocation=kind, min_reclaim_bytes=0)
        assert not entry["changed"]
        assert "is preallocated" in entry["reason"]
    assert state(tmp_path) == before


@pytest.mark.parametrize("kind", ["falloc", "full"])
def test_preallocation_of_raw(tmp_path, kind):
    path = raw_image(tmp_path / "x.raw", data_mib=4)
    os.truncate(path, 64 * MIB)
    rewritten(path, form="raw", preallocation=kind)
    assert allocated(path) >= 64 * MIB


def test_raw(tmp_path):
    path = raw_image(tmp_path / "x.raw")
    checksum = sha256(path)
    assert rewritten(path, form="raw")["freed_bytes"] == 24 * MIB
    assert sha256(path) == checksum


def test_a_thin_raw_image_needs_no_room_for_its_whole_length(tmp_path):
    path = raw_image(tmp_path / "x.raw", data_mib=1)
    os.truncate(path, 1 << 42)
    assert entry_of(path, method="rewrite")["freed_bytes"] == 24 * MIB
    assert path.stat().st_size == 1 << 42


def test_a_longer_file_is_shortened(tmp_path):
    path = with_dead_clusters(tmp_path / "x.qcow2")
    entry = rewritten(path)
    assert entry["after"]["length_bytes"] < entry["before"]["length_bytes"] - 20 * MIB


@pytest.mark.parametrize("method", ["auto", "rewrite"])
def test_a_fragmented_image_is_rewritten_by_force_though_nothing_comes_back(tmp_path, method):
    path, wanted = tmp_path / "x.raw", tmp_path / "wanted"
    path.write_bytes(os.urandom(16 * MIB))
    run("sync", path)
    for offset in range(16 * MIB - 131072, -1, -131072):  # each second piece is cut out
        run("fallocate", "-c", "-o", offset, "-l", 65536, path)
    wanted.write_bytes(path.read_bytes())

    def pieces():
        return int(run("filefrag", path).split(":")[1].split()[0])

    before = pieces()
    assert before > 100
    assert not entry_of(path, method="rewrite")["changed"]
    checked = entry_of(path, method=method, force=True, check=True)
    made = entry_of(path, method=method, force=True)
    assert checked["method"] == made["method"] == "rewrite"
    assert made["reason"] == "force was asked for."
    assert pieces() < before // 10
    assert path.read_bytes() == wanted.read_bytes()


def test_force_consents_to_nothing_else(tmp_path):
    path = create(tmp_path / "x.qcow2")
    assert "force needs a new image" in compact(path, method="punch", force=True)["msg"]
    run("qemu-img", "snapshot", "-c", "s1", path)
    refused(path, "internal snapshots, which a copy would lose", method="rewrite", force=True)


def test_the_result_names_the_data_file_that_is_left_alone(tmp_path):
    path = create(tmp_path / "x.qcow2", data_file=tmp_path / "x.raw", data_file_raw="on")
    qemu_io(path, "write -P 1 0 8M", "write -P 0 8M 16M")
    before = os.stat(tmp_path / "x.raw").st_blocks
    for check in (True, False):
        assert "x.raw, which was left as it is" in entry_of(path, check=check)["reason"]
    assert os.stat(tmp_path / "x.raw").st_blocks == before


def test_a_thin_disk_of_many_tib(tmp_path):
    """measure counts 2 GiB of tables that a thin image does not have."""
    path = create(tmp_path / "x.qcow2", "16T")
    qemu_io(path, "write -P 1 0 8M", "write -P 2 9T 8M", "write -P 3 10T 32M")
    qemu_io(path, "discard 10T 32M", "write -P 0 9T 4M")
    before = os.stat(path).st_blocks
    copy = tmp_path / "copy.qcow2"
    run("qemu-img", "convert", "-O", "qcow2", path, copy)
    given = {"method": "rewrite", "min_free_bytes": 0, "min_reclaim_bytes": 2 * MIB}
    checked = entry_of(path, check=True, **given)
    made = entry_of(path, **given)
    assert checked["method"] == made["method"] == "rewrite"
    assert os.stat(path).st_blocks <= os.stat(copy).st_blocks < before
    assert "identical" in run("qemu-img", "compare", path, copy)


def test_flatten(tmp_path):
    base = image(tmp_path / "base.qcow2", zeros_mib=0)
    path = tmp_path / "x.qcow2"
    create(path, "128M", backing="base.qcow2")
    qemu_io(path, "write -P 7 1M 1M", "write -z 3M 1M")
    run("qemu-img", "convert", "-O", "qcow2", path, tmp_path / "pristine")
    checksum = sha256(base)
    rewritten(path, pristine=tmp_path / "pristine", flatten=True)
    assert "backing-filename" not in info(path)
    assert sha256(base) == checksum
    run("qemu-io", "-r", "-f", "qcow2", "-c", "read -P 7 1M 1M", path)


def test_flatten_follows_no_name_to_another_folder(tmp_path):
    (tmp_path / "golden").mkdir()
    (tmp_path / "instances").mkdir()
    image(tmp_path / "golden" / "base.qcow2", zeros_mib=0)
    path = tmp_path / "instances" / "x.qcow2"
    create(path, "128M", backing="../golden/base.qcow2")
    refused(path, "which lies in no allowed folder", method="rewrite", flatten=True)
    entry = entry_of(path, method="rewrite", flatten=True, allowed_dirs=[f"{tmp_path}/golden"])
    assert entry["method"] == "rewrite"


def test_a_chain_that_is_broken_is_not_flattened(tmp_path):
    path = tmp_path / "x.qcow2"
    create(path, "128M", backing="gone.qcow2")
    refused(path, "cannot be read", "gone.qcow2 does not exist", method="rewrite", flatten=True)


# The original


def test_the_original_is_kept(tmp_path):
    path = image(tmp_path / "x.qcow2")
    status, checksum = path.stat(), sha256(path)
    entry = rewritten(path, keep_original=True)
    kept = tmp_path / "x.qcow2.thinvirt-original"
    assert entry["kept"] == str(kept)
    assert (kept.stat().st_ino, sha256(kept)) == (status.st_ino, checksum)
    assert (kept.stat().st_nlink, path.stat().st_nlink) == (1, 1)


def test_an_original_that_was_kept_before_is_not_written_over(tmp_path):
    path = image(tmp_path / "x.qcow2")
    (tmp_path / "x.qcow2.thinvirt-original").write_text("of last year")
    message = refused(path, "exists already", method="rewrite", keep_original=True)
    assert "Move it away" in message


def test_an_original_is_kept_only_if_there_is_a_new_image(tmp_path):
    path = image(tmp_path / "x.qcow2", zeros_mib=0)
    before = state(tmp_path)
    assert not entry_of(path, method="rewrite", keep_original=True)["changed"]
    assert state(tmp_path) == before


def test_a_reader_goes_on_with_the_original(tmp_path):
    path = image(tmp_path / "x.qcow2")
    with open(path, "rb") as reader:
        head = reader.read(1 << 20)
        rewritten(path)
        reader.seek(0)
        assert reader.read(1 << 20) == head


# What else the file is


@pytest.mark.skipif(os.geteuid() != 0, reason="to give a file away takes root")
def test_owner_mode_acl_and_attributes(tmp_path):
    path = image(tmp_path / "x.qcow2")
    os.chown(path, 1234, 5678)
    os.chmod(path, 0o640)
    entries = ((1, 6, -1), (2, 4, 1234), (4, 4, -1), (16, 4, -1), (32, 0, -1))
    acl = (2).to_bytes(4, "little") + b"".join(
        tag.to_bytes(2, "little")
        + rights.to_bytes(2, "little")
        + who.to_bytes(4, "little", signed=True)
        for tag, rights, who in entries
    )
    os.setxattr(path, "system.posix_acl_access", acl)
    os.setxattr(path, "user.backup", b"nightly")
    os.setxattr(path, "trusted.libvirt.security.ref_dac", b"1")
    rewritten(path)
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 5678, 0o640)
    assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == {
        "system.posix_acl_access": acl,
        "user.backup": b"nightly",
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to give a file to somebody else")
def test_a_user_who_may_not_keep_the_owner(tmp_path):
    """The copy would be theirs: it is dropped, in one sentence."""
    image(tmp_path / "x.qcow2")
    os.chown(tmp_path / "x.qcow2", 65534, -1)
    before = state(tmp_path)
    result = run_module(
        "image_compact",
        prefix=("setpriv", "--bounding-set=-chown"),
        uri="",
        paths=[f"{tmp_path}/x.qcow2"],
        method="rewrite",
        min_free_bytes=0,
    )
    assert result["failed"]
    assert "cannot be compacted: Operation not permitted. Run this as root" in result["msg"]
    assert state(tmp_path) == before
