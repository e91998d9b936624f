# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which machine type a domain should have, what its own costs, and what a change does (pure)."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import guest_os, machine
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.xml import (
    Domain,
    parse_any,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._findings import Finding

#: What each family's newest type is called, whatever its version.
ALIASES = {"i440fx": "pc", "q35": "q35"}
_HOTPLUG_BY_ACPI = (6, 1)


@dataclasses.dataclass(frozen=True)
class Offer:
    """What the emulator of a domain offers.

    :param newest: of the domain's family, by its versioned name; empty if it has none.
    :param knows_own: it knows the type that the domain has.
    :param deprecated: it says that this type will go.
    """

    newest: str
    knows_own: bool
    deprecated: bool = False


@dataclasses.dataclass(frozen=True)
class Choice:
    """The type that a domain gets, its own if nothing is to be changed, and why."""

    machine: str
    reason: str


def machine_of_capabilities(text: str) -> str:
    """The versioned name of the machine that domain capabilities are about."""
    return parse_any(text).findtext("machine") or ""


def is_deprecated(capabilities: str, arch: str, name: str) -> bool:
    """Whether the host's capabilities call a machine type deprecated."""
    machines = parse_any(capabilities).findall(f"guest/arch[@name='{arch}']//machine")
    return any(each.get("deprecated") == "yes" for each in machines if each.text == name)


def choose(domain: Domain, offer: Offer, *, wanted: str = "") -> Choice:
    """Decide on the type: the newest of the family, or the one that is named.

    :raises RefusedError: the one that is named is of another family, or older.
    """
    if wanted:
        return _choose_named(domain, wanted)
    own, family = domain.machine, machine.family(domain.machine)
    older = machine.is_older(own, offer.newest)
    if not family:
        reason = f"Machines such as {own or 'this'} are left alone."
    elif not offer.newest:
        reason = f"This host offers no machine of the family {family}."
    elif offer.newest == own:
        reason = "It is the newest of its family."
    elif older is None and offer.knows_own:
        reason = f"Nobody can tell whether {own} is older than {offer.newest}."
    elif older is False:
        reason = f"It is not older than {offer.newest}, this host's newest."
    else:
        return Choice(offer.newest, f"{offer.newest} is the newest of its family.")
    return Choice(own, reason)


def _choose_named(domain: Domain, wanted: str) -> Choice:
    own, family = domain.machine, machine.family(domain.machine)
    if machine.family(wanted) != family or not family:
        raise RefusedError(
            f"Refused: {wanted} is another kind of machine than {own or 'none'}, which domain "
            f"{domain.name} has; nothing was changed.",
            remedy="Install the guest anew on it: its hardware would be quite another one.",
        )
    if machine.is_older(wanted, own):
        raise RefusedError(
            f"Refused: {wanted} is older than {own}, which domain {domain.name} has; nothing was "
            "changed.",
            remedy="Use state=restored to take a raise back.",
        )
    return Choice(wanted, "It has this type." if wanted == own else "It was asked for.")


def costs(domain: Domain, offer: Offer) -> tuple[Finding, ...]:
    """What the type that a domain has costs."""
    own, family = domain.machine, machine.family(domain.machine)
    blk = ", ".join(disk.target for disk in domain.disks if disk.bus == "virtio")
    found = []
    if not family:
        found.append(
            _finding(
                "machine-left-alone",
                "info",
                f"Machine type {own or 'none'} belongs to no family that is raised here.",
                "Raise it by hand (virsh edit) if it has to be.",
            )
        )
    if machine.virtio_blk_discards(own) is False:
        found.append(
            _finding(
                "machine-too-old",
                "error" if blk else "info",
                f"On machine type {own}, older than 4.0, virtio-blk cannot discard"
                + (f": space freed on {blk} never comes back." if blk else "."),
                _raise_or_move(own, offer, family),
            )
        )
    if offer.deprecated:
        found.append(
            _finding(
                "machine-deprecated",
                "warning",
                f"QEMU calls machine type {own} deprecated: a later version will not start it.",
                "Raise it with state=current.",
            )
        )
    if family and not offer.knows_own:
        found.append(
            _finding(
                "machine-unknown-here",
                "error",
                f"This host's QEMU does not know machine type {own}: the domain cannot start.",
                "Raise it with state=current.",
            )
        )
    return _of(domain, found)


def _raise_or_move(own: str, offer: Offer, family: str) -> str:
    if family and offer.newest and machine.virtio_blk_discards(offer.newest) is not False:
        return f"Raise it with state=current, to {offer.newest}; the disks can stay where they are."
    return (
        f"This host's newest of the family of {own} cannot either: move the disks to bus=scsi with "
        "thinvirt.kvm.domain_disk_bus."
    )


def consequences(domain: Domain, tree: t.Any, choice: Choice) -> tuple[Finding, ...]:
    """What to know before a domain's machine type changes."""
    if choice.machine == domain.machine:
        return ()
    found = []
    if guest_os.is_windows(tree):
        found.append(
            _finding(
                "windows-activation",
                "warning",
                "Windows sees another machine: it may install drivers at its first start, and may "
                "have to be activated again.",
                "Have the licence at hand. state=restored takes it back.",
            )
        )
    before, after = (machine.machine_version(name) for name in (domain.machine, choice.machine))
    if (
        machine.family(domain.machine) == "q35"
        and before is not None
        and after is not None
        and before < _HOTPLUG_BY_ACPI <= after
    ):
        found.append(
            _finding(
                "network-names",
                "warning",
                "From 6.1 on, q35 numbers its slots for ACPI, and Linux may call its network "
                "interfaces otherwise (ens3 for enp1s0).",
                "Look at the guest's network configuration, or have a console at hand.",
            )
        )
    return _of(domain, found)


def _finding(name: str, severity: str, reason: str, remedy: str) -> Finding:
    return Finding(id=name, severity=severity, reason=reason, remedy=remedy)


def _of(domain: Domain, found: t.Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(dataclasses.replace(each, domain=domain.name) for each in found)
