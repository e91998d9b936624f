# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is made once on a machine, for every checkout on it: guest images, saves, roots of releases.

Each is kept under a checksum of its recipe, so checkouts with other recipes keep theirs beside it.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

#: Seconds after which what nobody has used goes.
KEPT_SECONDS = 30 * 86400


def cache_folder() -> Path:
    """``THINVIRT_CACHE``; root's in /var/cache, anybody else's where XDG base directories lie.

    Not in root's home: a QEMU that is not root has to read a kernel there.
    """
    own = os.environ.get("THINVIRT_CACHE")
    if own:
        return Path(own).resolve()
    if os.geteuid() == 0:
        return Path("/var/cache/thinvirt.kvm")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "thinvirt.kvm")


CACHE = cache_folder()


def note_use(folder: Path) -> None:
    """Date what is used, for :func:`remove_unused`."""
    os.utime(folder)


def remove_unused(cache: Path, pattern: str) -> None:
    """Remove what no checkout has used for 30 days; the caller holds the lock of its builds."""
    for folder in cache.glob(pattern):
        if time.time() - folder.stat().st_mtime > KEPT_SECONDS:
            shutil.rmtree(folder)
