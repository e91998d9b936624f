# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest may answer anything."""

from __future__ import annotations

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.agent import (
    MAX_MOUNTS,
    MAX_TEXT,
    MountTrim,
    parse_fstrim,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import AgentError


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
