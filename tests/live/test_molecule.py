# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Molecule's scenarios: the shipped playbooks, on real guests, measured on the host.

Each log stays in .cache/molecule/NAME/log. By hand: ``molecule test -s NAME`` from the checkout.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from lab import processes

ROOT = Path(__file__).resolve().parents[2]
SCENARIOS = sorted(path.parent.name for path in ROOT.glob("extensions/molecule/*/molecule.yml"))
LIMIT_SECONDS = 25 * 60  # 4 min on two idle cores without KVM
TAIL_LINES = 60


def molecule(command: str, scenario: str, log: Path) -> str:
    """Run Molecule with a marked environment; returns what went wrong, in a few words."""
    argv = ["molecule", command, "--scenario-name", scenario]
    env = os.environ | processes.marker(log.parent) | {"NO_COLOR": "1"}
    with log.open("wb") as sink:
        try:
            done = subprocess.run(
                argv,
                check=False,
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                timeout=LIMIT_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return f"no end after {LIMIT_SECONDS} s"
        finally:
            # Ansible's workers are in sessions of their own and survive their parent.
            processes.end_all(log.parent)
    return f"rc {done.returncode}" if done.returncode else ""


@pytest.mark.slow("five boots, and all of the main playbooks three times")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(scenario: str) -> None:
    log = ROOT / ".cache" / "molecule" / scenario / "log"
    state = ROOT / ".cache" / "labs" / f"molecule-{scenario}"
    (log.parent / "tmp").mkdir(parents=True, exist_ok=True)
    try:
        failure = molecule("test", scenario, log)
    finally:
        # The last step of those that have come to their end.
        left = molecule("destroy", scenario, log.with_name("destroy.log")) if state.exists() else ""
    if failure:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
        pytest.fail(f"molecule test, {failure}. The end of {log}:\n{tail}", pytrace=False)
    assert not left
    assert processes.owned_pids(state) == []
    assert not state.exists()
