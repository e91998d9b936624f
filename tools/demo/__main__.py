# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m demo run`` and ``python -m demo clean``, called by make."""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path
from types import FrameType

from lab import Lab, LabError
from lab.cache import CACHE

from .scenario import run

ROOT = Path(__file__).resolve().parents[2]
STATE = ROOT / ".demo"
RESULTS = ROOT / "build" / "demo"


def clean() -> None:
    """Remove every trace of the demo, also of one that was killed, and say what that was."""
    ended = Lab(STATE / "lab").clean()
    removed = [f"{ended} processes (libvirtd, QEMU, playbooks)"] if ended else []
    for folder in (STATE, RESULTS):
        if folder.exists():
            shutil.rmtree(folder)
            removed.append(f"{folder.relative_to(ROOT)}/")
    print("Removed:", ", ".join(removed) or "nothing, there was no trace of the demo")
    print(f"Kept for the next time: {CACHE} with the guest image, .cache/, .venv/")


def _end(signum: int, _frame: FrameType | None) -> None:
    """Leave through the finally clauses, which stop the lab."""
    sys.exit(128 + signum)


def main() -> int:
    """Entry point; returns the exit status."""
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    try:
        match sys.argv[1:]:
            case ["run"]:
                return 0 if run(STATE, RESULTS) else 1
            case ["clean"]:
                clean()
                return 0
    except LabError as exc:
        print(f"ERROR: {exc}", file=sys.stderr)
        return 1
    except PermissionError as exc:
        print(f"ERROR: {exc}: was the demo run by root? Then run this as root", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. The guest is stopped; 'make demo-clean' removes the rest.")
        return 130
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
