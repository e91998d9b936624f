# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What became of a domain whose disks were to be made small."""

from __future__ import annotations

import dataclasses

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import Guest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import compact_outcome
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.checks import WriteRate
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.live import LiveOutcome


@dataclasses.dataclass
class DiskOutcome:
    """One disk: what became of its image, or why nothing did.

    :param writes: how fast its guest writes to it, with ``live``.
    """

    target: str
    path: str
    outcome: compact_outcome.Outcome | None = None
    error: ThinvirtError | None = None
    live: LiveOutcome | None = None
    writes: WriteRate | None = None

    def paths(self) -> list[str]:
        """Where it was, and where it is."""
        moved = self.outcome.moved_to if self.outcome is not None else ""
        return [self.path, *([moved] if moved else [])]


@dataclasses.dataclass
class Outcome:
    """One domain.

    :param status: ``done``, ``skipped`` or ``failed``.
    :param recovered: what killed runs had left of its disks while it ran, and what became of it.
    :param trimmed_bytes: what the guest's own trim gave back first; None if it was not asked to.
    :param forgotten: a run that was killed has left it shut down, or a note that it may be.
    :param restarted: what became of that.
    :param downtime_seconds: how long a guest was off that ran before; None if it was not.
    """

    guest: Guest
    status: str = "done"
    reason: str = ""
    disks: list[DiskOutcome] = dataclasses.field(default_factory=list)
    recovered: list[str] = dataclasses.field(default_factory=list)
    trimmed_bytes: int | None = None
    forgotten: bool = False
    restarted: str = ""
    downtime_seconds: float | None = None
    error: ThinvirtError | None = None

    @property
    def changed(self) -> bool:
        return (
            self.forgotten
            or bool(self.recovered)
            or bool(self.trimmed_bytes)
            or self.downtime_seconds is not None
            or any(disk.outcome.changed for disk in self.disks if disk.outcome)
        )

    def errors(self) -> list[ThinvirtError]:
        """All that went wrong, that of the domain first."""
        found = [self.error] if self.error else []
        return found + [disk.error for disk in self.disks if disk.error]
