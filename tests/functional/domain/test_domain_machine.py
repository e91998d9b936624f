# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""domain_machine against a real libvirt and QEMU; the guests have no system."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from xml.etree import ElementTree as ET

import pytest
from compact_lab import answer, go_on, held_child, start_module
from lab import Disk, GuestSpec
from qemu_machine import machine_types
from support import _RUN, assert_explains, run_module

MIB = 1 << 20


def dump(lab, name):
    return lab.virsh("dumpxml", name, "--inactive", "--security-info")


def newest(lab, alias):
    """As virsh says it."""
    text = lab.virsh("domcapabilities", "--machine", alias, "--virttype", "qemu")
    return ET.fromstring(text).findtext("machine")


def machine_of(text):
    return ET.fromstring(text).find("os/type").get("machine")


@pytest.fixture
def guest(lab):
    guest = lab.create(
        GuestSpec(
            "m-old",
            machine="pc-i440fx-3.1",
            memory_mib=64,
            disks=(
                Disk("vda", "virtio", size_bytes=4 * MIB),
                Disk("vdb", "virtio", size_bytes=MIB, format="raw"),
                Disk("hdc", "ide", size_bytes=MIB, device="cdrom", readonly=True),
            ),
        )
    )
    # libvirt orders the controllers that it added itself anew when it reads what it has printed
    path = lab.state / "tmp" / "m-old.xml"
    text = dump(lab, guest.name).replace(
        "</devices>", "<interface type='user'><model type='virtio'/></interface></devices>"
    )
    for _again in range(2):
        path.write_text(text)
        lab.virsh("define", str(path))
        text = dump(lab, guest.name)
    yield guest
    guest.destroy()
    lab.virsh("undefine", guest.name, "--managed-save", "--keep-nvram")


@pytest.fixture
def machine(lab, tmp_path, guest):
    """Run the module on the guest, with a state folder of its own."""

    def machine(**arguments):
        return run_module(
            "domain_machine",
            uri=lab.uri,
            domains=[guest.name],
            state_dir=str(tmp_path / "state"),
            **arguments,
        )

    return machine


@pytest.fixture
def dest(lab, tmp_path):
    """A folder for copies; the domain around them is removed in the end."""
    folder = tmp_path / "copies"
    folder.mkdir()
    yield folder
    if "m-new" in lab.virsh("list", "--all", "--name").split():
        lab.virsh("undefine", "m-new", "--keep-nvram")


def rebuild_to(folder, **more):
    return {"name": "m-new", "dest_dir": str(folder), "min_free_bytes": 0, **more}


def test_present_only_tells(lab, guest, machine, tmp_path):
    before = dump(lab, guest.name)
    result = machine()
    (entry,) = result["domains"]
    assert not result["changed"]
    assert entry["qemu_version"] == "3.1"
    assert entry["newest"] == newest(lab, "pc")
    too_old, *deprecated = (finding["id"] for finding in entry["findings"])
    assert too_old == "machine-too-old"
    offered = [line.split()[0] for line in machine_types() if line.endswith("(deprecated)")]
    assert deprecated == ["machine-deprecated"] * ("pc-i440fx-3.1" in offered)
    assert "vda, vdb" in entry["findings"][0]["reason"]
    assert dump(lab, guest.name) == before
    assert not (tmp_path / "state").exists()


def test_raised_and_restored(lab, guest, machine):
    before = dump(lab, guest.name)
    checked = machine(state="current", check=True)
    assert dump(lab, guest.name) == before
    result = machine(state="current")
    assert checked["changed"]
    assert result["diff"] == checked["diff"]
    after = dump(lab, guest.name)
    assert after == before.replace("pc-i440fx-3.1", newest(lab, "pc"))
    assert not result["domains"][0]["addresses_dropped"]
    assert not machine(state="current")["changed"]
    guest.start()
    guest.destroy()
    restored = machine(state="restored")
    assert restored["domains"][0]["identical"]
    assert dump(lab, guest.name) == before
    assert not machine(state="restored")["changed"]


def test_named(lab, guest, machine):
    before = dump(lab, guest.name)
    assert_explains(machine(state="current", machine="pc-q35-7.2"), "another kind of machine")
    assert_explains(machine(state="current", machine="pc-i440fx-2.9"), "is older than")
    assert_explains(machine(state="current", machine="pc-i440fx-99.0"), "could not start domain")
    assert_explains(machine(machine="pc-i440fx-6.2"), "state=current")
    assert dump(lab, guest.name) == before
    assert machine(state="current", machine="pc-i440fx-6.2")["changed"]
    assert machine_of(dump(lab, guest.name)) == "pc-i440fx-6.2"


def test_refused_and_nothing_changed(lab, guest, machine, dest):
    before = dump(lab, guest.name)
    refusals = (
        (("start", guest.name, "--paused"), "is not shut off", ("managedsave", guest.name)),
        (None, "has its memory saved", ("managedsave-remove", guest.name)),
    )
    for prepare, words, end in refusals:
        if prepare:
            lab.virsh(*prepare)
        assert_explains(machine(state="current"), words, "nothing was changed")
        assert_explains(machine(state="rebuilt", rebuild=rebuild_to(dest)), words)
        lab.virsh(*end)
    assert dump(lab, guest.name) == before
    assert os.listdir(dest) == []


def test_snapshots_are_refused(lab, guest, machine, tmp_path):
    folder = guest.disk("vda").path.parent
    overlays = [f"--diskspec={target},file={tmp_path}/{target}" for target in ("vda", "vdb")]
    lab.virsh("snapshot-create-as", guest.name, "s", "--disk-only", *overlays)
    before, files = dump(lab, guest.name), sorted(os.listdir(folder))
    for check in (True, False):
        result = machine(state="current", check=check)
        assert_explains(result, "has snapshots, and a revert", "nothing was changed. Delete the")
        assert not result["changed"]
    assert dump(lab, guest.name) == before
    assert sorted(os.listdir(folder)) == files
    lab.virsh("snapshot-delete", guest.name, "s", "--metadata")


def test_rebuilt_beside_the_old_one(lab, guest, machine, dest):
    for target, form in (("vda", "qcow2"), ("vdb", "raw")):
        write = ["qemu-io", "-f", form, "-c", "write -P 0x5a 64k 128k"]
        subprocess.run([*write, guest.disk(target).path], check=True, capture_output=True)
    before = dump(lab, guest.name)
    checked = machine(state="rebuilt", rebuild=rebuild_to(dest), check=True)
    assert checked["changed"]
    assert os.listdir(dest) == []
    result = machine(state="rebuilt", rebuild=rebuild_to(dest))
    assert not result["failed"], result["msg"]
    assert result["diff"] == checked["diff"]
    assert dump(lab, guest.name) == before

    old, new = ET.fromstring(before), ET.fromstring(dump(lab, "m-new"))
    assert new.find("os/type").get("machine") == newest(lab, "pc")
    assert result["domains"][0]["rebuilt"]["uuid"] == new.findtext("uuid") != old.findtext("uuid")
    macs = [tree.find("devices/interface/mac").get("address") for tree in (old, new)]
    assert macs[0] != macs[1]
    assert macs[1].startswith("52:54:00:")
    assert sorted(os.listdir(dest)) == ["m-new-vda.qcow2", "m-new-vdb.raw"]
    for target, form in (("vda", "qcow2"), ("vdb", "raw")):
        copy = dest / f"m-new-{target}.{form}"
        source = new.find(f"devices/disk/target[@dev='{target}']/../source")
        assert source.get("file") == str(copy)
        compare = ["qemu-img", "compare", "-f", form, "-F", form]
        subprocess.run([*compare, guest.disk(target).path, copy], check=True, capture_output=True)

    again = machine(state="rebuilt", rebuild=rebuild_to(dest))
    assert not again["changed"]
    assert again["domains"][0]["rebuilt"]["uuid"] == new.findtext("uuid")
    lab.virsh("start", "m-new", "--paused")
    lab.virsh("destroy", "m-new")


def test_rebuilt_with_the_same_addresses(lab, guest, machine, dest):
    assert machine(state="rebuilt", rebuild=rebuild_to(dest, keep_mac=True))["changed"]
    macs = [
        ET.fromstring(dump(lab, name)).find("devices/interface/mac").get("address")
        for name in (guest.name, "m-new")
    ]
    assert macs[0] == macs[1]


def test_variables_of_the_firmware_are_copied(lab, guest, machine, dest, tmp_path):
    nvram = tmp_path / "old_VARS.fd"
    nvram.write_bytes(os.urandom(MIB))
    nvram.chmod(0o640)
    loader = "<loader readonly='yes' type='pflash'>/nowhere/CODE.fd</loader>"
    text = dump(lab, guest.name).replace("<kernel>", f"{loader}<nvram>{nvram}</nvram><kernel>")
    (tmp_path / "uefi.xml").write_text(text)
    lab.virsh("define", str(tmp_path / "uefi.xml"))

    (dest / "m-new_VARS.fd").write_text("of somebody else")
    result = machine(state="rebuilt", rebuild=rebuild_to(dest))
    assert_explains(result, "m-new_VARS.fd exists already")
    assert os.listdir(dest) == ["m-new_VARS.fd"]
    assert (dest / "m-new_VARS.fd").read_text() == "of somebody else"

    (dest / "m-new_VARS.fd").unlink()
    assert machine(state="rebuilt", rebuild=rebuild_to(dest))["changed"]
    copy = dest / "m-new_VARS.fd"
    assert copy.read_bytes() == nvram.read_bytes()
    assert copy.stat().st_mode == nvram.stat().st_mode
    assert ET.fromstring(dump(lab, "m-new")).findtext("os/nvram") == str(copy)
    assert ET.fromstring(dump(lab, guest.name)).findtext("os/nvram") == str(nvram)


def test_what_fails_leaves_neither_copies_nor_a_domain(lab, machine, dest):
    result = machine(state="rebuilt", machine="pc-i440fx-99.0", rebuild=rebuild_to(dest))
    assert_explains(result, "could not define the domain")
    assert os.listdir(dest) == []
    assert "m-new" not in lab.virsh("list", "--all", "--name").split()


def test_files_of_others_are_not_touched(guest, machine, dest):
    (dest / "m-new-vdb.raw").write_text("mine")
    result = machine(state="rebuilt", rebuild=rebuild_to(dest))
    assert_explains(result, "m-new-vdb.raw", "nothing was changed")
    assert os.listdir(dest) == ["m-new-vdb.raw"]
    assert_explains(
        machine(state="rebuilt", rebuild={**rebuild_to(dest), "name": guest.name}),
        "was not made of",
    )
    assert_explains(
        machine(state="rebuilt", rebuild={**rebuild_to(dest), "name": "../x"}), "no name"
    )


def test_a_disk_that_cannot_be_copied(lab, guest, machine, dest, tmp_path):
    for change, words in (
        (("<target dev='vdb'", "<shareable/><target dev='vdb'"), "vdb of domain m-old is shared"),
        (("type='raw'", "type='vmdk'"), "vdb of domain m-old is of format vmdk"),
    ):
        kept = dump(lab, guest.name)
        (tmp_path / "kept.xml").write_text(kept)
        (tmp_path / "d.xml").write_text(kept.replace(*change))
        lab.virsh("define", str(tmp_path / "d.xml"))
        before = dump(lab, guest.name)
        for check in (True, False):
            result = machine(state="rebuilt", rebuild=rebuild_to(dest), check=check)
            assert_explains(result, words, "nothing was changed. Rebuild the domain by hand")
            assert not result["changed"]
        assert dump(lab, guest.name) == before
        assert os.listdir(dest) == []
        lab.virsh("define", str(tmp_path / "kept.xml"))


def test_a_domain_that_is_changed_while_its_disks_are_copied(lab, guest, dest, tmp_path):
    process = start_module(
        "domain_machine",
        uri=lab.uri,
        domains=[guest.name],
        state="rebuilt",
        rebuild=rebuild_to(dest),
        state_dir=str(tmp_path / "state"),
        hold="convert",
    )
    child = held_child(process)
    lab.virsh("setvcpus", guest.name, "1", "--config", "--maximum")
    lab.virsh("desc", guest.name, "--config", "--title", "another")
    before = dump(lab, guest.name)
    go_on(child)
    result = answer(process)
    assert_explains(result, "was changed by somebody else while its disks", "were removed. Run")
    assert not result["changed"]
    assert dump(lab, guest.name) == before
    assert os.listdir(dest) == []
    assert "m-new" not in lab.virsh("list", "--all", "--name").split()


def killed(lab, name, dest, *options):
    """Rebuild, and have that killed where strace's options say; whether it was."""
    given = {
        "uri": lab.uri,
        "domains": [name],
        "state": "rebuilt",
        "rebuild": rebuild_to(dest),
        "state_dir": str(dest / "state"),
    }
    done = subprocess.run(
        [
            *("strace", "-qq", "-o", "/dev/null", *options),
            *(sys.executable, "-c", _RUN, "domain_machine"),
        ],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode != 0


@pytest.mark.parametrize("point", ["rename 2", "fsync 3"])
def test_killed_while_it_copies(lab, guest, machine, dest, point):
    """The next run takes what is whole, and makes the rest."""
    call, number = point.split()
    inject = f"inject={call}:signal=KILL:when={number}"
    assert killed(lab, guest.name, dest, "-e", f"trace={call}", "-e", inject)
    assert "m-new" not in lab.virsh("list", "--all", "--name").split()
    assert machine(state="rebuilt", rebuild=rebuild_to(dest))["changed"]
    assert sorted(os.listdir(dest)) == ["m-new-vda.qcow2", "m-new-vdb.raw"]
    assert "m-new" in lab.virsh("list", "--all", "--name").split()


def test_killed_when_the_domain_is_there(lab, guest, machine, dest):
    """The next run finds the domain, and that its disks are copies no more."""
    note = dest / "m-new-vda.qcow2.thinvirt.json"
    assert killed(
        lab,
        guest.name,
        dest,
        *("-P", str(note), "-e", "trace=unlink", "-e", "inject=unlink:signal=KILL:when=1"),
    )
    assert note.exists()
    assert not machine(state="rebuilt", rebuild=rebuild_to(dest))["changed"]
    assert sorted(os.listdir(dest)) == ["m-new-vda.qcow2", "m-new-vdb.raw"]
