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
    Extent,
    allocated_extents,
    holes_within,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.lease import give_way_if_asked
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.punch import punch_hole

#: What is read at a time, in bytes, where there is data.
CHUNK_BYTES = 1 << 20
#: What is read at a time among zeros, in bytes; also the longest run that is yielded.  A hole costs
#: its journal entry or discard whatever its length is: at 4 MiB that is little beside the reading.
LONGEST_BYTES = 4 << 20
#: What the kernel is asked to fetch ahead of what is read, in bytes.  On storage that is slow to
#: answer, as networks and clouds are, that halves the time; cached or fast ones don't notice.
AHEAD_BYTES = 16 << 20
#: The smallest piece that is looked at: the block of nearly every file system.
BLOCK_BYTES = 4096

#: One window of so many is read, then another: zeros are seldom spread evenly.
_PASSES = 8

#: Runs that are remembered until enough was found: some 50 MiB of memory.
MAX_WAITING = 500_000

_ZERO_BLOCK = bytes(BLOCK_BYTES)


def zero_runs(fd: int, *, shared: bool = False) -> t.Iterator[tuple[int, int]]:
    """Yield (offset, length) in bytes of what is allocated and reads as zeros, in order, each once.

    :param shared: also blocks that other files have too, and that would not come back.

    Runs never leave what is allocated.  They begin and end at a multiple of the block from where
    that begins, or where it ends.  Each was read as a whole just before it is yielded.

    :raises OSError: the file can't be read.
    """
    buffer = bytearray(LONGEST_BYTES)
    for extent in _extents(fd, shared=shared):
        end = extent.offset + extent.length
        yield from _zeros_of(fd, buffer, extent.offset, end, unwritten=extent.unwritten)


def _extents(fd: int, *, shared: bool) -> t.Iterator[Extent]:
    return (extent for extent in allocated_extents(fd) if shared or not extent.shared)


def count_zeros(fd: int, *, enough: int | None = None, shared: bool = False) -> int:
    """Bytes that are allocated and read as zeros.

    :param shared: as for :func:`zero_runs`.

    :param enough: stop when so many were found.  They are looked for all over the file, so that
        where half of it is zeros little more than twice as much is read.
    :raises OSError: the file can't be read.
    """
    if enough is None:
        return sum(length for _offset, length in zero_runs(fd, shared=shared))
    buffer = bytearray(LONGEST_BYTES)
    found = 0
    for turn in range(_PASSES):
        for extent in _extents(fd, shared=shared):
            for start, end in _windows(extent.offset, extent.offset + extent.length, turn):
                runs = _zeros_of(fd, buffer, start, end, unwritten=extent.unwritten)
                found += sum(length for _offset, length in runs)
                if found >= enough:
                    return found
    return found


def _windows(start: int, end: int, turn: int) -> t.Iterator[tuple[int, int]]:
    """The parts of a range that lie in the windows whose turn it is."""
    # 0 4 2 6 1 5 3 7: whatever was read, the next one lies in the middle of what was not.
    wanted = int(f"{turn:03b}"[::-1], 2)
    position = start
    while position < end:
        number = position // LONGEST_BYTES
        stop = min(end, (number + 1) * LONGEST_BYTES)
        if number % _PASSES == wanted:
            yield position, stop
        position = stop


def _zeros_of(
    fd: int, buffer: bytearray, start: int, end: int, *, unwritten: bool
) -> t.Iterator[tuple[int, int]]:
    if not unwritten:
        yield from _zeros_in(fd, buffer, start, end)
        return
    for begin, length, hole in holes_within(fd, start, end):
        if hole:
            yield from _pieces(begin, length)
        else:
            yield from _zeros_in(fd, buffer, begin, begin + length)


def _pieces(start: int, length: int) -> t.Iterator[tuple[int, int]]:
    for offset in range(start, start + length, LONGEST_BYTES):
        yield offset, min(LONGEST_BYTES, start + length - offset)


def _zeros_in(fd: int, buffer: bytearray, position: int, end: int) -> t.Iterator[tuple[int, int]]:
    size = CHUNK_BYTES
    asked = position
    while position < end:
        give_way_if_asked()
        asked = _ask_ahead(fd, asked, min(end, position + AHEAD_BYTES))
        count = _read(fd, buffer, offset=position, length=min(size, end - position))
        if count == 0:  # the file was cut
            return
        first, length = 0, 0
        for first, length in _zero_blocks(buffer, count):
            if first + length < count:
                yield position + first, length
        if first + length < count:  # data at the end
            position, size = position + count, CHUNK_BYTES
        elif first > 0 and position + count < end:
            # It may go on: it is read once more, from its beginning, to be one hole and not two.
            position, size = position + first, CHUNK_BYTES
        else:
            yield position + first, length
            position, size = position + count, min(2 * size, LONGEST_BYTES)


def _ask_ahead(fd: int, asked: int, end: int) -> int:
    """Have what follows read meanwhile, piece by piece: the kernel cuts long ones short."""
    while asked < end:
        length = min(CHUNK_BYTES, end - asked)
        os.posix_fadvise(fd, asked, length, os.POSIX_FADV_WILLNEED)
        asked += length
    return asked


def _read(fd: int, buffer: bytearray, *, offset: int, length: int) -> int:
    with memoryview(buffer) as view:
        return os.preadv(fd, [view[:length]], offset)


def _zero_blocks(buffer: bytearray, count: int) -> t.Iterator[tuple[int, int]]:
    """Runs of blocks of zeros among the first bytes of a buffer; the last block may be short."""
    # memcmp(3) in place, that ends at the first other byte: nothing faster was found, neither
    # bytes.find, which some Pythons have in quadratic time, nor comparing a copy of each block.
    is_zero = buffer.startswith
    whole = count - count % BLOCK_BYTES
    zeros = [offset for offset in range(0, whole, BLOCK_BYTES) if is_zero(_ZERO_BLOCK, offset)]
    if whole < count and is_zero(_ZERO_BLOCK[: count - whole], whole):
        zeros.append(whole)
    begin = end = 0
    for offset in zeros:
        if offset != end:
            if begin < end:
                yield begin, end - begin
            begin = offset
        end = offset + BLOCK_BYTES
    if begin < end:
        yield begin, min(end, count) - begin


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
    return os.pread(fd, length, offset) == bytes(length)


def _dig(fd: int, runs: t.Iterable[tuple[int, int]]) -> None:
    size = os.fstat(fd).st_size
    for offset, length in runs:
        # The kernel frees whole blocks: that of a short end only if it is punched as a whole.
        beyond = -length % BLOCK_BYTES if offset + length == size else 0
        punch_hole(fd, offset=offset, length=length + beyond)
