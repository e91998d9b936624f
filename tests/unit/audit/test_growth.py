# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What guests may write without filling their host."""

from __future__ import annotations

import dataclasses

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.growth import (
    budgets,
    disk_growth,
    zeros_are_free,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.model import DomainAudit
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.xml import DiskSettings
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.punch import PunchProbe
from audit_parts import GIB, IGNORE, audit_disk, disk, domain, file_system, image, qcow2

ZEROS = DiskSettings(discard="unmap", detect_zeroes="unmap")


def guest(name: str, *images, live=IGNORE, machine="pc-q35-7.2") -> DomainAudit:
    disks = [dataclasses.replace(disk(f"vd{n}"), settings=live) for n, _each in enumerate(images)]
    of = domain(*disks, name=name, machine=machine)
    audited = tuple(
        audit_disk(of, which, its, live=live) for which, its in zip(disks, images, strict=True)
    )
    return DomainAudit(name=name, uuid=name, active=True, disks=audited)


def on(free: int, number: int = 1, **values):
    """An image of 10 GiB that occupies 2, where so much is free."""
    return image(number, file_system=file_system(free_bytes=free), **values)


def budget_of(*guests, min_free=10 * GIB):
    return budgets(guests, min_free_bytes=min_free)


def test_what_fits_has_no_limit_but_the_disk():
    found = budget_of(guest("a", on(50 * GIB)))["a"]
    assert (found.growth_bytes, found.fits, found.budget_bytes) == (8 * GIB, True, 10 * GIB)
    assert not found.zeros_are_free


def test_what_does_not_fit_gets_what_is_left():
    found = budget_of(guest("a", on(14 * GIB)))["a"]
    assert (found.fits, found.budget_bytes) == (False, 4 * GIB * 15 // 16)


def test_it_is_shared():
    found = budget_of(guest("a", on(26 * GIB)), guest("b", on(26 * GIB, 2)))
    assert [each.budget_bytes for each in found.values()] == [16 * GIB * 15 // 32] * 2
    assert not any(each.fits for each in found.values())


def test_those_that_do_not_grow_get_no_share():
    thin = guest("b", on(20 * GIB, 2), live=ZEROS)
    found = budget_of(guest("a", on(20 * GIB)), thin)
    assert found["a"].budget_bytes == 10 * GIB
    assert found["b"].zeros_are_free
    assert found["b"].growth_bytes == 0
    assert found["b"].budget_bytes == 10 * GIB


def test_nothing_where_nothing_is_left():
    found = budget_of(guest("a", on(9 * GIB)))["a"]
    assert (found.fits, found.budget_bytes) == (False, 0)


def test_the_tightest_file_system_counts():
    other = image(2, file_system=file_system("/fast", free_bytes=12 * GIB))
    found = budget_of(guest("a", on(50 * GIB), other))["a"]
    assert (found.fits, found.budget_bytes) == (False, 2 * GIB * 15 // 16)


@pytest.mark.parametrize(
    ("changes", "growth"),
    [
        ({}, 8 * GIB),
        ({"qcow2": qcow2(snapshot_count=1)}, 10 * GIB),  # snapshots keep the old clusters
        ({"file_system": file_system(type="btrfs")}, 10 * GIB),  # its own snapshots do
        ({"allocated_bytes": 11 * GIB}, 0),
        ({"promised_bytes": None}, None),
        ({"block_device": True, "allocated_bytes": None, "file_system": None}, None),
    ],
)
def test_how_much_an_image_grows(changes, growth):
    (one,) = guest("a", image(**changes)).disks
    assert disk_growth(one) == growth


def test_a_block_device_has_no_limit_that_could_be_told():
    device = image(block_device=True, allocated_bytes=None, file_system=None)
    found = budget_of(guest("a", device))["a"]
    assert (found.growth_bytes, found.fits) == (None, False)


@pytest.mark.parametrize(
    ("live", "changes", "free"),
    [
        (ZEROS, {}, True),
        (DiskSettings(discard="unmap", detect_zeroes="on"), {}, False),
        (DiskSettings(discard="unmap"), {}, False),
        (DiskSettings(detect_zeroes="unmap"), {}, False),
        (ZEROS, {"punch": PunchProbe(False, "no")}, False),
        (ZEROS, {"punch": PunchProbe(None, "unknown")}, False),
    ],
)
def test_whether_zeros_become_holes(live, changes, free):
    (one,) = guest("a", image(**changes), live=live).disks
    assert zeros_are_free(one) is free


def test_an_old_machine_type_makes_no_difference_to_zeros():
    """It passes no discards on, so this guest can't trim: the case for zeros."""
    (one,) = guest("a", image(), live=ZEROS, machine="pc-i440fx-3.1").disks
    assert one.verdict == "broken"
    assert zeros_are_free(one)


def test_of_a_domain_that_is_off_nothing_is_known():
    (one,) = guest("a", image(), live=ZEROS).disks
    assert not zeros_are_free(dataclasses.replace(one, live=None))
