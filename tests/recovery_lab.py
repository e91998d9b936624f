# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The recovery of one image, called without a module around it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import (
    Identity,
    open_journal,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.recover import recover


def identity(path) -> Identity:
    return Identity.of(os.lstat(path))


def names(path: Path) -> list[str]:
    return sorted(os.listdir(path.parent))


def run_recovery(path: Path) -> str:
    with open_journal(str(path)) as journal:
        return recover(str(path), journal)


def recovery_refused(path: Path, says: str) -> None:
    """Time and again, and nothing changes."""
    before = {name: identity(path.parent / name) for name in names(path)}
    for _number in range(2):
        with pytest.raises(RefusedError, match=says):
            run_recovery(path)
        assert {name: identity(path.parent / name) for name in names(path)} == before
