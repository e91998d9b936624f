# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the domains, plan which disks get to another bus, and carry the plan out."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import (
    disk_bus,
    disk_bus_advice,
    policy,
    reconfigure,
    xml,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import (
    Guest,
    Hypervisor,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.kept_xml import KeptXml
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.select import is_glob
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.module_utils._findings import Finding
from ansible_collections.thinvirt.kvm.plugins.module_utils._plan import Change
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import StoppedError

_UNFIT = "its disks cannot be moved to another bus"


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for.

    :param disks: targets or globs; empty for every disk that can be thin.
    :param bus: empty to bring back what was there before (``state: restored``).
    :param force: bring it back over changes that came after.
    """

    disks: tuple[str, ...] = ()
    bus: str = ""
    state_dir: str = "/var/lib/thinvirt"
    force: bool = False


@dataclasses.dataclass
class Outcome:
    """One domain: what was decided, and what became of it.

    :param now: the configured XML, with secrets; never part of a result.
    :param after: the XML that is to be defined; empty if nothing is.
    :param chosen: the disks that were meant, by the targets that they have now.
    :param identical: whether a configuration that was brought back is printed byte for byte.
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
    defined: bool = False
    error: ThinvirtError | None = None

    @property
    def changed(self) -> bool:
        """What the plan says; once something went wrong, what was done until then."""
        return self.defined if self.error is not None else bool(self.after)

    def result(self) -> dict[str, t.Any]:
        """The domain's entry in the module's ``domains``."""
        entry: dict[str, t.Any] = {"name": self.guest.name, "uuid": self.guest.uuid}
        if self.error is not None:
            return {**entry, "changed": self.changed, "error": self.error.result()}
        entry["changed"] = self.changed
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
            outcome.now = guest.configured_xml(with_secrets=True)
            outcome.left = reconfigure.look(outcome.store, outcome.now)
            read.append((outcome, xml.parse_domain(outcome.now)))
        except ThinvirtError as error:
            outcome.error = error
    if request.bus:
        named = {
            id(outcome): _current_names(outcome, domain, request.disks) for outcome, domain in read
        }
        found = {name for names in named.values() for name, current in names.items() if current}
        policy.refuse_unknown_disks([], [name for name in request.disks if name not in found])
    for outcome, domain in read:
        try:
            if request.bus:
                patterns = [name for name in named[id(outcome)].values() if name]
                _plan_move(outcome, domain, request, patterns)
            else:
                _plan_restore(outcome, domain, request)
        except ThinvirtError as error:
            outcome.after, outcome.changes, outcome.error = "", (), error
    return outcomes


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
    reconfigure.refuse_unfit(outcome.guest, _UNFIT)
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
    reconfigure.refuse_unfit(outcome.guest, "its old configuration cannot be brought back")
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


def carry_out(hypervisor: Hypervisor, outcome: Outcome, request: Request) -> None:
    """Apply one domain's plan; its error, if any, is kept in the outcome."""
    left = outcome.left
    if outcome.error is not None or not (outcome.after or left.stale or left.killed):
        return
    try:
        with outcome.store.locked():
            reconfigure.settle(outcome.store, left, outcome.now)
            if not outcome.after:
                return
            if request.bus and outcome.moved is not None:
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
    except StoppedError:
        raise
    except ThinvirtError as error:
        outcome.error = error
