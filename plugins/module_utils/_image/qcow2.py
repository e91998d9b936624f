# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The qcow2 header, versions 2 and 3, read without QEMU: bytes in, frozen dataclasses out.

A header may have been written by a hostile guest.  No length, offset or count in it is
trusted: each is checked against QEMU's own limits before it is used, and nothing beyond
the first cluster (2 MiB at most) is ever looked at.  Source: docs/interop/qcow2.txt and
block/qcow2.c of QEMU.
"""

from __future__ import annotations

import dataclasses
import os
import struct
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    ImageError,
    UnsupportedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown

MAGIC = b"QFI\xfb"
#: A first read of this many bytes holds all of nearly every header.
USUAL_HEADER_BYTES = 4096
#: The largest cluster that QEMU knows, and so the most that a header can span.
MAX_CLUSTER_BYTES = 2 * 1024 * 1024

#: QEMU's limits (block/qcow2.h).
MAX_SNAPSHOTS = 65536
_MAX_L1_BYTES = 32 * 1024 * 1024
_MAX_REFCOUNT_TABLE_BYTES = 8 * 1024 * 1024
_MAX_BACKING_NAME_BYTES = 1023
_MAX_BITMAPS = 65535
_MAX_REFCOUNT_ORDER = 6
_MIN_EXTENDED_L2_CLUSTER_BYTES = 16 * 1024
#: No limit of QEMU's: five types exist, and a cluster of 2 MiB could list 262,144 of them.
_MAX_EXTENSIONS = 64

_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_V3_MINIMUM_BYTES = 104
_EXTENDED_L2_BIT = 4

_BACKING_FORMAT = 0xE2792ACA
_FEATURE_NAMES = 0x6803F857
_BITMAPS = 0x23852875
_DATA_FILE = 0x44415441

_CRYPT_METHODS = {0: "none", 1: "aes", 2: "luks"}
_COMPRESSION_TYPES = {0: "zlib", 1: "zstd"}

#: Names by (type, bit) as in the feature name table: 0 incompatible, 1 compatible, 2 autoclear.
_FEATURES = {
    (0, 0): "dirty",
    (0, 1): "corrupt",
    (0, 2): "external_data_file",
    (0, 3): "compression_type",
    (0, 4): "extended_l2",
    (1, 0): "lazy_refcounts",
    (2, 0): "bitmaps",
    (2, 1): "data_file_raw",
}


class ShortHeaderError(ImageError):
    """The header goes on behind the bytes given: truncated, unless more can be read."""


@dataclasses.dataclass(frozen=True)
class Qcow2Header:
    """What the header of a qcow2 image says.

    :param virtual_size_bytes: the size of the disk that the guest sees.
    :param features: names of all feature bits that are set; compatible and autoclear bits
        unknown to us appear as ``compatible_bit_7``.
    :param encryption: ``none``, ``aes`` or ``luks``.
    :param snapshots_offset: where the table of internal snapshots begins, in bytes.
    :param backing_file: the name as it stands in the header, neither resolved nor safe;
        None without one.
    :param backing_format: None when the header does not say: QEMU would probe.
    :param data_file: the external data file's name, as unsafe as the backing file's.
    """

    version: int
    virtual_size_bytes: int
    cluster_size_bytes: int
    features: frozenset[str]
    refcount_bits: int
    encryption: str
    compression_type: str
    snapshot_count: int
    snapshots_offset: int
    backing_file: str | None
    backing_format: str | None
    data_file: str | None
    bitmap_count: int

    @property
    def compat(self) -> str:
        """The version by the name that ``qemu-img create -o compat=`` gives it."""
        return "0.10" if self.version == 2 else "1.1"


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """An internal snapshot.

    :param created: seconds since 1970.
    :param disk_bytes: the disk's size when it was taken; None where the table is too old.
    """

    id: str
    name: str
    created: int
    vm_state_bytes: int
    disk_bytes: int | None


def is_qcow2(data: bytes) -> bool:
    """Whether a file that begins like this is a qcow2 image (or its ancestor, qcow 1)."""
    return data.startswith(MAGIC)


def cluster_size_of(data: bytes) -> int:
    """The cluster size in bytes, from the first 24 bytes alone: how much to read at most.

    :raises ImageError: these are not the first bytes of an image that can be read.
    """
    if not is_qcow2(data):
        raise ImageError("The file does not begin with qcow2's magic number.")
    (version,) = struct.unpack(">I", _slice(data, 4, 4, "version"))
    if version not in (2, 3):
        raise ImageError(f"The qcow version is {version}; only 2 and 3 can be read.")
    (cluster_bits,) = struct.unpack(">I", _slice(data, 20, 4, "cluster_bits"))
    if not 9 <= cluster_bits <= 21:
        raise _bad("cluster_bits", cluster_bits, "not between 9 and 21")
    return 1 << int(cluster_bits)


def parse_header(data: bytes, *, file_length: int | None = None) -> Qcow2Header:
    """Parse a header from the first bytes of an image.

    :param data: the file's first cluster, or a first part of it.
    :param file_length: the file's length in bytes, to tell truncated files; None if unknown.
    :raises ShortHeaderError: the header goes on behind ``data``.
    :raises UnsupportedError: an incompatible feature is set that is not known here.
    :raises ImageError: a field is malformed or impossible; the message names it.
    """
    cluster_size = cluster_size_of(data)
    fields = _fields(data)
    features, unknown = _feature_names(fields.feature_masks)
    _check_bounds(fields, cluster_size)
    end = fields.backing_offset or cluster_size
    extensions = _extensions(data, fields.header_length, end)
    if unknown:
        raise _unknown_features(unknown, extensions.get(_FEATURE_NAMES, b""))
    _check_features(fields, features, cluster_size)
    _check_tables(fields, cluster_size, file_length)
    data_file = _text(extensions.get(_DATA_FILE), "data file name")
    if "external_data_file" in features and not data_file:
        raise _bad("data file name", "missing", "though the image has an external data file")
    return Qcow2Header(
        version=fields.version,
        virtual_size_bytes=fields.size,
        cluster_size_bytes=cluster_size,
        features=features,
        refcount_bits=1 << fields.refcount_order,
        encryption=_CRYPT_METHODS[fields.crypt_method],
        compression_type=_COMPRESSION_TYPES[fields.compression_type],
        snapshot_count=fields.snapshots,
        snapshots_offset=fields.snapshots_offset,
        backing_file=_backing_file(data, fields.backing_offset, fields.backing_length),
        backing_format=_text(extensions.get(_BACKING_FORMAT), "backing format"),
        data_file=data_file,
        bitmap_count=_bitmap_count(extensions) if "bitmaps" in features else 0,
    )


def parse_snapshots(table: bytes, *, count: int) -> list[Snapshot]:
    """Parse the table of internal snapshots.

    :param table: the bytes from ``snapshots_offset`` on, as many as the caller cares to read.
    :param count: ``snapshot_count`` of the header.
    :raises ImageError: the table goes on behind the bytes given, or is malformed.
    """
    head = struct.Struct(">QIHHIIQII")
    snapshots = []
    offset = 0
    for _number in range(count):
        fields = head.unpack(_slice(table, offset, head.size, "snapshot table"))
        _l1, _l1_size, id_length, name_length, seconds, _nano, _clock, state, extra = fields
        offset += head.size
        if extra > 1024:
            raise _bad("extra_data_size", extra, "more than 1024 bytes in a snapshot")
        more = _slice(table, offset, extra, "snapshot table")
        if extra >= 8:
            (state,) = struct.unpack_from(">Q", more, 0)
        texts = _slice(table, offset + extra, id_length + name_length, "snapshot table")
        offset += (extra + id_length + name_length + 7) // 8 * 8
        snapshots.append(
            Snapshot(
                id=os.fsdecode(texts[:id_length]),
                name=os.fsdecode(texts[id_length:]),
                created=seconds,
                vm_state_bytes=state,
                disk_bytes=struct.unpack_from(">Q", more, 8)[0] if extra >= 16 else None,
            )
        )
    return snapshots


def _bad(field: str, value: int | str, why: str) -> ImageError:
    return ImageError(f"The qcow2 header is malformed: {field} is {value}, {why}.")


def _slice(data: bytes, offset: int, length: int, what: str) -> bytes:
    piece = data[offset : offset + length]
    if len(piece) < length:
        raise ShortHeaderError(f"The qcow2 image is truncated: its {what} is not all there.")
    return piece


class _Fields(t.NamedTuple):
    """The header's numbers as they stand there, version 2 filled up with what it implies."""

    version: int
    backing_offset: int
    backing_length: int
    size: int
    crypt_method: int
    l1_size: int
    l1_offset: int
    refcount_offset: int
    refcount_clusters: int
    snapshots: int
    snapshots_offset: int
    feature_masks: tuple[int, ...] = ()
    refcount_order: int = 4
    header_length: int = _V2.size
    compression_type: int = 0


def _fields(data: bytes) -> _Fields:
    numbers = _V2.unpack(_slice(data, 0, _V2.size, "header"))
    _magic, version, backing_offset, backing_length, _cluster_bits, *rest = numbers
    fields = _Fields(version, backing_offset, backing_length, *rest)
    if version == 2:
        return fields
    *masks, order, length = _V3.unpack(_slice(data, _V2.size, _V3.size, "header"))
    compression = 0
    if length > _V3_MINIMUM_BYTES:
        compression = _slice(data, _V3_MINIMUM_BYTES, 1, "header")[0]
    return fields._replace(
        feature_masks=tuple(masks),
        refcount_order=order,
        header_length=length,
        compression_type=compression,
    )


def _check_bounds(fields: _Fields, cluster_size: int) -> None:
    """What must hold before anything that a field points to is looked at."""
    shortest = _V2.size if fields.version == 2 else _V3_MINIMUM_BYTES
    longest_name = min(_MAX_BACKING_NAME_BYTES, cluster_size - fields.backing_offset)
    if not shortest <= fields.header_length <= cluster_size:
        raise _bad("header_length", fields.header_length, f"not {shortest} to {cluster_size}")
    if fields.backing_offset and not fields.header_length <= fields.backing_offset < cluster_size:
        raise _bad("backing_file_offset", fields.backing_offset, "outside the first cluster")
    if fields.backing_offset and fields.backing_length > longest_name:
        raise _bad("backing_file_size", fields.backing_length, f"more than {longest_name}")


def _check_features(fields: _Fields, features: frozenset[str], cluster_size: int) -> None:
    if fields.crypt_method not in _CRYPT_METHODS:
        raise _bad("crypt_method", fields.crypt_method, "not 0, 1 or 2")
    if fields.refcount_order > _MAX_REFCOUNT_ORDER:
        raise _bad("refcount_order", fields.refcount_order, f"more than {_MAX_REFCOUNT_ORDER}")
    if fields.compression_type not in _COMPRESSION_TYPES:
        raise _bad("compression_type", fields.compression_type, "not 0 (zlib) or 1 (zstd)")
    if bool(fields.compression_type) != ("compression_type" in features):
        raise _bad("compression_type", fields.compression_type, "at odds with its feature bit")
    if "extended_l2" in features and cluster_size < _MIN_EXTENDED_L2_CLUSTER_BYTES:
        raise _bad("cluster_bits", cluster_size.bit_length() - 1, "too few for extended L2")


def _check_tables(fields: _Fields, cluster_size: int, file_length: int | None) -> None:
    extended = fields.feature_masks and fields.feature_masks[0] >> _EXTENDED_L2_BIT & 1
    bytes_per_l1_entry = cluster_size // (16 if extended else 8) * cluster_size
    if fields.l1_size * 8 > _MAX_L1_BYTES:
        raise _bad("l1_size", fields.l1_size, "a table of more than 32 MiB")
    if fields.l1_size * bytes_per_l1_entry < fields.size:
        raise _bad("l1_size", fields.l1_size, f"too small for a disk of {fields.size} bytes")
    if not 0 < fields.refcount_clusters * cluster_size <= _MAX_REFCOUNT_TABLE_BYTES:
        raise _bad("refcount_table_clusters", fields.refcount_clusters, "none, or above 8 MiB")
    if fields.snapshots > MAX_SNAPSHOTS:
        raise _bad("nb_snapshots", fields.snapshots, f"more than {MAX_SNAPSHOTS}")
    for name, offset, used in (
        ("l1_table_offset", fields.l1_offset, fields.l1_size),
        ("refcount_table_offset", fields.refcount_offset, fields.refcount_clusters),
        ("snapshots_offset", fields.snapshots_offset, fields.snapshots),
    ):
        if used and (offset == 0 or offset % cluster_size):
            raise _bad(name, offset, "not the beginning of a cluster behind the first")
        if used and file_length is not None and offset >= file_length:
            raise ImageError(
                f"The qcow2 image is truncated: {name} is {offset}, "
                f"the file has {file_length} bytes."
            )


def _feature_names(masks: t.Sequence[int]) -> tuple[frozenset[str], list[int]]:
    """The names of all bits that are set, and the incompatible bits that have none."""
    names = set()
    unknown = []
    for kind, mask in enumerate(masks):
        while mask:
            bit = mask.bit_length() - 1
            mask ^= 1 << bit  # noqa: PLW2901 - what is left of it
            if kind == 0 and (kind, bit) not in _FEATURES:
                unknown.append(bit)
            else:
                fallback = f"{('incompatible', 'compatible', 'autoclear')[kind]}_bit_{bit}"
                names.add(_FEATURES.get((kind, bit), fallback))
    return frozenset(names), sorted(unknown)


def _unknown_features(bits: t.Iterable[int], table: bytes) -> UnsupportedError:
    """The refusal, with the names that the image itself gives in its feature name table."""
    given = {
        (kind, bit): os.fsdecode(name.split(b"\0")[0])
        for kind, bit, name in struct.iter_unpack(">BB46s", table[: len(table) // 48 * 48])
    }
    listed = ", ".join(f"bit {bit} ({shown(given.get((0, bit), '') or 'no name')})" for bit in bits)
    return UnsupportedError(
        f"The qcow2 image has incompatible features that are not known here: {listed}; nothing was "
        "changed.",
        remedy="Leave it to the QEMU that made it, which is newer, or copy it there with qemu-img "
        "convert.",
    )


def _extensions(data: bytes, offset: int, end: int) -> dict[int, bytes]:
    """The header extensions by type; they end at ``end`` or at an extension of type 0."""
    found: dict[int, bytes] = {}
    for _number in range(_MAX_EXTENSIONS):
        if offset + 8 > end:
            return found
        kind, length = struct.unpack(">II", _slice(data, offset, 8, "header extension"))
        if kind == 0:
            return found
        if length > end - offset - 8:
            raise _bad("header extension", f"{length} bytes long", "more than there is room for")
        if kind in found:
            raise _bad("header extension", f"{kind:#x}", "there twice")
        found[kind] = _slice(data, offset + 8, length, "header extension")
        offset += 8 + (length + 7) // 8 * 8
    raise _bad("header extension", f"number {_MAX_EXTENSIONS}", "one too many")


def _backing_file(data: bytes, offset: int, length: int) -> str | None:
    name = _slice(data, offset, length, "backing file name") if offset else None
    return _text(name, "backing file name")


def _text(value: bytes | None, what: str) -> str | None:
    """A name of the header, by the rules of file names; QEMU would stop at a NUL."""
    if value is not None and b"\0" in value:
        raise _bad(what, shown(os.fsdecode(value)), "with a NUL inside")
    return os.fsdecode(value) if value else None


def _bitmap_count(extensions: t.Mapping[int, bytes]) -> int:
    extension = extensions.get(_BITMAPS)
    if extension is None:  # odd, but QEMU opens it
        return 0
    if len(extension) != 24:
        raise _bad("bitmaps extension", f"{len(extension)} bytes long", "not 24")
    (count,) = struct.unpack_from(">I", extension)
    if not 0 < count <= _MAX_BITMAPS:
        raise _bad("nb_bitmaps", count, f"not between 1 and {_MAX_BITMAPS}")
    return int(count)
