# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find blocks of a file that hold nothing but zeros, and turn them into holes.

A hole reads as zeros: whatever the file's format is, and whenever the work is cut short, its
content stays the same byte by byte.  That holds only while nobody else writes to it.

Own code instead of ``fallocate --dig-holes``: it may dig only once enough has been found to be
worth it, and reads the data once for both.
"""

from __future__ import annotations

import os
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.extents import (
    allocated_extents,
    holes_within,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.punch import punch_hole

#: What is read at a time, in bytes; also the longest run that is yielded.
CHUNK_BYTES = 1 << 20
#: The smallest piece that is looked at: the block of nearly every file system.
BLOCK_BYTES = 4096

#: Runs that are remembered until enough was found: some 50 MiB of memory.
MAX_WAITING = 500_000

_ZERO_CHUNK = bytes(CHUNK_BYTES)
_ZERO_BLOCK = bytes(BLOCK_BYTES)


def zero_runs(fd: int) -> t.Iterator[tuple[int, int]]:
    """Yield (offset, length) in bytes of what is allocated and reads as zeros, in order, each once.

    Runs never leave what is allocated.  They begin and end at a multiple of the block from where
    that begins, or where it ends, or where the chunk does that was read.

    :raises OSError: the file can't be read.
    """
    buffer = bytearray(CHUNK_BYTES)
    for extent in allocated_extents(fd):
        end = extent.offset + extent.length
        if not extent.unwritten:
            yield from _zeros_in(fd, buffer, extent.offset, end)
            continue
        for start, length, hole in holes_within(fd, extent.offset, end):
            if hole:
                yield from _pieces(start, length)
            else:
                yield from _zeros_in(fd, buffer, start, start + length)


def _pieces(start: int, length: int) -> t.Iterator[tuple[int, int]]:
    for offset in range(start, start + length, CHUNK_BYTES):
        yield offset, min(CHUNK_BYTES, start + length - offset)


def _zeros_in(fd: int, buffer: bytearray, position: int, end: int) -> t.Iterator[tuple[int, int]]:
    while position < end:
        view = memoryview(buffer)[: min(CHUNK_BYTES, end - position)]
        count = os.preadv(fd, [view], position)
        if count == 0:  # the file was cut
            return
        for first, size in _zero_blocks(buffer, count):
            yield position + first, size
        position += count


def _zero_blocks(buffer: bytearray, count: int) -> t.Iterator[tuple[int, int]]:
    if count == CHUNK_BYTES and buffer == _ZERO_CHUNK:
        yield 0, count
        return
    # Data without a block of zeros, aligned or not, is passed over fast: nearly all data is.
    if count % BLOCK_BYTES == 0 and buffer.find(_ZERO_BLOCK, 0, count) < 0:
        return
    begin = None
    for offset in range(0, count, BLOCK_BYTES):
        block = buffer[offset : min(offset + BLOCK_BYTES, count)]
        # The last block may be short: of a file, or where the file system's are smaller.
        if block == _ZERO_BLOCK or (len(block) < BLOCK_BYTES and not any(block)):
            begin = offset if begin is None else begin
        elif begin is not None:
            yield begin, offset - begin
            begin = None
    if begin is not None:
        yield begin, count - begin


def dig_holes(fd: int, *, at_least: int) -> int:
    """Turn the zeros of a file open for reading and writing into holes, if there are enough.

    Nothing is written, and nothing at all is done before ``at_least`` bytes of zeros were
    found; from then on holes are dug as they are found.

    :param at_least: bytes of zeros that are worth it.
    :returns: the bytes of zeros that were found.
    :raises OSError: it can't be read, or its file system can't punch.
    """
    found = 0
    waiting: list[tuple[int, int]] | None = []
    for offset, length in zero_runs(fd):
        found += length
        if waiting is None:
            continue
        if found < at_least:
            waiting.append((offset, length))
            if len(waiting) > MAX_WAITING:
                waiting = None  # too many to remember: they are looked for once more
            continue
        _dig(fd, (run for run in waiting if _is_zero(fd, *run)))
        waiting.clear()
        _dig(fd, [(offset, length)])
    if waiting is None and found >= at_least:
        _dig(fd, zero_runs(fd))
    return found


def _is_zero(fd: int, offset: int, length: int) -> bool:
    """Still: it may be long since it was read, and not everybody heeds locks."""
    return os.pread(fd, length, offset) == _ZERO_CHUNK[:length]


def _dig(fd: int, runs: t.Iterable[tuple[int, int]]) -> None:
    size = os.fstat(fd).st_size
    for offset, length in runs:
        # The kernel frees whole blocks: that of a short end only if it is punched as a whole.
        beyond = -length % BLOCK_BYTES if offset + length == size else 0
        punch_hole(fd, offset=offset, length=length + beyond)
