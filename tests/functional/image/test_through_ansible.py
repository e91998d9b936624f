# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module as Ansible runs it: packed, and under the system's Python."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from image_lab import create

SYSTEM_PYTHON = "/usr/bin/python3"


def ansible(*options: str, **parameters) -> tuple[int, dict]:
    argv = ["ansible", "-i", "localhost,", "-c", "local", "localhost", *options]
    argv += ["-e", f"ansible_python_interpreter={SYSTEM_PYTHON}"]
    argv += ["-m", "thinvirt.kvm.image_info", "-a", json.dumps(parameters)]
    process = subprocess.run(
        argv,
        env=os.environ | {"ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in process.stdout + process.stderr
    return process.returncode, json.loads(process.stdout.split("=>", 1)[1])


@pytest.mark.parametrize("options", [(), ("--check", "--diff")])
def test_same_answer_in_check_mode_and_nothing_is_touched(tmp_path, options):
    path = create(tmp_path / "x.qcow2")
    before = os.stat(path)
    rc, result = ansible(*options, paths=[f"{tmp_path}/*"])
    after = os.stat(path)
    assert rc == 0
    assert result["changed"] is False
    assert result["images"][0]["check"]["result"] == "clean"
    assert [before.st_mtime_ns, before.st_ctime_ns] == [after.st_mtime_ns, after.st_ctime_ns]
    assert os.listdir(tmp_path) == ["x.qcow2"]


def test_failure_lists_the_bad_ones_and_returns_all(tmp_path):
    create(tmp_path / "good.qcow2")
    create(tmp_path / "evil.qcow2", backing="/etc/passwd")
    rc, result = ansible(paths=[f"{tmp_path}/*.qcow2"])
    assert rc == 2
    assert "1 of 2 images failed" in result["msg"]
    assert "names /etc/passwd as its backing file" in result["images"][0]["error"]
    assert result["images"][1]["format"] == "qcow2"


def test_a_glob_without_matches_is_a_warning(tmp_path):
    rc, result = ansible(paths=f"{tmp_path}/*.qcow2")
    assert rc == 0
    assert result["images"] == []
