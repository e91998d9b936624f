# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a running guest has said, added to what is known of its domain (pure)."""

from __future__ import annotations

import dataclasses

from ansible_collections.thinvirt.kvm.plugins.module_utils._audit import image_checks, obstacles
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.asking import Answer
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.model import (
    DiskAudit,
    DomainAudit,
    GuestFileSystem,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.obstacles import Kept
from ansible_collections.thinvirt.kvm.plugins.module_utils._discard import untrimmed
from ansible_collections.thinvirt.kvm.plugins.module_utils._findings import Finding


def completed(domain: DomainAudit, *, kept: Kept, answer: Answer | None) -> DomainAudit:
    """The domain with all its findings.

    :param answer: None if it does not run, or was not asked.
    """
    if domain.error is not None:
        return domain
    found = [*domain.findings, *obstacles.kept_findings(domain.name, domain.uuid, kept)]
    disks = domain.disks
    systems = None
    if answer is not None:
        found += obstacles.job_findings(domain.name, answer.jobs)
        found += _agent_findings(domain.name, answer)
        if answer.stopped:
            found += obstacles.stopped_findings(domain.name, answer.io_errors)
            disks = tuple(_stopped(disk, answer) for disk in disks)
        if answer.agent == "answered":
            disks = _with_usage(disks, answer)
            systems = tuple(_shown(system, answer) for system in answer.file_systems)
    return dataclasses.replace(
        domain,
        disks=tuple(_with_reclaim(disk, domain) for disk in disks),
        findings=tuple(found),
        guest_file_systems=systems,
    )


def _with_usage(disks: tuple[DiskAudit, ...], answer: Answer) -> tuple[DiskAudit, ...]:
    """Only disks that share no file system with others: of several it can't be told which."""
    held = {
        disk.disk.target: untrimmed.Held(occupied, disk.image.promised_bytes)
        for disk in disks
        if (occupied := disk.image.occupied_bytes) is not None
        and disk.image.promised_bytes is not None
        # what snapshots in the image hold is none of the guest's
        and not (disk.image.qcow2 is not None and disk.image.qcow2.snapshot_count)
    }
    said = {
        one.targets[0]: one
        for one, _total in untrimmed.compared(held, answer.file_systems, answer.addresses)
        if len(one.targets) == 1
    }
    return tuple(
        dataclasses.replace(
            disk,
            guest_used_bytes=said[disk.disk.target].used_bytes,
            guest_excess_bytes=max(0, said[disk.disk.target].excess_bytes),
        )
        if disk.disk.target in said
        else disk
        for disk in disks
    )


def _stopped(disk: DiskAudit, answer: Answer) -> DiskAudit:
    """Without the error of a disk, nobody knows which of them it was."""
    if answer.io_errors and disk.disk.target not in answer.io_errors:
        return disk
    links = tuple(
        dataclasses.replace(
            link,
            state="broken" if answer.io_errors else "unknown",
            reason=f"The guest is paused: {answer.io_errors.get(disk.disk.target, 'I/O error')}.",
            remedy="See the finding paused-by-io-error of the domain.",
        )
        if link.name == "storage" and link.state == "works"
        else link
        for link in disk.links
    )
    return dataclasses.replace(disk, links=links)


def _with_reclaim(disk: DiskAudit, domain: DomainAudit) -> DiskAudit:
    found = image_checks.to_reclaim(disk, domain=domain.name, active=domain.active)
    return dataclasses.replace(disk, findings=disk.findings + found) if found else disk


def _shown(system: untrimmed.GuestFileSystem, answer: Answer) -> GuestFileSystem:
    targets = {answer.addresses.get(address, "") for address in system.addresses}
    return GuestFileSystem(
        mount_point=system.mount_point,
        type=system.type,
        device=system.device,
        total_bytes=system.total_bytes,
        used_bytes=system.used_bytes,
        targets=tuple(sorted(targets - {""})),
    )


def _agent_findings(name: str, answer: Answer) -> tuple[Finding, ...]:
    if answer.agent == "silent":
        return (
            Finding(
                id="agent-silent",
                severity="warning",
                reason=f"{answer.reason} So what the guest uses is not known.",
                remedy="Restart qemu-guest-agent in the guest, or raise agent_timeout of "
                "thinvirt.kvm.thin_info (thin_report_agent_timeout) if the guest is slow.",
                domain=name,
            ),
        )
    if answer.agent == "refused":
        return (
            Finding(
                id="agent-refused",
                severity="warning",
                reason=f"{answer.reason} So what the guest uses is not known.",
                remedy=f"{answer.remedy} If the agent's configuration blocks guest-get-fsinfo, "
                "allow it there (allow-rpcs, block-rpcs).".lstrip(),
                domain=name,
            ),
        )
    if answer.agent == "no-time":
        return (
            Finding(
                id="agent-not-asked",
                severity="info",
                reason="The time for asking guest agents was over before it was this guest's turn.",
                remedy="Mend the guests with the finding agent-silent, which took that time, or "
                "name fewer domains in one call of thinvirt.kvm.thin_info.",
                domain=name,
            ),
        )
    return ()
