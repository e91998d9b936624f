# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A finding: something that keeps a disk from being thin, and what to do about it."""

from __future__ import annotations

import dataclasses
import typing as t

#: From "good to know" to "space cannot come back, or the host is in danger".
SEVERITIES = ("info", "warning", "error")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One observation, in the shape that every module returns under ``findings``.

    :param id: stable, for example ``discard-ignored``; documented, never reworded.
    :param severity: one of :data:`SEVERITIES`.
    :param reason: what is the case, one sentence.
    :param remedy: what to do, with the module or role that does it.
    :param domain: the domain concerned, or an empty string.
    :param disk: the disk's target such as ``vda``, or an empty string.
    """

    id: str
    severity: str
    reason: str
    remedy: str
    domain: str = ""
    disk: str = ""

    def result(self) -> dict[str, t.Any]:
        return dataclasses.asdict(self)
