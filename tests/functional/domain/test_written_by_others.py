# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What somebody else could have written, or exchange while we work, seen with virsh and stat."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import (
    Live,
    Record,
    open_journal,
)
from backup_lab import backup, entry
from compact_lab import leftovers, state
from image_lab import qemu_io, run
from lab import Disk, GuestSpec
from live_lab import CONTENT, MIB
from support import assert_explains, run_module

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="to give a folder away takes root")

NOBODY = 65534
EXCHANGE = "another user could exchange files while they are worked on"
HOST_DISK = '<disk type="block"><source dev="/dev/vda"/></disk>'


@pytest.fixture
def guest(lab):
    """Shut off, in a folder of its own, with zeros that are worth a rewrite."""
    folder = lab.state / "disks" / "others"
    folder.mkdir()
    disk = Disk("sda", "scsi", size_bytes=128 * MIB)
    guest = lab.create(GuestSpec("others", memory_mib=64, disks=(disk,)))
    try:
        path = guest.disk("sda").path
        qemu_io(path, *CONTENT)
        text = guest.xml(inactive=True).replace(str(path), str(folder / path.name))
        os.rename(path, folder / path.name)
        (lab.state / "others.xml").write_text(text)
        lab.virsh("define", str(lab.state / "others.xml"))
        yield guest
    finally:
        guest.destroy()
        lab.virsh("undefine", guest.name)
        shutil.rmtree(folder)


def path_of(lab, guest) -> Path:
    return lab.state / "disks" / "others" / guest.disk("sda").path.name


def compact(lab, guest, **arguments):
    given = {"uri": lab.uri, "domains": [guest.name], "min_free_bytes": 0, "min_reclaim_bytes": 0}
    return run_module("domain_compact", **given, **arguments)


def forged(uuid) -> Record:
    """As a killed live compaction would leave it, with the host's disk for the domain."""
    live = Live(uuid, "sda", "", HOST_DISK, "qcow2")
    return Record("live", "snapshot", 2**22 - 1, None, live=live)


@pytest.mark.parametrize("owner", [0, NOBODY])
def test_a_journal_beside_an_image(lab, guest, owner):
    """Root's: as the owner of a folder makes it, by a new name for what root has written there."""
    path, uuid = path_of(lab, guest), lab.virsh("domuuid", guest.name).strip()
    beside = path.with_name(f".{path.name}.thinvirt-journal")
    beside.write_text(json.dumps(dataclasses.asdict(forged(uuid))) + "\n")
    os.chown(beside, owner, -1)
    beside.chmod(0o600)
    before = guest.xml(inactive=True)
    for arguments in ({"state": "recovered"}, {}):
        result = compact(lab, guest, **arguments)
        if owner == 0:
            assert_explains(result, str(beside), "is not obeyed", "nothing was changed")
        assert guest.xml(inactive=True) == before
        assert beside.exists()
    assert result["changed"] is (owner == NOBODY)


def test_a_journal_of_ours_that_names_another_file(lab, guest):
    path, uuid = path_of(lab, guest), lab.virsh("domuuid", guest.name).strip()
    with open_journal(str(path)) as journal:
        journal.write(forged(uuid))
    before, files = guest.xml(inactive=True), state(path.parent)
    for _again in range(2):
        result = compact(lab, guest, state="recovered")
        assert_explains(result, "disk sda of domain others was on /dev/vda", "nothing was changed")
        assert guest.xml(inactive=True) == before
        assert state(path.parent) == files
    with open_journal(str(path)) as journal:
        journal.clear()
    assert leftovers(path.parent) == []


@pytest.mark.parametrize("change", ["owner", "group", "others"])
@pytest.mark.parametrize("power", ["keep", "live"])
def test_a_folder_in_which_somebody_can_exchange_the_image(lab, guest, change, power):
    path = path_of(lab, guest)
    os.chown(path.parent, NOBODY if change == "owner" else 0, 1 if change == "group" else 0)
    path.parent.chmod({"owner": 0o755, "group": 0o775, "others": 0o757}[change])
    if power == "live":
        lab.virsh("start", guest.name, "--paused")
    before, files = guest.xml(), state(path.parent)
    given = {"power": power, "trim": False, "method": "rewrite" if power == "live" else "auto"}
    for check in (True, False):
        result = compact(lab, guest, check=check, **given)
        assert_explains(result, EXCHANGE, "trusted_owners", str(path.parent))
    assert guest.xml() == before
    assert state(path.parent) == files
    if change == "owner":
        result = compact(lab, guest, trusted_owners=["nobody"], **given)
        assert not result["failed"], result["msg"]
        assert result["changed"]
        assert leftovers(path.parent) == []


def test_a_link_of_somebody_else_on_the_way(lab, guest):
    """Where QEMU finds the image by another name than where it is."""
    path = path_of(lab, guest)
    folder = path.parent / "theirs"
    folder.mkdir()
    (folder / "link").symlink_to(path.parent)
    os.chown(folder, NOBODY, -1)
    text = guest.xml(inactive=True).replace(str(path), str(folder / "link" / path.name))
    (lab.state / "others.xml").write_text(text)
    lab.virsh("define", str(lab.state / "others.xml"))
    lab.virsh("start", guest.name, "--paused")
    before = guest.xml()
    for check in (True, False):
        result = compact(lab, guest, check=check, power="live", trim=False)
        assert_explains(result, EXCHANGE, str(folder))
    assert guest.xml() == before
    guest.destroy()
    for check in (True, False):
        assert_explains(compact(lab, guest, check=check), EXCHANGE, str(folder))


@pytest.mark.parametrize("module", ["image_compact", "image_convert", "domain_backup"])
def test_other_modules_refuse_it_as_well(lab, guest, tmp_path, module):
    path, out = path_of(lab, guest), tmp_path / "out"
    out.mkdir()
    given = {
        "image_compact": {"uri": "", "paths": [str(out / "x.qcow2")]},
        "image_convert": {"src": str(path), "dest": str(out / "copy.qcow2")},
        "domain_backup": {"uri": lab.uri, "domains": [guest.name], "dest_dir": str(out)},
    }[module]
    shutil.copy(path, out / "x.qcow2")
    os.chown(out, NOBODY, -1)
    before = state(out)
    for check in (True, False):
        result = run_module(module, check=check, min_free_bytes=0, **given)
        assert_explains(result, EXCHANGE, str(out), "nothing was changed")
    assert state(out) == before
    result = run_module(module, min_free_bytes=0, trusted_owners=["nobody"], **given)
    assert not result["failed"], result["msg"]


def test_scratch_files_go_to_no_folder_of_somebody_else(lab, guest, tmp_path):
    folder = path_of(lab, guest).parent
    for name in ("backup", "scratch"):
        (tmp_path / name).mkdir()
    os.chown(folder, NOBODY, -1)
    lab.virsh("start", guest.name, "--paused")
    for check in (True, False):
        result = backup(lab, tmp_path / "backup", guest.name, check=check)
        assert_explains(result, EXCHANGE, str(folder), "nothing was changed")
        assert os.listdir(tmp_path / "backup") == []
    scratch = str(tmp_path / "scratch")
    made = entry(backup(lab, tmp_path / "backup", guest.name, scratch_dir=scratch))
    assert made["changed"]
    assert os.listdir(scratch) == []


def nowhere_but_root(version, change):
    """What makes a version one that another user could have written."""
    disk, manifest = Path(version, "sda.qcow2"), Path(version, "manifest.json")
    if change == "domain's folder":
        os.chown(Path(version).parent, NOBODY, -1)
    elif change == "folder":
        os.chown(version, NOBODY, -1)
    elif change == "writable folder":
        Path(version).chmod(0o770)
        os.chown(version, -1, 1)
    elif change == "manifest":
        os.chown(manifest, NOBODY, -1)
    elif change == "writable manifest":
        manifest.chmod(0o666)
    else:
        os.chown(disk, NOBODY, -1)


@pytest.mark.parametrize(
    "change",
    ["domain's folder", "folder", "writable folder", "manifest", "writable manifest", "disk"],
)
def test_a_version_that_somebody_else_could_have_written(lab, guest, tmp_path, change):
    for name in ("backup", "restored"):
        (tmp_path / name).mkdir()
    version = entry(backup(lab, tmp_path / "backup", guest.name))["version"]
    nowhere_but_root(version, change)
    given = {"uri": lab.uri, "src": version, "name": "r-others", "min_free_bytes": 0}
    given["dest_dir"] = str(tmp_path / "restored")
    for check in (True, False):
        result = run_module("domain_restore", check=check, **given)
        assert_explains(result, "another user", "nothing was changed", "trusted_owners")
        assert os.listdir(tmp_path / "restored") == []
        assert "r-others" not in lab.virsh("list", "--all", "--name").split()
    run("chown", "-R", "root", tmp_path / "backup")
    run("chmod", "-R", "go-w", tmp_path / "backup")
    try:
        assert run_module("domain_restore", **given)["changed"]
    finally:
        lab.virsh("undefine", "r-others")
