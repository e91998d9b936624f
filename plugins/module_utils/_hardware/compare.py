# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether two XMLs mean the same domain (pure).

libvirt prints a domain in an order of its own, gives addresses to devices that have none, and adds
the controllers that those need.  The order says nothing that this collection changes; what boots
first is :mod:`boot`'s business.
"""

from __future__ import annotations

import hashlib
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.xml import (
    NOTE_NAMESPACE,
    parse_tree,
)

#: Controllers that libvirt adds by itself, for what hangs on them.
_ADDED = ("pci", "ide", "sata")
Form = tuple[str, tuple[tuple[str, str], ...], str, tuple[t.Any, ...]]


def fingerprint(text: str) -> str:
    """The same for two XMLs that differ in order, comments, white space or notes of ours only."""
    return hashlib.sha256(repr(_form(parse_tree(text))).encode()).hexdigest()


def is_kept(given: str, found: str) -> bool:
    """Whether libvirt keeps what it was given, with no more than it had to add."""
    wanted, kept = parse_tree(given), parse_tree(found)
    if _without_devices(wanted) != _without_devices(kept):
        return False
    left = list(kept.find("devices"))
    for device in wanted.find("devices"):
        if not isinstance(device.tag, str):
            continue
        match = next((other for other in left if _is_same_device(device, other)), None)
        if match is None:
            return False
        left.remove(match)
    return all(
        not isinstance(device.tag, str)
        or (device.tag == "controller" and device.get("type") in _ADDED)
        for device in left
    )


def _is_same_device(given: t.Any, found: t.Any) -> bool:
    """Where none was given, libvirt has chosen an address."""
    if given.tag != found.tag:
        return False
    chosen = ("address",) if given.find("address") is None else ()
    return _form(given) == _form(found, without=chosen)


def _without_devices(tree: t.Any) -> Form:
    return _form(tree, without=("devices",))


def _form(element: t.Any, *, without: t.Collection[str] = ()) -> Form:
    """An element as nested tuples, its children sorted."""
    children = [
        _form(child)
        for child in element
        if isinstance(child.tag, str) and child.tag not in without and not _is_ours(child)
    ]
    return (
        element.tag,
        tuple(sorted(_said(element))),
        (element.text or "").strip(),
        tuple(sorted(children)),
    )


def _said(element: t.Any) -> t.Iterator[tuple[str, str]]:
    """Its attributes, without a console's number among its like, which libvirt counts anew."""
    parent = element.getparent()
    counted = element.tag == "target" and parent is not None and parent.tag == "console"
    return ((name, value) for name, value in element.items() if not (counted and name == "port"))


def _is_ours(child: t.Any) -> bool:
    """A note that we leave for a while, and the empty element that libvirt leaves behind it."""
    return child.tag.startswith(f"{{{NOTE_NAMESPACE}}}") or (
        child.tag == "metadata" and all(map(_is_ours, child)) and not child.attrib
    )
