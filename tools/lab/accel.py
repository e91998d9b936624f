# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Does KVM work here? On a nested machine /dev/kvm may exist and be useless: boot a kernel."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
LIMIT_SECONDS = 15


def kvm_works(kernel: Path, cache: Path, say: Callable[[str], None] = print) -> bool:
    """Whether a kernel boots under KVM within 15 s; remembered in *cache* until the next reboot.

    Without a root file system the kernel panics and restarts, which ends QEMU: reaching that
    point is the proof.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    verdict = cache / "kvm-verdict"
    boot_id = BOOT_ID.read_text().strip()
    if verdict.exists() and verdict.read_text().split()[:1] == [boot_id]:
        return verdict.read_text().split()[1] == "works"
    say(f"==> Trying KVM (up to {LIMIT_SECONDS} s, once per boot of this machine)")
    works = _boots(kernel)
    verdict.write_text(f"{boot_id} {'works' if works else 'useless'}\n")
    say("    KVM works" if works else "    /dev/kvm is useless here: guests run under TCG, slower")
    return works


def _boots(kernel: Path) -> bool:
    argv = [
        *("qemu-system-x86_64", "-accel", "kvm", "-cpu", "max", "-m", "256"),
        *("-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"),
        *("-kernel", str(kernel), "-append", "console=ttyS0 panic=-1"),
    ]
    try:
        done = subprocess.run(
            argv,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LIMIT_SECONDS,
        )
    except (subprocess.TimeoutExpired, FileNotFoundError):
        return False
    return b"Kernel panic" in done.stdout
