# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook windows_install_prepare on a domain that is defined and not installed yet."""

from __future__ import annotations

import json
import subprocess
from xml.etree import ElementTree as ET

import pytest
from support import run_playbook

pytestmark = pytest.mark.slow("a role runs several times")

MIB = 1 << 20
NAME = "w-new"


@pytest.fixture
def world(lab, tmp_path):
    disk = tmp_path / "c.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "20G"], check=True)
    for name in ("windows.iso", "virtio-win.iso"):
        (tmp_path / name).write_bytes(bytes(MIB))
    text = f"""
    <domain type='qemu'><name>{NAME}</name><memory unit='MiB'>64</memory>
      <os><type arch='x86_64' machine='q35'>hvm</type><boot dev='cdrom'/><boot dev='hd'/></os>
      <devices>
        <disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
          <source file='{disk}'/><target dev='sda' bus='sata'/></disk>
        <disk type='file' device='cdrom'><driver name='qemu' type='raw'/>
          <source file='{tmp_path}/windows.iso'/><target dev='sdb' bus='sata'/><readonly/></disk>
      </devices></domain>"""
    (tmp_path / "d.xml").write_text(text)
    lab.virsh("define", str(tmp_path / "d.xml"))
    yield tmp_path
    lab.virsh("undefine", NAME)


@pytest.fixture
def prepare(lab, world):
    def prepare(*options, ok=True):
        host = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
        host["ansible_remote_tmp"] = str(world / "tmp")
        inventory = {"kvm_hosts": {"hosts": {"hypervisor": host}}}
        variables = {
            "thinvirt_uri": lab.uri,
            "thinvirt_domains": [NAME],
            "thinvirt_virtio_win_iso": str(world / "virtio-win.iso"),
            "thinvirt_state_dir": str(world / "state"),
        }
        extra = (*options, "-e", json.dumps(variables))
        playbook = "thinvirt.kvm.windows_install_prepare"
        done = run_playbook(world, playbook, inventory, *extra)
        assert (done.returncode == 0) is ok, done.stdout
        return done.stdout

    return prepare


def dump(lab):
    return lab.virsh("dumpxml", NAME, "--inactive")


def test_prepared_once(lab, world, prepare):
    before = dump(lab)
    assert "changed=3" in prepare("--check")
    assert dump(lab) == before

    assert "changed=3" in prepare()
    after = dump(lab)
    tree = ET.fromstring(after)
    found = {
        disk.find("source").get("file"): (
            disk.get("device"),
            disk.find("target").get("bus"),
            disk.find("driver").get("discard"),
        )
        for disk in tree.findall("devices/disk")
    }
    assert found == {
        str(world / "c.qcow2"): ("disk", "scsi", "unmap"),
        str(world / "windows.iso"): ("cdrom", "sata", None),
        str(world / "virtio-win.iso"): ("cdrom", "sata", None),
    }
    assert tree.find("devices/controller[@type='scsi']").get("model") == "virtio-scsi"
    assert boots_from(tree) == [str(world / "windows.iso"), str(world / "c.qcow2")]

    assert "changed=0" in prepare()
    assert dump(lab) == after


def boots_from(tree):
    """The files in the order in which the firmware tries them."""
    disks = tree.findall("devices/disk")
    kinds = [each.get("dev") for each in tree.findall("os/boot")]
    if kinds:
        device = {"hd": "disk", "cdrom": "cdrom"}
        order = [next(d for d in disks if d.get("device") == device[kind]) for kind in kinds]
    else:
        order = sorted(
            (disk for disk in disks if disk.find("boot") is not None),
            key=lambda disk: int(disk.find("boot").get("order")),
        )
    return [disk.find("source").get("file") for disk in order]


def test_what_is_installed_is_refused(lab, world, prepare):
    write = f"write -P 7 0 {100 * MIB}"
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", write, world / "c.qcow2"], check=True)
    before = dump(lab)
    output = prepare(ok=False)
    assert "Windows may be installed" in output
    assert dump(lab) == before
