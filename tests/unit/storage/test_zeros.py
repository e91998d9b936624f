# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Zeros are found, counted and dug out; against a reader that goes byte by byte."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage import zeros
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.extents import (
    Extent,
    allocated_extents,
)

BLOCK = zeros.BLOCK_BYTES


@pytest.fixture
def small_chunks(monkeypatch):
    """Several chunks in a small file."""
    monkeypatch.setattr(zeros, "CHUNK_BYTES", 4 * BLOCK)
    monkeypatch.setattr(zeros, "LONGEST_BYTES", 16 * BLOCK)


@pytest.fixture
def file(tmp_path):
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def blocks_of_zeros(data: bytes) -> set[int]:
    """The numbers of the blocks, a short last one too, that hold nothing but zeros."""
    return {
        number
        for number, offset in enumerate(range(0, len(data), BLOCK))
        if not data[offset : offset + BLOCK].strip(b"\0")
    }


def blocks_of(runs, length: int) -> list[int]:
    """The blocks that runs cover, in order; runs are whole blocks but for the end of the file."""
    found = []
    for offset, size in runs:
        assert offset % BLOCK == 0
        assert size % BLOCK == 0 or offset + size == length
        found += range(offset // BLOCK, -(-(offset + size) // BLOCK))
    return found


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.usefixtures("small_chunks")
def test_runs_are_those_of_a_naive_reader(file, seed):
    chance = random.Random(seed)  # noqa: S311
    data = bytearray()
    for _number in range(chance.randrange(1, 40)):
        kind = chance.choice(["zeros", "zeros", "data", "first", "last"])
        block = bytearray(BLOCK)
        if kind == "data":
            block[:] = chance.randbytes(BLOCK)
        if kind == "first":
            block[0] = 1
        if kind == "last":
            block[-1] = 1
        data += block
    data = data[: len(data) - chance.randrange(BLOCK)]
    os.write(file, data)
    os.fsync(file)
    found = blocks_of(zeros.zero_runs(file), len(data))
    assert found == sorted(blocks_of_zeros(data))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.usefixtures("small_chunks")
def test_digging_leaves_every_byte_and_nothing_to_find(file, seed):
    chance = random.Random(seed)  # noqa: S311
    data = b"".join(
        chance.choice([bytes(BLOCK), chance.randbytes(BLOCK)]) * chance.randrange(1, 9)
        for _number in range(30)
    )[: -chance.randrange(1, BLOCK)]
    os.write(file, data)
    os.fsync(file)
    before = os.fstat(file).st_blocks
    found = zeros.dig_holes(file, at_least=1)
    os.fsync(file)
    assert found == sum(len(data[n * BLOCK :][:BLOCK]) for n in blocks_of_zeros(data))
    assert os.pread(file, len(data) + 1, 0) == data
    freed = (before - os.fstat(file).st_blocks) * 512
    assert freed >= len(blocks_of_zeros(data)) * BLOCK - 8 * BLOCK  # the kernel's own extent blocks
    assert list(zeros.zero_runs(file)) == []
    assert zeros.dig_holes(file, at_least=1) == 0


@pytest.mark.usefixtures("small_chunks")
def test_holes_are_no_zeros(file):
    os.pwrite(file, b"x" * BLOCK, 100 * BLOCK)
    os.pwrite(file, bytes(BLOCK), 200 * BLOCK)
    os.ftruncate(file, 300 * BLOCK)
    os.fsync(file)
    assert list(zeros.zero_runs(file)) == [(200 * BLOCK, BLOCK)]


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("x..", [(1, 2)]),
        ("xx...x", [(2, 3)]),  # over the end of a chunk of four blocks
        ("xxx......x", [(3, 4), (7, 2)]),  # longer than a chunk: read as a whole each
        ("." * 4 * 12, [(0, 4), (4, 8), (12, 16), (28, 16), (44, 4)]),
        ("x...x...x...x", [(1, 3), (5, 3), (9, 3)]),
        ("x." * 8, [(n, 1) for n in range(1, 16, 2)]),
    ],
)
@pytest.mark.usefixtures("small_chunks")
def test_zeros_that_touch_are_few_runs(file, monkeypatch, layout, expected):
    """A hole takes its time whatever its length; yet each was read just now, in one piece."""
    os.write(file, b"".join({"x": b"x", ".": b"\0"}[kind] * BLOCK for kind in layout))
    os.fsync(file)
    reads = []
    real = zeros._read

    def read(fd, buffer, *, offset, length):
        reads.append((offset, length))
        return real(fd, buffer, offset=offset, length=length)

    monkeypatch.setattr(zeros, "_read", read)
    found = []
    for offset, length in zeros.zero_runs(file):
        found.append((offset // BLOCK, length // BLOCK))
        assert reads[-1][0] <= offset
        assert offset + length <= sum(reads[-1])
        assert length <= zeros.LONGEST_BYTES
    assert found == expected


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.usefixtures("small_chunks")
def test_what_is_written_meanwhile_is_kept(file, monkeypatch, seed):
    """By somebody who heeds no locks, at any block, between one piece that is read and the next."""
    chance = random.Random(seed)  # noqa: S311
    expected = bytearray(100 * BLOCK)
    os.write(file, expected)
    os.fsync(file)
    real = zeros._read

    def read(fd, buffer, *, offset, length):
        at = chance.randrange(100) * BLOCK
        os.pwrite(fd, b"new", at)
        expected[at : at + 3] = b"new"
        return real(fd, buffer, offset=offset, length=length)

    monkeypatch.setattr(zeros, "_read", read)
    zeros.dig_holes(file, at_least=1)
    assert os.pread(file, 100 * BLOCK, 0) == expected


@pytest.mark.parametrize("data", [b"", b"\0", b"\0" * (BLOCK + 1), b"x", b"x" + bytes(BLOCK)])
def test_tiny_files(file, data):
    os.write(file, data)
    expected = sum(len(data[n * BLOCK :][:BLOCK]) for n in blocks_of_zeros(data))
    assert sum(length for _offset, length in zeros.zero_runs(file)) == expected


def test_data_of_a_file_system_with_smaller_blocks(file, monkeypatch):
    """Each byte counts once, and none that lies outside of what is allocated."""
    os.write(file, bytes(16 * 1024))
    extents = [(1024, 1024), (3072, 1024), (5120, 9216)]
    found = [Extent(offset, length, unwritten=False) for offset, length in extents]
    monkeypatch.setattr(zeros, "allocated_extents", lambda _fd: iter(found))
    assert list(zeros.zero_runs(file)) == extents
    os.pwrite(file, b"x", 5120 + 4096)
    assert list(zeros.zero_runs(file)) == [*extents[:2], (5120, 4096), (13312, 1024)]


def test_only_a_short_end_is_rounded_up(file, monkeypatch):
    """A short run in the middle is all that is known to be zeros."""
    os.write(file, bytes(1024) + b"x" * 5120 + bytes(1024) + b"x" * 1000)
    os.ftruncate(file, 9192)
    content = os.pread(file, 9192, 0)
    extents = [Extent(0, 1024, unwritten=False), Extent(6144, 1024, unwritten=False)]
    monkeypatch.setattr(zeros, "allocated_extents", lambda _fd: iter(extents))
    assert zeros.dig_holes(file, at_least=1) == 2048
    assert os.pread(file, 9192, 0) == content


@pytest.mark.usefixtures("small_chunks")
def test_nothing_is_dug_before_enough_was_found(file):
    data = (b"x" * BLOCK + bytes(BLOCK)) * 10
    os.write(file, data)
    os.fsync(file)
    before = os.fstat(file)
    assert zeros.dig_holes(file, at_least=10 * BLOCK + 1) == 10 * BLOCK
    after = os.fstat(file)
    assert (before.st_blocks, before.st_mtime_ns) == (after.st_blocks, after.st_mtime_ns)
    assert zeros.dig_holes(file, at_least=10 * BLOCK) == 10 * BLOCK
    assert list(zeros.zero_runs(file)) == []


@pytest.mark.parametrize("at_least", [1, 5 * BLOCK, 10 * BLOCK, 11 * BLOCK])
@pytest.mark.usefixtures("small_chunks")
def test_runs_that_are_too_many_to_remember(file, monkeypatch, at_least):
    monkeypatch.setattr(zeros, "MAX_WAITING", 3)
    data = (b"x" * BLOCK + bytes(BLOCK)) * 10
    os.write(file, data)
    os.fsync(file)
    assert zeros.dig_holes(file, at_least=at_least) == 10 * BLOCK
    assert os.pread(file, len(data), 0) == data
    left = len(list(zeros.zero_runs(file)))
    assert left == (10 if at_least > 10 * BLOCK else 0)


def test_what_was_written_to_since_it_was_read_is_left(file, monkeypatch):
    """Not everybody heeds locks, and a run may have waited for long."""
    os.write(file, bytes(3 * BLOCK))

    def runs(fd):
        yield 0, BLOCK
        yield BLOCK, BLOCK
        os.pwrite(fd, b"new", BLOCK)
        yield 2 * BLOCK, BLOCK

    monkeypatch.setattr(zeros, "zero_runs", runs)
    zeros.dig_holes(file, at_least=3 * BLOCK)
    assert os.pread(file, 3 * BLOCK, 0) == bytes(BLOCK) + b"new" + bytes(2 * BLOCK - 3)


def test_blocks_that_were_never_written(file):
    """Programs preallocate, and QEMU allocates a whole cluster for a small write."""
    os.posix_fallocate(file, 0, 100 * BLOCK)
    os.pwrite(file, b"x" * BLOCK, 10 * BLOCK)
    os.pwrite(file, bytes(BLOCK), 20 * BLOCK)
    os.fsync(file)
    expected = {number * BLOCK for number in range(100) if number != 10}
    found = {
        offset + at for offset, length in zeros.zero_runs(file) for at in range(0, length, BLOCK)
    }
    assert found == expected
    assert sum(length for _offset, length in zeros.zero_runs(file)) == 99 * BLOCK
    assert zeros.dig_holes(file, at_least=99 * BLOCK) == 99 * BLOCK
    os.fsync(file)
    assert os.fstat(file).st_blocks * 512 <= 3 * BLOCK
    assert os.fstat(file).st_size == 100 * BLOCK
    assert os.pread(file, BLOCK, 10 * BLOCK) == b"x" * BLOCK
    assert list(zeros.zero_runs(file)) == []


def test_what_was_written_just_now_into_such_blocks(file):
    """It is in memory alone; the file system still calls the blocks unwritten."""
    os.posix_fallocate(file, 0, 100 * BLOCK)
    os.fsync(file)
    os.pwrite(file, b"x" * (3 * BLOCK), 10 * BLOCK)
    assert zeros.dig_holes(file, at_least=1) == 97 * BLOCK
    assert os.pread(file, 100 * BLOCK, 0) == (
        bytes(10 * BLOCK) + b"x" * (3 * BLOCK) + bytes(87 * BLOCK)
    )


def test_each_block_counts_once_whatever_the_kernel_keeps_in_memory(file):
    """What was read from unwritten blocks seems to be data, to lseek(2)."""
    os.posix_fallocate(file, 0, 1000 * BLOCK)
    for number in range(0, 1000, 16):
        os.pwrite(file, b"x", number * BLOCK)
    os.fsync(file)
    expected = (1000 - 63) * BLOCK

    def found() -> int:
        return sum(length for _offset, length in zeros.zero_runs(file))

    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    assert found() == expected  # reading ahead fills some blocks meanwhile
    os.pread(file, 1000 * BLOCK, 0)
    assert found() == expected
    unwritten = sum(e.length for e in allocated_extents(file) if e.unwritten)
    assert unwritten == expected
    assert zeros.dig_holes(file, at_least=expected) == expected
    assert found() == 0


def test_blocks_beyond_the_end_are_nobodys_business(file):
    os.write(file, b"x" * 100)
    subprocess.run(
        ["fallocate", "--keep-size", "-o", "0", "-l", "65536", f"/proc/self/fd/{file}"],
        pass_fds=(file,),
        check=True,
    )
    os.fsync(file)
    assert list(zeros.zero_runs(file)) == []
    before = os.fstat(file).st_blocks
    assert zeros.dig_holes(file, at_least=1) == 0
    assert os.fstat(file).st_blocks == before


def test_many_extents(file):
    """More than the kernel tells of at a time."""
    os.posix_fallocate(file, 0, 4000 * BLOCK)
    for number in range(0, 4000, 2):
        os.pwrite(file, b"x", number * BLOCK)
    os.fsync(file)
    assert list(zeros.zero_runs(file)) == [(n * BLOCK, BLOCK) for n in range(1, 4000, 2)]


@pytest.mark.usefixtures("small_chunks")
def test_the_kernel_is_asked_once_for_all_that_follows_and_for_nothing_else(file, monkeypatch):
    """What is read has been asked for; up to 8 chunks ahead, and never beyond what is allocated."""
    monkeypatch.setattr(zeros, "AHEAD_BYTES", 32 * BLOCK)
    os.pwrite(file, b"x" * (100 * BLOCK), 0)
    os.pwrite(file, bytes(100 * BLOCK), 200 * BLOCK)
    os.fsync(file)
    asked, most = [], 0
    read = zeros._read

    def noted_read(fd, buffer, *, offset, length):
        nonlocal most
        last = asked[-1][0] + asked[-1][1]
        assert offset + length <= last
        most = max(most, last - offset)
        return read(fd, buffer, offset=offset, length=length)

    monkeypatch.setattr(zeros, "_read", noted_read)
    monkeypatch.setattr(
        os, "posix_fadvise", lambda _fd, offset, length, _advice: asked.append((offset, length))
    )
    assert sum(length for _offset, length in zeros.zero_runs(file)) == 100 * BLOCK
    blocks = [n for start, size in asked for n in range(start // BLOCK, (start + size) // BLOCK)]
    assert sorted(blocks) == [*range(100), *range(200, 300)]
    assert most == 32 * BLOCK


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.usefixtures("small_chunks")
def test_zeros_are_counted_once_each_in_whatever_order(file, seed):
    chance = random.Random(seed)  # noqa: S311
    for number in range(300):
        kind = chance.choice(["hole", "zeros", "data"])
        if kind != "hole":
            os.pwrite(file, (b"x" if kind == "data" else b"\0") * BLOCK, number * BLOCK)
    os.fsync(file)
    every = sum(length for _offset, length in zeros.zero_runs(file))
    assert every
    assert zeros.count_zeros(file) == every
    assert zeros.count_zeros(file, enough=every + 1) == every
    assert zeros.count_zeros(file, enough=every // 2) >= every // 2


@pytest.mark.usefixtures("small_chunks")
def test_enough_zeros_are_found_soon_wherever_they_are(file, monkeypatch):
    read_bytes = 0
    read = zeros._read

    def noted_read(fd, buffer, *, offset, length):
        nonlocal read_bytes
        read_bytes += length
        return read(fd, buffer, offset=offset, length=length)

    monkeypatch.setattr(zeros, "_read", noted_read)
    os.pwrite(file, b"x" * (1024 * BLOCK), 0)
    os.pwrite(file, bytes(1024 * BLOCK), 1024 * BLOCK)
    os.fsync(file)
    assert zeros.count_zeros(file, enough=128 * BLOCK) >= 128 * BLOCK
    assert read_bytes <= 300 * BLOCK


def test_memory_is_bounded():
    """Scattered zeros over terabytes, and not enough of them until the very end."""
    code = """
import re
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage import zeros
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.extents import (
    Extent,
    allocated_extents,
)
# Not getrusage: what that counts begins with the process that started this one.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
zeros.zero_runs = lambda fd: ((n << 20, 4096) for n in range(2_000_000))
assert zeros.dig_holes(-1, at_least=2_000_001 * 4096) == 2_000_000 * 4096
print((peak() - before) // 1024, peak() // 1024)
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    more, all_of_it = map(int, answer.stdout.split())
    assert more < 75, f"{more} MiB"
    assert all_of_it < 100, f"{all_of_it} MiB"
