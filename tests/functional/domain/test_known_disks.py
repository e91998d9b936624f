# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks that are more than a plain image: copied as they are, or refused with nothing changed.

Guests have no system; what became of their disks is read with qemu-img and virsh.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
import uuid
from pathlib import Path

import pytest
from backup_lab import backup, entry, versions
from image_lab import run
from lxml import etree
from support import assert_explains, run_module

MIB = 1 << 20
_DISK = (
    "<disk type='file' device='disk'{}><driver name='qemu' type='{}' {}/><source file='{}'>{}"
    "</source><target dev='{}' bus='{}'/>{}</disk>"
)


def disk(path, *, form="qcow2", driver="", source="", target="vda", bus="virtio", more=""):
    return _DISK.format("", form, driver, path, source, target, bus, more)


@pytest.fixture
def place(lab, tmp_path):
    """A folder that the lab's QEMU can get to, and one for copies."""
    folder = lab.state / "disks" / tmp_path.name
    for each in (folder, folder / "copies", folder / "backup"):
        each.mkdir()
    yield folder
    run("rm", "-r", folder)


@pytest.fixture
def define(lab, tmp_path):
    """Define a domain of this XML of devices; its name."""
    names = []

    def define(devices, *, before="", of_os=""):
        name = f"k-{uuid.uuid4().hex[:8]}"
        names.append(name)
        path = tmp_path / "domain.xml"
        path.write_text(
            f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory>{before}"
            f"<os><type arch='x86_64' machine='q35'>hvm</type>{of_os}</os>"
            "<features><acpi/></features>"
            f"<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{devices}</devices></domain>"
        )
        lab.virsh("define", str(path))
        return name

    yield define
    running = lab.virsh("list", "--name").split()
    for name in lab.virsh("list", "--all", "--name").split():
        if name.removesuffix("-new") in names:
            if name in running:
                lab.virsh("destroy", name)
            lab.virsh("undefine", name, "--keep-nvram")


def xml_of(lab, name, *options):
    return etree.fromstring(lab.virsh("dumpxml", name, *options))


def image(path, *, form="qcow2", pattern=0x41):
    run("qemu-img", "create", "-q", "-f", form, path, "16M")
    run("qemu-io", "-f", form, "-c", f"write -P {pattern} 0 4M", path)
    return path


def first_byte(path, form):
    argv = ("qemu-img", "dd", "-f", form, "-O", "raw", "bs=512", "count=1")
    out = path.with_name("first")
    run(*argv, f"if={path}", f"of={out}")
    return out.read_bytes()[:1]


def restore(lab, src, place, name, **more):
    return run_module(
        "domain_restore",
        uri=lab.uri,
        src=str(src),
        name=name,
        dest_dir=str(place / "copies"),
        min_free_bytes=0,
        **more,
    )


def rebuild(lab, name, place):
    request = {"name": f"{name}-new", "dest_dir": str(place / "copies"), "min_free_bytes": 0}
    return run_module(
        "domain_machine",
        uri=lab.uri,
        domains=[name],
        state="rebuilt",
        state_dir=str(place / "state"),
        rebuild=request,
    )


def compact(lab, name, **more):
    given = {"min_free_bytes": 0, "min_reclaim_bytes": 0, **more}
    return run_module("domain_compact", uri=lab.uri, domains=[name], **given)


def qemu_version():
    text = run("qemu-system-x86_64", "--version")
    return tuple(int(part) for part in re.search(r"version (\d+)\.(\d+)", text).groups())


@pytest.mark.parametrize("where", ["disk", "controller"])
def test_an_iothread_does_not_cost_the_guest_its_life(lab, define, place, where):
    path = image(place / "d.qcow2")
    devices = disk(path, driver="iothread='1'")
    if where == "controller":
        devices = disk(path, target="sda", bus="scsi") + (
            "<controller type='scsi' model='virtio-scsi'><driver iothread='1'/></controller>"
        )
    name = define(devices, before="<iothreads>1</iothreads>")
    lab.virsh("start", name)
    results = [
        backup(lab, place / "backup", name),
        compact(lab, name, power="live", trim=False),
    ]
    assert lab.virsh("domstate", name).strip() == "running"
    for result in results:
        assert result["failed"] is (qemu_version() < (9, 0))
        if result["failed"]:
            assert_explains(result, f"of domain {name} has an iothread", "nothing was changed")
    if qemu_version() < (9, 0):
        assert versions(place / "backup", name) == []
        lab.virsh("destroy", name)
        assert entry(backup(lab, place / "backup", name))["status"] == "done"


@pytest.mark.parametrize(
    ("more", "words"),
    [({"driver": "copy_on_read='on'"}, "copy_on_read"), ({"more": "<transient/>"}, "transient")],
)
def test_what_block_jobs_do_not_get_past_is_not_compacted_live(lab, define, place, more, words):
    path = image(place / "d.qcow2")
    name = define(disk(path, **more))
    lab.virsh("start", name)
    chain, files = lab.virsh("domblklist", name), sorted(place.iterdir())
    result = compact(lab, name, power="live", trim=False)
    assert result["failed"]
    assert_explains(result, f"disk vda of domain {name}", words, "nothing was changed")
    assert lab.virsh("domblklist", name) == chain
    assert sorted(place.iterdir()) == files


def test_a_slice_is_copied_as_the_guest_sees_it_or_not_at_all(lab, define, place):
    path = place / "all.raw"
    path.write_bytes(b"P" * MIB + b"D" * 4 * MIB + b"S" * 3 * MIB)
    slices = f"<slices><slice type='storage' offset='{MIB}' size='{4 * MIB}'/></slices>"
    name = define(disk(path, form="raw", source=slices))
    for result in (
        backup(lab, place / "backup", name),
        rebuild(lab, name, place),
        compact(lab, name),
    ):
        assert result["failed"]
        assert_explains(result, f"disk vda of domain {name} is a part of its file (slices)")
    assert list((place / "copies").iterdir()) == []
    lab.virsh("start", name)
    version = entry(backup(lab, place / "backup", name))["version"]
    result = restore(lab, version, place, f"{name}-new")
    assert not result["failed"], result["msg"]
    copy = Path(result["disks"]["vda"])
    run("qemu-img", "convert", "-O", "raw", copy, place / "out")
    assert (place / "out").read_bytes() == b"D" * 4 * MIB
    assert xml_of(lab, f"{name}-new").find("devices/disk/source/slices") is None

    # As versions were made before.
    manifest = Path(version, "manifest.json")
    fields = json.loads(manifest.read_text())
    fields["verified"] = "qemu-img check; qemu-img compare with the images"
    manifest.write_text(json.dumps(fields))
    result = restore(lab, version, place, f"{name}-other")
    assert_explains(result, "is a part of its file", "nothing was changed")


def test_what_nobody_has_tried_is_not_restored(lab, define, place):
    name = define(disk(image(place / "d.qcow2")))
    version = entry(backup(lab, place / "backup", name))["version"]
    manifest = Path(version, "manifest.json")
    fields = json.loads(manifest.read_text())
    fields["xml"] = fields["xml"].replace(
        "<target dev='vda'", "<shade of='grey'/><target dev='vda'"
    )
    manifest.write_text(json.dumps(fields))
    result = restore(lab, version, place, f"{name}-new")
    assert result["failed"]
    assert_explains(result, "disk vda", "has shade, which is not known to be safe", "restored")
    assert list((place / "copies").iterdir()) == []
    assert f"{name}-new" not in lab.virsh("list", "--all", "--name")


@pytest.fixture
def encrypted(lab, define, place):
    """A domain with a LUKS disk; its name."""
    secret = ("--object", "secret,id=s,data=pw")
    path = place / "l.img"
    make = ("-o", "key-secret=s,iter-time=500", path, "16M")
    for _try in range(20):  # qemu-img measures a second of a processor that others may use
        with contextlib.suppress(AssertionError):
            run("qemu-img", "create", "-q", "-f", "luks", *secret, *make, timeout=200)
            break
        time.sleep(0.5)
    options = f"driver=luks,key-secret=s,file.driver=file,file.filename={path}"
    run("qemu-io", *secret, "--image-opts", "-c", "write -P 0x41 0 1M", options)
    given = str(uuid.uuid4())
    (place / "secret.xml").write_text(
        f"<secret ephemeral='yes' private='no'><uuid>{given}</uuid><usage type='volume'>"
        f"<volume>{path}</volume></usage></secret>"
    )
    (place / "pw").write_text("pw")
    lab.virsh("secret-define", str(place / "secret.xml"))
    lab.virsh("secret-set-value", given, "--file", str(place / "pw"), "--plain")
    element = f"<encryption format='luks'><secret type='passphrase' uuid='{given}'/></encryption>"
    yield define(disk(path, form="raw", source=element))
    lab.virsh("secret-undefine", given)


def test_a_copy_of_an_encrypted_disk_is_plain_text_only_if_asked_for(lab, encrypted, place):
    result = backup(lab, place / "backup", encrypted, accept_plain_text=True)
    assert_explains(result, "is encrypted", "nothing was changed", "its secret")
    lab.virsh("start", encrypted)
    result = backup(lab, place / "backup", encrypted)
    assert_explains(result, "disk vda", "is encrypted", "accept_plain_text=true")
    result = compact(lab, encrypted, power="live", trim=False)
    assert_explains(result, "disk vda", "encryption")
    assert versions(place / "backup", encrypted) == []

    result = backup(lab, place / "backup", encrypted, accept_plain_text=True)
    done = entry(result)
    assert [each["plain_text"] for each in done["disks"]] == [True]
    assert "Encrypted, and copied as plain text: vda." in result["summary"][0]
    assert first_byte(Path(done["version"], "vda.qcow2"), "qcow2") == b"A"

    result = restore(lab, done["version"], place, f"{encrypted}-new")
    assert_explains(result, "is encrypted", "accept_plain_text=true")
    assert list((place / "copies").iterdir()) == []
    result = restore(lab, done["version"], place, f"{encrypted}-new", accept_plain_text=True)
    assert not result["failed"], result["msg"]
    assert xml_of(lab, f"{encrypted}-new").find(".//encryption") is None
    assert first_byte(Path(result["disks"]["vda"]), "qcow2") == b"A"


def test_an_encrypted_disk_is_rebuilt_as_it_is(lab, encrypted, place):
    before = (place / "l.img").read_bytes()
    result = rebuild(lab, encrypted, place)
    assert not result["failed"], result["msg"]
    new = xml_of(lab, f"{encrypted}-new")
    copy = Path(new.find("devices/disk/source").get("file"))
    assert (copy.parent, copy.read_bytes()) == (place / "copies", before)
    old = xml_of(lab, encrypted).find("devices/disk/source/encryption")
    assert etree.tostring(new.find("devices/disk/source/encryption")) == etree.tostring(old)
    lab.virsh("start", f"{encrypted}-new", "--paused")


def test_a_shared_disk_comes_back_as_one_that_can_start(lab, define, place):
    path = image(place / "s.raw", form="raw")
    name = define(disk(path, form="raw", driver="cache='none'", more="<shareable/>"))
    version = entry(backup(lab, place / "backup", name))["version"]
    result = restore(lab, version, place, f"{name}-new")
    assert not result["failed"], result["msg"]
    lab.virsh("start", f"{name}-new", "--paused")


@pytest.fixture
def loop(place):
    path = place / "lun.img"
    path.write_bytes(bytes(16 * MIB))
    device = run("losetup", "-f", "--show", path).strip()
    yield device
    run("losetup", "-d", device)


LUN = (
    "<disk type='block' device='lun'><driver name='qemu' type='raw'/><source dev='{}'/>"
    "<target dev='sda' bus='scsi'/></disk><controller type='scsi' model='virtio-scsi'/>"
)


def test_a_lun_is_named_where_it_is_left_out(lab, define, place, loop):
    name = define(disk(image(place / "d.qcow2")) + LUN.format(loop))
    result = backup(lab, place / "backup", name)
    assert [each["target"] for each in entry(result)["left_out"]] == ["sda"]
    assert "Not copied, as a device of the host: sda." in result["summary"][0]
    result = backup(lab, place / "backup", name, disks=["sda", "vda"])
    assert_explains(result, "'sda'", "is a lun", "nothing was changed")
    assert_explains(rebuild(lab, name, place), "disk sda", "speaks SCSI to")


def test_firmware_variables_that_are_not_in_a_file_are_not_left_out_in_silence(
    lab, define, place, loop
):
    of_os = (
        "<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>"
        f"<nvram type='block'><source dev='{loop}'/></nvram>"
    )
    name = define(disk(image(place / "d.qcow2")), of_os=of_os)
    for result in (backup(lab, place / "backup", name), rebuild(lab, name, place)):
        assert_explains(result, f"domain {name}", "the variables of its firmware", "nothing was")
    assert versions(place / "backup", name) == []
    assert list((place / "copies").iterdir()) == []


CACHE = (
    "type='qcow2'><metadata_cache><max_size unit='bytes'>65536</max_size></metadata_cache></driver>"
)
FOREIGN = (
    "<disk type='network' device='disk'><driver name='qemu' type='raw'/>"
    "<source protocol='nbd' name='x'><host name='localhost' port='1'/></source>"
    "<target dev='vdh' bus='virtio'/></disk>"
    "<disk type='nvme' device='disk'><driver name='qemu' type='raw'/>"
    "<source type='pci' namespace='1'><address domain='0x0000' bus='0x01' slot='0x00' "
    "function='0x0'/></source><target dev='vdi' bus='virtio'/></disk>"
    "<disk type='vhostuser' device='disk'><driver name='qemu' type='raw'/>"
    "<source type='unix' path='/run/x'/><target dev='vdj' bus='virtio'/></disk>"
)


def test_audit_trim_and_discard_work_with_all_of_them_and_keep_them(lab, define, place, loop):
    luks = "<encryption format='luks'><secret type='passphrase' usage='x'/></encryption>"
    slices = f"<slices><slice type='storage' offset='0' size='{MIB}'/></slices>"
    label = "<seclabel model='dac' relabel='no'/>"
    group = "<iotune><total_iops_sec>9</total_iops_sec><group_name>g</group_name></iotune>"
    paths = [image(place / f"{number}.raw", form="raw") for number in range(7)]
    qcow2 = image(place / "q.qcow2")
    name = define(
        "".join(
            [
                disk(paths[0], form="raw", driver="iothread='1'", target="vda"),
                disk(paths[1], form="raw", driver="copy_on_read='on'", target="vdb"),
                disk(paths[2], form="raw", source=slices, target="vdc"),
                disk(paths[3], form="raw", source=luks, target="vdd"),
                disk(paths[4], form="raw", more="<transient/>", target="vde"),
                disk(paths[5], form="raw", more="<shareable/>", target="vdf"),
                disk(paths[6], form="raw", source=label, more=group, target="vdg"),
                disk(qcow2, target="sdb", bus="scsi").replace("type='qcow2' />", CACHE),
                FOREIGN,
                LUN.format(loop),
            ]
        ),
        before="<iothreads>1</iothreads><memoryBacking><access mode='shared'/></memoryBacking>",
    )

    def rest():
        """The disks but for what is to be set."""
        found = xml_of(lab, name, "--inactive")
        for driver in found.iterfind("devices/disk/driver"):
            driver.attrib.pop("discard", None)
        return [
            etree.canonicalize(etree.tostring(each, encoding="unicode"))
            for each in found.iterfind("devices/disk")
        ]

    before = rest()
    assert len(before) == 12
    result = run_module("domain_discard", uri=lab.uri, domains=[name], discard="unmap")
    assert not result["failed"], result["msg"]
    assert result["changed"]
    assert rest() == before
    discards = {
        each.find("target").get("dev")
        for each in xml_of(lab, name, "--inactive").iterfind("devices/disk")
        if each.find("driver").get("discard") == "unmap"
    }
    assert discards == {"vda", "vdb", "vdc", "vdd", "vde", "vdf", "vdg", "sdb"}
    audit = run_module("thin_info", uri=lab.uri, domains=[name])
    assert not audit["failed"], audit["msg"]
    (found,) = audit["domains"]
    assert {each["target"] for each in found["disks"]} >= discards
    trim = run_module("domain_trim", uri=lab.uri, domains=[name])
    assert not trim["failed"], trim["msg"]
    assert rest() == before
