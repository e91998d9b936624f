# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the host's storage comes to its end (pure)."""

from __future__ import annotations

import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._findings import Finding
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown

_GIB = 1 << 30
_NEARLY_FULL_PERCENT = 5
_SOON_DAYS = 30


def findings(
    name: str,
    *,
    total_bytes: int,
    free_bytes: int,
    overcommit_ratio: float | None,
    days_until_full: float | None,
) -> t.Iterator[Finding]:
    """What is to be said of one file system, or of a pool without one.

    :param name: such as ``/srv``, or ``storage pool ceph``.
    """
    name = shown(name)
    what = name[:1].upper() + name[1:]
    if free_bytes < total_bytes * _NEARLY_FULL_PERCENT // 100:
        yield Finding(
            id="storage-nearly-full",
            severity="error",
            reason=f"{what} has {free_bytes / _GIB:.1f} of {total_bytes / _GIB:.1f} GiB left. "
            "When it is full, guests that write there are paused.",
            remedy="Free space with the playbook thinvirt.kvm.reclaim, or move images elsewhere "
            "with thinvirt.kvm.domain_compact and dest_dir.",
        )
    if days_until_full is not None and days_until_full < _SOON_DAYS:
        yield Finding(
            id="storage-filling-up",
            severity="warning",
            reason=f"{what} will be full in {days_until_full:.0f} days if it goes on filling as it "
            "did in the earlier reports.",
            remedy="Free space with the playbook thinvirt.kvm.reclaim, have the guests trim every "
            "week with thinvirt.kvm.configure, or extend it.",
        )
    if overcommit_ratio is not None and overcommit_ratio > 1:
        yield Finding(
            id="storage-overcommitted",
            severity="info",
            reason=f"The guests are promised {overcommit_ratio:.1f} times what {name} can give "
            "them, and can fill it.",
            remedy="Keep an eye on days_until_full, which needs earlier reports "
            "(thin_report_history_dir), and have the guests trim every week with the playbook "
            "thinvirt.kvm.configure.",
        )
