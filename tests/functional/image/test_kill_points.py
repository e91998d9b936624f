# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module is killed at each system call that changes a file, one after the other.

strace(1) does it on entry: the call before has been carried out, this one has not.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from compact_lab import (
    answer,
    assert_same,
    entry_of,
    image,
    leftovers,
    sha256,
    start,
    start_module,
    users_of,
    wait_for,
)
from support import run_module

FULL = os.environ.get("THINVIRT_STORM") == "full"
CALLS = (
    *("link", "linkat", "rename", "renameat", "renameat2", "unlink", "unlinkat"),
    *("fsync", "ftruncate", "write", "fchown", "fchmod", "fsetxattr", "fremovexattr"),
)
_CALL = re.compile(r"^([a-z0-9]+)\((.*)\) += ")


TRACE = ("strace", "-qq", "-s", "400", "-e", f"trace={','.join(CALLS)}")


def traced(path: Path, log: Path, *more: str, **parameters) -> subprocess.Popen:
    return start(path, prefix=(*TRACE, "-o", str(log), *more), **parameters)


Point = tuple[str, int, str]


def points(log: Path) -> list[Point]:
    """(call, how manieth of its kind, arguments), in order, from the journal's first word on."""
    counts: dict[str, int] = {}
    found = []
    for line in log.read_text().splitlines():
        match = _CALL.match(line)
        if match is None:
            continue
        call, arguments = match.groups()
        counts[call] = counts.get(call, 0) + 1
        found.append((call, counts[call], arguments))
    # What it prints in the end is no file.
    return [point for point in _from(found, "operation") if not point[2].startswith("1,")]


def _from(found: list[Point], word: str) -> list[Point]:
    word = rf"\"{word}\""
    return found[next(i for i, (_call, _n, text) in enumerate(found) if word in text) :]


def to_kill_at(found: list[Point]) -> list[Point]:
    """In a short run only from the swap on: what comes before changes nothing but a copy."""
    return found if FULL else _from(found, r"stage\": \"swap")


def calls_of(found: list[Point]) -> str:
    return " ".join(call for call, _number, _text in found)


KINDS = {
    "rewrite": {"method": "rewrite"},
    "keep_original": {"method": "rewrite", "keep_original": True},
}


#: The copy and its attributes, then the journal and its folder: on the disk before what follows.
COPIED = "fsync fremovexattr fchmod fsync"
SWAP = "write fsync fsync"


def assert_in_order(calls: str, kind: str) -> None:
    """All that counts when the power goes."""
    drop = "unlink unlink " if kind == "rewrite" else "unlink "
    done = f"{drop}fsync ftruncate fsync"
    assert f"{COPIED} {SWAP} linkat renameat2 fsync {done}" in calls
    assert calls.split().count("renameat2") == 1


@pytest.mark.storm
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_each_system_call(tmp_path, kind, record_property):
    parameters = KINDS[kind]
    pristine, pool = image(tmp_path / "pristine", data_mib=4, zeros_mib=8), tmp_path / "pool"

    def fresh() -> Path:
        shutil.rmtree(pool, ignore_errors=True)
        pool.mkdir()
        shutil.copyfile(pristine, pool / "x.qcow2")
        return pool / "x.qcow2"

    path = fresh()
    assert answer(traced(path, tmp_path / "log", **parameters))["changed"]
    all_points = points(tmp_path / "log")
    assert_in_order(calls_of(all_points), kind)
    all_points = to_kill_at(all_points)
    print(f"\n{kind}: {len(all_points)} points: {calls_of(all_points)}")
    assert len(all_points) >= 8
    new_image = False
    for call, number, text in all_points:
        path = fresh()
        inode = path.stat().st_ino
        inject = ("-e", f"inject={call}:signal=KILL:when={number}")
        process = traced(path, tmp_path / "log", *inject, **parameters)
        said = process.communicate()
        where = f"before {call} {number}: {text}"
        assert process.returncode == -9, (where, said)
        wait_for(lambda: users_of(pool) == [], seconds=2)
        assert_same(path, pristine)
        # From the exchange on, and not before, the name means the new image.
        assert (path.stat().st_ino != inode) is new_image, where
        new_image = new_image or call == "renameat2"
        entry = entry_of(path, **parameters)
        assert entry["recovered"] or not leftovers(pool), where
        assert_same(path, pristine)
        kept = ["x.qcow2.thinvirt-original"] if kind == "keep_original" else []
        assert sorted(os.listdir(pool)) == sorted(["x.qcow2", *kept]), where
        assert {(pool / name).stat().st_nlink for name in os.listdir(pool)} == {1}, where
        assert all(sha256(pool / name) == sha256(pristine) for name in kept), where
        assert not entry_of(path, **parameters)["changed"], where
    assert new_image
    record_property("storm", f"{kind}: killed before each of {len(all_points)} system calls")


@pytest.mark.storm
def test_image_convert_killed_at_each_system_call(tmp_path, record_property):
    source, folder = image(tmp_path / "x.qcow2", data_mib=4, zeros_mib=8), tmp_path / "out"
    arguments = {"src": str(source), "dest": str(folder / "copy"), "min_free_bytes": 0}
    before = (sha256(source), source.stat().st_mtime_ns)

    def traced_copy(*more: str) -> subprocess.Popen:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        prefix = (*TRACE, "-o", str(tmp_path / "log"), *more)
        return start_module("image_convert", prefix=prefix, **arguments)

    assert answer(traced_copy())["changed"]
    all_points = points(tmp_path / "log")
    # The manifest comes before the copy: without it the next run would not know the copy.
    manifest = "unlink write fchown fchmod fsync rename fsync"
    order = f"{COPIED} {manifest} {SWAP} linkat unlink fsync fsync ftruncate fsync"
    assert order in calls_of(all_points)
    all_points, named = to_kill_at(all_points), False
    for call, number, text in all_points:
        process = traced_copy("-e", f"inject={call}:signal=KILL:when={number}")
        said = process.communicate()
        where = f"before {call} {number}: {text}"
        assert process.returncode == -9, (where, said)
        wait_for(lambda: users_of(folder) == [], seconds=2)
        assert (folder / "copy").exists() is named, where
        named = named or call == "linkat"
        for _again in range(2):
            result = run_module("image_convert", **arguments)
            assert not result["failed"], (where, result["msg"])
            assert_same(source, folder / "copy")
            assert sorted(os.listdir(folder)) == ["copy", "copy.thinvirt.json"], where
        assert not result["changed"], where
        assert (sha256(source), source.stat().st_mtime_ns) == before
    assert named
    record_property("storm", f"convert: killed before each of {len(all_points)} system calls")


@pytest.mark.storm
@pytest.mark.parametrize("number", [1, 2, 3, 50, 99] if not FULL else range(1, 100))
def test_killed_at_a_hole(tmp_path, number):
    path = tmp_path / "x.raw"
    path.write_bytes((b"x" * 4096 + bytes(4096)) * 100)
    checksum = sha256(path)
    prefix = ("strace", "-qq", "-o", "/dev/null", "-e", "trace=fallocate")
    prefix += ("-e", f"inject=fallocate:signal=KILL:when={number}")
    process = start(path, prefix=prefix, method="punch", min_reclaim_bytes=0)
    said = process.communicate()
    assert process.returncode == -9, said
    assert sha256(path) == checksum
    entry = entry_of(path, method="punch", min_reclaim_bytes=0)
    assert entry["recovered"].endswith("had left nothing to undo.")
    assert entry["freed_bytes"] > 0
    assert sha256(path) == checksum
    assert os.listdir(tmp_path) == ["x.raw"]
