# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""thin_info on a real libvirt and QEMU: what runs against what is configured.

The guests are paused and have no system; changes are made with virsh.
"""

from __future__ import annotations

import os
import subprocess
import time

import pytest
from image_lab import run
from lab import Disk, GuestSpec
from support import assert_explains, run_module

MIB = 1 << 20


@pytest.fixture
def guest(lab, request):
    """A guest with a disk on every bus that matters, and a CD drive; it is off."""
    guest = lab.create(
        GuestSpec(
            f"i-{request.node.name.split('[')[0][-40:]}",
            machine="pc-i440fx-3.1",
            memory_mib=64,
            disks=(
                Disk("sda", "scsi", size_bytes=MIB, discard="unmap"),
                Disk("vda", "virtio", size_bytes=MIB, discard="unmap"),
                Disk("hda", "ide", size_bytes=MIB),
                Disk("hdc", "ide", size_bytes=MIB, device="cdrom", readonly=True),
            ),
        )
    )
    yield guest
    guest.destroy()
    if guest.name in lab.virsh("list", "--all", "--name").split():
        lab.virsh("undefine", guest.name)


@pytest.fixture
def define(lab, guest, tmp_path):
    """Change the configuration by replacing text; a running guest goes on as it is."""

    def define(*replacements):
        xml = guest.xml(inactive=True)
        for old, new in replacements:
            assert old in xml
            xml = xml.replace(old, new)
        path = tmp_path / "domain.xml"
        path.write_text(xml, encoding="utf-8")
        lab.virsh("define", str(path))

    return define


def audit(lab, guest, **arguments):
    """The domain's entry, and its disks by target."""
    result = run_module("thin_info", uri=lab.uri, domains=[guest.name], **arguments)
    assert not result["failed"], result["msg"]
    (domain,) = result["domains"]
    return domain, {disk["target"]: disk for disk in domain["disks"]}


def findings(disk):
    return [finding["id"] for finding in disk["findings"]]


def test_a_guest_that_is_off_is_judged_by_its_configuration(lab, guest, define):
    domain, disks = audit(lab, guest)
    assert (domain["active"], domain["machine"]) == (False, "pc-i440fx-3.1")
    assert (domain["agent_channel"], domain["agent_connected"]) == (True, None)
    assert {target: (disk["verdict"], disk["broken_link"]) for target, disk in disks.items()} == {
        "sda": ("works", ""),
        "vda": ("broken", "machine"),
        "hda": ("broken", "discard"),
    }
    assert all(disk["live"] is None for disk in disks.values())
    for disk in disks.values():
        assert disk["allocated_bytes"] == os.stat(disk["path"]).st_blocks * 512

    define(("pc-i440fx-3.1", "pc-i440fx-4.0"))
    _domain, disks = audit(lab, guest)
    assert disks["vda"]["verdict"] == "works"


def test_a_running_guest_is_judged_by_what_it_runs_with(lab, guest, define):
    lab.virsh("start", guest.name, "--paused")
    domain, disks = audit(lab, guest)
    assert (domain["active"], domain["agent_connected"]) == (True, False)
    assert [f["id"] for f in domain["findings"] if not f["disk"]] == ["agent-disconnected"]
    assert (disks["sda"]["verdict"], findings(disks["hda"])) == ("works", ["discard-ignored"])

    # hda is the only disk without discard
    define(("type='qcow2'/>", "type='qcow2' discard='unmap'/>"), ("3.1", "4.0"))
    _domain, disks = audit(lab, guest)
    assert findings(disks["hda"]) == ["restart-required"]
    assert (disks["hda"]["live"]["discard"], disks["hda"]["configured"]["discard"]) == (
        "ignore",
        "unmap",
    )
    assert disks["hda"]["verdict"] == "broken"
    assert "reboot is not enough" in disks["hda"]["remedy"]
    # a configured machine type helps nobody yet
    assert disks["vda"]["broken_link"] == "machine"

    guest.destroy()
    lab.virsh("start", guest.name, "--paused")
    domain, disks = audit(lab, guest)
    assert domain["machine"] == "pc-i440fx-4.0"
    assert [disk["verdict"] for disk in disks.values()] == ["works"] * 3


def test_what_ends_with_the_next_start_is_a_warning(lab, guest, define):
    lab.virsh("start", guest.name, "--paused")
    define((" discard='unmap'", ""))
    _domain, disks = audit(lab, guest)
    assert disks["sda"]["verdict"] == "works"
    assert findings(disks["sda"]) == ["discard-not-configured"]
    assert disks["sda"]["configured"]["discard"] == "ignore"


def test_a_disk_that_is_plugged_in_for_now(lab, guest, tmp_path):
    lab.virsh("start", guest.name, "--paused")
    path = tmp_path / "extra.raw"
    path.write_bytes(b"x" * MIB)
    lab.virsh("attach-disk", guest.name, str(path), "sdb", "--subdriver", "raw", "--live")
    _domain, disks = audit(lab, guest)
    assert disks["sdb"]["live"]["discard"] == "ignore"
    assert disks["sdb"]["configured"] is None
    assert findings(disks["sdb"]) == ["discard-ignored"]
    assert disks["sdb"]["promised_bytes"] == MIB


def test_a_guest_on_an_external_snapshot(lab, guest):
    base = str(guest.disk("sda").path)
    lab.virsh("start", guest.name, "--paused")
    lab.virsh("snapshot-create-as", guest.name, "snap", "--disk-only", "--no-metadata", "--atomic")
    _domain, disks = audit(lab, guest)
    assert disks["sda"]["path"] == os.path.splitext(base)[0] + ".snap"
    assert disks["sda"]["backing_chain"] == [base]
    assert disks["sda"]["verdict"] == "works"
    for disk in disks.values():
        os.unlink(disk["path"])


def test_a_transient_guest(lab, guest):
    lab.virsh("start", guest.name, "--paused")
    lab.virsh("undefine", guest.name)
    domain, disks = audit(lab, guest)
    assert domain["active"]
    assert set(disks) == {"sda", "vda", "hda"}


def of_domain(domain):
    return {finding["id"] for finding in domain["findings"] if not finding["disk"]}


def test_jobs_of_a_running_guest(lab, guest, tmp_path):
    lab.virsh("start", guest.name, "--paused")
    quiet, _disks = audit(lab, guest)
    copy = str(tmp_path / "copy.qcow2")
    lab.virsh("blockcopy", guest.name, "sda", copy, "--transient-job", "--format", "qcow2")
    try:
        domain, _disks = audit(lab, guest)
    finally:
        lab.virsh("blockjob", guest.name, "sda", "--abort")
    assert of_domain(domain) - of_domain(quiet) == {"job-running"}
    (found,) = (finding for finding in domain["findings"] if finding["id"] == "job-running")
    assert "block job on sda" in found["reason"]
    assert of_domain(audit(lab, guest)[0]) == of_domain(quiet)


def test_checkpoints_snapshots_and_saved_memory(lab, guest, define):
    define(("pc-i440fx-3.1", "pc-i440fx-7.2"))
    lab.virsh("start", guest.name, "--paused")
    kept = {"checkpoints", "libvirt-snapshots", "managed-save"}
    assert not of_domain(audit(lab, guest)[0]) & kept

    disks = [f"--diskspec={target},checkpoint=bitmap" for target in ("sda", "vda", "hda")]
    lab.virsh("checkpoint-create-as", guest.name, "c", *disks)
    assert of_domain(audit(lab, guest)[0]) & kept == {"checkpoints"}
    lab.virsh("checkpoint-delete", guest.name, "c")

    lab.virsh("managedsave", guest.name)
    domain, _disks = audit(lab, guest)
    assert (domain["active"], of_domain(domain) & kept) == (False, {"managed-save"})
    lab.virsh("managedsave-remove", guest.name)

    lab.virsh("snapshot-create-as", guest.name, "s")
    domain, disks = audit(lab, guest)
    assert of_domain(domain) & kept == {"libvirt-snapshots"}
    assert findings(disks["sda"]) == ["internal-snapshots"]
    lab.virsh("snapshot-delete", guest.name, "s")
    assert not of_domain(audit(lab, guest)[0]) & kept


def test_bitmaps_in_an_image(lab, guest):
    path = guest.disk("sda").path
    run("qemu-img", "bitmap", "--add", "-f", "qcow2", path, "b")
    _domain, disks = audit(lab, guest)
    assert findings(disks["sda"]) == ["backup-bitmaps"]


def test_secrets_are_not_shown(lab, guest, define):
    define(("</devices>", "<graphics type='vnc' port='-1' passwd='hunter2'/></devices>"))
    lab.virsh("start", guest.name, "--paused")
    assert "hunter2" in lab.virsh("dumpxml", guest.name, "--security-info")
    result = run_module("thin_info", uri=lab.uri, domains=[guest.name])
    assert "hunter2" not in str(result)


def test_a_running_guest_is_not_disturbed(lab, guest):
    lab.virsh("start", guest.name, "--paused")
    before = guest.xml(), guest.xml(inactive=True), guest.state()
    checked = run_module("thin_info", uri=lab.uri, domains=[guest.name], check=True)
    real = run_module("thin_info", uri=lab.uri, domains=[guest.name])
    assert checked["domains"] == real["domains"]
    assert (guest.xml(), guest.xml(inactive=True), guest.state()) == before


@pytest.mark.parametrize("module", ["thin_info", "domain_trim"])
def test_another_machine_behind_a_default_uri(lab, tmp_path, monkeypatch, module):
    """An empty uri says nothing: only the connection tells where libvirt's default leads."""
    program = tmp_path / "tunnel"
    socket = lab.uri.split("socket=")[1]
    program.write_text(_TUNNEL.format(socket=socket, mark=str(tmp_path / "used")))
    program.chmod(0o755)
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", f"qemu+ext://elsewhere/system?command={program}")
    result = run_module(module, uri="", domains=["*"])
    assert_explains(result, "qemu+ext://elsewhere/system", "leads to another machine")
    assert (tmp_path / "used").exists()


#: What stands between libvirt and a daemon elsewhere, as ssh would.
_TUNNEL = """#!/usr/bin/python3
import os, pathlib, socket, threading
pathlib.Path({mark!r}).touch()
there = socket.socket(socket.AF_UNIX)
there.connect({socket!r})
def up():
    while data := os.read(0, 65536):
        there.sendall(data)
threading.Thread(target=up, daemon=True).start()
while data := there.recv(65536):
    os.write(1, data)
"""


def _create_encrypted(*argv):
    """QEMU times its key derivation, and gives up where the kernel's clock is too coarse for it."""
    for _attempt in range(20):
        done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, check=False)
        if "accurate CPU usage" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr


def test_a_disk_that_qemu_encrypts(lab, guest, define, tmp_path):
    """Nothing comes back, as qemu-io and stat show."""
    path = tmp_path / "luks.img"
    secret = ["--object", "secret,id=s,data=pw"]
    key = "key-secret=s,iter-time=10"
    _create_encrypted("qemu-img", "create", "-q", "-f", "luks", *secret, "-o", key, path, "4M")
    opened = (
        "driver=luks,key-secret=s,discard=unmap,"
        f"file.driver=file,file.discard=unmap,file.filename={path}"
    )
    blocks = []
    for command in ("write -P 9 0 4M", "discard 0 4M"):
        run("qemu-io", *secret, "--image-opts", "-c", command, opened)
        blocks.append(os.stat(path).st_blocks)
    its_disk = (
        "<disk type='file' device='disk'><driver name='qemu' type='raw' discard='unmap'/>"
        f"<source file='{path}'><encryption format='luks'><secret type='passphrase' "
        "uuid='0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f'/></encryption></source>"
        "<target dev='sdb' bus='scsi'/></disk></devices>"
    )
    define(("</devices>", its_disk))
    _domain, disks = audit(lab, guest)
    # a file system may take back a little that it had set aside
    assert (disks["sdb"]["verdict"] == "broken") == (blocks[1] > blocks[0] // 2)
    assert findings(disks["sdb"]) == ["format-without-discard"]


def test_disks_whose_discards_pass_qemu_by(lab, guest, define):
    shared = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking><os>"
    disks = (
        "<disk type='block' device='lun'><driver name='qemu' type='raw'/>"
        "<source dev='/dev/nothing-here'/><target dev='sdx' bus='scsi'/></disk>"
        "<disk type='vhostuser' device='disk'><driver name='qemu' type='raw'/>"
        "<source type='unix' path='/run/nothing-here'/><target dev='vdx' bus='virtio'/></disk>"
        "</devices>"
    )
    define(("<os>", shared), ("</devices>", disks))
    _domain, disks = audit(lab, guest)
    assert {target: disks[target]["verdict"] for target in ("sdx", "vdx")} == {
        "sdx": "unknown",
        "vdx": "unknown",
    }
    assert findings(disks["vdx"]) == ["storage-not-local"]
    assert findings(disks["sdx"]) == ["bus-not-verified", "image-unreadable"]


#: A boot sector that writes a sector of cylinder 1, again and again: int 0x13 with ah=3.
_WRITES = bytes.fromhex("b80103 bb007c b90101 b600 cd13 ebf1").ljust(510, b"\0") + b"\x55\xaa"


def test_a_guest_that_an_io_error_has_paused(lab, guest, define, tmp_path):
    """It boots a sector that writes, to a loop device whose file lies on a full file system."""
    small = tmp_path / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=64k", "small", small)
    (small / "disk.img").write_bytes(_WRITES)
    os.truncate(small / "disk.img", 16 * MIB)
    loop = run("losetup", "--find", "--show", small / "disk.img").strip()
    try:
        (small / "full").write_bytes(bytes(60 << 10))
        its_disk = (
            "<disk type='block' device='disk'><driver name='qemu' type='raw' discard='unmap' "
            f"cache='none' error_policy='stop'/><source dev='{loop}'/>"
            "<target dev='hdb' bus='ide'/><boot order='1'/></disk></devices>"
        )
        of_lab = [("<kernel>", "<!--"), ("</cmdline>", "-->"), ("<boot dev='hd'/>", "")]
        define(*of_lab, ("</devices>", its_disk))
        lab.virsh("start", guest.name, "--paused")
        _domain, disks = audit(lab, guest)
        assert disks["hdb"]["verdict"] == "works"
        lab.virsh("resume", guest.name)
        deadline = time.monotonic() + 60
        while "I/O error" not in lab.virsh("domstate", guest.name, "--reason"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert "hdb" in lab.virsh("domblkerror", guest.name)
        domain, disks = audit(lab, guest)
        assert "paused-by-io-error" in of_domain(domain)
        assert (disks["hdb"]["verdict"], disks["sda"]["verdict"]) == ("broken", "works")
        assert disks["hdb"]["broken_link"] == "storage"
    finally:
        guest.destroy()
        run("losetup", "--detach", loop)
        run("umount", small)
