# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The version of QEMU that a running domain has: not always that which is installed."""

from __future__ import annotations

import contextlib
import os
import re

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.xml import Domain
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.process import run

_SECONDS = 20.0


def version_of(domain: Domain, *, proc: str = "/proc") -> tuple[int, int, int] | None:
    """The version that a domain runs with.

    None if that can't be told: its emulator was replaced since it started, or is a script.
    """
    if not _is_of(domain, proc):
        return None
    with contextlib.suppress(ThinvirtError):
        return parsed(run([domain.emulator, "--version"], timeout=_SECONDS).stdout)
    return None


def parsed(output: bytes) -> tuple[int, int, int] | None:
    """What ``qemu-system-… --version`` says (pure)."""
    found = re.match(rb"QEMU emulator version (\d+)\.(\d+)\.(\d+)", output)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def _is_of(domain: Domain, proc: str) -> bool:
    """Whether every process that looks like the domain's QEMU has the emulator as it is now."""
    same = []
    for entry in filter(str.isdigit, os.listdir(proc)):
        argv: list[str] = []
        with contextlib.suppress(OSError), open(f"{proc}/{entry}/cmdline", "rb") as file:
            argv = os.fsdecode(file.read()).split("\0")
        if ("-uuid", domain.uuid) in zip(argv, argv[1:]):
            same.append(_is_same(f"{proc}/{entry}/exe", domain.emulator))
    return bool(same) and all(same)


def _is_same(executable: str, emulator: str) -> bool:
    with contextlib.suppress(OSError):  # it was removed
        return os.path.samefile(executable, emulator)
    return False
