# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Give a domain another machine type, in its XML (pure)."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.xml import (
    parse_tree,
    remove_child,
    serialize,
)

_ADDRESS = "address[@type='pci']"


@dataclasses.dataclass(frozen=True)
class Readdressed:
    """A domain in which some devices are to get new PCI addresses.

    :param devices: those, for people.
    """

    xml: str
    devices: tuple[str, ...]


def with_machine(text: str, machine: str) -> str:
    """The XML with this machine type, all else as it was."""
    return _without_addresses(text, machine, ())


def with_fewest_dropped(
    text: str, machine: str, *, refusal: t.Callable[[str], str]
) -> Readdressed | None:
    """The XML with this machine type, without the PCI addresses that are in its way.

    A guest knows its network cards and disks by their addresses, so each that may stay does.
    Those of devices of the host, below ``<source>``, stay always.

    :param refusal: why a domain could not be started; empty if it could.
    :returns: None if it is refused without any address, too.
    """
    devices = parse_tree(text).find("devices")
    # What others hang on comes first, or its place may be taken when its turn comes.
    addressed = sorted(
        (n for n, device in enumerate(devices) if device.find(_ADDRESS) is not None),
        key=lambda n: devices[n].tag != "controller",
    )
    dropped = set(addressed)
    if refusal(_without_addresses(text, machine, dropped)):
        return None
    for number in addressed:
        if not refusal(_without_addresses(text, machine, dropped - {number})):
            dropped.discard(number)
    return Readdressed(
        _without_addresses(text, machine, dropped),
        tuple(_label(devices[number]) for number in sorted(dropped)),
    )


def _without_addresses(text: str, machine: str, numbers: t.Collection[int]) -> str:
    tree = parse_tree(text)
    tree.find("os/type").set("machine", machine)
    for number, device in enumerate(tree.find("devices")):
        for address in device.findall(_ADDRESS) if number in numbers else ():
            remove_child(device, address)
    return serialize(tree)


def _label(device: t.Any) -> str:
    """A device by what tells it from others of its kind, such as ``disk vda``."""
    target, mac, address = (device.find(tag) for tag in ("target", "mac", "address"))
    name = (
        (device.get("type", "") + device.get("index", "") if device.tag == "controller" else "")
        or (target is not None and target.get("dev"))
        or (mac is not None and mac.get("address"))
        or (address is not None and f"at slot {address.get('slot')} of bus {address.get('bus')}")
    )
    return f"{device.tag} {name}"
