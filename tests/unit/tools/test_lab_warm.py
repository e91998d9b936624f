# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What makes another guest of a saved one: its XML, and the file that libvirt restores."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from lab import Disk, GuestSpec, Lab, LabError, warm
from lab.domain import Boot

BOOT = Boot(Path("/k"), Path("/i"), Path("/own/serial.log"))
ROOT = Disk("sda", root=True, path=Path("/own/disk"), format="raw", discard="unmap")
SAVED = """
<domain type='qemu'>
  <name>warm-save</name><uuid>one</uuid>
  <os><type machine='pc-q35-7.2'>hvm</type><kernel>/old/k</kernel><initrd>/old/i</initrd></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' detect_zeroes='on'/>
      <source file='/saved/disk' index='1'/><backingStore/>
      <target dev='sda' bus='scsi'/><address type='drive' unit='0'/>
    </disk>
    <serial type='file'><source path='/saved/serial.log'/></serial>
    <console type='file'><source path='/saved/serial.log'/></console>
    <channel type='unix'><source mode='bind' path='/saved/channel'/><target name='a'/></channel>
  </devices>
</domain>"""


def adopted():
    return ET.fromstring(warm.adopted(SAVED, GuestSpec("other", disks=(ROOT,)), "two", BOOT))


def test_nothing_of_the_saved_guest_is_named():
    text = ET.tostring(adopted(), encoding="unicode")
    assert [word for word in ("saved", "old", "warm-save", "one") if word in text] == []


def test_name_and_files_are_its_own():
    domain = adopted()
    assert (domain.findtext("name"), domain.findtext("uuid")) == ("other", "two")
    assert (domain.findtext("os/kernel"), domain.findtext("os/initrd")) == ("/k", "/i")
    logs = domain.findall("devices/serial/source") + domain.findall("devices/console/source")
    assert [log.get("path") for log in logs] == ["/own/serial.log"] * 2
    assert domain.find("devices/channel/source") is None


def test_the_root_disk_is_the_one_that_was_asked_for():
    (disk,) = adopted().findall("devices/disk")
    assert [child.tag for child in disk] == ["driver", "source", "target", "address"]
    assert disk.find("driver").attrib == {"name": "qemu", "type": "raw", "discard": "unmap"}
    assert disk.find("source").attrib == {"file": "/own/disk"}


@pytest.mark.parametrize("cookie", [b"", b"<cookie/>\0"])
@pytest.mark.parametrize("new", ["<x/>", "<longer" * 999])
def test_the_file_is_as_before_but_for_the_xml(tmp_path, cookie, new):
    xml, memory = b"<domain/>\0", bytes(range(256)) * 300
    where = len(xml) if cookie else 0
    header = (b"LibvirtQemudSave", 2, len(xml) + len(cookie), 1, 0, where)
    (tmp_path / "a").write_bytes(warm.HEADER.pack(*header) + xml + cookie + memory)
    warm.copy_save(tmp_path / "a", tmp_path / "b", {"<domain/>": new}.__getitem__)
    data = (tmp_path / "b").read_bytes()
    assert data[92:] == new.encode() + b"\0" + cookie + memory
    size = len(new) + 1
    where = size if cookie else 0
    changed = (b"LibvirtQemudSave", 2, size + len(cookie), 1, 0, where)
    assert warm.HEADER.unpack(data[:92]) == changed
    assert (data[20:24], data[32:36]) == tuple(
        number.to_bytes(4, "little") for number in (size + len(cookie), where)
    )


@pytest.mark.parametrize(("machine", "ports"), [("q35", 4), ("pc-q35-3.1", 4), ("pc", 0)])
def test_pci_express_has_free_ports(machine, ports):
    text = f"<domain><os><type machine='{machine}'/></os><devices/></domain>"
    domain = ET.fromstring(warm.with_free_ports(text))
    models = [controller.get("model") for controller in domain.findall("devices/controller")]
    assert models == (["pcie-root"] if ports else []) + ["pcie-root-port"] * ports


@pytest.mark.parametrize(
    "disks",
    [
        (),
        (Disk("sda"),),
        (Disk("sdb", root=True),),
        (Disk("vda", "virtio", root=True),),
        (Disk("sda", root=True, serial="x"),),
        (Disk("sda", root=True, path=Path("/d")),),
        (Disk("sda", root=True), Disk("sdb", root=True)),
        (Disk("sda", root=True), Disk("hda", "ide")),
    ],
)
def test_what_cannot_be_restored_is_refused_before_anything_is_done(tmp_path, disks):
    with pytest.raises(LabError, match="guest g: "):
        Lab(tmp_path / "none").warm(GuestSpec("g", disks=disks))
    assert not (tmp_path / "none").exists()
