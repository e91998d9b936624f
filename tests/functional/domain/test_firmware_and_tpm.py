# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A domain with UEFI and a TPM gets another bus and machine, and both keep what they know.

The firmware is OVMF, the TPM is swtpm.  The guest has no system: that its QEMU starts with both,
and that their files are the same, is what is looked at.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from support import run_module

NAME = "fw-tpm"
#: What libvirt chooses, by the name that the lab's libvirtd has for it.
CHOSEN = Path(f"/var/lib/libvirt/qemu/nvram/{NAME}_VARS.fd")


@pytest.fixture(params=["named", "chosen"])
def domain(lab, tmp_path, request):
    """The file of the firmware's variables is named in the configuration, or libvirt's choice."""
    disk = tmp_path / "a.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "1M"], check=True)
    nvram = f"<nvram>{tmp_path}/variables.fd</nvram>" if request.param == "named" else ""
    text = f"""
    <domain type='qemu'><name>{NAME}</name><memory unit='MiB'>128</memory>
      <os firmware='efi'><type arch='x86_64' machine='pc-q35-3.1'>hvm</type>
        {nvram}</os>
      <features><acpi/></features>
      <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
          <source file='{disk}'/><target dev='sda' bus='sata'/><boot order='1'/></disk>
        <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
      </devices></domain>"""
    (tmp_path / "d.xml").write_text(text)
    lab.virsh("define", str(tmp_path / "d.xml"))
    try:
        start(lab)  # makes the variables and the TPM's state, and lets libvirt write both down
        yield NAME
    finally:
        if lab.virsh("domstate", NAME).strip() != "shut off":
            lab.virsh("destroy", NAME)
        lab.virsh("undefine", NAME, "--nvram")


def start(lab):
    """Start it with both, and turn it off again; what it starts from next time stays."""
    lab.virsh("start", NAME, "--paused")
    tpms = json.loads(lab.virsh("qemu-monitor-command", NAME, '{"execute": "query-tpm"}'))
    assert [tpm["model"] for tpm in tpms["return"]] == ["tpm-crb"]
    live = ET.fromstring(lab.virsh("dumpxml", NAME))
    lab.virsh("destroy", NAME)
    return live


def dump(lab):
    return lab.virsh("dumpxml", NAME, "--inactive", "--security-info")


def what_they_know(lab):
    """The firmware's variables and the TPM's state: file and checksum of each."""
    tree = ET.fromstring(dump(lab))
    variables = Path(tree.findtext("os/nvram") or CHOSEN)  # libvirt 11 names what it has chosen
    if variables == CHOSEN:
        variables = lab.state / "lib" / CHOSEN.relative_to("/var/lib/libvirt")
    (state,) = (lab.state / "lib" / "swtpm" / tree.findtext("uuid")).rglob("*.permall")
    return [(path, hashlib.sha256(path.read_bytes()).hexdigest()) for path in (variables, state)]


def test_bus_and_machine_change_and_both_are_kept(lab, domain, tmp_path):
    common = {"uri": lab.uri, "domains": [domain], "state_dir": str(tmp_path / "state")}
    before, known = dump(lab), what_they_know(lab)

    def changed(module, **arguments):
        result = run_module(module, **common, **arguments)
        assert not result["failed"], result["msg"]
        assert result["changed"]
        assert what_they_know(lab) == known
        live = start(lab)
        assert what_they_know(lab)[0] == known[0]
        return live

    live = changed("domain_disk_bus", bus="scsi")
    assert live.find("devices/disk/target").get("bus") == "scsi"
    assert live.find("devices/disk/boot").get("order") == "1"
    live = changed("domain_machine", state="current")
    assert live.find("os/type").get("machine") not in ("pc-q35-3.1", "q35")
    changed("domain_machine", state="restored")
    changed("domain_disk_bus", state="restored")
    assert dump(lab) == before


def test_rebuilt_with_its_own_variables(lab, domain, tmp_path):
    """And with an empty TPM, of which it warns."""
    variables, _checksum = what_they_know(lab)[0]
    variables.write_bytes(variables.read_bytes()[:-16] + b"of this one only")
    before, known = dump(lab), what_they_know(lab)
    copies = tmp_path / "copies"
    copies.mkdir()
    rebuild = {"name": "fw-new", "dest_dir": str(copies), "min_free_bytes": 0}
    result = run_module(
        "domain_machine", uri=lab.uri, domains=[domain], state="rebuilt", rebuild=rebuild
    )
    assert not result["failed"], result["msg"]
    try:
        found = [finding["id"] for finding in result["domains"][0]["findings"]]
        assert "tpm-state" in found
        assert "nvram-not-copied" not in found
        new = ET.fromstring(lab.virsh("dumpxml", "fw-new", "--inactive"))
        assert new.findtext("os/nvram") == str(copies / "fw-new_VARS.fd")
        copied = hashlib.sha256((copies / "fw-new_VARS.fd").read_bytes()).hexdigest()
        assert copied == known[0][1]
        lab.virsh("start", "fw-new", "--paused")
        lab.virsh("destroy", "fw-new")
        assert (dump(lab), what_they_know(lab)) == (before, known)
    finally:
        lab.virsh("undefine", "fw-new", "--keep-nvram")


def test_discard_without_a_reboot(lab, domain):
    """Memory, variables and TPM are saved and restored together."""
    lab.virsh("start", domain, "--paused")
    given = {"uri": lab.uri, "domains": [domain], "apply": "save_restore", "discard": "unmap"}
    checked = run_module("domain_discard", check=True, **given)
    result = run_module("domain_discard", **given)
    assert not result["failed"], result["msg"]
    assert result["domains"][0]["actions"] == checked["domains"][0]["actions"]
    assert lab.virsh("domstate", domain).strip() == "paused"
    assert "discard='unmap'" in lab.virsh("dumpxml", domain)


def test_variables_that_are_gone_are_told(lab, domain, tmp_path):
    what_they_know(lab)[0][0].unlink()
    rebuild = {"name": "fw-new", "dest_dir": str(tmp_path), "min_free_bytes": 0}
    result = run_module(
        "domain_machine",
        check=True,
        uri=lab.uri,
        domains=[domain],
        state="rebuilt",
        rebuild=rebuild,
    )
    found = [finding["id"] for finding in result["domains"][0]["findings"]]
    assert "nvram-not-copied" in found
