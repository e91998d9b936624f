# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A new domain around copies of another one's disks, in XML (pure)."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.xml import (
    NOTE_NAMESPACE,
    append_child,
    parse_tree,
    remove_child,
    serialize,
    target_of,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._findings import Finding

NAMESPACE = "https://github.com/thinvirt/thinvirt.kvm/rebuilt"
_LOCAL_PATHS = ("serial", "console", "parallel", "channel")


@dataclasses.dataclass(frozen=True)
class Identity:
    """What tells the new domain from the old one.

    :param macs: one for each interface, in order; empty to keep them.
    :param paths: the copy of each disk, by its target.
    :param nvram: the copy of the firmware's variables; empty if there is none.
    """

    name: str
    uuid: str
    genid: str
    macs: tuple[str, ...]
    paths: t.Mapping[str, str]
    nvram: str


def rebuilt(text: str, identity: Identity, *, machine: str) -> str:
    """The new domain; its hardware is the old one's but for the machine type."""
    tree = parse_tree(text)
    of = tree.findtext("uuid") or ""
    for tag, value in (("name", identity.name), ("uuid", identity.uuid)):
        tree.find(tag).text = value
    genid = tree.find("genid")
    if genid is not None:
        genid.text = identity.genid
    for entry in tree.findall("sysinfo/system/entry[@name='uuid']"):
        entry.text = identity.uuid  # libvirt refuses two that differ
    tree.find("os/type").set("machine", machine)
    _note(tree, of)
    for disk in tree.findall("devices/disk"):
        if target_of(disk) in identity.paths:
            _set_source(disk, identity.paths[target_of(disk)])
    _set_nvram(tree, identity.nvram)
    for number, interface in enumerate(tree.findall("devices/interface")):
        _make_other(interface, identity.macs[number] if identity.macs else "")
    return serialize(tree)


def rebuilt_of(text: str) -> str:
    """UUID of the domain that this one was made of; empty if it was made otherwise."""
    note = parse_tree(text).find(f"metadata/{{{NAMESPACE}}}rebuilt")
    return note.get("of", "") if note is not None else ""


def interface_count(text: str) -> int:
    return len(parse_tree(text).findall("devices/interface"))


def nvram_path(text: str) -> str:
    """File with the firmware's variables; empty if there is none, or libvirt is to make one."""
    nvram = parse_tree(text).find("os/nvram")
    if nvram is None:
        return ""
    source = nvram.find("source")
    return source.get("file", "") if source is not None else (nvram.text or "").strip()


def firmware_has_variables(text: str) -> bool:
    """Whether it boots by UEFI; libvirt chooses the firmware's files itself if none are named."""
    os_ = parse_tree(text).find("os")
    return os_.get("firmware") == "efi" or os_.find("loader[@type='pflash']") is not None


def without_variables(name: str) -> Finding:
    """The new domain's firmware has forgotten what the old one's knew."""
    return Finding(
        id="nvram-not-copied",
        severity="warning",
        reason="No file with the variables of the old domain's firmware was found, so the new "
        "one's begin empty: boot entries and keys that were enrolled are not there.",
        remedy="If it does not boot, choose the boot loader's file in the firmware's menu.",
        domain=name,
    )


def shared(text: str, name: str) -> tuple[Finding, ...]:
    """What the two domains have in common, so that they cannot both run, or should not."""
    tree = parse_tree(text)
    things = [f"{len(found)} devices of the host"] if (found := _host_devices(tree)) else []
    things += [
        source.get("path")
        for tag in _LOCAL_PATHS
        for source in tree.findall(f"devices/{tag}/source[@path]")
    ]
    things += [
        f"port {graphics.get('port')} of {graphics.get('type')}"
        for graphics in tree.findall("devices/graphics")
        if graphics.get("autoport") != "yes" and graphics.get("port", "-1") != "-1"
    ]
    things += [
        f"vsock address {cid.get('address')}"
        for cid in tree.findall("devices/vsock/cid")
        if cid.get("auto") != "yes"
    ]
    found_here = []
    if things:
        found_here.append(
            Finding(
                id="shared-with-old",
                severity="warning",
                reason=f"Both domains have {', '.join(dict.fromkeys(things))}.",
                remedy="Do not run both at once, or change that in one of them.",
                domain=name,
            )
        )
    if tree.find("devices/tpm/backend[@type='emulator']") is not None:
        found_here.append(
            Finding(
                id="tpm-state",
                severity="warning",
                reason="The new domain has an empty TPM; what the old one's holds is not copied.",
                remedy="Have the recovery key of BitLocker, or a passphrase of LUKS, at hand.",
                domain=name,
            )
        )
    return tuple(found_here)


def _host_devices(tree: t.Any) -> list[t.Any]:
    return [
        *tree.findall("devices/hostdev"),
        *tree.findall("devices/interface[@type='hostdev']"),
        *tree.findall("devices/filesystem"),
    ]


def _note(tree: t.Any, of: str) -> None:
    metadata = tree.find("metadata")
    if metadata is None:
        before = [tree.find(tag) for tag in ("uuid", "genid", "title", "description")]
        anchor = next(element for element in reversed(before) if element is not None)
        metadata = tree.makeelement("metadata", {})
        metadata.tail = anchor.tail
        tree.insert(tree.index(anchor) + 1, metadata)
    for child in list(metadata):
        if isinstance(child.tag, str) and child.tag.startswith(f"{{{NOTE_NAMESPACE}}}"):
            remove_child(metadata, child)
    for child in metadata.findall(f"{{{NAMESPACE}}}rebuilt"):
        remove_child(metadata, child)
    append_child(metadata, f"{{{NAMESPACE}}}rebuilt", {"of": of})


def _set_source(disk: t.Any, path: str) -> None:
    disk.set("type", "file")
    source = disk.find("source")
    for name in list(source.attrib):
        del source.attrib[name]
    for child in list(source):
        if child.tag != "encryption":  # the copy is as the image is
            remove_child(source, child)
    source.text = None
    source.set("file", path)
    for backing in disk.findall("backingStore"):  # the copy is whole
        remove_child(disk, backing)


def _set_nvram(tree: t.Any, path: str) -> None:
    nvram = tree.find("os/nvram")
    if nvram is None and path:
        append_child(tree.find("os"), "nvram", {}).text = path
    if nvram is None:
        return
    source = nvram.find("source")
    if source is not None and path:
        source.set("file", path)
    elif source is not None:
        remove_child(nvram, source)
        nvram.attrib.pop("type", None)
    else:
        nvram.text = path or None


def _make_other(interface: t.Any, mac: str) -> None:
    element = interface.find("mac")
    if mac and element is not None:
        element.set("address", mac)
    parameters = interface.find("virtualport/parameters")
    if parameters is not None:
        parameters.attrib.pop("interfaceid", None)
    target = interface.find("target[@dev]")
    if target is not None:
        del target.attrib["dev"]
        if not target.attrib:
            remove_child(interface, target)
