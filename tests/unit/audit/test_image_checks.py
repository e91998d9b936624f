# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What images say by their shape, what could come back of them, and storage near its end."""

from __future__ import annotations

import dataclasses

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit import (
    image_checks,
    storage_checks,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.model import Measured
from audit_parts import GIB, IGNORE, audit_disk, disk, domain, image, qcow2

MIB = 1 << 20


def ids(its_image):
    return [finding.id for finding in image_checks.findings("web1", "vda", its_image)]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, []),
        ({"qcow2": qcow2(bitmap_count=1)}, ["backup-bitmaps"]),
        # tables of 64 KiB clusters take 3.75 MiB of 10 GiB at most; small clusters take more
        ({"allocated_bytes": 10 * GIB + 67 * MIB}, []),
        ({"allocated_bytes": 10 * GIB + 68 * MIB}, ["image-oversized"]),
        ({"allocated_bytes": 10 * GIB + 400 * MIB, "qcow2": qcow2(cluster_size_bytes=512)}, []),
        ({"allocated_bytes": 11 * GIB, "qcow2": qcow2(snapshot_count=1)}, []),
        ({"allocated_bytes": 11 * GIB, "qcow2": None, "format": "raw"}, []),
        ({"allocated_bytes": None}, []),
        ({"promised_bytes": None, "allocated_bytes": 11 * GIB}, []),
        ({"file_extents": 1001, "allocated_bytes": 1001 * 256 << 10}, []),
        ({"file_extents": 1001, "allocated_bytes": (1001 * 256 << 10) - 1}, ["image-fragmented"]),
        ({"file_extents": 1000, "allocated_bytes": 4096 * 1000}, []),
        ({"file_extents": 5000, "qcow2": None, "allocated_bytes": MIB}, ["image-fragmented"]),
        ({"measure_error": "It is in use."}, ["image-not-measured"]),
    ],
)
def test_shapes(changes, found):
    assert ids(image(**changes)) == found


def test_each_names_its_disk_and_says_what_to_do():
    its_image = image(
        allocated_bytes=11 * GIB,
        file_extents=900_000,
        measure_error="It is in use.",
        qcow2=qcow2(bitmap_count=1),
    )
    found = image_checks.findings("web1", "vda", its_image)
    assert len(found) == 4
    for finding in found:
        assert (finding.domain, finding.disk, finding.severity) == ("web1", "vda", "info")
        assert finding.reason.endswith(".")
        assert finding.remedy.endswith(".")


def of(*, excess=None, configured=None, **changes):
    """A disk; the guest's figures in bytes."""
    which = disk() if configured is None else disk(settings=configured)
    audit = audit_disk(domain(which), which, image(**changes), configured=configured or IGNORE)
    return dataclasses.replace(audit, guest_excess_bytes=excess)


@pytest.mark.parametrize(
    ("audit", "found"),
    [
        (of(), (None, "")),
        (of(excess=5), (5, "guest")),
        (of(excess=0), (0, "guest")),
        (of(measured=Measured(7, 1)), (7, "measure")),
        (of(measured=Measured(0, 1)), (0, "measure")),
        (of(measured=Measured(7, None), qcow2=None), (7, "zeros")),
        (of(measured=Measured(None, 1), unwritten_bytes=3), (3, "zeros")),
        (of(unwritten_bytes=3), (3, "zeros")),
        # nothing found is nothing known: a full disk may be all deleted files
        (of(unwritten_bytes=0), (None, "")),
        (of(excess=5, measured=Measured(7, 1), unwritten_bytes=3), (5, "guest")),
    ],
)
def test_who_knows_best(audit, found):
    assert image_checks.reclaimable(audit) == found


@pytest.mark.parametrize(
    ("audit", "worth"),
    [
        (of(excess=GIB, allocated_bytes=8 * GIB), True),
        (of(excess=GIB - 1, allocated_bytes=2 * GIB), False),
        (of(excess=2 * GIB, allocated_bytes=20 * GIB), True),
        (of(excess=2 * GIB - 1, allocated_bytes=20 * GIB), False),
        (of(allocated_bytes=20 * GIB), False),
    ],
)
def test_what_is_worth_a_finding(audit, worth):
    found = image_checks.to_reclaim(audit, domain="web1", active=True)
    assert [finding.id for finding in found] == ["space-to-reclaim"] * worth


@pytest.mark.parametrize(
    ("audit", "active", "words"),
    [
        (of(excess=2 * GIB, configured=IGNORE), True, "Mend the broken link"),
        (of(excess=2 * GIB), True, "Run thinvirt.kvm.domain_trim"),
        (of(measured=Measured(2 * GIB, 0)), True, "power=live"),
        (of(measured=Measured(2 * GIB, 0)), False, "it can stay off"),
        (of(unwritten_bytes=2 * GIB), False, "unless it was preallocated on purpose"),
    ],
)
def test_the_remedy_is_one_that_can_help(audit, active, words):
    (finding,) = image_checks.to_reclaim(audit, domain="web1", active=active)
    assert words in finding.remedy
    assert "At least 2.0 of the 2.0 GiB" in finding.reason


@pytest.mark.parametrize(
    ("free", "ratio", "days", "found"),
    [
        (50, 1.0, None, []),
        (50, None, 30, []),
        (5, 0.5, None, []),
        (4, 0.5, None, ["storage-nearly-full"]),
        (50, 0.5, 29.9, ["storage-filling-up"]),
        (50, 1.01, None, ["storage-overcommitted"]),
        (0, 9, 0, ["storage-nearly-full", "storage-filling-up", "storage-overcommitted"]),
    ],
)
def test_storage(free, ratio, days, found):
    findings = storage_checks.findings(
        "storage pool a\n",
        total_bytes=100 * GIB,
        free_bytes=free * GIB,
        overcommit_ratio=ratio,
        days_until_full=days,
    )
    listed = list(findings)
    assert [finding.id for finding in listed] == found
    assert all("torage pool a\\n" in finding.reason for finding in listed)
    assert all(finding.domain == finding.disk == "" for finding in listed)
