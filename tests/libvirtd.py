# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's libvirtd, killed and started again while its guests run on."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from lab import Lab, processes


def comm(pid: int) -> str:
    """The name of a process; empty if it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def libvirtd_pid(lab: Lab) -> int:
    (pid,) = (pid for pid in processes.owned_pids(lab.state) if comm(pid) == "libvirtd")
    return pid


def kill_libvirtd(lab: Lab) -> None:
    """Kill it, and it alone."""
    os.kill(libvirtd_pid(lab), signal.SIGKILL)
    if lab._daemon is not None:
        lab._daemon.wait(timeout=10)


def has_ended(lab: Lab) -> bool:
    """Whether it has ended by itself, as on what a killed one has left."""
    return lab._daemon is not None and lab._daemon.poll() is not None


def start_libvirtd(lab: Lab) -> None:
    assert lab.launch() == [], "libvirtd did not come back"
