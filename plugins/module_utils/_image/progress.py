# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Long work can be followed in the system's log: Ansible shows nothing before the end."""

from __future__ import annotations

import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown


class Report(t.Protocol):
    """Takes how far a stage has come."""

    def __call__(self, percent: float, done_bytes: int | None = None) -> None:
        """Called all the while.

        :param done_bytes: what was moved; None where that is not known.
        """


def progress_logger(
    path: str, log: t.Callable[[str], None]
) -> t.Callable[[str, float | None, int | None], None]:
    """Log each stage of the work on an image, and every tenth of it."""
    last: tuple[str, int] = ("", -1)

    def report(stage: str, percent: float | None, done_bytes: int | None) -> None:
        nonlocal last
        now = (stage, int((percent or 0) // 10))
        if now != last:
            last = now
            far = f", {percent:.0f} %" if percent else ""
            moved = f", {done_bytes} bytes" if done_bytes is not None else ""
            log(f"{shown(path)}: {stage}{far}{moved}")

    return report
