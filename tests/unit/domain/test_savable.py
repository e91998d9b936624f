# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be saved and restored, where libvirt saves it, and which settings change."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._discard import savable
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import (
    policy,
    restart,
    save_folder,
    xml,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    HypervisorError,
    RefusedError,
)

RICH = (pathlib.Path(__file__).parent / "data" / "rich.xml").read_text(encoding="utf-8")
CONFIGURED = xml.parse_domain(RICH)
VERSIONS = policy.Versions(libvirt=(11, 3, 0), hypervisor=(10, 0, 0), driver="QEMU")
FITS = savable.Facts(
    persistent=True,
    running=True,
    paused_on_purpose=False,
    has_managed_save=False,
    jobs=(),
    blockers=(),
    needed_bytes=1 << 30,
    free_bytes=1 << 30,
    folder="/var/lib/libvirt/qemu/save",
)


def device(text):
    return RICH.replace("<controller ", f"{text}<controller ", 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (RICH, []),
        (device("<hostdev mode='subsystem' type='pci'/>"), ["host device"]),
        (device("<interface type='vhostuser'/>"), ["vhost-user network"]),
        (device("<interface type='network'/>"), []),
        (device("<filesystem type='mount'><driver type='virtiofs'/></filesystem>"), ["virtiofs"]),
        (device("<disk type='vhostuser'><target dev='x'/></disk>"), ["vhost-user disk"]),
        (device("<shmem name='a'><model type='ivshmem-plain'/></shmem>"), ["ivshmem"]),
        (device("<shmem name='a'><model type='ivshmem-doorbell'/></shmem>"), []),
        (device("<tpm><backend type='passthrough'/></tpm>"), ["TPM"]),
        (device("<tpm><backend type='emulator'/></tpm>"), []),
        (RICH.replace("<os>", "<cpu mode='host-passthrough' migratable='off'/><os>"), ["migrat"]),
        (RICH.replace("<os>", "<cpu><feature name='invtsc' policy='require'/></cpu><os>"), ["TSC"]),
        (RICH.replace("<os>", "<cpu><feature name='invtsc' policy='disable'/></cpu><os>"), []),
        (
            RICH.replace(
                "<os>",
                "<cpu><feature name='invtsc' policy='require'/></cpu>"
                "<clock><timer name='tsc' frequency='3'/></clock><os>",
            ),
            [],
        ),
    ],
)
def test_blockers(text, words):
    found = savable.blockers(text)
    assert len(found) == len(words)
    for word, reason in zip(words, found, strict=True):
        assert word in reason


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"persistent": False}, "is transient"),
        ({"running": False}, "neither runs nor was it paused"),
        ({"has_managed_save": True}, "managedsave-remove web1"),
        ({"jobs": ["block job on sda"]}, "block job on sda"),
        ({"blockers": ["a host device (hostdev)"]}, "a host device"),
        ({"free_bytes": (1 << 30) - 1}, "1,024 MiB, and /var/lib/libvirt/qemu/save"),
    ],
)
def test_what_is_refused(facts, words):
    with pytest.raises(RefusedError) as caught:
        savable.refuse_unsavable("web1", dataclasses.replace(FITS, **facts))
    assert words in str(caught.value)
    assert "nothing was changed" in str(caught.value)


def test_what_is_not_refused():
    savable.refuse_unsavable("web1", FITS)
    paused = dataclasses.replace(FITS, running=False, paused_on_purpose=True)
    savable.refuse_unsavable("web1", paused)


def apply(wanted, live=CONFIGURED, disks=()):
    plan = policy.plan_discard(CONFIGURED, live, wanted=wanted, disks=disks, versions=VERSIONS)
    return savable.settings_to_apply(plan, live)


def live_with(target, **change):
    disks = tuple(
        dataclasses.replace(disk, **change) if disk.target == target else disk
        for disk in CONFIGURED.disks
    )
    return dataclasses.replace(CONFIGURED, disks=disks)


def test_settings_are_changed_from_those_that_run():
    live = live_with("sda", settings=xml.DiskSettings(detect_zeroes="on"))
    found = apply(policy.Wanted(discard="unmap"), live, ["sda"])
    assert found == {"sda": xml.DiskSettings(discard="unmap", detect_zeroes="on")}


def test_another_disk_under_the_same_name_is_refused():
    with pytest.raises(RefusedError, match="is another one in the running guest"):
        apply(policy.Wanted(discard="unmap"), live_with("sda", path="/other"), ["sda"])


@pytest.mark.parametrize("wanted", [{"rotation_rate": 1}, {"discard_granularity_bytes": 4096}])
def test_what_the_guest_has_read_already_is_refused(wanted):
    with pytest.raises(RefusedError, match="read by the guest when it starts"):
        apply(policy.Wanted(**wanted), disks=["sda"])


@pytest.mark.parametrize(
    ("uid", "environment", "folder"),
    [
        (0, {"XDG_CONFIG_HOME": "/elsewhere"}, "/var/lib/libvirt/qemu/save"),
        (5, {"HOME": "/home/a"}, "/home/a/.config/libvirt/qemu/save"),
        (5, {"HOME": "/home/a", "XDG_CONFIG_HOME": "/c"}, "/c/libvirt/qemu/save"),
    ],
)
def test_save_folder(uid, environment, folder):
    assert save_folder.save_folder(uid=uid, environment=environment) == folder


def test_a_folder_that_nobody_knows_is_refused():
    with pytest.raises(RefusedError, match="cannot be told"):
        save_folder.save_folder(uid=5, environment={})


def test_settings_survive_in_a_note():
    settings = {"sda": xml.DiskSettings(detect_zeroes="on"), 'a"<': xml.DiskSettings()}
    text = restart.settings_text(settings)
    assert restart.parse_settings(text) == settings
    note = xml.note_element("1 2", saved=text).replace(
        "<restart", f"<restart xmlns='{xml.NOTE_NAMESPACE}'"
    )
    domain = xml.parse_domain(RICH.replace("<metadata>", f"<metadata>{note}"))
    assert (domain.restart_note, domain.saved_note) == ("1 2", text)
    assert restart.parse_settings("") == {}


@pytest.mark.parametrize("text", ["{", "[]", '{"sda": {"x": 1}}', '{"sda": 1}'])
def test_a_note_of_somebody_else_is_an_error(text):
    with pytest.raises(HypervisorError, match="cannot be read"):
        restart.parse_settings(text)
