# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What libvirt keeps of a domain that stands in the way of making its disks thin (pure)."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._findings import Finding
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown, typed


@dataclasses.dataclass(frozen=True)
class Kept:
    """UUIDs of the domains of which libvirt keeps something.

    :param snapshots: snapshots, internal or external.
    :param checkpoints: those of incremental backups.
    :param saved: their memory (managed save).
    """

    snapshots: frozenset[str] = frozenset()
    checkpoints: frozenset[str] = frozenset()
    saved: frozenset[str] = frozenset()


def kept_findings(name: str, uuid: str, kept: Kept) -> tuple[Finding, ...]:
    """A finding for each thing that libvirt keeps of a domain."""
    found = []
    if uuid in kept.snapshots:
        found.append(
            Finding(
                id="libvirt-snapshots",
                severity="info",
                reason="libvirt keeps snapshots of the domain. Reverting to one brings back the "
                "configuration of that time, its discard settings included, and what they hold "
                "stays allocated.",
                remedy=f"Delete those of no use any more (virsh snapshot-list {typed(name)}, virsh "
                "snapshot-delete), and run thinvirt.kvm.domain_discard again after a revert.",
                domain=name,
            )
        )
    if uuid in kept.checkpoints:
        found.append(
            Finding(
                id="checkpoints",
                severity="info",
                reason="The domain has checkpoints of incremental backups: what a trim frees "
                "counts as changed, so the next backup is larger, and a rewrite of its images is "
                "refused.",
                remedy="Trim just before a full backup. Delete checkpoints that no backup needs "
                f"any more (virsh checkpoint-list {typed(name)}, virsh checkpoint-delete).",
                domain=name,
            )
        )
    if uuid in kept.saved:
        found.append(
            Finding(
                id="managed-save",
                severity="warning",
                reason="The domain's memory is saved (managed save): its next start goes on with "
                "that, on disks as they were, and with the settings of that time. So its disks "
                "are left alone.",
                remedy=f"Start {shown(name)} and shut it down, or give the memory up with virsh "
                f"managedsave-remove {typed(name)}.",
                domain=name,
            )
        )
    return tuple(found)


def stopped_findings(name: str, errors: t.Mapping[str, str]) -> tuple[Finding, ...]:
    """A finding of a domain that an I/O error has paused.

    :param errors: what went wrong, by disk; empty if QEMU does not tell.
    """
    disks = "; ".join(f"{shown(target)}: {error}" for target, error in sorted(errors.items()))
    return (
        Finding(
            id="paused-by-io-error",
            severity="error",
            reason="QEMU has paused the domain since one of its disks failed"
            f"{f' ({disks})' if disks else ''}: the guest does nothing, and can't trim.",
            remedy="Make room on the storage, with the playbook thinvirt.kvm.reclaim for the other "
            f"guests, or mend it; then virsh resume {typed(name)}.",
            domain=name,
        ),
    )


def job_findings(name: str, jobs: t.Sequence[str]) -> tuple[Finding, ...]:
    """A finding if libvirt is at work on a domain."""
    if not jobs:
        return ()
    return (
        Finding(
            id="job-running",
            severity="info",
            reason=f"libvirt is at work on the domain: {', '.join(map(shown, jobs))}. Until that "
            "ends its disks are not moved, compacted or copied.",
            remedy=f"Wait for its end, or look at it with virsh domjobinfo {typed(name)} and virsh "
            "blockjob.",
            domain=name,
        ),
    )
