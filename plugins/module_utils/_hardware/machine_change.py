# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the domains, plan which machine types are raised, and carry the plan out."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import machine, xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import (
    Guest,
    Hypervisor,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    HypervisorError,
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._findings import Finding
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware import (
    machine_types,
    machine_xml,
    rebuild,
    reconfigure,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware.kept_xml import KeptXml
from ansible_collections.thinvirt.kvm.plugins.module_utils._plan import Change


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for.

    :param state: ``present`` (only tell), ``current``, ``restored`` or ``rebuilt``.
    :param machine: the type that is wanted; empty for the newest of the family.
    :param force: restore over changes that came after.
    """

    state: str = "present"
    machine: str = ""
    state_dir: str = "/var/lib/thinvirt"
    force: bool = False
    rebuild: rebuild.Request | None = None


@dataclasses.dataclass
class Outcome:
    """One domain: what was decided, and what became of it.

    :param now: the configured XML, with secrets; never part of a result.
    :param after: the XML that is to be defined; empty if nothing is.
    :param readdressed: the devices that get new PCI addresses.
    """

    guest: Guest
    store: KeptXml
    now: str = ""
    left: reconfigure.Left = dataclasses.field(default_factory=reconfigure.Left)
    domain: xml.Domain | None = None
    offer: machine_types.Offer | None = None
    choice: machine_types.Choice | None = None
    after: str = ""
    readdressed: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    findings: tuple[Finding, ...] = ()
    old_xml: str = ""
    recovered: str = ""
    identical: bool | None = None
    rebuilding: rebuild.Rebuild | None = None
    defined: bool = False
    error: ThinvirtError | None = None

    @property
    def changed(self) -> bool:
        """What the plan says; once something went wrong, what was done until then."""
        if self.error is not None:
            return self.defined
        return bool(self.after) or (self.rebuilding is not None and self.rebuilding.changed)

    def result(self) -> dict[str, t.Any]:
        """The domain's entry in the module's ``domains``."""
        entry: dict[str, t.Any] = {
            "name": self.guest.name,
            "uuid": self.guest.uuid,
            "changed": self.changed,
        }
        if self.error is not None:
            return {**entry, "error": self.error.result()}
        own = self.domain.machine if self.domain is not None else ""
        version = machine.machine_version(own)
        entry.update(
            machine_before=own,
            machine=self.choice.machine if self.choice is not None else own,
            reason=self.choice.reason if self.choice is not None else "",
            family=machine.family(own),
            qemu_version=".".join(map(str, version)) if version else "",
            newest=self.offer.newest if self.offer is not None else "",
            addresses_dropped=bool(self.readdressed),
            readdressed=list(self.readdressed),
            old_xml=self.old_xml,
            recovered=self.recovered,
            findings=[finding.result() for finding in self.findings],
        )
        if self.identical is not None:
            entry["identical"] = self.identical
        if self.rebuilding is not None:
            entry["rebuilt"] = self.rebuilding.result()
        return entry


def decide(hypervisor: Hypervisor, domains: t.Sequence[str], request: Request) -> list[Outcome]:
    """Read every chosen domain and plan; nothing is changed.

    A domain that cannot be planned carries its error, the others their plans.

    :raises ThinvirtError: a domain that was named does not exist, or several are to be rebuilt.
    """
    guests = hypervisor.guests(domains)
    if request.state == "rebuilt" and len(guests) != 1:
        raise RefusedError(
            f"One domain is rebuilt at a time, and domains means {len(guests)}; nothing was "
            "changed.",
            remedy="Name one domain.",
        )
    capabilities = hypervisor.capabilities()
    outcomes = []
    for guest in guests:
        outcome = Outcome(guest, KeptXml(request.state_dir, guest.uuid, "machine"))
        outcomes.append(outcome)
        try:
            outcome.now = guest.configured_xml(with_secrets=True)
            outcome.left = reconfigure.look(outcome.store, outcome.now)
            _plan(hypervisor, outcome, request, capabilities=capabilities)
        except ThinvirtError as error:
            outcome.after, outcome.changes, outcome.error = "", (), error
    return outcomes


def _offer(
    hypervisor: Hypervisor, domain: xml.Domain, *, emulator: str, capabilities: str
) -> machine_types.Offer:

    def named(name: str) -> str:
        try:
            text = hypervisor.domain_capabilities(
                emulator=emulator, arch=domain.arch, machine=name, kind=domain.kind
            )
        except HypervisorError:
            return ""
        return machine_types.machine_of_capabilities(text)

    alias = machine_types.ALIASES.get(machine.family(domain.machine))
    newest = named(alias) if alias else ""
    return machine_types.Offer(
        newest=newest,
        # without an answer about the family, nobody can tell
        knows_own=not newest or bool(named(domain.machine)),
        deprecated=machine_types.is_deprecated(capabilities, domain.arch, domain.machine),
    )


def _plan(hypervisor: Hypervisor, outcome: Outcome, request: Request, *, capabilities: str) -> None:
    tree = xml.parse_tree(outcome.now)
    domain = outcome.domain = xml.parse_domain(outcome.now)
    emulator = tree.findtext("devices/emulator") or ""
    offer = _offer(hypervisor, domain, emulator=emulator, capabilities=capabilities)
    outcome.offer = offer
    record = outcome.left.record
    if record is not None:
        outcome.old_xml = outcome.store.path(record)
    if outcome.left.killed:
        outcome.recovered = reconfigure.KILLED
    outcome.findings = machine_types.costs(domain, offer)
    if request.state == "restored":
        _plan_restore(outcome, domain, request)
    if request.state not in ("current", "rebuilt"):
        return
    choice = machine_types.choose(domain, offer, wanted=request.machine)
    if request.state == "rebuilt" and request.rebuild is not None:
        outcome.choice = choice
        outcome.rebuilding = rebuild.plan(
            hypervisor, outcome.guest, outcome.now, request.rebuild, machine=choice.machine
        )
        outcome.changes = outcome.rebuilding.changes()
        outcome.findings += outcome.rebuilding.findings
        return
    outcome.choice = choice
    if choice.machine == domain.machine:
        return
    reconfigure.refuse_unfit(outcome.guest, "its machine type cannot be changed")
    outcome.findings += machine_types.consequences(domain, tree, choice)
    _try(hypervisor, outcome, choice.machine)
    outcome.changes = (
        Change(domain.name, "machine", domain.machine, choice.machine),
        *(
            Change(domain.name, f"PCI address of {device}", "as it is", "chosen anew by libvirt")
            for device in outcome.readdressed
        ),
    )


def _try(hypervisor: Hypervisor, outcome: Outcome, wanted: str) -> None:
    """Keep the addresses if libvirt takes the new type with them."""
    outcome.after = machine_xml.with_machine(outcome.now, wanted)
    complaint = hypervisor.refusal(outcome.after)
    if not complaint or hypervisor.refusal(outcome.now):
        return  # a complaint that the old type gives rise to as well says nothing about the new one
    found = machine_xml.with_fewest_dropped(outcome.now, wanted, refusal=hypervisor.refusal)
    if found is None:
        raise RefusedError(
            f"Refused: libvirt could not start domain {outcome.guest.name} with machine type "
            f"{wanted}: {complaint}; nothing was changed.",
            remedy="Name another type with machine.",
        )
    outcome.after, outcome.readdressed = found.xml, found.devices


def _plan_restore(outcome: Outcome, domain: xml.Domain, request: Request) -> None:
    record = outcome.left.record
    if record is None:
        return
    if not request.force:
        reconfigure.refuse_changed_since(outcome.guest, outcome.store, record, outcome.now)
    reconfigure.refuse_unfit(outcome.guest, "its old configuration cannot be brought back")
    outcome.after = outcome.store.old_xml(record)
    before = xml.parse_domain(outcome.after).machine
    outcome.choice = machine_types.Choice(before, "It had this type before.")
    outcome.changes = (Change(domain.name, "machine", domain.machine, before),)


def carry_out(hypervisor: Hypervisor, outcome: Outcome, request: Request) -> None:
    """Apply one domain's plan; its error, if any, is kept in the outcome."""
    left = outcome.left
    if outcome.error is not None:
        return
    try:
        if outcome.rebuilding is not None:
            rebuild.carry_out(hypervisor, outcome.rebuilding)
            outcome.defined = outcome.rebuilding.changed
        elif outcome.after or left.stale or left.killed:
            with outcome.store.locked():
                reconfigure.settle(outcome.store, left, outcome.now)
                if outcome.after:
                    _apply(hypervisor, outcome, request)
    except ThinvirtError as error:
        outcome.error = error


def _apply(hypervisor: Hypervisor, outcome: Outcome, request: Request) -> None:
    record = outcome.left.record
    if request.state == "restored" and record is not None:
        outcome.identical = reconfigure.restore(
            hypervisor, outcome.guest, outcome.store, record, now=outcome.now
        )
        outcome.old_xml = ""
    else:
        record = reconfigure.change(
            hypervisor,
            outcome.guest,
            outcome.store,
            before=outcome.now,
            after=outcome.after,
            renamed={},
        )
        outcome.old_xml = outcome.store.path(record)
    outcome.defined = True
