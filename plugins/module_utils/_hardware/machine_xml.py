# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Give a domain another machine type, in its XML (pure)."""

from __future__ import annotations

import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.xml import (
    parse_tree,
    remove_child,
    serialize,
)


def with_machine(text: str, machine: str, *, drop_addresses: bool = False) -> str:
    """The XML with this machine type, all else as it was.

    :param drop_addresses: take out the PCI addresses that the guest sees, so that libvirt gives
        new ones; those of devices of the host, below ``<source>``, stay.
    """
    tree = parse_tree(text)
    tree.find("os/type").set("machine", machine)
    if drop_addresses:
        drop_pci_addresses(tree)
    return serialize(tree)


def drop_pci_addresses(tree: t.Any) -> None:
    for device in tree.find("devices"):
        for address in device.findall("address[@type='pci']"):
            remove_child(device, address)
