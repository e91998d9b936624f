# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Have running guests trim their file systems, and measure what the host gained."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import time
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._discard import untrimmed
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import (
    agent,
    died,
    policy,
    xml,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import (
    Guest,
    Hypervisor,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    AgentError,
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._findings import Finding
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.extents import own_bytes

#: libvirtd works on so many requests of one connection at a time (max_client_requests in
#: libvirtd.conf); more threads would only wait there.
MAX_PARALLEL = 5
#: What a trim may leave behind without a finding.
UNTRIMMED_MIN_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True)
class DiskTrim:
    """Blocks of one disk on the host that no other file shares; None for block devices."""

    target: str
    path: str
    allocated_before_bytes: int | None
    allocated_after_bytes: int | None

    @property
    def freed_bytes(self) -> int | None:
        """Never negative: a guest that writes while it trims has not "freed" less than nothing."""
        if self.allocated_before_bytes is None or self.allocated_after_bytes is None:
            return None
        return max(0, self.allocated_before_bytes - self.allocated_after_bytes)

    def result(self) -> dict[str, t.Any]:
        return {**dataclasses.asdict(self), "freed_bytes": self.freed_bytes}


@dataclasses.dataclass
class Outcome:
    """One domain.

    :param status: ``trimmed``, ``would_trim`` (check mode), ``skipped`` or ``failed``.
    """

    guest: Guest
    status: str = "skipped"
    reason: str = ""
    guest_os: agent.GuestOs | None = None
    mounts: tuple[agent.MountTrim, ...] = ()
    disks: tuple[DiskTrim, ...] = ()
    untrimmed: tuple[untrimmed.Untrimmed, ...] = ()
    findings: tuple[Finding, ...] = ()
    seconds: float = 0.0
    error: ThinvirtError | None = None

    @property
    def freed_bytes(self) -> int:
        return sum(disk.freed_bytes or 0 for disk in self.disks)

    def line(self) -> str:
        """What became of the domain, in a line for people."""
        if self.error is not None:
            return f"{self.guest.name}: failed. {self.error}"
        if self.status == "trimmed":
            return f"{self.guest.name}: {self.freed_bytes / 2**20:.1f} MiB freed"
        return f"{self.guest.name}: {self.status.replace('_', ' ')}. {self.reason}".rstrip()

    def result(self) -> dict[str, t.Any]:
        """The domain's entry in the module's ``domains``."""
        entry: dict[str, t.Any] = {
            "name": self.guest.name,
            "uuid": self.guest.uuid,
            "status": self.status,
            "reason": self.reason,
            "guest_os": self.guest_os.result() if self.guest_os else None,
            "mounts": [mount.result() for mount in self.mounts],
            "disks": [disk.result() for disk in self.disks],
            "untrimmed": [one.result() for one in self.untrimmed],
            "findings": [finding.result() for finding in self.findings],
            "freed_bytes": self.freed_bytes,
            "seconds": round(self.seconds, 2),
        }
        if self.error is not None:
            entry["error"] = self.error.result()
        return entry


def freed_bytes(outcomes: t.Iterable[Outcome]) -> int:
    """What the host gained in all (pure).

    Domains that share a file and trim at the same time each measure the same gain: it counts once.
    """
    sums: dict[str, int] = {}
    spans: dict[str, tuple[int, int]] = {}
    for disk in (disk for outcome in outcomes for disk in outcome.disks):
        before, after = disk.allocated_before_bytes, disk.allocated_after_bytes
        if before is not None and after is not None:
            sums[disk.path] = sums.get(disk.path, 0) + max(0, before - after)
            most, least = spans.get(disk.path, (before, after))
            spans[disk.path] = max(most, before), min(least, after)
    gained = {path: max(0, most - least) for path, (most, least) in spans.items()}
    return sum(min(total, gained[path]) for path, total in sums.items())


def dropped_discards(live: xml.Domain) -> tuple[Finding, ...]:
    """A finding for each disk of a running domain whose discards the host drops (pure)."""
    found = (
        policy.discard_ignored(live.name, disk)
        for disk in live.disks
        if policy.is_thin_candidate(disk)
    )
    return tuple(finding for finding in found if finding is not None)


def refuse_useless(live: xml.Domain) -> None:
    """Refuse to trim a guest none of whose disks passes discards on (pure).

    It would free nothing and do harm: ext4 remembers what it has trimmed until it is
    mounted anew, and would not send these discards again once they are let through.
    """
    candidates = [disk for disk in live.disks if policy.is_thin_candidate(disk)]
    if not candidates:
        raise RefusedError(
            f"Refused: domain {live.name} has no writable disk on this host; "
            "the guest was not asked to trim.",
            remedy="Leave it out of domains.",
        )
    if len(dropped_discards(live)) == len(candidates):
        raise RefusedError(
            f"Refused: the host drops all discards of domain {live.name}, so a trim would free "
            "nothing and the guest would take it for done; the guest was not asked to trim.",
            remedy="Set discard with thinvirt.kvm.domain_discard and power the guest off and on.",
        )


def fail_if_all_failed(name: str, mounts: t.Sequence[agent.MountTrim]) -> None:
    """Raise AgentError if the guest could trim nothing (pure).

    The agent reports success all the same; that of Windows always does.
    """
    findings = agent.trim_findings(name, mounts)
    if findings and len(findings) == len(mounts):
        more = f" It says the like of {len(mounts) - 1} more." if len(mounts) > 1 else ""
        raise AgentError(
            f"Domain {name} trimmed nothing. {findings[0].reason}{more}",
            remedy=findings[0].remedy,
        )


def trim_all(
    hypervisor: Hypervisor,
    guests: t.Sequence[Guest],
    *,
    minimum_bytes: int,
    timeout: int,
    parallel: int,
    untrimmed_min_bytes: int = UNTRIMMED_MIN_BYTES,
    check_mode: bool,
) -> list[Outcome]:
    """Trim every running guest, so many at a time; the outcomes in the same order.

    Whatever goes wrong with one guest is in its outcome and does not touch the others.

    :param timeout: seconds for each guest.
    :param untrimmed_min_bytes: what a trim may leave behind without a finding.
    """

    def work(guest: Guest) -> Outcome:
        outcome = _trim(
            hypervisor,
            guest,
            minimum_bytes=minimum_bytes,
            timeout=timeout,
            check_mode=check_mode,
        )
        if outcome.status == "trimmed":
            outcome.untrimmed = _left_behind(outcome, min_bytes=untrimmed_min_bytes)
            outcome.findings += tuple(one.finding(guest.name) for one in outcome.untrimmed)
        return outcome

    with concurrent.futures.ThreadPoolExecutor(max_workers=min(parallel, MAX_PARALLEL)) as pool:
        return list(pool.map(work, guests))


def _trim(
    hypervisor: Hypervisor, guest: Guest, *, minimum_bytes: int, timeout: int, check_mode: bool
) -> Outcome:
    outcome = Outcome(guest)
    begin = time.monotonic()
    try:
        if not guest.is_active():
            outcome.reason = "The domain is shut off."
            return outcome
        live = xml.parse_domain(guest.live_xml())
        outcome.findings = dropped_discards(live)
        refuse_useless(live)
        agent.ping(guest)
        outcome.guest_os = agent.guest_os(guest)
        paths = _paths(hypervisor, live)
        before = {target: own_bytes(path) for target, path in paths.items()}
        try:
            if not check_mode:
                with died.kept_alive(guest, ran=True):
                    outcome.mounts = agent.fstrim(
                        guest, minimum_bytes=minimum_bytes, timeout=timeout
                    )
                outcome.findings += agent.trim_findings(guest.name, outcome.mounts)
                fail_if_all_failed(guest.name, outcome.mounts)
        finally:
            # a guest that ran out of time has given back what it has trimmed until then
            outcome.disks = tuple(
                DiskTrim(target, path, before[target], own_bytes(path))
                for target, path in paths.items()
            )
        outcome.status = "would_trim" if check_mode else "trimmed"
    except ThinvirtError as error:
        outcome.status, outcome.error = "failed", error
    finally:
        outcome.seconds = time.monotonic() - begin
    return outcome


def _left_behind(outcome: Outcome, *, min_bytes: int) -> tuple[untrimmed.Untrimmed, ...]:
    """What a trim should have freed and has not; nothing where the agent does not tell."""
    dropped = {finding.disk for finding in outcome.findings}
    try:
        held = {
            disk.target: untrimmed.Held(
                disk.allocated_after_bytes, outcome.guest.capacity_bytes(disk.target)
            )
            for disk in outcome.disks
            if disk.allocated_after_bytes is not None and disk.target not in dropped
        }
        answer = outcome.guest.agent("guest-get-fsinfo", {}, timeout=agent.PING_TIMEOUT)
        addresses = untrimmed.disk_addresses(outcome.guest.live_xml())
    except ThinvirtError:
        return ()
    return untrimmed.find(held, untrimmed.parse_fsinfo(answer), addresses, min_bytes=min_bytes)


def _paths(hypervisor: Hypervisor, live: xml.Domain) -> dict[str, str]:
    """Where each disk that the guest writes lies on this host, by target."""
    paths = {
        disk.target: hypervisor.disk_path(disk)
        for disk in live.disks
        if policy.is_thin_candidate(disk)
    }
    return {target: path for target, path in paths.items() if path}
