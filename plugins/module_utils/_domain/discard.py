# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the domains, plan their discard settings, and carry the plan out."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import (
    policy,
    redefine,
    restart,
    xml,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import (
    Guest,
    Hypervisor,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import StoppedError


@dataclasses.dataclass
class Outcome:
    """One domain: what was decided, and what became of it.

    :param configured_xml: with secrets; never part of a result.
    :param error: why this domain was left as it is, or what went wrong.
    :param defined: its configuration has been replaced.
    :param forgotten: a run that was killed has left it shut down.
    :param downtime_seconds: how long the guest was off, None if it was not restarted.
    """

    guest: Guest
    configured_xml: str
    plan: policy.DomainPlan | None = None
    agent_connected: bool = False
    error: ThinvirtError | None = None
    defined: bool = False
    forgotten: bool = False
    downtime_seconds: float | None = None

    def cycles(self, apply: str) -> bool:
        """Whether the running guest is to be turned off and on again."""
        return apply == "power_cycle" and self.plan is not None and self.plan.restart_required

    def changed(self, apply: str) -> bool:
        """What the plan says; once something went wrong, what was done until then."""
        if self.error is not None:
            return self.defined
        return self.plan is not None and (
            self.forgotten or bool(self.plan.changes()) or self.cycles(apply)
        )

    def result(self, apply: str) -> dict[str, t.Any]:
        """The domain's entry in the module's ``domains``."""
        entry: dict[str, t.Any] = {"name": self.guest.name, "uuid": self.guest.uuid}
        if self.plan is not None:
            done = self.downtime_seconds is not None
            entry["changed"] = self.changed(apply)
            entry["restart_required"] = self.plan.restart_required and not done
            entry["disks"] = [_disk_result(disk, restarted=done) for disk in self.plan.disks]
        if self.downtime_seconds is not None:
            entry["downtime_seconds"] = round(self.downtime_seconds, 1)
        if self.error is not None:
            entry["error"] = self.error.result()
        return entry


def _disk_result(plan: policy.DiskPlan, *, restarted: bool) -> dict[str, t.Any]:
    live = plan.wanted if restarted and plan.live is not None else plan.live
    return {
        "target": plan.disk.target,
        "bus": plan.disk.bus,
        "changed": bool(plan.changes()),
        "restart_required": plan.restart_required and not restarted,
        "before": dataclasses.asdict(plan.disk.settings),
        "after": dataclasses.asdict(plan.wanted),
        "live": dataclasses.asdict(live) if live is not None else None,
    }


def decide(
    hypervisor: Hypervisor,
    *,
    domains: t.Sequence[str],
    disks: t.Sequence[str],
    wanted: policy.Wanted,
    apply: str,
) -> list[Outcome]:
    """Read every chosen domain and plan; nothing is changed.

    A domain that cannot be planned carries its error, the others their plans.

    :raises ThinvirtError: a domain or disk that was named does not exist.
    """
    versions = hypervisor.versions()
    outcomes, read = [], []
    for guest in hypervisor.guests(domains):
        try:
            outcome = Outcome(guest, guest.configured_xml(with_secrets=True))
            configured = xml.parse_domain(outcome.configured_xml)
            live = xml.parse_domain(guest.live_xml()) if guest.is_active() else None
            read.append((outcome, configured, live))
        except ThinvirtError as error:
            outcome = Outcome(guest, "", error=error)
        outcomes.append(outcome)
    policy.refuse_unknown_disks([configured for _outcome, configured, _live in read], disks)
    for outcome, configured, live in read:
        try:
            plan = policy.plan_discard(
                configured, live, wanted=wanted, disks=disks, versions=versions
            )
            outcome.forgotten = restart.is_forgotten(configured)
            outcome.plan = plan
            outcome.agent_connected = live is not None and live.agent_connected
            if plan.changes() or plan.restart_required:
                _refuse_transient(outcome.guest)
            if outcome.cycles(apply) and live is not None:
                restart.refuse_no_return(outcome.guest, configured, live)
        except ThinvirtError as error:
            outcome.plan, outcome.error = None, error
    return outcomes


def carry_out(
    hypervisor: Hypervisor, outcome: Outcome, *, apply: str, timeout: int
) -> ThinvirtError | None:
    """Apply one domain's plan; its error, if any, is kept in the outcome and returned."""
    plan = outcome.plan
    if plan is None or outcome.error is not None:
        return outcome.error
    before = outcome.configured_xml
    try:
        if plan.changes():
            after = xml.with_settings(before, plan.settings())
            redefine.redefine(
                hypervisor,
                outcome.guest,
                before=before,
                after=after,
                is_as_wanted=lambda text: _is_as_wanted(text, after, plan),
            )
            outcome.defined = True
        if outcome.forgotten:
            restart.start_forgotten(outcome.guest)
        if outcome.cycles(apply):
            outcome.downtime_seconds = restart.power_cycle(
                outcome.guest, timeout=timeout, expect_agent=outcome.agent_connected
            )
    except StoppedError:
        raise
    except ThinvirtError as error:
        outcome.error = error
    return outcome.error


def _is_as_wanted(text: str, given: str, plan: policy.DomainPlan) -> bool:
    """libvirt kept the settings, and everything else as it was given."""
    domain = xml.parse_domain(text)
    kept = {disk.target: disk.settings for disk in domain.disks}
    return (
        domain.uuid == plan.uuid
        and all(kept.get(target) == settings for target, settings in plan.settings().items())
        and xml.without_settings(text) == xml.without_settings(given)
    )


def _refuse_transient(guest: Guest) -> None:
    if not guest.is_persistent():
        raise RefusedError(
            f"Refused: domain {guest.name} is transient, it has no configuration that could be "
            "changed; nothing was changed.",
            remedy=f"Make it persistent first (virsh dumpxml {guest.name}, then virsh define).",
        )
