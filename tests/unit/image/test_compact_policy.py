# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is refused, when it is worth it, and what a copy is to be like: tables."""

from __future__ import annotations

import dataclasses

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import compact_policy as policy
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact_policy import (
    Facts,
    Obstacle,
    Request,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.header import ImageHeader
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qcow2 import Qcow2Header
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_argv import Copy
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_output import Bitmap

MIB, GIB = 1 << 20, 1 << 30
QCOW2 = Qcow2Header(
    version=3,
    virtual_size_bytes=10 * GIB,
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
HEADER = ImageHeader(
    path="/x",
    format="qcow2",
    block_device=False,
    virtual_size_bytes=10 * GIB,
    allocated_bytes=4 * GIB,
    length_bytes=4 * GIB,
    qcow2=QCOW2,
)
RAW = dataclasses.replace(HEADER, format="raw", qcow2=None)
FACTS = Facts(HEADER, data_bytes=4 * GIB, unwritten_bytes=0, links=1)


def header(**changes) -> ImageHeader:
    return dataclasses.replace(HEADER, qcow2=dataclasses.replace(QCOW2, **changes))


def facts(**changes) -> Facts:
    """Of an image whose qcow2 header differs so."""
    return dataclasses.replace(FACTS, header=header(**changes))


# What a request may not say


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"min_reclaim_bytes": -1}, r"min_reclaim_bytes is negative\. Use 0 or more\."),
        ({"min_reclaim_percent": -1}, r"min_reclaim_percent is negative"),
        ({"min_free_bytes": -1}, r"min_free_bytes is negative"),
        ({"cluster_size_bytes": 0}, r"cluster_size_bytes is 0\. Use a power of two between"),
        ({"cluster_size_bytes": 256}, "cluster_size_bytes is 256"),
        ({"cluster_size_bytes": 65535}, "cluster_size_bytes is 65535"),
        ({"cluster_size_bytes": 4 * MIB}, "cluster_size_bytes is 4194304"),
        ({"method": "punch", "cluster_size_bytes": 512}, "cluster_size_bytes needs a new image"),
        ({"method": "punch", "compression": "none"}, "compression needs a new image, and method="),
        ({"method": "punch", "preallocation": "full"}, "preallocation needs a new image"),
        ({"method": "punch", "flatten": True}, "flatten needs a new image"),
        ({"method": "punch", "keep_original": True}, "keep_original needs a new image"),
        ({"method": "trim", "keep_original": True}, "Use method=rewrite, or leave keep_original"),
        ({"method": "trim"}, "has no way back. Consent with accept_no_rollback=true, and have a"),
    ],
)
def test_wishes_that_make_no_sense(wish, says):
    with pytest.raises(RefusedError, match=says):
        Request(**wish)


@pytest.mark.parametrize(
    "wish",
    [
        {},
        {"min_reclaim_bytes": 0, "min_reclaim_percent": 0, "min_free_bytes": 0},
        {"cluster_size_bytes": 512},
        {"cluster_size_bytes": 2 * MIB},
        {"method": "punch", "preallocation": "off"},
        {"method": "trim", "accept_no_rollback": True},
        {"method": "rewrite", "keep_original": True, "flatten": True},
    ],
)
def test_wishes_that_do(wish):
    Request(**wish)


# When it is worth it: below both, nothing is done


@pytest.mark.parametrize(
    ("least_bytes", "percent", "allocated", "enough"),
    [
        (GIB, 10, 20 * GIB, GIB),
        (GIB, 10, 2 * GIB, -(-2 * GIB // 10)),
        (GIB, 10, 10 * GIB, GIB),
        (GIB, 10, 1001, 101),  # rounded up: 100 bytes are less than 10 %
        (0, 10, 20 * GIB, 1),
        (GIB, 0, 20 * GIB, 1),
        (0, 0, 0, 1),
        (GIB, 10, 0, 1),
        (GIB, 100, 4096, 4096),
        (GIB, 1000, 4096, 40960),
    ],
)
def test_threshold(least_bytes, percent, allocated, enough):
    request = Request(min_reclaim_bytes=least_bytes, min_reclaim_percent=percent)
    assert request.threshold(allocated) == enough


@pytest.mark.parametrize(
    ("wish", "image", "another"),
    [
        ({}, HEADER, False),
        ({"keep_original": True}, HEADER, False),
        ({"force": True}, HEADER, True),
        ({"force": True}, RAW, True),
        ({"preallocation": "off"}, HEADER, False),
        ({"preallocation": "metadata"}, HEADER, True),
        ({"compression": "none"}, HEADER, True),
        ({"cluster_size_bytes": 512}, RAW, True),
        ({"flatten": True}, HEADER, False),
        ({"flatten": True}, RAW, False),
        ({"flatten": True}, header(backing_file="base"), True),
    ],
)
def test_who_wants_another_form(wish, image, another):
    assert Request(**wish).wishes_form(image) is another


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (HEADER, ""),
        (RAW, ""),
        (header(data_file="x.raw"), ""),  # a name that no feature bit makes QEMU use
        (
            header(data_file="x.raw", features=frozenset({"external_data_file"})),
            "the data file x.raw, which was left as it is. Have the guest trim it",
        ),
    ],
)
def test_what_is_said_of_a_data_file(image, says):
    said = policy.about_data_file(image)
    assert says in said
    assert bool(says) is bool(said)


# What is refused


def test_obstacles():
    mild, hard = Obstacle("has snapshots", "Delete."), Obstacle("is on", "Stop.", True)
    policy.refuse_obstacles("/x", [], punch=False)
    policy.refuse_obstacles("/x", [mild], punch=True)
    with pytest.raises(RefusedError) as caught:
        policy.refuse_obstacles("/x", [mild], punch=False)
    assert str(caught.value) == "/x has snapshots; nothing was changed. Delete."
    with pytest.raises(RefusedError, match=r"/x is on; nothing was changed\. Stop\."):
        policy.refuse_obstacles("/x", [mild, hard], punch=True)
    with pytest.raises(RefusedError, match="is on"):
        policy.refuse_obstacles("/x", [hard], punch=False)


def test_a_block_device_is_refused_by_every_method():
    device = dataclasses.replace(HEADER, block_device=True, allocated_bytes=None)
    with pytest.raises(RefusedError, match=r"is a block device.*domain_trim"):
        policy.refuse_any_change("/x", dataclasses.replace(FACTS, header=device), Request())


@pytest.mark.parametrize(
    ("allocated", "unwritten", "wish", "refused"),
    [
        (10 * GIB, 0, None, False),
        (10 * GIB, GIB, None, False),
        (10 * GIB, GIB + 1, None, True),
        (9 * GIB, 9 * GIB, None, False),  # as after many small writes: it has room to grow
        (9 * GIB + 1, 9 * GIB, None, True),
        (11 * GIB, 11 * GIB, None, True),
        (10 * GIB, 10 * GIB, "off", False),
        (10 * GIB, 10 * GIB, "falloc", False),
    ],
)
def test_what_was_preallocated_on_purpose(allocated, unwritten, wish, refused):
    known = dataclasses.replace(
        FACTS,
        header=dataclasses.replace(HEADER, allocated_bytes=allocated),
        unwritten_bytes=unwritten,
    )
    if refused:
        says = rf"preallocated on purpose: {unwritten} of its {allocated} .*preallocation=off"
        with pytest.raises(RefusedError, match=says):
            policy.refuse_any_change("/x", known, Request(preallocation=wish))
    else:
        policy.refuse_any_change("/x", known, Request(preallocation=wish))


def broken(*names: str) -> Facts:
    bitmaps = [Bitmap("good", 65536, ("auto",)), *(Bitmap(n, 65536, ("in-use",)) for n in names)]
    return dataclasses.replace(FACTS, bitmaps=tuple(bitmaps))


@pytest.mark.parametrize(
    ("known", "says"),
    [
        (dataclasses.replace(FACTS, links=2), r"has 2 names \(hard links\).*Remove the other"),
        (facts(features=frozenset({"corrupt"})), "marked as corrupt.*Repair it"),
        (facts(features=frozenset({"dirty"})), "was not closed properly.*qemu-img check -r all"),
        (facts(features=frozenset({"external_data_file"})), "external file.*by hand"),
        (
            facts(features=frozenset({"external_data_file", "data_file_raw"})),
            "external file.*by hand",
        ),
        (
            facts(features=frozenset({"compatible_bit_7", "autoclear_bit_9"})),
            "features that a copy would lose: autoclear_bit_9, compatible_bit_7.*method=punch",
        ),
        (facts(encryption="luks"), "is encrypted.*domain_trim"),
        (facts(encryption="aes"), "is encrypted"),
        (facts(snapshot_count=2), "has 2 internal snapshots.*Delete them, or use method=punch"),
        (facts(backing_file="base\n"), r"has a backing file, base\\n,.*flatten=true, or use meth"),
        (broken("b1", "b\n2"), r"not saved properly: b1, b\\n2; nothing.*qemu-img bitmap --remove"),
    ],
)
def test_what_a_copy_would_lose(known, says):
    with pytest.raises(RefusedError, match=says) as caught:
        policy.refuse_rewrite("/x", known, Request())
    assert "/x " in caught.value.message
    assert "; nothing was changed." in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize(
    "known",
    [
        FACTS,
        broken(),
        dataclasses.replace(FACTS, header=RAW),
        facts(
            features=frozenset({"lazy_refcounts", "extended_l2", "compression_type", "bitmaps"}),
            bitmap_count=1,
        ),
        facts(features=frozenset({"data_file_raw"})),
    ],
)
def test_what_a_copy_keeps(known):
    policy.refuse_rewrite("/x", known, Request())


def test_flatten_allows_a_backing_file_and_nothing_else():
    policy.refuse_rewrite("/x", facts(backing_file="base"), Request(flatten=True))
    known = facts(backing_file="base", snapshot_count=1)
    with pytest.raises(RefusedError, match="snapshots"):
        policy.refuse_rewrite("/x", known, Request(flatten=True))


@pytest.mark.parametrize(
    ("needed", "free", "keep", "refused"),
    [
        (GIB, GIB + policy.SPACE_MARGIN_BYTES, 0, False),
        (GIB, GIB + policy.SPACE_MARGIN_BYTES - 1, 0, True),
        (GIB, GIB + policy.SPACE_MARGIN_BYTES, 1, True),
        (0, policy.SPACE_MARGIN_BYTES + 7, 7, False),
    ],
)
def test_space(needed, free, keep, refused):
    given = {"needed_bytes": needed, "free_bytes": free, "min_free_bytes": keep}
    if not refused:
        policy.refuse_too_little_space("/x", mount_point="/m", **given)
        return
    says = (
        f"may need {needed} bytes for its copy, with a margin of {64 * MIB} and {keep} to be left "
        rf"free \(min_free_bytes\); /m has {free} free; nothing was changed. Free space, lower"
    )
    with pytest.raises(RefusedError, match=says):
        policy.refuse_too_little_space("/x", mount_point="/m", **given)


# What the copy is like

SAME = {"cluster_size": "65536", "compat": "1.1", "refcount_bits": "16"}


@pytest.mark.parametrize(
    ("image", "wish", "compressed", "copy"),
    [
        (RAW, {}, False, Copy("raw")),
        (RAW, {"compression": "none"}, False, Copy("raw")),
        (RAW, {"preallocation": "falloc"}, False, Copy("raw", {"preallocation": "falloc"})),
        (HEADER, {}, False, Copy("qcow2", SAME)),
        (HEADER, {"preallocation": "off"}, False, Copy("qcow2", SAME)),
        (HEADER, {}, True, Copy("qcow2", SAME, compressed=True)),
        (HEADER, {"compression": "none"}, True, Copy("qcow2", SAME)),
        (
            HEADER,
            {"compression": "zstd", "cluster_size_bytes": 2 * MIB},
            False,
            Copy(
                "qcow2",
                {**SAME, "cluster_size": "2097152", "compression_type": "zstd"},
                compressed=True,
            ),
        ),
        (
            HEADER,
            {"preallocation": "metadata"},
            False,
            Copy("qcow2", {**SAME, "preallocation": "metadata"}),
        ),
        (header(bitmap_count=2), {}, False, Copy("qcow2", SAME, bitmaps=True)),
        (
            header(
                cluster_size_bytes=32768,
                refcount_bits=64,
                compression_type="zstd",
                features=frozenset({"lazy_refcounts", "extended_l2", "compression_type"}),
            ),
            {},
            False,
            Copy(
                "qcow2",
                {
                    "cluster_size": "32768",
                    "compat": "1.1",
                    "refcount_bits": "64",
                    "lazy_refcounts": "on",
                    "extended_l2": "on",
                    "compression_type": "zstd",
                },
            ),
        ),
        (header(version=2), {}, False, Copy("qcow2", {"cluster_size": "65536", "compat": "0.10"})),
        (
            header(version=2),
            {"compression": "zlib"},
            False,
            Copy("qcow2", {"cluster_size": "65536", "compat": "0.10"}, compressed=True),
        ),
        (
            header(compression_type="zstd"),
            {"compression": "zlib"},
            False,
            Copy("qcow2", {**SAME, "compression_type": "zlib"}, compressed=True),
        ),
        (
            header(version=2),
            {"compression": "zstd"},
            False,
            Copy(
                "qcow2",
                {"cluster_size": "65536", "compat": "1.1", "compression_type": "zstd"},
                compressed=True,
            ),
        ),
    ],
)
def test_copies_keep_what_they_are_not_told_to_change(image, wish, compressed, copy):
    assert policy.copy_of(image, Request(**wish), compressed=compressed) == copy


@pytest.mark.parametrize(
    ("image", "wish", "compressed", "says"),
    [
        (RAW, {"compression": "zstd"}, False, "is raw.*image_convert"),
        (RAW, {"cluster_size_bytes": 512}, False, "is raw.*image_convert"),
        (RAW, {"preallocation": "metadata"}, False, "is raw.*falloc or full"),
        (HEADER, {"compression": "zlib", "preallocation": "full"}, False, "both compressed and"),
        (HEADER, {"preallocation": "full"}, True, "both compressed and preallocated.*Leave out"),
    ],
)
def test_copies_that_cannot_be(image, wish, compressed, says):
    with pytest.raises(RefusedError, match=says):
        policy.copy_of(image, Request(**wish), compressed=compressed)


@pytest.mark.parametrize(
    ("wished", "all_mapped", "allocated", "data", "has"),
    [
        (None, True, 20 * GIB, 20 * GIB, False),
        ("off", True, 20 * GIB, 20 * GIB, False),
        ("metadata", True, 0, 0, True),
        ("metadata", False, 20 * GIB, 20 * GIB, False),
        ("falloc", True, 10 * GIB, 0, True),
        ("falloc", True, 10 * GIB - 1, 0, False),
        ("full", True, 10 * GIB, 0, False),
        ("full", True, 10 * GIB, 10 * GIB, True),
        ("full", False, 10 * GIB, 10 * GIB, False),
    ],
)
def test_what_is_preallocated_already(wished, all_mapped, allocated, data, has):
    image = dataclasses.replace(HEADER, allocated_bytes=allocated)
    known = Facts(image, data_bytes=data, unwritten_bytes=0, links=1)
    assert policy.has_preallocation(known, wished, all_mapped=all_mapped) is has
