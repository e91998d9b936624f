# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""domain_discard against a real libvirt and QEMU; the guests are paused and have no system.

What libvirt keeps is read with virsh, never with the collection's own code.
"""

from __future__ import annotations

import os
import re
import socket
from xml.etree import ElementTree

import pytest
from lab import Disk, GuestSpec
from support import WITHOUT_OVERRIDE, assert_explains, run_module

MIB = 1 << 20


@pytest.fixture
def guest(lab, request):
    """A defined guest with an empty disk on every bus that matters, and a CD drive."""
    name = f"d-{request.node.name.split('[')[0][-40:]}"
    guest = lab.create(
        GuestSpec(
            name,
            machine="pc",
            memory_mib=64,
            disks=(
                Disk("sda", "scsi", size_bytes=MIB),
                Disk("vda", "virtio", size_bytes=MIB, discard="ignore"),
                Disk("hda", "ide", size_bytes=MIB, discard="unmap"),
                Disk("hdc", "ide", size_bytes=MIB, device="cdrom", readonly=True),
            ),
        )
    )
    yield guest
    guest.destroy()
    lab.virsh("undefine", name)


@pytest.fixture
def define(lab, tmp_path):
    """Define a domain from XML."""

    def define(xml):
        path = tmp_path / "domain.xml"
        path.write_text(xml, encoding="utf-8")
        lab.virsh("define", str(path))

    return define


def drivers(guest, *, inactive=True):
    """The driver attributes of each disk as virsh shows them."""
    tree = ElementTree.fromstring(guest.xml(inactive=inactive))
    return {
        disk.find("target").get("dev"): disk.find("driver").attrib
        for disk in tree.findall("devices/disk")
    }


def discard(lab, guest, **arguments):
    return run_module("domain_discard", uri=lab.uri, domains=[guest.name], **arguments)


def test_check_then_run_then_again(lab, guest):
    before = guest.xml(inactive=True)
    checked = discard(lab, guest, check=True)
    assert checked["changed"]
    assert guest.xml(inactive=True) == before

    real = discard(lab, guest)
    assert real["diff"] == checked["diff"]
    assert set(real["diff"]["after"]) == {f"{guest.name}/sda", f"{guest.name}/vda"}
    found = drivers(guest)
    assert {target for target, driver in found.items() if driver.get("discard") == "unmap"} == {
        "sda",
        "vda",
        "hda",
    }
    assert "discard" not in found["hdc"]

    again = discard(lab, guest)
    assert not again["changed"]
    assert again["diff"] == {"before": {}, "after": {}}
    assert not discard(lab, guest, check=True)["changed"]


def test_nothing_but_the_driver_changes(lab, guest):
    before = guest.xml(inactive=True)
    discard(lab, guest, disks=["vda"])
    after = guest.xml(inactive=True)
    assert after.replace("discard='unmap'/>", "discard='ignore'/>", 1).replace(
        "discard='ignore'", "discard='unmap'"
    ) == before.replace("discard='ignore'", "discard='unmap'")


@pytest.mark.parametrize(
    ("module", "arguments"), [("domain_discard", {}), ("domain_machine", {"state": "current"})]
)
def test_a_console_that_libvirt_numbers_anew(lab, guest, define, module, arguments):
    """libvirt puts a console for the serial port before it, and counts at the next definition."""
    text = re.sub(r"<(console|serial) .*?</\1>", "", guest.xml(inactive=True), flags=re.DOTALL)
    consoles = (
        "<serial type='pty'><target port='0'/></serial>"
        "<console type='pty'><target type='virtio' port='0'/></console></devices>"
    )
    define(re.sub(r"pc-i440fx-[\d.]+", "pc-i440fx-5.2", text.replace("</devices>", consoles)))
    assert numbers(guest) == [("serial", "0"), ("virtio", "0")]
    result = run_module(module, uri=lab.uri, domains=[guest.name], **arguments)
    assert not result["failed"], result["msg"]
    assert result["changed"]
    assert numbers(guest) == [("serial", "0"), ("virtio", "1")]


def numbers(guest):
    tree = ElementTree.fromstring(guest.xml(inactive=True))
    targets = tree.findall("devices/console/target")
    return [(target.get("type"), target.get("port")) for target in targets]


def test_secrets_survive_and_are_not_shown(lab, guest, define):
    graphics = "<graphics type='vnc' port='-1' listen='127.0.0.1' passwd='hunter2'/>"
    xml = guest.xml(inactive=True).replace("</devices>", f"{graphics}</devices>")
    define(xml)
    result = discard(lab, guest)
    assert result["changed"]
    assert "hunter2" not in str(result)
    secure = lab.virsh("dumpxml", guest.name, "--inactive", "--security-info")
    assert "passwd='hunter2'" in secure
    assert f"<uuid>{result['domains'][0]['uuid']}</uuid>" in secure


def test_a_running_guest_keeps_its_settings_until_it_is_restarted(lab, guest):
    lab.virsh("start", guest.name, "--paused")
    result = discard(lab, guest)
    (domain,) = result["domains"]
    assert domain["restart_required"]
    by_target = {disk["target"]: disk for disk in domain["disks"]}
    assert {target: disk["restart_required"] for target, disk in by_target.items()} == {
        "sda": True,
        "vda": True,
        "hda": False,
    }
    assert by_target["sda"]["live"]["discard"] == "ignore"
    assert drivers(guest, inactive=False)["sda"].get("discard") is None
    assert drivers(guest)["sda"]["discard"] == "unmap"

    again = discard(lab, guest)
    assert not again["changed"]
    assert again["domains"][0]["restart_required"]

    guest.destroy()
    lab.virsh("start", guest.name, "--paused")
    assert not discard(lab, guest)["domains"][0]["restart_required"]


def test_a_guest_that_does_not_power_off_is_left_running(lab, guest):
    lab.virsh("start", guest.name, "--paused")
    result = discard(lab, guest, apply="power_cycle", timeout=2)
    assert_explains(result, "did not power off within 2 s", "left running", "Shut it down")
    assert result["changed"]
    assert guest.state() == "paused"
    assert drivers(guest)["sda"]["discard"] == "unmap"


def test_on_poweroff_restart_is_no_power_cycle(lab, guest, define):
    xml = guest.xml(inactive=True).replace("<on_poweroff>destroy<", "<on_poweroff>restart<")
    define(xml)
    lab.virsh("start", guest.name, "--paused")
    before = guest.xml(inactive=True)
    result = discard(lab, guest, apply="power_cycle", timeout=2)
    assert_explains(result, "on_poweroff=restart", "nothing was changed")
    assert guest.xml(inactive=True) == before


def test_a_transient_domain_is_refused(lab, guest, define):
    lab.virsh("start", guest.name, "--paused")
    lab.virsh("undefine", guest.name)
    before = guest.xml()
    result = discard(lab, guest)
    assert_explains(result, "is transient", "nothing was changed", "virsh define")
    assert not result["changed"]
    assert guest.xml() == before
    define(before)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"disks": ["vdz"]}, ["has a disk vdz", "nothing was changed", "virsh domblklist"]),
        ({"disks": ["vda", "vda"]}, ["names vda twice"]),
        ({"disks": ["hdc"]}, ["read-only or removable", "nothing was changed"]),
        ({"domains": ["nobody"]}, ["no domain nobody", "nothing was changed"]),
        ({"domains": ["x", "x"]}, ["names x twice"]),
        ({"discard": "ignore", "detect_zeroes": "unmap"}, ["no effect without discard=unmap"]),
        ({"rotation_rate": 1}, ["unknown on bus virtio", "nothing was changed"]),
        ({"discard": "yes"}, ["value of discard must be one of"]),
    ],
)
def test_bad_input_changes_nothing(lab, guest, arguments, words):
    before = guest.xml(inactive=True)
    given = {"uri": lab.uri, "domains": [guest.name], **arguments}
    result = run_module("domain_discard", **given)
    assert_explains(result, *words)
    assert not result.get("changed")
    assert guest.xml(inactive=True) == before


def test_one_refused_domain_does_not_stop_the_others(lab, guest):
    name = guest.name + "-v"
    other = lab.create(GuestSpec(name, memory_mib=64, disks=(Disk("sda", "scsi", size_bytes=MIB),)))
    try:
        # rotation_rate is unknown on virtio: the first domain is refused, the second is done
        result = run_module(
            "domain_discard", uri=lab.uri, domains=[guest.name, name], rotation_rate=1
        )
        assert_explains(result, "1 of 2 domains failed", guest.name)
        assert result["changed"]
        assert drivers(other)["sda"]["discard"] == "unmap"
        assert drivers(guest)["sda"].get("discard") is None
    finally:
        lab.virsh("undefine", name)


def test_settings_newer_than_this_libvirt_name_the_version(lab, guest):
    """Only refused where it is too old; where it knows the attribute, it is kept."""
    version = lab.virsh("version", "--daemon").split("daemon: ")[1].split()[0]
    new = tuple(int(part) for part in version.split(".")) >= (9, 7, 0)
    result = discard(lab, guest, disks=["sda"], discard_granularity_bytes=32768)
    if new:
        assert "discard_granularity='32768'" in guest.xml(inactive=True)
    else:
        assert_explains(result, "needs libvirt 9.7.0", version, "nothing was changed")
        assert drivers(guest)["sda"].get("discard") is None


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("qemu+unix:///system?socket=/nonexistent/socket", ["Cannot connect", "daemon runs"]),
        ("nonsense", ["Cannot connect to libvirt at nonsense"]),
    ],
)
def test_no_libvirt(uri, words):
    assert_explains(run_module("domain_discard", uri=uri, domains=["*"]), *words)


def test_without_rights(tmp_path):
    """A socket that may not be opened; root has to give up the right to override modes first."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        path.chmod(0)
        result = run_module(
            "domain_discard",
            uri=f"qemu+unix:///system?socket={path}",
            domains=["*"],
            prefix=WITHOUT_OVERRIDE if os.geteuid() == 0 else (),
        )
    assert_explains(result, "Cannot connect", "ermission denied", "become: true")
