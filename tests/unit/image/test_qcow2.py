# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The header reader on headers made by hand: what it tells, and what it refuses by name."""

from __future__ import annotations

import struct

import pytest
import qcow2_bytes as made
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    ImageError,
    UnsupportedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import qcow2


def parse(data: bytes, file_length: int | None = made.FILE_LENGTH) -> qcow2.Qcow2Header:
    return qcow2.parse_header(data, file_length=file_length)


def test_plain_version_3():
    assert parse(made.header()) == qcow2.Qcow2Header(
        version=3,
        virtual_size_bytes=1 << 30,
        cluster_size_bytes=65536,
        features=frozenset(),
        refcount_bits=16,
        encryption="none",
        compression_type="zlib",
        snapshot_count=0,
        snapshots_offset=0,
        backing_file=None,
        backing_format=None,
        data_file=None,
        bitmap_count=0,
    )
    assert parse(made.header()).compat == "1.1"


def test_version_2_has_no_features_and_may_have_extensions():
    header = parse(
        made.header(made.extension(made.BACKING_FORMAT, b"raw"), backing=b"b.raw", version=2)
    )
    assert header.compat == "0.10"
    assert header.features == frozenset()
    assert header.refcount_bits == 16
    assert (header.backing_file, header.backing_format) == ("b.raw", "raw")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"incompatible": 1}, {"features": frozenset({"dirty"})}),
        ({"incompatible": 2}, {"features": frozenset({"corrupt"})}),
        ({"incompatible": 16, "l1_size": 4}, {"features": frozenset({"extended_l2"})}),
        ({"compatible": 1}, {"features": frozenset({"lazy_refcounts"})}),
        ({"compatible": 1 << 7}, {"features": frozenset({"compatible_bit_7"})}),
        ({"autoclear": 2}, {"features": frozenset({"data_file_raw"})}),
        ({"autoclear": 1 << 63}, {"features": frozenset({"autoclear_bit_63"})}),
        (
            {"incompatible": 8, "compression_type": 1},
            {"features": frozenset({"compression_type"}), "compression_type": "zstd"},
        ),
        ({"refcount_order": 0}, {"refcount_bits": 1}),
        ({"refcount_order": 6}, {"refcount_bits": 64}),
        ({"crypt_method": 1}, {"encryption": "aes"}),
        ({"crypt_method": 2}, {"encryption": "luks"}),
        ({"header_length": 104}, {"compression_type": "zlib"}),
        ({"size": 0, "l1_size": 0, "l1_table_offset": 0}, {"virtual_size_bytes": 0}),
        ({"nb_snapshots": 3, "snapshots_offset": 0x20000}, {"snapshot_count": 3}),
    ],
)
def test_fields(fields, expected):
    header = parse(made.header(**fields))
    assert {name: getattr(header, name) for name in expected} == expected


def test_names_are_taken_from_extensions_and_the_first_cluster():
    extensions = (
        made.extension(made.DATA_FILE, b"disk.raw"),
        made.extension(made.BACKING_FORMAT, b"qcow2"),
        made.extension(0xABCDEF01, b"something unknown"),
        made.extension(made.BITMAPS, struct.pack(">IIQQ", 2, 0, 64, 0x50000)),
    )
    header = parse(
        made.header(*extensions, backing=b"base \xff.qcow2", incompatible=4, autoclear=1)
    )
    assert header.data_file == "disk.raw"
    assert header.backing_format == "qcow2"
    assert header.backing_file == "base \udcff.qcow2"
    assert header.bitmap_count == 2


def test_the_bitmaps_bit_without_an_extension_counts_for_nothing():
    assert parse(made.header(autoclear=1)).bitmap_count == 0


def test_a_stale_bitmaps_extension_counts_for_nothing():
    extension = made.extension(made.BITMAPS, struct.pack(">IIQQ", 2, 0, 64, 0x50000))
    assert parse(made.header(extension)).bitmap_count == 0


HUGE = 0xFFFFFFFF
HUGE64 = 0xFFFFFFFFFFFFFFFF


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "magic"),
        (b"QFI", "magic"),
        (b"\0" * 4096, "magic"),
        (made.header(version=1), "version is 1"),
        (made.header(version=4), "version is 4"),
        (made.header(cluster_bits=8), "cluster_bits is 8"),
        (made.header(cluster_bits=22), "cluster_bits is 22"),
        (made.header(cluster_bits=HUGE), "cluster_bits is 4294967295"),
        (made.header(crypt_method=3), "crypt_method is 3"),
        (made.header(l1_size=HUGE), "l1_size is 4294967295"),
        (made.header(l1_size=1), "l1_size is 1, too small"),
        (made.header(l1_size=0), "l1_size is 0, too small"),
        (made.header(size=HUGE64), "l1_size is 2, too small"),
        (made.header(incompatible=16), "l1_size is 2, too small"),
        (made.header(l1_table_offset=0), "l1_table_offset is 0"),
        (made.header(l1_table_offset=0x30001), "l1_table_offset is 196609"),
        (made.header(l1_table_offset=1 << 56), "truncated: l1_table_offset"),
        (made.header(refcount_table_offset=512), "refcount_table_offset is 512"),
        (made.header(refcount_table_offset=1 << 40), "truncated: refcount_table_offset"),
        (made.header(refcount_table_clusters=0), "refcount_table_clusters is 0"),
        (made.header(refcount_table_clusters=HUGE), "refcount_table_clusters is 4294967295"),
        (made.header(refcount_order=7), "refcount_order is 7"),
        (made.header(nb_snapshots=HUGE, snapshots_offset=65536), "nb_snapshots is 4294967295"),
        (made.header(nb_snapshots=1), "snapshots_offset is 0"),
        (made.header(nb_snapshots=1, snapshots_offset=HUGE64 - 65535), "truncated: snapshots"),
        (made.patch(made.header(), header_length=103), "header_length is 103"),
        (made.patch(made.header(), header_length=65537), "header_length is 65537"),
        (made.patch(made.header(), header_length=HUGE), "header_length is 4294967295"),
        (made.header(compression_type=1), "compression_type is 1, at odds"),
        (made.header(incompatible=8), "compression_type is 0, at odds"),
        (made.header(incompatible=8, compression_type=2), "compression_type is 2, not"),
        (made.header(incompatible=16, cluster_bits=13), "cluster_bits is 13, too few"),
        (made.header(incompatible=4), "data file name is missing"),
        (made.header(made.extension(1, b"", length=HUGE)), "header extension is 4294967295 bytes"),
        (made.header(made.extension(1, b"", length=65420)), "header extension is 65420 bytes"),
        (made.header(*[made.extension(7, b"")] * 2), "header extension is 0x7, there twice"),
        (
            made.header(*[made.extension(kind, b"") for kind in range(1, 200)]),
            "header extension is number 64, one too many",
        ),
        (made.header(made.extension(made.BITMAPS, b"1234"), autoclear=1), "bitmaps extension is 4"),
        (
            made.header(made.extension(made.BITMAPS, struct.pack(">I20x", HUGE)), autoclear=1),
            "nb_bitmaps is 4294967295",
        ),
        (made.header(backing_file_offset=65536, backing_file_size=1), "backing_file_offset is"),
        (made.header(backing_file_offset=HUGE64, backing_file_size=1), "backing_file_offset is"),
        (made.header(backing_file_offset=8, backing_file_size=8), "backing_file_offset is 8"),
        (made.header(backing_file_offset=200, backing_file_size=1024), "backing_file_size is 1024"),
        (made.header(backing_file_offset=65530, backing_file_size=7), "backing_file_size is 7"),
        (made.header(backing_file_offset=200, backing_file_size=HUGE), "backing_file_size is"),
        (made.header(backing=b"good.qcow2\0/etc/passwd"), "NUL"),
        (made.header(made.extension(made.DATA_FILE, b"a\0b")), "NUL"),
        (made.header(made.extension(made.BACKING_FORMAT, b"raw\0")), "NUL"),
    ],
)
def test_malformed_headers_name_the_field(data, says):
    with pytest.raises(ImageError, match="qcow") as caught:
        parse(data)
    assert says in caught.value.message
    assert "\n" not in caught.value.message


def test_unknown_incompatible_features_are_refused_by_the_name_that_the_image_gives():
    table = made.feature_name(0, 0, b"dirty bit") + made.feature_name(0, 9, b"sub\ncluster magic")
    data = made.header(made.extension(made.FEATURE_NAMES, table), incompatible=1 << 9 | 1 << 63)
    with pytest.raises(UnsupportedError) as caught:
        parse(data)
    assert r"bit 9 (sub\ncluster magic), bit 63 (no name)" in caught.value.message


def test_a_header_that_goes_on_behind_the_bytes_given_is_told_apart():
    data = made.header(made.extension(1, bytes(8000)), backing=b"base", pad=65536)
    with pytest.raises(qcow2.ShortHeaderError, match="truncated"):
        parse(data[:4096])
    assert parse(data).backing_file == "base"


@pytest.mark.parametrize("length", range(112))
def test_truncated_at_every_byte(length):
    with pytest.raises(ImageError):
        parse(made.header()[:length])


def test_cluster_size_tells_how_much_to_read():
    assert qcow2.cluster_size_of(made.header(cluster_bits=21)[:24]) == qcow2.MAX_CLUSTER_BYTES


def test_snapshot_table():
    table = made.snapshot(b"1", b"before upgrade", state=5, seconds=1700000000) + made.snapshot(
        b"22", b"n\xff", extra=struct.pack(">QQQ", 1 << 33, 1 << 30, 0)
    )
    assert qcow2.parse_snapshots(table, count=2) == [
        qcow2.Snapshot("1", "before upgrade", 1700000000, 5, None),
        qcow2.Snapshot("22", "n\udcff", 1, 1 << 33, 1 << 30),
    ]


@pytest.mark.parametrize("cut", [1, 20, 39, 40, 41])
def test_snapshot_table_truncated(cut):
    with pytest.raises(ImageError, match="snapshot table"):
        qcow2.parse_snapshots(made.snapshot(b"1", b"name")[:cut], count=1)


def test_snapshot_table_with_more_entries_claimed_than_there_are():
    with pytest.raises(ImageError, match="snapshot table"):
        qcow2.parse_snapshots(made.snapshot(b"1", b"name"), count=65536)


def test_snapshot_with_endless_extra_data():
    entry = bytearray(made.snapshot(b"1", b"name"))
    struct.pack_into(">I", entry, 36, HUGE)
    with pytest.raises(ImageError, match="extra_data_size is 4294967295"):
        qcow2.parse_snapshots(bytes(entry), count=1)
