# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the domains, plan their discard settings, and carry the plan out."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._discard import savable, save_restore
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import (
    died,
    policy,
    redefine,
    restart,
    startable,
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
from ansible_collections.thinvirt.kvm.plugins.module_utils._plan import Change
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import typed

#: Ways in which settings become effective on running guests.
APPLY = ("config", "save_restore", "power_cycle")
RECOVERED = "recovered"
CONFIGURED = "configured"
_APPLY_ACTIONS = {
    "save_restore": ["saved", "restored"],
    "power_cycle": ["shut_down", "started"],
}


@dataclasses.dataclass
class Outcome:
    """One domain: what was decided, and what became of it.

    :param configured_xml: with secrets; never part of a result.
    :param error: why this domain was left as it is, or what went wrong.
    :param forgotten: a run that was killed has left it shut down, or a note that it may be.
    :param apply: how the settings become effective if it runs; see the module.
    :param old: settings of the running disks that ``save_restore`` would change, by target.
    :param new: what they would become.
    :param done: what was carried out; None if nothing was to be, as in check mode.
    """

    guest: Guest
    apply: str
    configured_xml: str = ""
    plan: policy.DomainPlan | None = None
    agent_connected: bool = False
    running: bool = False
    error: ThinvirtError | None = None
    forgotten: bool = False
    old: dict[str, xml.DiskSettings] = dataclasses.field(default_factory=dict)
    new: dict[str, xml.DiskSettings] = dataclasses.field(default_factory=dict)
    done: restart.Done | None = None

    @property
    def applies(self) -> bool:
        """Whether the running guest gets a new QEMU."""
        return self.apply != "config" and self.plan is not None and self.plan.restart_required

    @property
    def actions(self) -> list[str]:
        """What was done, or what a run would do."""
        if self.done is not None:
            return self.done.actions
        if self.error is not None or self.plan is None:
            return []
        actions = [RECOVERED] if self.forgotten else []
        actions += [CONFIGURED] if self.plan.changes() else []
        return actions + (_APPLY_ACTIONS[self.apply] if self.applies else [])

    @property
    def changed(self) -> bool:
        return bool(self.actions)

    @property
    def clock_is_behind(self) -> bool:
        return self.done is not None and self.done.clock_set is False

    def changes(self) -> list[Change]:
        """What was, or would be, changed in its configuration."""
        return self.plan.changes() if self.plan is not None and CONFIGURED in self.actions else []

    def result(self) -> dict[str, t.Any]:
        """The domain's entry in the module's ``domains``."""
        entry: dict[str, t.Any] = {
            "name": self.guest.name,
            "uuid": self.guest.uuid,
            "changed": self.changed,
            "actions": self.actions,
        }
        if self.plan is not None:
            applied = self._applied()
            entry["restart_required"] = self.plan.restart_required and not applied
            entry["disks"] = [_disk_result(disk, applied=applied) for disk in self.plan.disks]
        if self.done is not None:
            for name in ("downtime_seconds", "pause_seconds"):
                seconds = getattr(self.done, name)
                if seconds is not None:
                    entry[name] = round(seconds, 1)
            if self.done.clock_set is not None:
                entry["clock_set"] = self.done.clock_set
        if self.error is not None:
            entry["error"] = self.error.result()
        return entry

    def _applied(self) -> bool:
        """Whether the running guest has its new settings since we took it in hand."""
        if self.done is None or not self.applies:
            return False
        if self.apply == "power_cycle":
            return self.done.actions[-1:] == ["started"]
        # An error afterwards tells that it was restored with its old ones.
        return self.error is None and "restored" in self.done.actions


def _disk_result(plan: policy.DiskPlan, *, applied: bool) -> dict[str, t.Any]:
    live = plan.wanted_live if applied else plan.live
    return {
        "target": plan.disk.target,
        "bus": plan.disk.bus,
        "changed": bool(plan.changes()),
        "restart_required": plan.restart_required and not applied,
        "before": dataclasses.asdict(plan.disk.settings),
        "after": dataclasses.asdict(plan.wanted),
        "live": dataclasses.asdict(live) if live is not None else None,
    }


@dataclasses.dataclass(frozen=True)
class Setter:
    """How the discard settings of a host's domains are set.

    :param disks: targets or globs; empty for every disk that can be thin.
    :param apply: ``config``, ``save_restore`` or ``power_cycle``.
    :param timeout: seconds for a guest to power off, and again to come back.
    """

    hypervisor: Hypervisor
    disks: t.Sequence[str]
    wanted: policy.Wanted
    apply: str
    timeout: int

    def decide(self, domains: t.Sequence[str]) -> list[Outcome]:
        """Read every chosen domain and plan; nothing is changed.

        A domain that cannot be planned carries its error, the others their plans.

        :raises ThinvirtError: a domain or disk that was named does not exist.
        """
        outcomes, read = [], []
        for guest in self.hypervisor.guests(domains):
            outcome = Outcome(guest, self.apply)
            outcomes.append(outcome)
            try:
                outcome.configured_xml = guest.configured_xml(with_secrets=True)
                read.append((outcome, xml.parse_domain(outcome.configured_xml)))
            except ThinvirtError as error:
                outcome.error = error
        policy.refuse_unknown_disks([configured for _outcome, configured in read], self.disks)
        for outcome, configured in read:
            try:
                self._plan(outcome, configured)
            except ThinvirtError as error:
                outcome.plan, outcome.error = None, error
        return outcomes

    def _plan(self, outcome: Outcome, configured: xml.Domain) -> None:
        guest = outcome.guest
        live_xml = guest.live_xml() if guest.is_active() else ""
        live = xml.parse_domain(live_xml) if live_xml else None
        outcome.forgotten = restart.is_forgotten(configured)
        plan = policy.plan_discard(
            configured,
            live,
            wanted=self.wanted,
            disks=self.disks,
            versions=self.hypervisor.versions(),
        )
        outcome.plan = plan
        outcome.agent_connected = live is not None and live.agent_connected
        if plan.changes() or plan.restart_required:
            _refuse_transient(guest)
        if not outcome.applies or live is None:
            return
        if self.apply == "power_cycle":
            restart.refuse_no_return(guest, configured, live)
            startable.refuse(guest, outcome.configured_xml)
            return
        outcome.new = savable.settings_to_apply(plan, live)
        outcome.old = {
            disk.target: disk.settings for disk in live.disks if disk.target in outcome.new
        }
        if not outcome.forgotten:  # what the killed run has left is cleared away first
            self._refuse_unsavable(outcome, live, live_xml)

    def _refuse_unsavable(self, outcome: Outcome, live: xml.Domain, live_xml: str) -> None:
        save_restore.refuse(self.hypervisor, outcome.guest, live, live_xml)
        outcome.running = outcome.guest.state().running

    def carry_out(self, outcomes: t.Sequence[Outcome]) -> None:
        """Apply the plans, one domain after the other; errors are kept in the outcomes.

        :raises StoppedError: a signal asked to end; the outcomes tell what was done until then.
        """
        for outcome in outcomes:
            outcome.done = restart.Done()  # nothing yet: a signal may end this before its turn
        for outcome in outcomes:
            self._carry_out(outcome)

    def _carry_out(self, outcome: Outcome) -> None:
        done = outcome.done
        if outcome.plan is None or outcome.error is not None or done is None:
            return
        try:
            if outcome.forgotten:
                self._recover(outcome, done)
            if outcome.applies and self.apply == "power_cycle":  # hours may have passed
                startable.refuse(outcome.guest, outcome.configured_xml)
            self._configure(outcome, outcome.plan, done)
            if outcome.applies:
                with died.kept_alive(outcome.guest, ran=True):
                    self._apply(outcome, done)
        except ThinvirtError as error:
            outcome.error = error

    def _recover(self, outcome: Outcome, done: restart.Done) -> None:
        """End what a killed run has left, and plan anew for the guest as it is then."""
        guest = outcome.guest
        restart.start_forgotten(guest, timeout=self.timeout)
        done.actions.append(RECOVERED)
        outcome.configured_xml = guest.configured_xml(with_secrets=True)
        self._plan(outcome, xml.parse_domain(outcome.configured_xml))

    def _configure(self, outcome: Outcome, plan: policy.DomainPlan, done: restart.Done) -> None:
        if not plan.changes():
            return
        before = outcome.configured_xml
        after = xml.with_settings(before, plan.settings())
        redefine.redefine(
            self.hypervisor,
            outcome.guest,
            before=before,
            after=after,
            is_as_wanted=lambda text: _is_as_wanted(text, after, plan),
        )
        done.actions.append(CONFIGURED)

    def _apply(self, outcome: Outcome, done: restart.Done) -> None:
        guest = outcome.guest
        if self.apply == "power_cycle":
            restart.power_cycle(
                guest, timeout=self.timeout, expect_agent=outcome.agent_connected, done=done
            )
            return
        try:
            # The guests before this one, and whatever else went on, have changed the host.
            live_xml = guest.live_xml()
            self._refuse_unsavable(outcome, xml.parse_domain(live_xml), live_xml)
            save_restore.save_and_restore(
                self.hypervisor, guest, settings=outcome.new, old=outcome.old, done=done
            )
        except RefusedError:
            self._put_back(outcome, done.actions)
            raise
        finally:
            if done.pause_seconds is not None and outcome.running:
                done.clock_set = outcome.agent_connected and save_restore.set_clock(guest)

    def _put_back(self, outcome: Outcome, actions: list[str]) -> None:
        """A refused guest has nothing changed, its configuration included."""
        if CONFIGURED in actions:
            self.hypervisor.define(outcome.configured_xml)
            actions.remove(CONFIGURED)


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
            remedy=f"Make it persistent first (virsh dumpxml {typed(guest.name)}, then virsh "
            "define).",
        )
