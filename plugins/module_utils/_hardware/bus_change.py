# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the domains, plan which disks get to another bus, and carry the plan out."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import policy, restart, xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import (
    Guest,
    Hypervisor,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.select import is_glob
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.turns import side_by_side
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.module_utils._findings import Finding
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware import (
    bus_trial,
    disk_bus,
    disk_bus_advice,
    reconfigure,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware.kept_xml import KeptXml
from ansible_collections.thinvirt.kvm.plugins.module_utils._plan import Change

_UNFIT = "its disks cannot be moved to another bus"
_TO_RECOVER = "A run that was killed has left the guest on its way to another bus."


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for.

    :param disks: targets or globs; empty for every disk that can be thin.
    :param state: ``present``, ``restored``, or ``recovered``, which only brings guests back that a
        killed run has left.
    :param bus: the one that is wanted, with ``present``.
    :param force: bring it back over changes that came after.
    :param power: ``keep`` refuses guests that run, ``cycle`` shuts them down and starts them again.
    :param shutdown_timeout: seconds for a guest to power off.
    :param boot_timeout: seconds for its agent to answer after the start.
    :param parallel: how many guests are off at the same time.
    """

    disks: tuple[str, ...] = ()
    state: str = "present"
    bus: str = ""
    state_dir: str = "/var/lib/thinvirt"
    force: bool = False
    power: str = "keep"
    shutdown_timeout: int = 300
    boot_timeout: int = 600
    parallel: int = 1


@dataclasses.dataclass
class Outcome:
    """One domain: what was decided, and what became of it.

    :param now: the configured XML, with secrets; never part of a result.
    :param after: the XML that is to be defined; empty if nothing is.
    :param chosen: the disks that were meant, by the targets that they have now.
    :param identical: whether a configuration that was brought back is printed byte for byte.
    :param unfinished: a killed run has left the guest on its way, and it is brought back first.
    :param active: the guest runs, and is shut down and started again.
    :param done: what was done to a guest that ran, or that a killed run had left.
    """

    guest: Guest
    store: KeptXml
    now: str = ""
    left: reconfigure.Left = dataclasses.field(default_factory=reconfigure.Left)
    moved: disk_bus.Moved | None = None
    after: str = ""
    chosen: tuple[xml.Disk, ...] = ()
    changes: tuple[Change, ...] = ()
    findings: tuple[Finding, ...] = ()
    old_xml: str = ""
    recovered: str = ""
    identical: bool | None = None
    unfinished: bool = False
    active: bool = False
    done: restart.Done = dataclasses.field(default_factory=restart.Done)
    defined: bool = False
    error: ThinvirtError | None = None

    @property
    def changed(self) -> bool:
        """What the plan says; once something went wrong, what was done until then."""
        done = self.defined or bool(self.done.actions)
        return done if self.error is not None else done or bool(self.after) or self.unfinished

    def result(self) -> dict[str, t.Any]:
        """The domain's entry in the module's ``domains``."""
        entry: dict[str, t.Any] = {"name": self.guest.name, "uuid": self.guest.uuid}
        entry["changed"] = self.changed
        entry["active"] = self.active
        entry["actions"] = list(self.done.actions)
        entry["downtime_seconds"] = self.done.downtime_seconds
        if self.error is not None:
            return {**entry, "error": self.error.result()}
        entry["disks"] = self._disks()
        entry["controllers_added"] = list(self.moved.controllers) if self.moved else []
        entry["boot_orders"] = list(self.moved.boot_orders) if self.moved else []
        entry["old_xml"] = self.old_xml
        entry["recovered"] = self.recovered
        entry["findings"] = [finding.result() for finding in self.findings]
        if self.identical is not None:
            entry["identical"] = self.identical
        return entry

    def _disks(self) -> list[dict[str, t.Any]]:
        moved = {disk.target_before: disk for disk in self.moved.disks} if self.moved else {}
        return [
            {
                **dataclasses.asdict(moved[disk.target]),
                "changed": True,
                "dropped": [dataclasses.asdict(each) for each in moved[disk.target].dropped],
                "carried": list(moved[disk.target].carried),
            }
            if disk.target in moved
            else {
                "target_before": disk.target,
                "target": disk.target,
                "bus_before": disk.bus,
                "bus": disk.bus,
                "place": "",
                "changed": False,
                "dropped": [],
                "carried": [],
            }
            for disk in self.chosen
        ]


def decide(hypervisor: Hypervisor, domains: t.Sequence[str], request: Request) -> list[Outcome]:
    """Read every chosen domain and plan; nothing is changed.

    A domain that cannot be planned carries its error, the others their plans.

    :raises ThinvirtError: a domain or disk that was named does not exist.
    """
    outcomes, read = [], []
    for guest in hypervisor.guests(domains):
        outcome = Outcome(guest, KeptXml(request.state_dir, guest.uuid, "disk_bus"))
        outcomes.append(outcome)
        try:
            read.append((outcome, _read(outcome)))
        except ThinvirtError as error:
            outcome.error = error
    if request.state == "present":
        named = [_current_names(outcome, domain, request.disks) for outcome, domain in read]
        found = {name for names in named for name, current in names.items() if current}
        policy.refuse_unknown_disks([], [name for name in request.disks if name not in found])
    for outcome, domain in read:
        try:
            _plan(outcome, domain, request)
        except ThinvirtError as error:
            outcome.after, outcome.changes, outcome.error = "", (), error
    return outcomes


def _read(outcome: Outcome) -> xml.Domain:
    """The domain as it is configured, and what was left of it.

    :raises RefusedError: another run is at work on it.
    """
    guest = outcome.guest
    outcome.now = guest.configured_xml(with_secrets=True)
    outcome.left = reconfigure.look(outcome.store, outcome.now)
    bus_trial.refuse_other_run(guest, outcome.left.record)
    domain = xml.parse_domain(outcome.now)
    forgotten = restart.is_forgotten(domain)
    outcome.unfinished = bus_trial.is_unfinished(outcome.left, forgotten=forgotten)
    return domain


def _plan(outcome: Outcome, domain: xml.Domain, request: Request) -> None:
    outcome.unfinished = outcome.unfinished and (
        request.power == "cycle" or request.state == "recovered"
    )
    outcome.active = request.power == "cycle" and outcome.guest.is_active()
    if outcome.unfinished:  # planned anew once that is ended
        outcome.recovered = _TO_RECOVER
        return
    if request.state == "present":
        names = _current_names(outcome, domain, request.disks)
        _plan_move(outcome, domain, request, [name for name in names.values() if name])
    elif request.state == "restored":
        _plan_restore(outcome, domain, request)
    else:
        return
    if outcome.after and outcome.active:
        bus_trial.refuse(outcome.guest, outcome.now, outcome.guest.live_xml())


def _current_names(
    outcome: Outcome, domain: xml.Domain, patterns: t.Sequence[str]
) -> dict[str, str]:
    """What each pattern means in a domain now: a disk that was moved goes by its old name too.

    So a play that names ``vda`` finds it again as ``sda`` in its second run.
    """
    record = outcome.left.record
    renamed = record.renamed if record is not None else {}
    names: dict[str, str] = {}
    for pattern in patterns:
        if is_glob(pattern) or domain.disk(pattern) is not None:
            names[pattern] = pattern
        else:
            current = renamed.get(pattern, "")
            names[pattern] = current if domain.disk(current) is not None else ""
    return names


def _plan_move(
    outcome: Outcome, domain: xml.Domain, request: Request, patterns: t.Sequence[str]
) -> None:
    if patterns or not request.disks:
        outcome.chosen = policy.choose_disks(domain, patterns)
    targets = [disk.target for disk in outcome.chosen]
    moved = disk_bus.move_disks(outcome.now, targets, request.bus)
    outcome.moved = moved
    _note_what_was_left(outcome)
    if not moved.disks:
        return
    reconfigure.refuse_unfit(outcome.guest, _UNFIT, may_run=outcome.active)
    outcome.after = moved.xml
    outcome.findings = disk_bus_advice.findings(moved)
    outcome.changes = (
        *_moves(domain, xml.parse_domain(moved.xml), _renamed(moved)),
        *(
            Change(f"{domain.name}/{disk.target_before}", each.setting, each.value, None)
            for disk in moved.disks
            for each in disk.dropped
        ),
        *(
            [Change(domain.name, "boot order of each device", None, list(moved.boot_orders))]
            if moved.boot_orders
            else []
        ),
    )


def _plan_restore(outcome: Outcome, domain: xml.Domain, request: Request) -> None:
    record = outcome.left.record
    _note_what_was_left(outcome)
    if record is None:
        return
    if not request.force:
        reconfigure.refuse_changed_since(outcome.guest, outcome.store, record, outcome.now)
    reconfigure.refuse_unfit(
        outcome.guest, "its old configuration cannot be brought back", may_run=outcome.active
    )
    outcome.after = outcome.store.old_xml(record)
    before = xml.parse_domain(outcome.after)
    back = {new: old for old, new in record.renamed.items()}
    outcome.changes = tuple(_moves(domain, before, back)) or (
        Change(domain.name, "configuration", "as it is", f"as in {record.file}"),
    )


def _note_what_was_left(outcome: Outcome) -> None:
    record = outcome.left.record
    if record is not None:
        outcome.old_xml = outcome.store.path(record)
    if outcome.left.killed:
        outcome.recovered = reconfigure.KILLED


def _renamed(moved: disk_bus.Moved) -> dict[str, str]:
    return {disk.target_before: disk.target for disk in moved.disks}


def _moves(
    before: xml.Domain, after: xml.Domain, renamed: t.Mapping[str, str]
) -> t.Iterator[Change]:
    """What differs between two configurations, of the disks that were moved and of controllers."""
    for old, new in renamed.items():
        was, will_be = before.disk(old), after.disk(new)
        if was is None or will_be is None:
            continue
        subject = f"{before.name}/{old}"
        for setting in ("target", "bus", "controller"):
            values = getattr(was, setting), getattr(will_be, setting)
            if values[0] != values[1]:
                yield Change(subject, setting, *values)
    controllers = [
        [f"{index} ({model})" for index, model in sorted(domain.scsi_models.items())]
        for domain in (before, after)
    ]
    if controllers[0] != controllers[1]:
        yield Change(before.name, "scsi controllers", *controllers)


def carry_out(hypervisor: Hypervisor, outcomes: t.Sequence[Outcome], request: Request) -> None:
    """Apply the plans; guests that have to be restarted side by side, as far as that is allowed.

    Errors are kept in the outcomes.

    :raises StoppedError: a signal asked to end.
    """
    place = frozenset({0})  # one for all: `parallel` is for the hypervisor
    side_by_side(
        lambda outcome: _carry_out(hypervisor, outcome, request),
        [(outcome, place) for outcome in outcomes],
        each=request.parallel,
    )


def _carry_out(hypervisor: Hypervisor, outcome: Outcome, request: Request) -> None:
    """Apply one domain's plan."""
    if outcome.error is not None:
        return
    try:
        if outcome.unfinished:
            recovered = _trial(hypervisor, outcome, request).recover(outcome.left)
            outcome.unfinished = False
            outcome.done.actions.append("recovered")
            _plan(outcome, _read(outcome), request)
            outcome.recovered = recovered
        if outcome.after and outcome.active:
            _try(hypervisor, outcome, request)
        elif request.state != "recovered":
            _reconfigure(hypervisor, outcome)
    except ThinvirtError as error:
        outcome.error = error


def _trial(hypervisor: Hypervisor, outcome: Outcome, request: Request) -> bus_trial.Trial:
    return bus_trial.Trial(
        hypervisor=hypervisor,
        guest=outcome.guest,
        store=outcome.store,
        shutdown_timeout=request.shutdown_timeout,
        boot_timeout=request.boot_timeout,
        done=outcome.done,
    )


def _try(hypervisor: Hypervisor, outcome: Outcome, request: Request) -> None:
    """Apply the plan of a guest that runs."""
    trial = _trial(hypervisor, outcome, request)
    if outcome.moved is not None:
        targets = [disk.target_before for disk in outcome.moved.disks]
        record = trial.move(
            now=outcome.now,
            left=outcome.left,
            make=lambda text: disk_bus.move_disks(text, targets, request.bus).xml,
            renamed=_renamed(outcome.moved),
        )
        outcome.old_xml = outcome.store.path(record)
    elif outcome.left.record is not None:
        outcome.identical = trial.restore(now=outcome.now, record=outcome.left.record)
        outcome.old_xml = ""
    outcome.defined = True


def _reconfigure(hypervisor: Hypervisor, outcome: Outcome) -> None:
    """Apply the plan of a domain that is off."""
    left = outcome.left
    if not (outcome.after or left.stale or left.killed):
        return
    with outcome.store.locked():
        reconfigure.settle(outcome.store, left, outcome.now)
        if not outcome.after:
            return
        if outcome.moved is not None:
            record = reconfigure.change(
                hypervisor,
                outcome.guest,
                outcome.store,
                before=outcome.now,
                after=outcome.after,
                renamed=_renamed(outcome.moved),
            )
            outcome.old_xml = outcome.store.path(record)
        elif left.record is not None:
            outcome.identical = reconfigure.restore(
                hypervisor, outcome.guest, outcome.store, left.record, now=outcome.now
            )
            outcome.old_xml = ""
        outcome.defined = True
