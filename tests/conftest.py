# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of all tests. pytest gets its environment from tools/env.sh, as ``make unit`` does."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab

ROOT = Path(__file__).resolve().parents[1]
LABS = ROOT / ".cache" / "labs"
LIVE = ROOT / "tests" / "live"


def pytest_configure() -> None:
    """Refuse an incomplete environment; let SIGTERM end the fixtures as Ctrl-C does."""
    if os.environ.get("ANSIBLE_COLLECTIONS_PATH") != str(ROOT / ".cache"):
        pytest.exit("the environment is missing: run '. tools/env.sh', or make unit, ...", 4)
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in tests/live, and let it begin first: it takes longest."""
    for item in items:
        if LIVE in item.path.parents:
            item.add_marker("live")
    items.sort(key=lambda item: LIVE not in item.path.parents)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """End with what the kill storms have hit."""
    reports = [report for group in terminalreporter.stats.values() for report in group]
    lines = [
        str(value)
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, value in report.user_properties
        if name == "storm"
    ]
    if lines:
        terminalreporter.section("kill storms")
        terminalreporter.write("\n".join([*lines, ""]))


@pytest.fixture(scope="session")
def collections_path() -> Path:
    """The folder that holds ``ansible_collections``, this checkout among them."""
    return ROOT / ".cache"


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A private libvirtd for the whole session, one per worker; see tools/lab/__init__.py."""
    _clean_after_killed_sessions()
    lab = Lab(LABS / f"pytest-{os.getpid()}")
    try:
        lab.start()
        yield lab
    finally:
        lab.clean()


def _clean_after_killed_sessions() -> None:
    LABS.mkdir(parents=True, exist_ok=True)
    with (LABS / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several workers begin at once
        for state in LABS.glob("pytest-*"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(int(state.name.removeprefix("pytest-")), 0)
                continue
            Lab(state).clean()
