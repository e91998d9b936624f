# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role windows_guest decides, and that a guest may print anything."""

from __future__ import annotations

import json

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.thinvirt.kvm.plugins.filter.windows_plan import windows_plan
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.module_utils._findings import SEVERITIES
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._windows.plan import (
    Wanted,
    failed_retrims,
    plan,
)
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._windows.state import (
    MAX_ENTRIES,
    MAX_TEXT,
    Driver,
    Event,
    parse_delete_notify,
    parse_state,
)
from windows_machine import CONVERGED, EVENT_264, MSI, NEGLECTED


def decide(state, **wanted):
    return plan(parse_state(json.dumps(state)), Wanted(**{"domain": "desk", **wanted}))


def changed(**members):
    return {**CONVERGED, **members}


def disk(**members):
    return {"disks": [{**CONVERGED["disks"][0], **members}]}


def driver(name, version="100.103.104.28500", running=True):
    return {"name": name, "running": running, "version": version}


def test_nothing_is_left_to_do():
    decided = decide(CONVERGED, fast_startup_off=True, virtio_win=285)
    assert (decided.changes, decided.findings, decided.retrim_refused) == ((), (), "")
    system, disk_line = decided.summary
    assert system == (
        "Microsoft Windows Server 2022 Standard 10.0.20348; drivers: vioscsi 100.103.104.28500, "
        "vioser 100.103.104.28500; guest agent: Running; ScheduledDefrag: Ready"
    )
    assert disk_line.startswith("Disk 0 (QEMU QEMU HARDDISK, serial system): provisioning Thin, ")


def test_everything_is_left_to_do():
    decided = decide(NEGLECTED, fast_startup_off=True)
    assert decided.changes == (
        rf"install the guest agent from {MSI}",
        "set DisableDeleteNotify of NTFS to 0",
        "enable the weekly task ScheduledDefrag",
        "switch fast startup off",
    )
    assert decided.delete_notify == (("NTFS", "0"),)
    assert decided.findings == ()


@pytest.mark.parametrize(
    ("wanted", "msi"),
    [({}, MSI), ({"agent_msi": r"\\share\ga.msi"}, r"\\share\ga.msi"), ({"agent": False}, "")],
)
def test_which_agent_is_installed(wanted, msi):
    assert decide(NEGLECTED, **wanted).agent_msi == msi


@pytest.mark.parametrize(
    ("agent", "start"),
    [
        ({"status": "Running", "start_type": "Automatic"}, False),
        ({"status": "Running", "start_type": "Manual"}, True),
        ({"status": "Stopped", "start_type": "Automatic"}, True),
        (None, False),
    ],
)
def test_whether_the_agent_is_started(agent, start):
    assert decide(changed(agent=agent)).agent_start is start
    assert decide(changed(agent=agent), agent=False).agent_start is False


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (["NTFS DisableDeleteNotify = 0  (Disabled)"], {"NTFS": False}),
        (
            ["NTFS DisableDeleteNotify = 1", "ReFS DisableDeleteNotify = 1"],
            dict.fromkeys(["NTFS", "ReFS"], True),
        ),
        (["DisableDeleteNotify = 1"], {"": True}),
        (
            ["NTFS DisableDeleteNotify = 0", "ReFS DisableDeleteNotify is not currently set"],
            {"NTFS": False},
        ),
        (["Error: access is denied.", "", 1, None], {}),
        ([], {}),
    ],
)
def test_what_fsutil_prints(lines, found):
    assert parse_delete_notify(lines) == found


def test_old_windows_has_one_setting_for_all():
    assert decide(changed(delete_notify=["DisableDeleteNotify = 1"])).delete_notify == (("0",),)


@pytest.mark.parametrize(
    ("version", "release"),
    [
        ("100.103.104.28500", 285),
        ("62.71.104.13200", 132),
        ("100.94.104.24000", 240),
        ("", None),
        ("100.94.104.", None),
        ("1" * 50, None),
    ],
)
def test_the_release_of_a_driver(version, release):
    assert Driver("vioscsi", True, version).virtio_win == release


@pytest.mark.parametrize(
    ("state", "wanted", "found"),
    [
        ({"agent": None}, {}, ["windows-guest-agent-missing"]),
        ({"agent": None}, {"agent": False}, []),
        ({"fast_startup": 1}, {}, ["windows-fast-startup"]),
        ({"delete_notify": []}, {}, ["windows-delete-notify-unknown"]),
        ({"retrim_task": None}, {}, ["windows-retrim-task-missing"]),
        ({"maintenance_disabled": 1}, {}, ["windows-maintenance-disabled"]),
        ({"retrim_events": [EVENT_264]}, {}, ["windows-retrim-failed"]),
        ({"drivers": [driver("vioser")]}, {}, ["windows-driver-missing"]),
        (
            {"drivers": [driver("vioscsi"), driver("vioser", running=False)]},
            {},
            ["windows-driver-missing"],
        ),
        ({}, {"virtio_win": 286}, ["windows-driver-old"] * 2),
        (disk(provisioning="Thin", media="Unspecified"), {}, ["windows-optimize-rewrites"]),
        (disk(provisioning="Fixed", media="HDD"), {}, ["windows-disk-not-thin"]),
        (disk(provisioning="Fixed", media="SSD"), {}, []),
        (disk(sector_bytes=4096), {}, []),  # on virtio-scsi
    ],
)
def test_findings(state, wanted, found):
    findings = decide(changed(**state), **wanted).findings
    assert [finding.id for finding in findings] == found
    for finding in findings:
        assert finding.severity in SEVERITIES
        assert finding.domain == "desk"
        assert finding.reason.endswith((".", ")"))
        assert finding.remedy.endswith(".")


def test_nothing_makes_windows_discard_where_viostor_would_hit_the_wrong_sectors():
    danger = {**NEGLECTED, **disk(sector_bytes=4096)}
    for running in (True, False):
        danger["drivers"] = [driver("viostor", running=running), driver("vioser")]
        decided = decide(danger)
        assert (decided.delete_notify == ()) is running
        assert decided.enable_retrim_task is not running
        assert bool(decided.retrim_refused) is running
        assert decided.agent_msi == MSI  # has nothing to do with it


RETRIM, OTHER_VOLUME, DEFRAG = ("retrim", "(C:)"), ("retrim", "(D:)"), ("defrag", "(C:)")


@pytest.mark.parametrize(
    ("events", "failed"),
    [
        ([(264, "1", RETRIM)], [RETRIM]),
        ([(264, "1", RETRIM), (258, "2", RETRIM)], []),
        ([(258, "2", RETRIM), (264, "1", RETRIM)], []),  # newest first, as Windows lists them
        ([(258, "1", RETRIM), (264, "2", RETRIM)], [RETRIM]),
        ([(264, "1", RETRIM), (258, "2", OTHER_VOLUME)], [RETRIM]),
        ([(264, "1", RETRIM), (258, "2", DEFRAG)], [RETRIM]),
        (
            [(264, "1", RETRIM), (264, "2", RETRIM), (264, "1", OTHER_VOLUME)],
            [RETRIM, OTHER_VOLUME],
        ),
        ([(257, "1", RETRIM)], []),
    ],
)
def test_a_failure_counts_until_a_success_of_the_same(events, failed):
    found = failed_retrims(Event(*event, "") for event in events)
    assert sorted(event.about for event in found) == sorted(failed)


@pytest.mark.parametrize(
    "printed", ["", "null", "[]", "1", '"x"', "{", "[" * 100_000, "Fehler: nein"]
)
def test_what_is_no_state_is_an_error(printed):
    with pytest.raises(ThinvirtError, match=r"nothing was changed.*state\.ps1"):
        parse_state(printed)
    with pytest.raises(AnsibleFilterError, match="nothing was changed"):
        windows_plan(printed, domain="desk")


HOSTILE = [None, 1, -1, 1 << 70, True, "x", [], ["x"], [[]], {}, [{}], {"x": []}, 0.5]


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("member", CONVERGED)
def test_members_may_be_of_any_type(member, value):
    json.dumps(decide(changed(**{member: value})).result())
    json.dumps(decide(disk(**dict.fromkeys(CONVERGED["disks"][0], value))).result())
    json.dumps(decide({"retrim_events": [dict.fromkeys(EVENT_264, value)]}).result())


def test_a_state_that_tells_nothing_changes_nothing():
    assert decide({}).changes == ()


def test_a_number_that_none_can_be_is_none():
    (found,) = parse_state(json.dumps(disk(sector_bytes=1 << 70))).disks
    assert found.sector_bytes == 0


def test_a_flood_is_cut():
    state = parse_state(json.dumps({"os": "x" * 10_000, "disks": [{}] * 5_000}))
    assert len(state.os) == MAX_TEXT
    assert len(state.disks) == MAX_ENTRIES


@pytest.mark.parametrize("trap", ["{{ x }}", "{% x %}", "{# x", "{{{% x", "{{{{{"])
def test_no_text_is_a_template(trap):
    text = json.dumps(decide(changed(os=trap, **disk(name=trap, serial=trap))).result())
    text = text.replace("{}", "")
    assert not any(opening in text.replace('{"', "") for opening in ("{{", "{%", "{#"))


def test_text_is_on_one_line():
    (first, *_others) = decide(changed(os="Windows\n\x1b[2J10")).summary
    assert first.isprintable()
