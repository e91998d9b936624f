# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest may answer anything."""

from __future__ import annotations

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.agent import (
    MAX_MOUNTS,
    MAX_TEXT,
    GuestOs,
    MountTrim,
    fstrim,
    guest_os,
    parse_fstrim,
    parse_osinfo,
    ping,
    trim_findings,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    AgentError,
    AgentTimeoutError,
)


def test_linux():
    answer = {"paths": [{"path": "/", "trimmed": 4096, "minimum": 0}]}
    assert parse_fstrim(answer, "web1") == (MountTrim("/", 4096, ""),)


def test_windows_reports_errors_per_drive_and_no_bytes():
    answer = {"paths": [{"path": "C:\\"}, {"path": "D:\\", "error": "0x8900002A"}]}
    assert parse_fstrim(answer, "desk") == (
        MountTrim("C:\\", None, ""),
        MountTrim("D:\\", None, "0x8900002A"),
    )


@pytest.mark.parametrize(
    "answer", [None, [], {}, {"paths": None}, {"paths": {}}, {"paths": ["/"]}, "ok", 1]
)
def test_nonsense_is_an_error(answer):
    with pytest.raises(AgentError, match="web1"):
        parse_fstrim(answer, "web1")


def test_members_of_a_wrong_type_are_not_believed():
    entries = [{"path": 1, "trimmed": "lots", "error": []}, {"trimmed": -1}, {"trimmed": 1 << 70}]
    trims = parse_fstrim({"paths": entries}, "web1")
    assert all(trim == MountTrim("", None, "") for trim in trims)


def test_a_flood_is_cut():
    answer = {"paths": [{"path": "/" + "x" * 10_000}] * 5_000}
    trims = parse_fstrim(answer, "web1")
    assert len(trims) == MAX_MOUNTS
    assert len(trims[0].path) == MAX_TEXT


def test_text_is_on_one_line():
    (trim,) = parse_fstrim({"paths": [{"path": "C:\\\n\x1b[2J", "error": " No. \r\n"}]}, "desk")
    assert trim.path.isprintable()
    assert trim.error == "No."


@pytest.mark.parametrize(
    ("answer", "system"),
    [
        ({"id": "mswindows", "pretty-name": "Windows 11"}, GuestOs("mswindows", "Windows 11")),
        ({"id": "debian"}, GuestOs("debian", "")),
        ({"id": 1, "pretty-name": None}, None),
        ({}, None),
        ([], None),
        (None, None),
    ],
)
def test_the_system_in_the_guest(answer, system):
    assert parse_osinfo(answer) == system


class Silent:
    """An agent that answers nothing."""

    name = "desk"

    def agent(self, command, arguments, *, timeout):
        raise AgentTimeoutError(f"No answer to {command} {arguments} in {timeout} s.", remedy="?")


def test_what_to_do_about_silence():
    with pytest.raises(AgentTimeoutError, match=r"Start qemu-guest-agent.*an earlier trim"):
        ping(Silent())
    with pytest.raises(AgentTimeoutError, match=r"goes on trimming.*raise timeout"):
        fstrim(Silent(), minimum_bytes=0, timeout=1)
    assert guest_os(Silent()) is None


def test_findings_are_of_the_mounts_with_errors():
    hardware = "Not supported by the hardware backing the volume. (0x8900002A)"
    mounts = [
        MountTrim("C:\\", None, ""),
        MountTrim("D:\\", None, hardware),
        MountTrim("", 1, "No"),
    ]
    drive, unknown = trim_findings("desk", mounts)
    assert (drive.id, drive.severity, drive.domain) == ("trim-failed-in-guest", "warning", "desk")
    assert f"D:\\: {hardware}" in drive.reason
    assert "discard_granularity_bytes" in drive.remedy
    assert "a file system: No" in unknown.reason
    assert "discard_granularity_bytes" not in unknown.remedy
