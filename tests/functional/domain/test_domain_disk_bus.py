# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""domain_disk_bus against a real libvirt; what libvirt keeps is read with virsh."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml
from qemu_machine import machine_types
from support import _RUN, assert_explains, run_module

GOLDEN = Path(__file__).parents[2] / "unit" / "domain" / "golden"
CASES = yaml.safe_load((GOLDEN / "cases.yml").read_text(encoding="utf-8"))
#: Machine types that only other distributions' QEMU has, and what cannot be defined without KVM,
#: firmware or another architecture.
ELSEWHERE = re.compile(r"rhel|bionic|-8\.\d|pc-1\.0|aarch64|s390x|firmware=\"efi\"")


def dump(lab, name):
    return lab.virsh("dumpxml", name, "--inactive", "--security-info")


def define(lab, tmp_path, text):
    path = tmp_path / "domain.xml"
    path.write_text(text, encoding="utf-8")
    lab.virsh("define", str(path))


def for_lab(text, name):
    """A golden domain as this machine's QEMU can have it without KVM."""
    tree = ET.fromstring(text)
    tree.set("type", "qemu")
    tree.find("name").text = name
    tree.remove(tree.find("uuid"))
    tree.find("devices").remove(tree.find("devices/emulator"))
    needs_kvm = ("cpu", "features/hyperv", "features/kvm", "features/ioapic", "devices/tpm")
    for element in [element for tag in needs_kvm for element in tree.findall(tag)]:
        next(parent for parent in tree.iter() if element in list(parent)).remove(element)
    type_ = tree.find("os/type")
    type_.set("machine", its_oldest_if_gone(type_.get("machine")))
    return ET.tostring(tree, encoding="unicode")


def its_oldest_if_gone(machine):
    """A machine type, or the oldest of its kind that this QEMU has: it forgets the oldest ones."""
    offered = [line.split()[0] for line in machine_types()]
    kind, _dash, version = machine.rpartition("-")
    if machine in offered or not re.fullmatch(r"\d+\.\d+", version):
        return machine
    ages = [
        [int(part) for part in name.removeprefix(kind + "-").split(".")]
        for name in offered
        if re.fullmatch(re.escape(kind) + r"-[\d.]+", name)
    ]
    return f"{kind}-{'.'.join(map(str, min(ages)))}"


def targets(text):
    found = ET.fromstring(text).findall("devices/disk/target")
    return {target.get("dev"): target.get("bus") for target in found}


@pytest.fixture
def bus(lab, tmp_path):
    """Run the module on the lab, with a state folder of its own."""

    def bus(*domains, **arguments):
        return run_module(
            "domain_disk_bus",
            uri=lab.uri,
            domains=list(domains),
            state_dir=str(tmp_path / "state"),
            **arguments,
        )

    return bus


@pytest.fixture
def guest(lab, tmp_path):
    """A defined domain with two ide disks, a CD drive and a password."""
    for target in ("hda", "hdb"):
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / f"{target}.qcow2", "1M"],
            check=True,
        )
    text = for_lab((GOLDEN / "winxp-ide-to-scsi.in.xml").read_text(), "b-guest")
    text = text.replace("/var/lib/libvirt/images/winxp.qcow2", f"{tmp_path}/hda.qcow2")
    text = text.replace("/var/lib/libvirt/images/winxp-data.qcow2", f"{tmp_path}/hdb.qcow2")
    tree = ET.fromstring(text)
    devices = tree.find("devices")
    for element in list(devices):
        if element.tag in ("interface", "sound", "video", "memballoon") or (
            element.tag == "disk" and element.get("device") == "cdrom"
        ):
            devices.remove(element)
    devices.find("graphics").set("passwd", "pw<&>")
    define(lab, tmp_path, ET.tostring(tree, encoding="unicode"))
    # libvirt orders the controllers that it added itself anew when it reads what it has printed
    define(lab, tmp_path, dump(lab, "b-guest"))
    yield "b-guest"
    if lab.virsh("domstate", "b-guest").strip() != "shut off":
        lab.virsh("destroy", "b-guest")
    lab.virsh(
        "undefine", "b-guest", "--managed-save", "--snapshots-metadata", "--checkpoints-metadata"
    )


def kept(tmp_path):
    folder = tmp_path / "state" / "domains"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_domains_of_many_makes(lab, tmp_path, bus):
    """All that this libvirt can have, in one call for each bus, and back."""
    groups = {}
    for name, case in CASES.items():
        text = (GOLDEN / f"{name}.in.xml").read_text(encoding="utf-8")
        if "bus" in case and "disks" not in case and not ELSEWHERE.search(text):
            define(lab, tmp_path, for_lab(text, f"g-{name}"))
            define(lab, tmp_path, dump(lab, f"g-{name}"))
            groups.setdefault(case["bus"], []).append(f"g-{name}")
    names = [name for group in groups.values() for name in group]
    assert len(names) >= 25
    try:
        before = {name: dump(lab, name) for name in names}
        for wanted, group in groups.items():
            checked = bus(*group, bus=wanted, check=True)
            assert [dump(lab, name) for name in group] == [before[name] for name in group]
            result = bus(*group, bus=wanted)
            assert not result["failed"], result["msg"]
            assert result["diff"] == checked["diff"]
            for entry in result["domains"]:
                now = targets(dump(lab, entry["name"]))
                assert entry["disks"]
                for disk in entry["disks"]:
                    assert now[disk["target"]] == wanted
            again = bus(*group, bus=wanted)
            assert not again["changed"]
            assert again["diff"] == {"before": {}, "after": {}}
        restored = bus(*names, state="restored")
        assert not restored["failed"], restored["msg"]
        moved = [entry for entry in restored["domains"] if entry["changed"]]
        assert len(moved) >= len(names) - 1  # one is there already
        assert {entry["name"]: dump(lab, entry["name"]) for entry in moved} == {
            entry["name"]: before[entry["name"]] for entry in moved
        }
        assert all(entry["identical"] for entry in moved)
        assert kept(tmp_path) == []
        assert not bus(*names, state="restored")["changed"]
    finally:
        for name in names:
            lab.virsh("undefine", name, "--nvram")


def test_golden_pairs_are_domains_for_libvirt(tmp_path):
    """Those of other distributions too: the test driver takes any machine type."""
    commands = []
    for path in sorted(GOLDEN.glob("*.out.xml")):
        tree = ET.fromstring(path.read_text(encoding="utf-8"))
        tree.set("type", "test")
        name = path.name.removesuffix(".out.xml")
        tree.find("name").text = name
        tree.remove(tree.find("uuid"))
        for tag in ("emulator", "tpm"):  # the test driver's capabilities know neither
            for element in tree.findall(f"devices/{tag}"):
                tree.find("devices").remove(element)
        tree.find("os/type").set("arch", "x86_64")
        (tmp_path / f"{name}.xml").write_text(ET.tostring(tree, encoding="unicode"))
        commands.append(f"define {tmp_path}/{name}.xml")
    done = subprocess.run(
        ["virsh", "-c", "test:///default", "; ".join([*commands, "list --all --name"])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert set(CASES) <= set(done.stdout.split())


def test_what_is_kept_is_for_root_alone_and_exact(lab, bus, guest):
    before = dump(lab, guest)
    result = bus(guest, bus="scsi")
    (entry,) = result["domains"]
    assert "pw<" not in json.dumps(result)
    path = Path(entry["old_xml"])
    assert path.read_bytes().decode() == before
    assert "pw&lt;" in path.read_text()
    for each in (path, path.with_name(f"{entry['uuid']}-disk_bus.json")):
        assert stat.S_IMODE(each.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert "pw&lt;" in dump(lab, guest)
    assert "driver-needed" in [finding["id"] for finding in entry["findings"]]


def test_the_old_name_still_finds_a_disk_that_was_moved(lab, bus, guest):
    assert bus(guest, bus="scsi", disks=["hda"])["changed"]
    assert targets(dump(lab, guest)) == {"sda": "scsi", "hdb": "ide"}
    again = bus(guest, bus="scsi", disks=["hda"])
    assert not again["changed"]
    assert [disk["target"] for disk in again["domains"][0]["disks"]] == ["sda"]
    assert_explains(bus(guest, bus="scsi", disks=["hdz"]), "has a disk hdz")


def test_refused_and_nothing_changed(lab, tmp_path, bus, guest):
    before = dump(lab, guest)
    refusals = (
        (("start", guest, "--paused"), "is not shut off", ("managedsave", guest)),
        (None, "has its memory saved", ("managedsave-remove", guest)),
        (
            ("snapshot-create-as", guest, "s"),
            "has snapshots",
            ("snapshot-delete", guest, "s"),
        ),
    )
    for prepare, words, end in refusals:
        if prepare:
            lab.virsh(*prepare)
        result = bus(guest, bus="scsi")
        assert_explains(result, words, "nothing was changed")
        assert not result["changed"]
        assert result["diff"] == {"before": {}, "after": {}}
        assert not bus(guest, bus="ide")["changed"]  # where it is, nothing has to be refused
        lab.virsh(*end)
    assert_explains(bus(guest, bus="sata", state="restored"), "leave out bus")
    assert dump(lab, guest) == before
    assert kept(tmp_path) == []


def test_checkpoints_are_refused(lab, tmp_path, bus, guest):
    """They are made of a guest that runs, and stay when it is off."""
    lab.virsh("start", guest, "--paused")
    lab.virsh("checkpoint-create-as", guest, "c")
    lab.virsh("destroy", guest)
    before = dump(lab, guest)
    for check in (True, False):
        result = bus(guest, bus="scsi", check=check)
        assert_explains(result, guest, "has checkpoints", "nothing was changed")
        assert not result["changed"]
    assert not bus(guest, bus="ide")["changed"]
    assert dump(lab, guest) == before
    assert kept(tmp_path) == []
    lab.virsh("checkpoint-delete", guest, "c", "--metadata")
    assert bus(guest, bus="scsi")["changed"]


def test_a_transient_domain_is_refused(lab, tmp_path, bus, guest):
    (tmp_path / "x.xml").write_text(dump(lab, guest))
    lab.virsh("start", guest, "--paused")
    lab.virsh("undefine", guest)
    try:
        before = lab.virsh("dumpxml", guest)
        for check in (True, False):
            for power in ("keep", "cycle"):
                result = bus(guest, bus="scsi", power=power, check=check)
                assert_explains(result, "is transient", "nothing was changed. Make it persistent")
                assert not result["changed"]
        assert lab.virsh("dumpxml", guest) == before
        assert kept(tmp_path) == []
    finally:
        lab.virsh("define", str(tmp_path / "x.xml"))


def test_restored_is_refused_for_a_guest_that_runs(lab, bus, guest):
    bus(guest, bus="scsi")
    moved = dump(lab, guest)
    lab.virsh("start", guest, "--paused")
    assert_explains(bus(guest, state="restored"), "is not shut off")
    assert dump(lab, guest) == moved


def test_one_that_fails_does_not_stop_the_others(lab, tmp_path, bus, guest):
    text = (GOLDEN / "virt-manager-q35-debian.in.xml").read_text()
    define(lab, tmp_path, for_lab(text, "a-q35"))
    try:
        result = bus("a-q35", guest, bus="ide")
        assert_explains(result, "1 of 2 domains failed", "has no ide")
        result = bus("a-q35", guest, bus="virtio", disks=["hd*"])
        assert not result["failed"]
        assert [entry["changed"] for entry in result["domains"]] == [False, True]
    finally:
        lab.virsh("undefine", "a-q35")


def test_libvirt_refuses_and_the_old_configuration_stays(lab, tmp_path, bus, guest):
    """No PCI slot is left for another controller, which only libvirt finds out."""
    tree = ET.fromstring(dump(lab, guest))
    devices = tree.find("devices")
    used = {address.get("slot") for address in devices.findall("*/address[@type='pci']")}
    for slot in range(2, 32):
        if f"0x{slot:02x}" not in used:
            watchdog = ET.SubElement(devices, "controller", type="virtio-serial", index=str(slot))
            ET.SubElement(
                watchdog, "address", type="pci", domain="0x0000", bus="0x00", slot=f"0x{slot:02x}"
            ).set("function", "0x0")
    define(lab, tmp_path, ET.tostring(tree, encoding="unicode"))
    before = dump(lab, guest)
    result = bus(guest, bus="scsi")
    if not result["failed"]:  # libvirt may add a bridge
        pytest.fail(f"libvirt found a slot: {dump(lab, guest)}")
    assert_explains(result, "was left as it was")
    assert not result["changed"]
    assert dump(lab, guest) == before
    assert kept(tmp_path) == []


def test_changed_by_others_since(lab, bus, guest):
    before = dump(lab, guest)
    bus(guest, bus="scsi")
    lab.virsh("setvcpus", guest, "1", "--config")
    changed = dump(lab, guest)
    assert_explains(bus(guest, state="restored"), "was changed again since", "force=true")
    assert dump(lab, guest) == changed
    assert bus(guest, state="restored", force=True)["changed"]
    assert dump(lab, guest) == before


def test_a_note_of_ours_is_no_change(lab, bus, guest):
    before = dump(lab, guest)
    bus(guest, bus="scsi")
    uri = "https://github.com/thinvirt/thinvirt.kvm/restart"
    lab.virsh("metadata", guest, "--config", "--uri", uri, "--key", "t", "--set", "<restart/>")
    lab.virsh("metadata", guest, "--config", "--uri", uri, "--remove")
    assert bus(guest, state="restored")["changed"]
    assert dump(lab, guest) == before


def test_the_last_change_is_what_is_restored(lab, tmp_path, bus, guest):
    bus(guest, bus="scsi")
    on_scsi = dump(lab, guest)
    bus(guest, bus="virtio")
    assert len(kept(tmp_path)) == 2
    bus(guest, state="restored")
    assert dump(lab, guest) == on_scsi


@pytest.mark.parametrize("damage", ["foreign", "changed", "gone", "journal"])
def test_what_is_kept_is_believed_only_as_we_wrote_it(lab, bus, guest, damage):
    bus(guest, bus="scsi")
    moved = dump(lab, guest)
    path = Path(bus(guest, bus="scsi")["domains"][0]["old_xml"])
    journal = next(path.parent.glob("*.json"))
    if damage == "foreign":
        os.chown(path, 65534, 65534)
    elif damage == "changed":
        path.write_text(path.read_text().replace("hda", "hdc"))
    elif damage == "gone":
        path.unlink()
    else:
        journal.write_text('{"file": "../../x"}')
    result = bus(guest, state="restored")
    assert_explains(result)
    assert dump(lab, guest) == moved
    if damage == "gone":  # only who wants it back has to know
        assert bus(guest, bus="ide")["changed"]


def killed(uri, folder, name, point, **arguments):
    """Run the module and have it killed at its N-th call of a kind; whether it was."""
    given = {"uri": uri, "domains": [name], "state_dir": str(folder), **arguments}
    call, number = point
    inject = f"inject={call}:signal=KILL:when={number}"
    done = subprocess.run(
        [
            *("strace", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject),
            *(sys.executable, "-c", _RUN, "domain_disk_bus"),
        ],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode != 0


@pytest.mark.parametrize("point", [("rename", 1), ("rename", 2), ("rename", 3)])
def test_killed_in_between(lab, tmp_path, bus, guest, point):
    """Killed before the old XML is kept, before the journal is, and before it says done."""
    before = dump(lab, guest)
    assert killed(lab.uri, tmp_path / "state", guest, point, bus="scsi")
    now = dump(lab, guest)
    assert now == before or targets(now) == {"sda": "scsi", "sdb": "scsi"}
    if now == before:
        result = bus(guest, bus="scsi")
        assert result["changed"]
    else:
        result = bus(guest, bus="scsi")
        assert not result["changed"]
        assert "was killed" in result["domains"][0]["recovered"]
    assert bus(guest, bus="scsi")["domains"][0]["recovered"] == ""
    assert bus(guest, state="restored")["changed"]
    assert dump(lab, guest) == before


def test_killed_before_libvirt_had_a_second_change(lab, tmp_path, bus, guest):
    """The journal has begun it; what is brought back is what was before the first one."""
    before = dump(lab, guest)
    bus(guest, bus="scsi")
    on_scsi = dump(lab, guest)
    (journal,) = (tmp_path / "state" / "domains").glob("*.json")
    record = json.loads(journal.read_text())
    second = journal.with_name(record["file"].replace(".xml", "-2.xml"))
    second.write_text(on_scsi)
    begun = {"stage": "begun", "file": second.name, "after": "", "previous": record}
    begun["sha256"] = hashlib.sha256(on_scsi.encode()).hexdigest()
    journal.write_text(json.dumps({**record, **begun}))
    assert bus(guest, state="restored")["changed"]
    assert dump(lab, guest) == before
    assert kept(tmp_path) == []


def test_killed_while_it_is_restored(lab, tmp_path, bus, guest):
    before = dump(lab, guest)
    bus(guest, bus="scsi")
    assert killed(lab.uri, tmp_path / "state", guest, ("unlink", 1), state="restored")
    assert dump(lab, guest) == before
    assert not bus(guest, state="restored")["changed"]
    assert kept(tmp_path) == []


def test_no_room_for_the_old_xml(lab, tmp_path, bus, guest):
    """Nothing is changed if it can't be kept."""
    (tmp_path / "state").write_text("in the way")
    before = dump(lab, guest)
    assert_explains(bus(guest, bus="scsi"))
    assert dump(lab, guest) == before
    (tmp_path / "state").unlink()
    (tmp_path / "state" / "domains").mkdir(parents=True)
    (tmp_path / "state" / "domains").chmod(0o777)
    assert_explains(bus(guest, bus="scsi"), "others may write to it")
    assert dump(lab, guest) == before
    shutil.rmtree(tmp_path / "state")
