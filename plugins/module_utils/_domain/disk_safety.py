# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether all that a domain's XML says of a disk is known to be safe with an operation (pure)."""

from __future__ import annotations

import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import known_disk
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.known_disk import Rule
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.xml import (
    bus_of,
    parse_tree,
    target_of,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError

Version = tuple[int, int, int]
#: Elements in which libvirt keeps data of its own.
_PRIVATE = ("privateData",)


def refuse_disks(
    text: str,
    targets: t.Collection[str],
    operation: str,
    *,
    qemu: t.Callable[[], Version | None] = lambda: None,
    plain_text: bool = False,
) -> None:
    """Refuse disks with something that is refused by name, or that nobody has tried.

    :param text: a domain's XML.
    :param operation: one of :data:`known_disk.OPERATIONS`.
    :param qemu: asks for the version that the domain runs with, if that matters.
    :param plain_text: the user consents to a copy in plain text.
    :raises RefusedError: there is one; nothing was changed.
    """
    tree = parse_tree(text)
    for disk in tree.findall("devices/disk"):
        if target_of(disk) not in targets:
            continue
        where = f"disk {target_of(disk)} of domain {tree.findtext('name')}"
        found = list(_found(disk, known_disk.KNOWN))
        if _controller_iothread(tree, disk):
            found.append(("iothread of its controller", known_disk.IOTHREAD))
        for path, rule in found:
            if rule is not None and operation in rule.refused:
                if plain_text and operation in rule.unless_plain_text:
                    continue
                if rule.unless_qemu is not None and (qemu() or (0, 0, 0)) >= rule.unless_qemu:
                    continue
            _refuse(where, path, rule, operation)


def refuse_firmware(text: str, operation: str) -> None:
    """Likewise what a domain's firmware and TPM keep.

    :raises RefusedError: there is something; nothing was changed.
    """
    tree = parse_tree(text)
    where = f"domain {tree.findtext('name')}"
    for name in ("loader", "nvram", "varstore"):
        for element in tree.findall(f"os/{name}"):
            for path, rule in _found(element, known_disk.FIRMWARE, prefix=f"{name}/"):
                _refuse(where, path, rule, operation)
    for element in tree.findall("devices/tpm"):
        for path, rule in _found(element, known_disk.TPM):
            _refuse(where, path, rule, operation)


def is_encrypted(text: str, target: str) -> bool:
    """Whether QEMU decrypts a disk for the guest."""
    return any(
        disk.find("encryption") is not None or disk.find("source/encryption") is not None
        for disk in parse_tree(text).findall("devices/disk")
        if target_of(disk) == target
    )


def _refuse(where: str, path: str, rule: Rule | None, operation: str) -> None:
    if rule is None:
        raise RefusedError(
            f"Refused: {where} has {path}, which is not known to be safe when a disk is "
            f"{operation}; nothing was changed.",
            remedy="Take it out of the domain's XML (virsh edit), leave the disk out of disks, or "
            "ask for it in an issue of thinvirt.kvm.",
        )
    if operation in rule.refused:
        raise RefusedError(f"Refused: {where} {rule.why}; nothing was changed.", remedy=rule.remedy)


def _found(
    element: t.Any, known: t.Mapping[str, Rule], *, prefix: str = ""
) -> t.Iterator[tuple[str, Rule | None]]:
    """What an element has: path, and what is known of it."""
    if prefix:
        name = prefix.rstrip("/")
        yield name, known_disk.rule_of(known, name, "")
    for attribute, value in element.items():
        path = known_disk.canonical(f"{prefix}@{attribute}")
        yield f"{path}={value}", known_disk.rule_of(known, path, value)
    for child in element:
        if not isinstance(child.tag, str):  # a comment
            continue
        path = known_disk.canonical(f"{prefix}{child.tag}/").rstrip("/")
        if child.tag in _PRIVATE:
            continue
        yield from _found(child, known, prefix=f"{path}/")


def _controller_iothread(tree: t.Any, disk: t.Any) -> bool:
    """Whether the disk hangs on a scsi controller with an iothread."""
    if bus_of(disk) != "scsi":
        return False
    address = disk.find("address")
    index = address.get("controller") if address is not None else None
    return any(
        driver.get("iothread") is not None or driver.find("iothreads") is not None
        for controller in tree.findall("devices/controller[@type='scsi']")
        if index is None or controller.get("index", "0") == index
        for driver in controller.findall("driver")
    )
