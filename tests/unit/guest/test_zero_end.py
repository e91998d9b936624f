# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The end of a filling: the blocks are free again for others before it says that it is done."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

from ansible_collections.thinvirt.kvm.plugins.module_utils._guest import zero_fill


def test_what_was_written_is_given_back_and_flushed(monkeypatch):
    done = []
    figures = SimpleNamespace(f_bavail=7, f_frsize=4096)
    target = zero_fill.Target("/srv", "mount", 0, 0, 0)
    for name, stand_in in (
        ("_open_mount", lambda _path: contextlib.nullcontext(3)),
        ("mount_of_fd", lambda _fd: "mount"),
        ("remove_leftover", lambda _fd: None),
        ("_sync_file_system", lambda _fd: done.append("flushed")),
    ):
        monkeypatch.setattr(zero_fill, name, stand_in)
    monkeypatch.setattr(zero_fill.os, "fstatvfs", lambda _fd: done.append("measured") or figures)
    filler = SimpleNamespace(
        run=lambda _fd: "budget", close=lambda: done.append("given back"), written=5
    )
    outcome = zero_fill._fill_one(target, filler)
    assert done == ["given back", "flushed", "measured"]
    assert (outcome.written_bytes, outcome.free_after_bytes) == (5, 7 * 4096)
