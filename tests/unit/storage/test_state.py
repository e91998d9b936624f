# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where we write down what we have begun, and that nobody else can."""

from __future__ import annotations

import os

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage import state


@pytest.mark.parametrize(
    ("uid", "environment", "folder"),
    [
        (0, {}, "/var/lib/thinvirt"),
        (0, {"XDG_STATE_HOME": "/x"}, "/var/lib/thinvirt"),
        (1000, {"XDG_STATE_HOME": "/x"}, "/x/thinvirt"),
        (1000, {"HOME": "/home/a"}, "/home/a/.local/state/thinvirt"),
        (1000, {"XDG_STATE_HOME": "relative", "HOME": "/h"}, "/h/.local/state/thinvirt"),
        (0, {"THINVIRT_STATE_DIR": "/y"}, "/y"),
    ],
)
def test_where_it_lies(monkeypatch, uid, environment, folder):
    for name in ("XDG_STATE_HOME", "THINVIRT_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert state.state_dir() == folder


def test_it_is_made_for_us_alone(tmp_path, monkeypatch):
    parent = tmp_path / "made" / "too"
    monkeypatch.setenv("THINVIRT_STATE_DIR", str(parent))
    assert state.own_folder("journals") == str(parent / "journals")
    assert [oct(path.stat().st_mode)[-4:] for path in (parent, parent / "journals")] == ["0700"] * 2
    # An older release made it so that others could read.
    parent.chmod(0o755)
    state.own_folder("journals")
    assert oct(parent.stat().st_mode)[-4:] == "0700"


@pytest.mark.parametrize("which", ["", "journals"])
@pytest.mark.parametrize("mode", [0o720, 0o702])
def test_one_to_which_others_may_write_is_not_believed(tmp_path, which, mode):
    state.own_folder("journals", parent=str(tmp_path / "state"))
    (tmp_path / "state" / which).chmod(mode)
    with pytest.raises(RefusedError, match=r"nothing was changed"):
        state.own_folder("journals", parent=str(tmp_path / "state"))


@pytest.mark.skipif(os.geteuid() != 0, reason="to give a folder away takes root")
@pytest.mark.parametrize("which", [".", "state", "state/journals"])
def test_one_of_somebody_else_is_not_believed(tmp_path, which):
    state.own_folder("journals", parent=str(tmp_path / "state"))
    os.chown(tmp_path / which, 65534, -1)
    with pytest.raises(RefusedError, match=r"nothing was changed"):
        state.own_folder("journals", parent=str(tmp_path / "state"))


@pytest.mark.parametrize("path", ["relative", "/nul\0"])
def test_one_that_is_no_absolute_path(path):
    with pytest.raises(RefusedError, match="not the absolute path of a folder"):
        state.own_folder("journals", parent=path)


@pytest.mark.parametrize(
    ("one", "other", "unknown", "same"),
    [
        ({"uuid": "a"}, {"uuid": "a"}, False, True),
        ({"uuid": "a"}, {"uuid": "b"}, True, False),
        # XFS, whose device has another number after a reboot
        ({"uuid": "a", "fsid": "1"}, {"uuid": "a", "fsid": "2"}, False, True),
        ({"uuid": "a"}, {"fsid": "1"}, True, True),
        ({}, {}, True, True),
        ({}, {}, False, False),
    ],
)
def test_whether_two_file_systems_are_one(one, other, unknown, same):
    assert state.is_same_file_system(one, other, unknown=unknown) is same


def test_a_file_system_is_itself(tmp_path):
    ids = state.file_system_ids(str(tmp_path))
    assert ids == state.file_system_ids(str(tmp_path / ".."))
