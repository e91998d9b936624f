# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration of a new domain that is like another one, around copies of its disks (pure).

What has to be unique on a network or a host is new: the name, the UUID, MAC addresses, the
generation ID.  What only one domain may use stays out: disks of which there is no copy, the media
in drives.  All else stays as it was: the guest is to find its own hardware.
"""

from __future__ import annotations

import contextlib
import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.xml import (
    NOTE_NAMESPACE,
    parse_tree,
    serialize,
)

with contextlib.suppress(ImportError):  # xml.parse_tree says so
    from lxml import etree

#: What belongs to where a disk's data was: another file has none of it.
#: Nobody shares a copy, and QEMU lets nobody share a qcow2.
_OF_SOURCE = ("backingStore", "mirror", "auth", "source", "transient", "encryption", "shareable")
#: What a drive may have in it, which is not copied.
_REMOVABLE = ("cdrom", "floppy")


@dataclasses.dataclass(frozen=True)
class CopiedDisk:
    """A copy that becomes a disk of the new domain.

    :param format: ``qcow2`` or ``raw``.
    """

    path: str
    format: str


def cloned_xml(
    text: str,
    *,
    name: str,
    disks: t.Mapping[str, CopiedDisk],
    nvram: str = "",
    uuid: str = "",
    keep_macs: bool = False,
) -> str:
    """The configuration of a new domain.

    :param text: the configuration of the old one, as for its next start.
    :param disks: the copies, by target.
    :param nvram: the copy of its firmware's variables; without one libvirt makes it new.
    :param uuid: the new one's; libvirt chooses one if it is empty.
    :param keep_macs: only for a domain that takes the place of the old one.
    """
    tree = parse_tree(text)
    tree.attrib.pop("id", None)
    tree.find("name").text = name
    _set_uuid(tree, uuid)
    _empty(tree.find("genid"))
    for note in tree.findall(f"metadata/{{{NOTE_NAMESPACE}}}*"):
        _remove(note)
    _set_nvram(tree, nvram)
    for element in tree.findall("devices/disk"):
        _set_disk(element, disks)
    for interface in tree.findall("devices/interface"):
        if not keep_macs:
            _drop(interface, "mac")
        _drop(interface, "target")  # the name of a tap device on the host
        for parameters in interface.findall("virtualport/parameters"):
            parameters.attrib.pop("interfaceid", None)
    return serialize(tree)


def dropped_disks(text: str, copied: t.Collection[str]) -> list[str]:
    """Targets of the disks that a new domain does not have, as there is no copy of them."""
    return [
        _target(element)
        for element in parse_tree(text).findall("devices/disk")
        if element.get("device", "disk") not in _REMOVABLE and _target(element) not in copied
    ]


def _set_uuid(tree: t.Any, uuid: str) -> None:
    element = tree.find("uuid")
    if element is not None and not uuid:
        _remove(element)
    elif element is not None:
        element.text = uuid
    elif uuid:
        element = etree.Element("uuid")
        element.text = uuid
        tree.find("name").addnext(element)
    for entry in tree.findall("sysinfo/system/entry[@name='uuid']"):
        # libvirt refuses one that is not the domain's
        if uuid:
            entry.text = uuid
        else:
            _remove(entry)


def _empty(element: t.Any) -> None:
    if element is not None:
        element.text = None


def _set_nvram(tree: t.Any, nvram: str) -> None:
    element = tree.find("os/nvram")
    if element is None:
        return
    for child in list(element):
        element.remove(child)
    element.attrib.pop("type", None)
    element.text = nvram or None
    if not nvram and not element.attrib:
        _remove(element)


def _set_disk(element: t.Any, disks: t.Mapping[str, CopiedDisk]) -> None:
    copied = disks.get(_target(element))
    if copied is None and element.get("device", "disk") not in _REMOVABLE:
        _remove(element)
        return
    for name in _OF_SOURCE:
        _drop(element, name)
    element.set("type", "file")
    if copied is None:
        return
    driver = element.find("driver")
    if driver is None:
        driver = etree.Element("driver", name="qemu")
        element.insert(0, driver)
    driver.set("type", copied.format)
    if copied.format != "qcow2":
        driver.attrib.pop("discard_no_unref", None)
    source = etree.Element("source", file=copied.path)
    source.tail = driver.tail
    driver.addnext(source)


def _target(element: t.Any) -> str:
    target = element.find("target")
    return target.get("dev", "") if target is not None else ""


def _drop(element: t.Any, name: str) -> None:
    for child in element.findall(name):
        _remove(child)


def _remove(element: t.Any) -> None:
    """Take an element out and leave the rest as it is laid out."""
    parent, previous = element.getparent(), element.getprevious()
    if element.getnext() is None:
        if previous is not None:
            previous.tail = element.tail
        else:
            parent.text = None
    parent.remove(element)
