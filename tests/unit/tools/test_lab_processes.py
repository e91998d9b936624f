# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes are found by their environment and ended, those of others are left alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from lab import processes

STUBBORN = (
    "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
)
WILLING = "import time; print(1, flush=True); time.sleep(60)"


@pytest.fixture
def spawn():
    started = []

    def spawn(program, state):
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            env=os.environ | processes.marker(state),
            stdout=subprocess.PIPE,
        )
        process.stdout.readline()
        started.append(process)
        return process

    yield spawn
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize(("program", "signal"), [(WILLING, -15), (STUBBORN, -9)])
def test_ends_its_own_only(spawn, tmp_path, program, signal):
    ours = spawn(program, tmp_path / "a")
    longer_name = spawn(WILLING, tmp_path / "a2")
    other = spawn(WILLING, tmp_path / "b")

    assert processes.end_all(tmp_path / "a", grace=1) == 1
    assert ours.wait(timeout=0) == signal
    assert processes.owned_pids(tmp_path / "a") == []
    assert longer_name.poll() is None
    assert other.poll() is None


def test_nothing_to_end(tmp_path):
    assert processes.end_all(tmp_path) == 0
