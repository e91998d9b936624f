# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""qcow2 headers made by hand, from QEMU's docs/interop/qcow2.txt, not from our reader."""

from __future__ import annotations

import struct

MAGIC = 0x514649FB
BACKING_FORMAT = 0xE2792ACA
FEATURE_NAMES = 0x6803F857
BITMAPS = 0x23852875
DATA_FILE = 0x44415441

_FIELDS = {
    "magic": "I",
    "version": "I",
    "backing_file_offset": "Q",
    "backing_file_size": "I",
    "cluster_bits": "I",
    "size": "Q",
    "crypt_method": "I",
    "l1_size": "I",
    "l1_table_offset": "Q",
    "refcount_table_offset": "Q",
    "refcount_table_clusters": "I",
    "nb_snapshots": "I",
    "snapshots_offset": "Q",
    "incompatible": "Q",
    "compatible": "Q",
    "autoclear": "Q",
    "refcount_order": "I",
    "header_length": "I",
    "compression_type": "B",
}
DEFAULTS = {
    "magic": MAGIC,
    "version": 3,
    "cluster_bits": 16,
    "size": 1 << 30,
    "l1_size": 2,
    "l1_table_offset": 0x30000,
    "refcount_table_offset": 0x10000,
    "refcount_table_clusters": 1,
    "refcount_order": 4,
    "header_length": 112,
}
#: As long as a new image of QEMU's own.
FILE_LENGTH = 196624


def offset_of(field: str) -> int:
    """Where a field lies in the header."""
    names = list(_FIELDS)
    return struct.calcsize(">" + "".join(_FIELDS[name] for name in names[: names.index(field)]))


def patch(data: bytes, **fields: int) -> bytes:
    """Other values for some fields of a real header."""
    changed = bytearray(data)
    for field, value in fields.items():
        struct.pack_into(">" + _FIELDS[field], changed, offset_of(field), value)
    return bytes(changed)


def extension(kind: int, content: bytes, *, length: int | None = None) -> bytes:
    """A header extension, padded; with a false length if asked for."""
    head = struct.pack(">II", kind, len(content) if length is None else length)
    return head + content + bytes(-len(content) % 8)


def header(*extensions: bytes, backing: bytes = b"", pad: int = 4096, **fields: int) -> bytes:
    """The first bytes of an image; version 2 without what version 3 added."""
    values = {**DEFAULTS, **fields}
    end = 72 if values["version"] == 2 else values["header_length"]
    body = b"".join(extensions)
    if backing:
        values.setdefault("backing_file_offset", max(end, 72) + len(body) + 8)
        values.setdefault("backing_file_size", len(backing))
    data = patch(bytes(pad), **{k: v for k, v in values.items() if end > 72 or offset_of(k) < 72})
    data = data[:end] + body + data[end + len(body) :]
    if backing:
        at = values["backing_file_offset"]
        data = data[:at] + backing + data[at + len(backing) :]
    return data


def feature_name(kind: int, bit: int, name: bytes) -> bytes:
    """One entry of the feature name table."""
    return struct.pack(">BB46s", kind, bit, name)


def snapshot(
    number: bytes, name: bytes, *, extra: bytes = b"", state: int = 0, seconds: int = 1
) -> bytes:
    """One entry of the snapshot table, padded."""
    head = struct.pack(
        ">QIHHIIQII", 0x50000, 1, len(number), len(name), seconds, 0, 0, state, len(extra)
    )
    entry = head + extra + number + name
    return entry + bytes(-len(entry) % 8)
