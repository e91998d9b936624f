# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""domain_trim and agents that misbehave, and that of Windows, played by tests/agent_stand_in.py.

The stand-in runs in a real Linux guest, on a real channel, and a real libvirt talks to it.  No
Windows was at hand: what its agent answers is read from qga/commands-win32.c of QEMU.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from xml.etree import ElementTree

import agent_stand_in
import pytest
from lab import Disk, GuestSpec, LabError
from support import assert_explains, run_module

MIB = 1 << 20
NAME = "t-agent"
WASTE_MIB = 48
WINDOWS = {
    "id": "mswindows",
    "pretty-name": "Windows Server 2022 Standard",
    "kernel-release": "20348",
}
NOT_SUPPORTED = (
    "The operation requested is not supported by the hardware backing the volume. (0x8900002A)"
)
WRITE = "import sys; open('/run/stand_in.py', 'w').write(sys.argv[1])"
# QEMU tells libvirt of a port that is closed and opened again within a second only that it is open.
EXCHANGE = "sleep 1; systemctl stop qemu-guest-agent; sleep 1.5; exec python3 /run/stand_in.py"


def wait_for_stand_in(guest):
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(LabError):
            if guest.agent("guest-info", timeout=2)["version"] == "stand-in":
                return
        assert time.monotonic() < deadline, "the stand-in does not answer"
        time.sleep(0.5)


@pytest.fixture(scope="module")
def guest(lab):
    """A guest with something to trim, whose agent was exchanged for the stand-in."""
    try:
        guest = lab.warm(GuestSpec(NAME, disks=(Disk("sda", root=True, discard="unmap"),)))
        guest.run("dd", "if=/dev/urandom", "of=/waste", "bs=1M", f"count={WASTE_MIB}", "conv=fsync")
        guest.run("rm", "/waste")
        guest.run("sync")
        guest.run("python3", "-c", WRITE, Path(agent_stand_in.__file__).read_text())
        guest.run("systemd-run", "--collect", "sh", "-c", EXCHANGE)
        wait_for_stand_in(guest)
        yield guest
    finally:
        lab.forget(NAME)


def blocks(guest):
    return os.stat(guest.disk("sda").path).st_blocks * 512


def trim(lab, **arguments):
    """The module's result, and its entry of the guest."""
    result = run_module("domain_trim", uri=lab.uri, domains=[NAME], **arguments)
    (entry,) = result["domains"]
    return result, entry


def test_a_hung_agent_is_waited_for_as_long_as_asked(lab, guest):
    guest.agent("be", fstrim=[{}])
    before = blocks(guest)
    begin = time.monotonic()
    result, entry = trim(lab, timeout=2)
    assert 2 <= time.monotonic() - begin < 15
    assert_explains(result, "within its time limit of 2 s", NAME, "raise timeout")
    assert entry["status"] == "failed"
    assert not result["changed"]
    assert blocks(guest) == before


def test_what_was_freed_before_the_time_was_over_counts(lab, guest):
    guest.agent("be", fstrim=[{"trim": ["/"]}])
    before = blocks(guest)
    result, _entry = trim(lab, timeout=6)
    assert_explains(result, "did not answer guest-fstrim", "goes on trimming")
    assert result["changed"]
    assert result["freed_bytes"] == before - blocks(guest) > (WASTE_MIB - 8) * MIB


@pytest.mark.parametrize("answer", [[], {}, {"paths": "/"}, {"paths": ["/"]}, None, "trimmed", 1])
def test_an_answer_without_a_list_of_paths(lab, guest, answer):
    guest.agent("be", fstrim=[{"answer": answer}])
    result, _entry = trim(lab)
    assert_explains(result, NAME, "answered guest-fstrim with no list of paths", "Update")
    assert not result["changed"]


def test_what_a_guest_claims_is_shown_and_not_believed(lab, guest):
    drive = {"path": "/home", "error": "No\x1b[2J", "unknown": {"field": [1]}}
    answer = {"paths": [{"path": "/", "trimmed": 9999999999}, drive], "another": True}
    guest.agent("be", fstrim=[{"answer": answer}])
    result, entry = trim(lab)
    assert not result["failed"]
    assert (result["changed"], result["freed_bytes"]) == (False, 0)
    assert entry["mounts"] == [
        {"path": "/", "trimmed_bytes": 9999999999, "error": ""},
        {"path": "/home", "trimmed_bytes": None, "error": "No\\x1b[2J"},
    ]
    assert entry["guest_os"] is None  # this agent does not know the command


@pytest.mark.parametrize(("given", "told"), [({}, 0), ({"minimum_bytes": 65536}, 65536)])
def test_what_the_guest_is_told(lab, guest, given, told):
    guest.agent("be", fstrim=[{"answer": {"paths": [{"path": "/", "trimmed": "MINIMUM"}]}}])
    (mount,) = trim(lab, **given)[1]["mounts"]
    assert mount["trimmed_bytes"] == told


def test_windows_whose_drives_are_trimmed_in_part(lab, guest):
    """Success, no bytes, an error of one drive, and slow."""
    paths = [{"path": "C:\\"}, {"path": "D:\\", "error": NOT_SUPPORTED}]
    guest.agent("be", osinfo=WINDOWS, fstrim=[{"delay": 5, "answer": {"paths": paths}}])
    result, entry = trim(lab, timeout=60)
    assert not result["failed"]
    assert entry["status"] == "trimmed"
    assert entry["guest_os"] == {"id": "mswindows", "name": "Windows Server 2022 Standard"}
    assert [mount["trimmed_bytes"] for mount in entry["mounts"]] == [None, None]
    assert entry["seconds"] >= 5
    (found,) = entry["findings"]
    assert (found["id"], found["domain"]) == ("trim-failed-in-guest", NAME)
    assert "D:\\" in found["reason"]
    assert "discard_granularity_bytes" in found["remedy"]


def test_windows_that_trimmed_nothing_has_failed_though_it_reports_success(lab, guest):
    paths = [{"path": f"{drive}:\\", "error": NOT_SUPPORTED} for drive in "CDE"]
    guest.agent("be", osinfo=WINDOWS, fstrim=[{"answer": {"paths": paths}}])
    result, entry = trim(lab)
    assert_explains(result, "trimmed nothing", "C:\\", "2 more", "discard_granularity_bytes")
    assert (entry["status"], result["changed"]) == ("failed", False)
    assert len(entry["mounts"]) == len(entry["findings"]) == 3
    assert entry["guest_os"]["id"] == "mswindows"


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next_one(lab, guest):
    """As when a drive takes longer than the time limit, and the playbook is run again at once."""
    late, fresh = ({"paths": [{"path": path}]} for path in ("LATE:\\", "FRESH:\\"))
    guest.agent("be", osinfo=WINDOWS, fstrim=[{"delay": 6, "answer": late}, {"answer": fresh}])
    result, entry = trim(lab, timeout=2)
    assert_explains(result, "did not answer guest-fstrim within its time limit of 2 s")
    assert entry["mounts"] == []
    result, entry = trim(lab)  # its ping waits until the agent has done with the first command
    assert not result["failed"]
    assert [mount["path"] for mount in entry["mounts"]] == ["FRESH:\\"]


def test_an_agent_that_is_still_at_an_earlier_trim(lab, guest):
    guest.agent("be", fstrim=[{"delay": 14, "answer": {"paths": []}}])
    trim(lab, timeout=1)
    result, _entry = trim(lab)
    assert_explains(result, "guest-ping", "an earlier trim", "Start qemu-guest-agent")
    wait_for_stand_in(guest)


GARBAGE = {
    "no-json": "Trimmed!",
    "cut": '{"return": {"paths": [',
    "bytes": "\xff\xfe\x00\x01",
    "another-protocol": '{"result": "ok"}',
    "an-error": '{"error": {"class": "GenericError", "desc": "It\\u001b[2J hurts"}}',
    "deep": "[" * 2_000,
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage(lab, guest, name):
    guest.agent("be", fstrim=[{"raw": GARBAGE[name]}, {"answer": {"paths": [{"path": "/"}]}}])
    result, entry = trim(lab, timeout=2)
    assert_explains(result, NAME, "guest-fstrim")
    assert (entry["status"], entry["mounts"], result["changed"]) == ("failed", [], False)
    assert entry["error"]["msg"].isprintable()
    assert guest.state() == "running"

    result, _entry = trim(lab)
    if name not in ("another-protocol", "an-error"):  # these are JSON, and libvirt goes on
        assert_explains(result, "Start qemu-guest-agent in the guest, or restart it")
    wait_for_stand_in(guest)
    result, entry = trim(lab)
    assert not result["failed"]
    assert [mount["path"] for mount in entry["mounts"]] == ["/"]


def audit(lab, **arguments):
    """thin_info's entry of the guest, and the IDs of its findings."""
    result = run_module("thin_info", uri=lab.uri, domains=[NAME], **arguments)
    assert not result["failed"], result["msg"]
    assert json.dumps(result, ensure_ascii=False).isprintable()
    (entry,) = result["domains"]
    return entry, [finding["id"] for finding in entry["findings"]]


def where_the_disk_hangs(guest):
    """The agent's words for it, from the XML."""
    tree = ElementTree.fromstring(guest.xml())
    controller = tree.find("devices/controller[@type='scsi']/address").attrib
    drive = tree.find("devices/disk/address").attrib
    pci = {name: int(controller[name], 0) for name in ("domain", "bus", "slot", "function")}
    unit = {name: int(drive[name]) for name in ("bus", "target", "unit")}
    return {"bus-type": "scsi", "pci-controller": pci, **unit}


def test_thin_info_and_an_agent_that_hangs(lab, guest):
    guest.agent("be", fsinfo={})
    begin = time.monotonic()
    entry, found = audit(lab, agent_timeout=2)
    assert time.monotonic() - begin < 40  # not the 60 s that all agents have
    assert (found, entry["guest_file_systems"]) == (["agent-silent"], None)
    assert entry["disks"][0]["verdict"] == "works"
    assert entry["disks"][0]["reclaimable_estimate"] == ""
    wait_for_stand_in(guest)


def test_thin_info_and_an_agent_that_may_not_tell(lab, guest):
    guest.agent("be")
    entry, found = audit(lab)
    assert (found, entry["guest_file_systems"]) == (["agent-refused"], None)
    assert audit(lab, ask_agents=False)[1] == []


def test_thin_info_and_a_guest_that_lies(lab, guest):
    """It can make its own estimate wrong, and nothing else."""
    here = where_the_disk_hangs(guest)
    root = {"mountpoint": "/", "type": "ext4", "total-bytes": 10 << 30, "disk": [here]}
    lies = [
        *({**root, "used-bytes": used} for used in (None, -1, True, "5", 1.5, 1 << 63, [])),
        *({**root, "used-bytes": 5, "disk": disks} for disks in (None, {}, "sda")),
        *({**root, "used-bytes": 5, "disk": [{**here, "unit": unit}]} for unit in (-1, "0", None)),
        *({**root, "used-bytes": 5, "name": name} for name in (None, 5, "")),
        *(None, 5, "x", []),
    ]
    # each of a device of its own: of what is told of twice, the first word counts
    told = [
        {"name": f"sda{number}", **lie} if isinstance(lie, dict) else lie
        for number, lie in enumerate(lies)
    ]
    guest.agent("be", fsinfo={"answer": told})
    entry, found = audit(lab)
    assert (found, entry["disks"][0]["reclaimable_bytes"]) == ([], None)
    assert entry["disks"][0]["guest_used_bytes"] is None
    strange = {**root, "name": "s\x1b[2J", "mountpoint": "/\n" + "x" * 9999, "used-bytes": 5}
    guest.agent("be", fsinfo={"answer": [strange, *([{**root, "name": "sda"}] * 20)]})
    (system,) = audit(lab)[0]["guest_file_systems"]
    assert system["mount_point"].isprintable()
    assert len(system["mount_point"]) < 1100
    assert (system["device"], system["targets"]) == ("s\\x1b[2J", ["sda"])

    guest.agent("be", fsinfo={"answer": [{**root, "name": "sda", "used-bytes": 0}]})
    entry, _found = audit(lab)
    held, disk = blocks(guest), entry["disks"][0]
    assert disk["guest_used_bytes"] == 0
    assert 0 < disk["reclaimable_bytes"] <= held
