# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever a header holds, it is parsed or refused: no other exception, and no time lost."""

from __future__ import annotations

import random
import struct
import time

import pytest
import qcow2_bytes as made
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    ImageError,
    UnsupportedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import qcow2

SEEDS = [
    made.header(),
    made.header(version=2, backing=b"base.raw"),
    made.header(
        made.extension(made.BACKING_FORMAT, b"qcow2"),
        made.extension(made.FEATURE_NAMES, made.feature_name(0, 0, b"dirty bit")),
        made.extension(made.DATA_FILE, b"data.raw"),
        made.extension(made.BITMAPS, struct.pack(">IIQQ", 2, 0, 64, 0x50000)),
        backing=b"base.qcow2",
        incompatible=4,
        autoclear=3,
    ),
]
NASTY = [0, 1, 7, 0x7F, 0x80, 0xFF]


def mutate(data: bytes, dice: random.Random) -> bytes:
    changed = bytearray(data)
    for _number in range(dice.randint(1, 6)):
        # Most of the meaning lies in the first 400 bytes.
        at = dice.randrange(400 if dice.random() < 0.9 else len(changed))
        changed[at : at + dice.choice([1, 1, 4, 8])] = bytes(
            dice.choice(NASTY) if dice.random() < 0.5 else dice.randrange(256)
            for _number in range(dice.choice([1, 1, 4, 8]))
        )
    if dice.random() < 0.1:
        del changed[dice.randrange(len(changed)) :]
    return bytes(changed)


@pytest.mark.parametrize("seed", range(len(SEEDS)))
def test_mutated_headers(seed):
    dice = random.Random(seed)  # noqa: S311
    parsed = refused = 0
    for _number in range(20000):
        data = mutate(SEEDS[seed], dice)
        try:
            header = qcow2.parse_header(data, file_length=made.FILE_LENGTH)
        except (ImageError, UnsupportedError):
            refused += 1
        else:
            parsed += 1
            assert header.snapshot_count <= qcow2.MAX_SNAPSHOTS
            assert header.cluster_size_bytes <= qcow2.MAX_CLUSTER_BYTES
            assert "\0" not in (header.backing_file or "") + (header.data_file or "")
    assert parsed > 100
    assert refused > 100


def test_mutated_snapshot_tables():
    table = b"".join(made.snapshot(b"%d" % n, b"name", extra=bytes(24)) for n in range(20))
    dice = random.Random(0)  # noqa: S311
    for _number in range(5000):
        try:
            qcow2.parse_snapshots(mutate(table, dice), count=dice.choice([1, 20, 65536]))
        except ImageError:
            continue


def test_the_worst_header_takes_no_time():
    extensions = [made.extension(n, b"") for n in range(1, 200000)]
    data = made.header(*extensions, cluster_bits=21, pad=1 << 21)
    times = []
    for _attempt in range(5):  # in one of them Python may clean up after other tests
        begin = time.process_time()
        with pytest.raises(ImageError, match="one too many"):
            qcow2.parse_header(data, file_length=1 << 30)
        times.append(time.process_time() - begin)
    assert min(times) < 0.1
