# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a killed run of domain_disk_bus with power=cycle has left, and what the next one does.

The domain is a real QEMU without a system, so its agent never answers: what is looked at is its
configuration, and whether it was started. Guests that come up are in tests/live.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from support import assert_explains, run_module

NAME = "b-trial"
NAMESPACE = "https://github.com/thinvirt/thinvirt.kvm/restart"
DEAD = "1 no-such-boot 1"


@pytest.fixture
def domain(lab, tmp_path):
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "a.qcow2", "1M"], check=True
    )
    text = f"""
    <domain type='qemu'><name>{NAME}</name><memory unit='MiB'>32</memory>
      <os><type arch='x86_64' machine='pc-i440fx-3.1'>hvm</type></os>
      <features><acpi/></features>
      <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
          <source file='{tmp_path}/a.qcow2'/><target dev='vda' bus='virtio'/></disk>
        <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
      </devices></domain>"""
    for _round in range(2):
        (tmp_path / "d.xml").write_text(text)
        lab.virsh("define", str(tmp_path / "d.xml"))
        text = dump(lab)
    yield NAME
    if state(lab) != "shut off":
        lab.virsh("destroy", NAME)
    lab.virsh("undefine", NAME)


def dump(lab):
    return lab.virsh("dumpxml", NAME, "--inactive", "--security-info")


def state(lab):
    return lab.virsh("domstate", NAME).strip()


def bus_of(text):
    return ET.fromstring(text).find("devices/disk/target").get("bus")


@pytest.fixture
def bus(lab, tmp_path, domain):
    def bus(**arguments):
        return run_module(
            "domain_disk_bus",
            uri=lab.uri,
            domains=[domain],
            state_dir=str(tmp_path / "state"),
            boot_timeout=1,
            shutdown_timeout=1,
            **arguments,
        )

    return bus


def note(lab, process=DEAD):
    lab.virsh(
        *("metadata", NAME, NAMESPACE, "--key", "thinvirt", "--config"),
        *("--set", f"<restart process='{process}'/>"),
    )


def moved_on_trial(tmp_path, bus, process=DEAD):
    """The configuration and the journal as a run leaves them that is killed before it starts it."""
    assert bus(bus="scsi")["changed"]
    (journal,) = (tmp_path / "state" / "domains").glob("*.json")
    record = json.loads(journal.read_text())
    journal.write_text(json.dumps({**record, "stage": "trial", "process": process}))


def kept(tmp_path):
    return list((tmp_path / "state" / "domains").glob("*"))


def restored(lab, tmp_path, before):
    """Its old configuration, and nothing of ours but what libvirt leaves of metadata."""
    now = dump(lab).replace("  <metadata/>\n", "")
    return now == before and kept(tmp_path) == []


def test_killed_before_the_change(lab, tmp_path, bus):
    before = dump(lab)
    note(lab)
    checked = bus(state="recovered", check=True)
    assert checked["changed"]
    assert state(lab) == "shut off"
    result = bus(state="recovered")
    assert result["changed"]
    assert_explains(result, "agent did not answer")  # it has no system
    assert state(lab) == "running"
    assert restored(lab, tmp_path, before)
    assert not bus(state="recovered")["changed"]


def test_killed_while_the_guest_was_off_and_changed(lab, tmp_path, bus):
    before = dump(lab)
    moved_on_trial(tmp_path, bus)
    note(lab)
    assert bus_of(dump(lab)) == "scsi"
    result = bus(state="recovered")
    assert result["domains"][0]["actions"] == ["restored", "started"]
    assert state(lab) == "running"
    assert bus_of(lab.virsh("dumpxml", NAME)) == "virtio"
    assert restored(lab, tmp_path, before)


def test_killed_while_it_boots_and_it_does_not_come_up(lab, tmp_path, bus):
    before = dump(lab)
    moved_on_trial(tmp_path, bus)
    lab.virsh("start", NAME)
    assert bus_of(lab.virsh("dumpxml", NAME)) == "scsi"
    result = bus(state="recovered")
    assert_explains(result, NAME, "was rolled back", "its configuration is as it was")
    assert result["domains"][0]["actions"] == ["turned_off", "restored", "started"]
    assert state(lab) == "running"
    assert bus_of(lab.virsh("dumpxml", NAME)) == "virtio"
    assert restored(lab, tmp_path, before)


def test_a_run_that_is_at_work_is_left_alone(lab, tmp_path, bus):
    with subprocess.Popen(["sleep", "100"]) as other:
        try:
            fields = Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            moved_on_trial(tmp_path, bus, process=f"{other.pid} {boot} {fields[19]}")
            before = dump(lab)
            for arguments in ({"state": "recovered"}, {"state": "restored"}, {"bus": "ide"}):
                assert_explains(bus(**arguments), f"process {other.pid}", "nothing was changed")
            assert dump(lab) == before
        finally:
            other.kill()


def test_refused_before_anything_is_touched(lab, tmp_path, bus):
    """A guest whose agent does not answer, one whose command line names the disk."""
    lab.virsh("start", NAME)
    before = dump(lab)
    for check in (True, False):
        result = bus(bus="scsi", power="cycle", check=check)
        assert_explains(result, NAME, "guest agent", "nothing was changed")
    text = before.replace(
        "hvm</type>", "hvm</type><kernel>/k</kernel><cmdline>root=/dev/vda</cmdline>"
    )
    (tmp_path / "d.xml").write_text(text)
    lab.virsh("define", str(tmp_path / "d.xml"))
    result = bus(bus="scsi", power="cycle")
    assert_explains(result, "command line", "/dev/vda", "nothing was changed")
    assert state(lab) == "running"
    assert kept(tmp_path) == []
