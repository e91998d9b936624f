# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What forbids a live compaction, and how a state that is found is settled."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.policy import Versions
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.xml import Disk, DiskSettings
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    RefusedError,
    UnsupportedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.header import ImageHeader
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qcow2 import Qcow2Header
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_output import MapEntry
from ansible_collections.thinvirt.kvm.plugins.module_utils._live import policy
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.policy import (
    Found,
    Settlement,
)

DISK = Disk(
    target="vda",
    bus="virtio",
    device="disk",
    source_type="file",
    path="/pool/a.qcow2",
    pool="",
    volume="",
    format="qcow2",
    readonly=False,
    shareable=False,
    controller=None,
    settings=DiskSettings(),
)


def test_a_plain_disk_is_not_refused():
    policy.refuse_disk("d", DISK)
    policy.refuse_disk("d", dataclasses.replace(DISK, source_type="volume"))
    policy.refuse_domain("d", persistent=True, accept_transient=False, busy=False)
    policy.refuse_domain("d", persistent=False, accept_transient=True, busy=False)
    policy.refuse_host(Versions((7, 0, 0), (5, 2, 0), "QEMU"))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"readonly": True}, "read-only"),
        ({"device": "cdrom"}, "removable"),
        ({"device": "lun"}, "passed through"),
        ({"source_type": "network"}, "of type network"),
        ({"source_type": "block"}, "of type block"),
        ({"format": "vmdk"}, "format vmdk"),
        ({"format": ""}, "format unknown"),
        ({"shareable": True}, "shareable"),
        ({"job": "commit"}, "block job (commit)"),
        ({"details": ("seclabel",)}, "seclabel"),
    ],
)
def test_disks_that_are_refused(change, word):
    with pytest.raises(RefusedError) as caught:
        policy.refuse_disk("d", dataclasses.replace(DISK, **change))
    assert word in caught.value.message
    assert "disk vda of domain d" in caught.value.message
    assert "nothing was changed" in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize(("bitmaps", "refused"), [(0, False), (1, True)])
def test_bitmaps_would_miss_what_the_guest_writes(bitmaps, refused):
    qcow2 = Qcow2Header(
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
        bitmap_count=bitmaps,
    )
    header = ImageHeader("/pool/a.qcow2", "qcow2", False, 1 << 30, 0, 0, qcow2)
    with pytest.raises(RefusedError, match="1 dirty bitmap") if refused else nullcontext():
        policy.refuse_image("/pool/a.qcow2", header)


def test_a_disk_that_moves_is_refused():
    with pytest.raises(RefusedError, match="another file"):
        policy.refuse_moved("d", "vda")


@pytest.mark.parametrize(
    ("state", "word"),
    [
        ({"persistent": False, "busy": False}, "transient"),
        ({"persistent": True, "busy": True}, "migrated or backed up"),
    ],
)
def test_domains_that_are_refused(state, word):
    with pytest.raises(RefusedError, match=word):
        policy.refuse_domain("d", accept_transient=False, **state)


@pytest.mark.parametrize(
    ("versions", "word"),
    [
        (Versions((6, 10, 0), (5, 2, 0), "QEMU"), "libvirt 7.0.0, and this host has 6.10.0"),
        (Versions((7, 0, 0), (5, 1, 0), "QEMU"), "QEMU 5.2.0, and this host has 5.1.0"),
        (Versions((9, 0, 0), (9, 0, 0), "TEST"), "TEST driver"),
    ],
)
def test_hosts_that_are_refused(versions, word):
    with pytest.raises(UnsupportedError) as caught:
        policy.refuse_host(versions)
    assert word in caught.value.message


PATHS = {"base": "/p/a", "overlay": "/p/a.o1", "second": "/p/a.o2"}
FOUND = Found(stage="copy", running=True, top="overlay", exchanged=False)


@pytest.mark.parametrize(
    ("change", "settlement"),
    [
        # Before the copy has its name: back to the original, running or not.
        ({}, Settlement(False, True, False)),
        ({"running": False}, Settlement(False, True, False)),
        ({"stage": "snapshot", "top": "base"}, Settlement(False, False, False)),
        # The copy has the name, and QEMU still has the original: that gets its name back first.
        (
            {"stage": "mirror", "exchanged": True, "holds_original": True},
            Settlement(True, True, False),
        ),
        # A libvirtd that was killed has forgotten the copy's files, and QEMU has them open.
        (
            {"stage": "pivot", "exchanged": True, "holds_copy": True, "holds_original": True},
            Settlement(True, True, False),
        ),
        # A QEMU that was started since has the copy.
        (
            {"stage": "mirror", "exchanged": True, "holds_copy": True},
            Settlement(False, True, True),
        ),
        ({"stage": "mirror", "exchanged": True, "running": False}, Settlement(False, True, True)),
        # The guest writes to the overlay on the copy: only forward.
        ({"stage": "pivot", "exchanged": True, "top": "second"}, Settlement(False, True, True)),
        (
            {"stage": "merge", "exchanged": True, "top": "second", "running": False},
            Settlement(False, True, True),
        ),
        # All is done but the cleaning.
        (
            {"stage": "merge", "exchanged": True, "top": "base", "overlay_written": True},
            Settlement(False, False, True),
        ),
        # The host failed at the switch; nothing was written after it.
        (
            {"stage": "pivot", "exchanged": True, "running": False, "overlay_whole": True},
            Settlement(False, True, True),
        ),
        # The copy goes to another folder: what the guest is on decides, and no name changes hands.
        ({"moves": True, "exchanged": True}, Settlement(False, True, False)),
        ({"moves": True, "exchanged": True, "top": "base"}, Settlement(False, False, False)),
        (
            {"moves": True, "exchanged": True, "top": "second", "stage": "pivot"},
            Settlement(False, True, True),
        ),
        (
            {"moves": True, "exchanged": True, "running": False, "stage": "mirror"},
            Settlement(False, True, False),
        ),
        (
            {"moves": True, "running": False, "stage": "pivot", "overlay_whole": True},
            Settlement(False, True, False),
        ),
        (
            {"moves": True, "top": "new", "stage": "merge", "overlay_written": True},
            Settlement(False, False, True),
        ),
        # Shut off all the while: there are no overlays.
        ({"moves": True, "top": "new", "running": False}, Settlement(False, False, True)),
    ],
)
def test_settled(change, settlement):
    assert policy.settle(dataclasses.replace(FOUND, **change)) == settlement


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"stage": "snapshot", "top": "base", "overlay_written": True}, "does not use the overlay"),
        ({"top": "other"}, "none of this run's"),
        ({"stage": "pivot", "top": "base", "overlay_written": True}, "does not use the overlay"),
        ({"top": "second"}, "does not mean the copy"),
        ({"top": "second", "running": False}, "does not mean the copy"),
        ({"moves": True, "top": "second"}, "does not mean the copy"),
        ({"moves": True, "top": "new", "overlay_written": True}, "does not use the overlay"),
        (
            {"moves": True, "stage": "pivot", "running": False, "overlay_whole": False},
            "they differ",
        ),
        ({"stage": "mirror", "exchanged": True}, "which of two files"),
        (
            {"stage": "pivot", "exchanged": True, "running": False, "overlay_whole": False},
            "they differ",
        ),
        ({"stage": "pivot", "exchanged": True, "running": False}, "they differ"),
    ],
)
def test_unclear(change, word):
    with pytest.raises(RefusedError, match=word) as caught:
        policy.settle(dataclasses.replace(FOUND, paths=PATHS, **change))
    assert "Nothing was changed" in caught.value.message


def test_only_the_switch_of_a_domain_that_is_off_needs_the_contents():
    at_switch = dataclasses.replace(FOUND, stage="pivot", running=False, exchanged=True)
    assert policy.must_compare(at_switch)
    for change in ({"running": True}, {"stage": "mirror"}, {"top": "second"}):
        assert not policy.must_compare(dataclasses.replace(at_switch, **change))


def entries(*ranges):
    """A map of ranges: start, end, then ``own`` data, ``own zero``s or what is ``below``."""
    return [
        MapEntry(
            start,
            end - start,
            data=kind != "own zero",
            zero=kind == "own zero",
            offset=None,
            depth=1 if kind == "below" else 0,
        )
        for start, end, kind in ranges
    ]


@pytest.mark.parametrize(
    ("overlay", "second", "behind"),
    [
        ([(0, 8, "below")], [(0, 8, "below")], False),
        ([(0, 4, "own"), (4, 8, "below")], [(0, 8, "below")], True),
        ([(0, 4, "own"), (4, 8, "below")], [(0, 4, "own"), (4, 8, "below")], False),
        ([(0, 4, "below"), (4, 8, "own")], [(0, 4, "own"), (4, 8, "below")], True),
        # One cluster of several.
        ([(0, 8, "own")], [(0, 4, "own"), (4, 5, "below"), (5, 8, "own")], True),
        ([(2, 4, "own"), (4, 8, "below")], [(0, 2, "below"), (2, 8, "own")], False),
        # What was written to the second alone says nothing of what the first lacks, or why.
        ([(0, 8, "below")], [(0, 4, "own"), (4, 8, "below")], False),
        # Zeros and what the guest has discarded are entries of their own in the second ...
        ([(0, 4, "own"), (4, 8, "below")], [(0, 4, "own zero"), (4, 8, "below")], False),
        # ... and in the first no proof, for who copies may leave out zeros where there are zeros.
        ([(0, 4, "own zero"), (4, 8, "below")], [(0, 8, "below")], False),
    ],
)
def test_behind_is_a_second_that_lacks_a_cluster(overlay, second, behind):
    assert policy.is_behind(entries(*second), entries(*overlay)) is behind


def test_who_cannot_tell_the_overlays_apart_says_what_to_type():
    at_switch = dataclasses.replace(
        FOUND, stage="pivot", running=False, exchanged=True, overlay_whole=False, paths=PATHS
    )
    with pytest.raises(RefusedError) as caught:
        policy.settle(at_switch)
    for word in ("start the domain", "/p/a.o2", "virsh edit", "state=recovered"):
        assert word in caught.value.remedy


@pytest.mark.parametrize(
    ("change", "words"),
    [
        # libvirtd was killed at the switch: it still has the first overlay, and QEMU the second.
        ({"writers": {"second"}}, ("is on /p/a.o1", "writes to /p/a.o2", "name /p/a.o2 as")),
        ({"top": "other", "writers": {"base"}}, ("is on another file", "writes to /p/a:")),
        # Or it has no domain that runs any more, and the QEMU lives.
        ({"running": False, "writers": {"overlay"}}, ("for shut off", "/p/a.o1", "fuser -v")),
        ({"running": False, "top": "base", "writers": {"base"}}, ("for shut off", "/p/a:")),
    ],
)
def test_what_libvirt_says_and_qemu_does_not_is_not_believed(change, words):
    change = {**change, "writers": frozenset(change["writers"])}
    found = dataclasses.replace(FOUND, stage="pivot", exchanged=True, paths=PATHS, **change)
    with pytest.raises(RefusedError, match="Nothing was changed") as caught:
        policy.settle(found)
    for word in words:
        assert word in f"{caught.value.message} {caught.value.remedy}"


@pytest.mark.parametrize("writers", [(), ("overlay",), ("overlay", "second")])
def test_where_qemu_writes_to_the_top_or_has_no_locks_libvirt_is_believed(writers):
    found = dataclasses.replace(FOUND, paths=PATHS, writers=frozenset(writers))
    assert policy.settle(found) == Settlement(False, True, False)


def test_the_top_of_a_chain():
    names = {"base": "/p/a", "overlay": "/p/a.o1", "second": ""}
    assert [policy.top_of(path, names) for path in ("/p/a", "/p/a.o1", "", "/p/b")] == [
        "base",
        "overlay",
        "other",
        "other",
    ]


@pytest.mark.parametrize("method", ["punch", "trim"])
def test_methods_that_write_in_place_are_refused(method):
    params = {"power": "live", "method": method, "bandwidth_bytes": 0}
    with pytest.raises(RefusedError, match=f"method={method}"):
        policy.refuse_live_wishes(params)
    policy.refuse_live_wishes({**params, "power": "cycle"})


def test_a_negative_bandwidth_is_refused():
    with pytest.raises(RefusedError, match="negative"):
        policy.refuse_live_wishes({"power": "keep", "method": "auto", "bandwidth_bytes": -1})
