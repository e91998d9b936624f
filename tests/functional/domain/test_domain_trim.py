# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""domain_trim on one guest that runs, and on others that have no system and no agent.

Blocks are counted with stat.  Agents that misbehave, and that of Windows: test_domain_trim_agents.
"""

from __future__ import annotations

import os
from xml.etree import ElementTree

import pytest
from lab import Disk, GuestSpec
from support import assert_explains, run_module

MIB = 1 << 20
NAME = "t-booted"
WASTE_MIB = {"sda": 48, "vdb": 24}
FOLDERS = {"sda": "/waste", "vdb": "/mnt/waste"}


@pytest.fixture(scope="module")
def booted(lab):
    """A guest with its system on a qcow2 disk and /mnt on a raw one; both pass discards on."""
    disks = (
        Disk("sda", "scsi", root=True, discard="unmap"),
        Disk("vdb", "virtio", size_bytes=256 * MIB, format="raw", discard="unmap"),
    )
    try:
        guest = lab.warm(GuestSpec(NAME, disks=disks))
        guest.run("mkfs.ext4", "-q", "/dev/vda")  # the only virtio disk, whatever its target
        guest.run("mount", "/dev/vda", "/mnt")
        yield guest
    finally:
        lab.forget(NAME)


@pytest.fixture
def bystander(lab, tmp_path):
    """Define guests that look for a system in vain; a function of name and disks."""
    guests = []

    def bystander(name, *disks, start=True, channel=True):
        disks = disks or (Disk("sda", "scsi", size_bytes=MIB, discard="unmap"),)
        guest = lab.create(GuestSpec(name, machine="pc", memory_mib=64, disks=disks))
        guests.append(guest)
        tree = ElementTree.fromstring(guest.xml(inactive=True))
        for name_of_child in ("kernel", "initrd", "cmdline"):
            tree.find("os").remove(tree.find(f"os/{name_of_child}"))
        if not channel:
            tree.find("devices").remove(tree.find("devices/channel"))
        path = tmp_path / f"{name}.xml"
        path.write_text(ElementTree.tostring(tree, encoding="unicode"))
        lab.virsh("define", str(path))
        if start:
            guest.start()
        return guest

    yield bystander
    for guest in guests:
        guest.destroy()
        lab.virsh("undefine", guest.name)


def blocks(guest, target):
    return os.stat(guest.disk(target).path).st_blocks * 512


def waste(guest):
    """Write files and delete them: their blocks stay allocated on the host."""
    for target, path in FOLDERS.items():
        count = f"count={WASTE_MIB[target]}"
        guest.run("dd", "if=/dev/urandom", f"of={path}", "bs=1M", count, "conv=fsync")
        guest.run("rm", path)
    guest.run("sync")


def discards(guest):
    """How many discards the guest's kernel has sent; Documentation/block/stat.rst."""
    lines = guest.run("cat", "/sys/block/sda/stat", "/sys/block/vda/stat").stdout.splitlines()
    return sum(int(line.split()[11]) for line in lines)


def trim(lab, *names, **arguments):
    return run_module("domain_trim", uri=lab.uri, domains=list(names), **arguments)


def by_name(result):
    return {entry["name"]: entry for entry in result["domains"]}


def test_what_is_freed_is_what_stat_says(lab, booted):
    waste(booted)
    before = {target: blocks(booted, target) for target in WASTE_MIB}
    result = trim(lab, NAME)
    after = {target: blocks(booted, target) for target in WASTE_MIB}

    assert not result["failed"], result["msg"]
    assert result["changed"]
    (entry,) = result["domains"]
    assert (entry["status"], entry["findings"], entry["reason"]) == ("trimmed", [], "")
    assert [disk["target"] for disk in entry["disks"]] == ["sda", "vdb"]
    for disk in entry["disks"]:
        target = disk["target"]
        assert disk["path"] == str(booted.disk(target).path)
        assert disk["allocated_before_bytes"] == before[target]
        assert disk["allocated_after_bytes"] == after[target]
        assert disk["freed_bytes"] == before[target] - after[target]
        # a few blocks of the file system's own may have been written in between
        assert disk["freed_bytes"] > (WASTE_MIB[target] - 1) * MIB
    freed = sum(before.values()) - sum(after.values())
    assert result["freed_bytes"] == entry["freed_bytes"] == freed
    assert result["summary"] == [f"{NAME}: {freed / MIB:.1f} MiB freed"]
    mounts = {mount["path"]: mount for mount in entry["mounts"]}
    assert set(mounts) == {"/", "/mnt"}
    assert all(mount["trimmed_bytes"] > 0 and mount["error"] == "" for mount in mounts.values())
    assert 0 < entry["seconds"] < 60


def test_a_second_run_finds_nothing(lab, booted):
    trim(lab, NAME)
    before = {target: blocks(booted, target) for target in WASTE_MIB}
    result = trim(lab, NAME)
    gained = sum(max(0, before[target] - blocks(booted, target)) for target in WASTE_MIB)
    assert result["freed_bytes"] == gained < MIB
    assert result["changed"] is (gained > 0)


def test_check_mode_asks_and_trims_nothing(lab, booted):
    waste(booted)
    before = {target: blocks(booted, target) for target in WASTE_MIB}
    sent = discards(booted)
    result = trim(lab, NAME, check=True)
    assert not result["failed"]
    assert (result["changed"], result["freed_bytes"]) == (False, 0)
    (entry,) = result["domains"]
    assert (entry["status"], entry["mounts"]) == ("would_trim", [])
    assert result["summary"] == [f"{NAME}: would trim."]
    assert discards(booted) == sent
    assert {target: blocks(booted, target) for target in WASTE_MIB} == before
    assert trim(lab, NAME)["changed"]
    assert discards(booted) > sent


@pytest.mark.parametrize("parallel", [1, 5])
def test_bad_guests_do_not_stop_the_good_one(lab, booted, bystander, parallel):
    bystander("t-a-off", start=False)
    bystander("t-a-no-channel", channel=False)
    bystander("t-z-no-agent")
    bystander("t-z-ignore", Disk("vda", "virtio", size_bytes=MIB))
    waste(booted)
    before = sum(blocks(booted, target) for target in WASTE_MIB)
    result = trim(lab, "t-*", parallel=parallel)
    gained = before - sum(blocks(booted, target) for target in WASTE_MIB)

    assert result["failed"]
    assert result["changed"]
    entries = by_name(result)
    assert list(entries) == sorted(entries)
    assert {name: entry["status"] for name, entry in entries.items()} == {
        "t-a-no-channel": "failed",
        "t-a-off": "skipped",
        NAME: "trimmed",
        "t-z-ignore": "failed",
        "t-z-no-agent": "failed",
    }
    assert result["freed_bytes"] == entries[NAME]["freed_bytes"] == gained > 60 * MIB
    assert "error" not in entries["t-a-off"]
    assert entries["t-a-off"]["reason"] == "The domain is shut off."
    assert_explains(result, "3 of 5 domains failed", "Domain t-a-no-channel has no guest agent")
    assert "Add a virtio channel" in entries["t-a-no-channel"]["error"]["msg"]
    assert "Start qemu-guest-agent" in entries["t-z-no-agent"]["error"]["msg"]
    assert "Refused" in entries["t-z-ignore"]["error"]["msg"]
    for name in ("t-a-no-channel", "t-z-no-agent", "t-z-ignore"):
        assert entries[name]["error"]["msg"] in result["msg"]
        assert entries[name]["freed_bytes"] == 0
    assert [line.split(":")[0] for line in result["summary"]] == list(entries)


def test_domains_that_are_off_are_skipped_in_both_modes(lab, bystander):
    bystander("t-off", start=False)
    for check in (False, True):
        result = trim(lab, "t-off", check=check)
        assert (result["failed"], result["changed"]) == (False, False)
        assert by_name(result)["t-off"]["status"] == "skipped"
        assert by_name(result)["t-off"]["disks"] == []


@pytest.mark.parametrize("check", [False, True])
def test_a_guest_whose_discards_are_dropped_is_refused_before_it_is_asked(lab, bystander, check):
    """Nobody would answer in this one: an agent's error would show that it was asked."""
    bystander("t-ignore", Disk("sda", "scsi", size_bytes=MIB, discard="ignore"))
    result = trim(lab, "t-ignore", check=check)
    assert_explains(result, "Refused", "the guest was not asked", "thinvirt.kvm.domain_discard")
    assert [found["id"] for found in by_name(result)["t-ignore"]["findings"]] == ["discard-ignored"]


def test_a_guest_without_a_disk_that_it_writes_is_refused(lab, bystander):
    bystander("t-cdrom", Disk("hdc", "ide", size_bytes=MIB, device="cdrom", readonly=True))
    assert_explains(trim(lab, "t-cdrom"), "Refused", "no writable disk", "Leave it out")


def restore_with(lab, guest, tmp_path, old, new):
    """Save the guest and restore it with other attributes: a new QEMU, the same system."""
    state, xml = tmp_path / "state", tmp_path / "restore.xml"
    text = lab.virsh("dumpxml", guest.name, "--migratable")
    assert old in text
    xml.write_text(text.replace(old, new))
    lab.virsh("save", guest.name, str(state))
    lab.virsh("restore", str(state), "--xml", str(xml))
    guest.wait_for_agent()


def test_a_real_guest_whose_discards_are_dropped_is_not_asked(lab, booted, tmp_path):
    """ext4 would remember what it has trimmed, and not send it again when it could be freed."""
    waste(booted)
    restore_with(lab, booted, tmp_path, "discard='unmap'", "discard='ignore'")
    try:
        sent = discards(booted)
        before = {target: blocks(booted, target) for target in WASTE_MIB}
        assert_explains(trim(lab, NAME), "Refused", "the guest was not asked to trim")
        assert discards(booted) == sent
        assert {target: blocks(booted, target) for target in WASTE_MIB} == before
    finally:
        restore_with(lab, booted, tmp_path, "discard='ignore'", "discard='unmap'")
    assert trim(lab, NAME)["freed_bytes"] > 60 * MIB


@pytest.mark.parametrize("check", [False, True])
def test_a_paused_guest(lab, bystander, check):
    bystander("t-paused")
    lab.virsh("suspend", "t-paused")
    result = trim(lab, "t-paused", check=check)
    assert_explains(result, "Domain t-paused is paused", "virsh resume t-paused")
    assert by_name(result)["t-paused"]["status"] == "failed"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"parallel": 0}, ["parallel must be between 1 and 5"]),
        ({"parallel": 6}, ["parallel must be between 1 and 5"]),
        ({"timeout": 0}, ["timeout must be"]),
        ({"timeout": -1}, ["timeout must be"]),
        ({"timeout": 1 << 31}, ["timeout must be"]),
        ({"timeout": 1 << 70}, ["timeout must be"]),
        ({"minimum_bytes": -1}, ["minimum_bytes must be"]),
        ({"minimum_bytes": 1 << 63}, ["minimum_bytes must be"]),
        ({"timeout": "soon"}, ["timeout", "int"]),
        ({"domains": ["nobody"]}, ["no domain nobody", "nothing was changed", "virsh list --all"]),
        ({"domains": ["x", "x"]}, ["domains names x twice", "Name it once"]),
        ({"uri": "nonsense"}, ["Cannot connect to libvirt at nonsense", "uri is right"]),
        ({"uri": "qemu+ssh://root@elsewhere/system"}, ["another machine", "qemu:///system"]),
    ],
)
def test_bad_input_asks_nobody(lab, booted, arguments, words):
    sent = discards(booted)
    result = run_module("domain_trim", **{"uri": lab.uri, "domains": [NAME], **arguments})
    assert_explains(result, *words)
    assert not result.get("changed")
    assert "domains" not in result
    assert discards(booted) == sent


def test_domains_have_to_be_named(lab):
    assert_explains(run_module("domain_trim", uri=lab.uri), "missing required arguments: domains")


def test_a_glob_without_matches(lab):
    result = trim(lab, "nobody*")
    assert (result["failed"], result["changed"], result["domains"]) == (False, False, [])


def used(guest, mount_point):
    return int(guest.run("df", "-B1", "--output=used", mount_point).stdout.split()[-1])


def test_thin_info_promises_no_more_than_a_trim_frees(lab, booted):
    """Asked of the guest, and measured afterwards."""
    trim(lab, NAME)
    booted.run("dd", "if=/dev/zero", "of=/mnt/waste", "bs=1M", "count=64", "conv=fsync")
    booted.run("rm", "/mnt/waste")
    booted.run("sync")
    before = blocks(booted, "vdb")

    audit = run_module("thin_info", uri=lab.uri, domains=[NAME])
    (entry,) = audit["domains"]
    assert {(s["mount_point"], *s["targets"]) for s in entry["guest_file_systems"]} == {
        ("/", "sda"),
        ("/mnt", "vdb"),
    }
    disks = {disk["target"]: disk for disk in entry["disks"]}
    for target, mount_point in (("sda", "/"), ("vdb", "/mnt")):
        assert disks[target]["guest_used_bytes"] == pytest.approx(
            used(booted, mount_point), abs=2 * MIB
        )
        assert disks[target]["reclaimable_estimate"] == "guest"
    promised = disks["vdb"]["reclaimable_bytes"]
    assert audit["file_systems"][0]["reclaimable_bytes"] >= promised > 16 * MIB

    trim(lab, NAME)
    assert promised <= before - blocks(booted, "vdb")

    silent = run_module("thin_info", uri=lab.uri, domains=[NAME], ask_agents=False)
    (entry,) = silent["domains"]
    assert entry["guest_file_systems"] is None
    assert {disk["reclaimable_estimate"] for disk in entry["disks"]} == {""}
