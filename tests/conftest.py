# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of all tests. pytest gets its environment from tools/env.sh, as ``make unit`` does."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Lab

ROOT = Path(__file__).resolve().parents[1]
LABS = ROOT / ".cache" / "labs"
LIVE = ROOT / "tests" / "live"
#: Time limit of a test that is slow; a run of a role in an emulated guest takes minutes.
SLOW_SECONDS = 1800
#: What takes longer on a quiet machine has the marker ``slow``, with its reason.
REASON_SECONDS = 15


def pytest_configure() -> None:
    """Refuse an incomplete environment; let SIGTERM end the fixtures as Ctrl-C does."""
    if os.environ.get("ANSIBLE_COLLECTIONS_PATH") != str(ROOT / ".cache"):
        pytest.exit("the environment is missing: run '. tools/env.sh', or make unit, ...", 4)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # What is begun is written down there: not among what the machine's own runs have left.
    os.environ["THINVIRT_STATE_DIR"] = tempfile.mkdtemp(prefix="thinvirt-state-", dir="/var/tmp")


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ.pop("THINVIRT_STATE_DIR", ""), ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in tests/live; give what is slow its time, and let it begin first."""
    for item in items:
        if LIVE in item.path.parents:
            item.add_marker("live")
        if is_slow(item) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))
    items.sort(key=lambda item: (LIVE not in item.path.parents, not is_slow(item)))


def is_slow(item: pytest.Item) -> bool:
    """Whether a test is left to ``make test-all``; a slow one without a reason is an error."""
    slow = item.get_closest_marker("slow")
    if slow and not (slow.args and isinstance(slow.args[0], str)):
        raise pytest.UsageError(f"{item.nodeid}: slow needs its reason")
    return bool(slow or item.get_closest_marker("storm"))


@pytest.fixture(scope="module", autouse=True)
def _what_was_left_open() -> Iterator[None]:
    """Have a file or a process that a test has left open turn a test of the same file red."""
    yield
    gc.collect()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """End with what the kill storms have hit, and with what is slow without saying why."""
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
    late = [
        f"{report.duration:.0f} s {report.nodeid}"
        for report in reports
        if getattr(report, "when", "") == "call"
        and report.duration > REASON_SECONDS
        and not {"slow", "storm"} & set(report.keywords)
    ]
    if late:
        terminalreporter.section(f"over {REASON_SECONDS} s, and not marked as slow")
        terminalreporter.write("\n".join([*late, ""]))


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
