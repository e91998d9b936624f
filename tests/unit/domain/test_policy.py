# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is decided for which disk, and what is refused."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import policy, xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    NotFoundError,
    RefusedError,
    UnsupportedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._plan import diff

RICH = (pathlib.Path(__file__).parent / "data" / "rich.xml").read_text(encoding="utf-8")
CONFIGURED = xml.parse_domain(RICH)
OLD = policy.Versions(libvirt=(7, 0, 0), hypervisor=(5, 2, 0), driver="QEMU")
NEW = policy.Versions(libvirt=(11, 3, 0), hypervisor=(10, 0, 0), driver="QEMU")
UNMAP = policy.Wanted(discard="unmap")


def plan(wanted=UNMAP, *, live=None, disks=(), versions=NEW):
    return policy.plan_discard(CONFIGURED, live, wanted=wanted, disks=disks, versions=versions)


def with_live(**settings):
    """The same domain, running; settings of its disks by target."""
    disks = tuple(
        dataclasses.replace(disk, settings=settings.get(disk.target, disk.settings))
        for disk in CONFIGURED.disks
    )
    return dataclasses.replace(CONFIGURED, disks=disks)


@pytest.mark.parametrize(
    ("patterns", "targets"),
    [
        ([], ["sda", "vdb", "sdc"]),
        (["*"], ["sda", "vdb", "sdc"]),
        (["sd*"], ["sda", "sdc"]),
        (["vde"], ["vde"]),
        (["vde", "s*"], ["sda", "sdc", "vde"]),
        (["nothing"], []),
    ],
)
def test_which_disks(patterns, targets):
    assert [disk.target for disk in policy.choose_disks(CONFIGURED, patterns)] == targets


def test_an_unknown_target_is_an_error_and_a_glob_is_not():
    policy.refuse_unknown_disks([CONFIGURED], ["sda", "nv*"])
    with pytest.raises(NotFoundError, match="has a disk sdz"):
        policy.refuse_unknown_disks([CONFIGURED], ["sda", "sdz"])


def test_the_plan_names_what_changes_and_nothing_else():
    assert diff(plan().changes()) == {
        "before": {"web1/sda": {"discard": "ignore"}, "web1/sdc": {"discard": "ignore"}},
        "after": {"web1/sda": {"discard": "unmap"}, "web1/sdc": {"discard": "unmap"}},
    }


def test_settings_that_are_not_asked_for_stay():
    settings = plan().settings()
    assert settings["vdb"] == CONFIGURED.disk("vdb").settings
    assert settings["sdc"].rotation_rate == 1


def test_a_domain_as_wanted_has_an_empty_plan():
    assert plan(disks=["vdb"]).changes() == []


@pytest.mark.parametrize(
    ("live", "restart"),
    [
        (None, False),
        (with_live(), True),
        (with_live(sda=xml.DiskSettings(discard="unmap")), False),
        # differs in something that nobody asked for
        (with_live(sda=xml.DiskSettings(discard="unmap", detect_zeroes="on")), False),
        (dataclasses.replace(CONFIGURED, disks=()), False),
    ],
)
def test_restart_required(live, restart):
    decided = plan(live=live, disks=["sda"])
    assert decided.restart_required is restart
    assert decided.active is (live is not None)


def test_configured_already_but_not_live_needs_a_restart_without_a_change():
    decided = plan(live=with_live(vdb=xml.DiskSettings()), disks=["vdb"])
    assert decided.changes() == []
    assert decided.restart_required


@pytest.mark.parametrize(
    ("wanted", "disk", "reason"),
    [
        (UNMAP, "sdd", "read-only or removable"),
        (policy.Wanted(discard="ignore"), "vdb", "detect_zeroes=unmap"),
        (policy.Wanted(detect_zeroes="unmap"), "sda", "without discard=unmap"),
        (policy.Wanted(rotation_rate=1), "vdb", "unknown on bus virtio"),
        (policy.Wanted(rotation_rate=500), "sda", "between 1025 and 65534"),
        (policy.Wanted(rotation_rate=-1), "sda", "between 1025 and 65534"),
        (policy.Wanted(rotation_rate=1024), "sda", "between 1025 and 65534"),
        (policy.Wanted(rotation_rate=65535), "sda", "between 1025 and 65534"),
        (policy.Wanted(discard_no_unref=True), "vdb", "qcow2"),
        (policy.Wanted(discard_granularity_bytes=1000), "sda", "power of two"),
        (policy.Wanted(discard_granularity_bytes=-512), "sda", "power of two"),
        (policy.Wanted(discard_granularity_bytes=1536), "sda", "power of two"),
    ],
)
def test_what_makes_no_sense_is_refused(wanted, disk, reason):
    with pytest.raises(RefusedError, match=reason) as caught:
        plan(wanted, disks=[disk])
    assert "nothing was changed" in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("wanted", "version"),
    [
        (policy.Wanted(discard_no_unref=True), r"libvirt 9\.5\.0"),
        (policy.Wanted(discard_granularity_bytes=32768), r"libvirt 9\.7\.0"),
        (policy.Wanted(rotation_rate=1), r"libvirt 7\.3\.0"),
    ],
)
def test_too_old_names_the_version_needed(wanted, version):
    with pytest.raises(UnsupportedError, match=f"needs {version}"):
        plan(wanted, disks=["sda"], versions=OLD)
    assert plan(wanted, disks=["sda"]).changes()


def test_a_new_libvirt_with_an_old_qemu():
    versions = dataclasses.replace(NEW, hypervisor=(8, 0, 5))
    with pytest.raises(UnsupportedError, match=r"needs QEMU 8\.1\.0"):
        plan(policy.Wanted(discard_no_unref=True), disks=["sda"], versions=versions)


def test_zero_and_false_need_no_version():
    off = policy.Wanted(discard_no_unref=False, discard_granularity_bytes=0, rotation_rate=0)
    changes = plan(off, versions=OLD).changes()
    assert {change.setting for change in changes} == {"discard_granularity_bytes", "rotation_rate"}
