# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run changes: decided once, then applied, shown as a diff, or only reported.

A module reads, lets a pure function decide on :class:`Change` objects, and applies
them unless it is in check mode.  ``changed`` and ``diff`` are both made from the
same objects, so that check mode cannot promise anything else than a run does.
"""

from __future__ import annotations

import dataclasses
import typing as t


@dataclasses.dataclass(frozen=True)
class Change:
    """One setting of one thing.

    :param subject: the thing, for example ``web1/vda`` (domain and disk).
    :param setting: its property, by the name that the field uses.
    :param before: the value now; never a secret, since it is shown in diffs.
    :param after: the value that is wanted.
    """

    subject: str
    setting: str
    before: t.Any
    after: t.Any


def diff(changes: t.Iterable[Change]) -> dict[str, dict[str, dict[str, t.Any]]]:
    """Ansible's ``diff`` of the changes, grouped by subject."""
    before: dict[str, dict[str, t.Any]] = {}
    after: dict[str, dict[str, t.Any]] = {}
    for change in changes:
        before.setdefault(change.subject, {})[change.setting] = change.before
        after.setdefault(change.subject, {})[change.setting] = change.after
    return {"before": before, "after": after}
