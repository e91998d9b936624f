# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files below a running domain's disk, as libvirt and as QEMU have them (pure)."""

from __future__ import annotations

import dataclasses
import json
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown


@dataclasses.dataclass(frozen=True)
class Link:
    """One file of a chain.

    :param path: empty where libvirt names a volume instead.
    :param index: libvirt's number for it in this QEMU; its nodes are called ``libvirt-INDEX-…``.
    """

    path: str
    index: str


@dataclasses.dataclass(frozen=True)
class Chain:
    """A disk as libvirt has it.

    :param links: the file that the guest writes to first.
    :param job: kind of the block job on it, as far as libvirt tells; empty if it tells none.
    :param mirror: the file that the job writes to.
    :param ready: the job can be ended by a pivot.
    """

    target: str
    alias: str
    links: tuple[Link, ...]
    job: str = ""
    mirror: str = ""
    ready: bool = False

    @property
    def paths(self) -> list[str]:
        return [link.path for link in self.links]

    def node(self, number: int) -> str:
        """How libvirt's calls name one of the files, to the node."""
        return f"{self.target}[{self.links[number].index}]"


def of_libvirt(text: str, target: str, *, real: t.Callable[[str], str]) -> Chain | None:
    """The chain in a running domain's XML; None without such a disk.

    :param real: resolves symlinks in a path.
    """
    for disk in xml.parse_tree(text).findall("devices/disk"):
        if xml.target_of(disk) == target:
            alias, mirror = disk.find("alias"), disk.find("mirror")
            source = mirror.find("source") if mirror is not None else None
            return Chain(
                target=target,
                alias=alias.get("name", "") if alias is not None else "",
                links=tuple(_links(disk, real)),
                job=xml.job_of(mirror),
                mirror=real(source.get("file", "")) if source is not None else "",
                ready=xml.is_ready(mirror),
            )
    return None


def _links(disk: t.Any, real: t.Callable[[str], str]) -> t.Iterator[Link]:
    element, index = disk, None
    while element is not None:
        source = element.find("source")
        if source is None:
            return  # an empty <backingStore/> is the end
        path = source.get("file", "") or source.get("dev", "")
        index = source.get("index") or element.get("index") or ""
        yield Link(real(path) if path else "", index)
        element = element.find("backingStore")


def file_of(name: str) -> str:
    """The file behind what QEMU calls a node's file name, which may be JSON."""
    if not name.startswith("json:"):
        return name
    try:
        found = json.loads(name[len("json:") :])
        while isinstance(found, dict) and "filename" not in found:
            found = found["file"]
        return str(found["filename"])
    except (ValueError, KeyError, TypeError):
        return name


def of_qemu(devices: t.Any, alias: str, *, real: t.Callable[[str], str]) -> list[str]:
    """The paths of a disk's chain, from the answer to ``query-block``; empty if it has none."""
    for device in devices:
        qdev = device.get("qdev") or ""
        if qdev == alias or f"/{alias}/" in qdev:
            paths: list[str] = []
            image = (device.get("inserted") or {}).get("image")
            while image is not None:
                path = real(file_of(image["filename"]))
                if [path] != paths[-1:]:  # a filter has the name of what it filters
                    paths.append(path)
                image = image.get("backing-image")
            return paths
    return []


def missing_node(chain: Chain, nodes: t.Any, *, real: t.Callable[[str], str]) -> str:
    """The first file of which QEMU does not have the node that libvirt speaks of; empty if none.

    :param nodes: the answer to ``query-named-block-nodes``.
    """
    there = {
        (str(node.get("node-name", "")).rpartition("-")[0], real(file_of(node.get("file", ""))))
        for node in nodes
    }
    for link in chain.links:
        if link.path and (f"libvirt-{link.index}", link.path) not in there:
            return link.path
    return ""


def difference(libvirt: Chain, qemu: t.Sequence[str], expected: t.Sequence[str]) -> str:
    """How a chain is another one than a run has made; empty if it is that one.

    :param expected: paths from the top on; whatever lies below them was there before.
    """
    for who, paths in (("libvirt", libvirt.paths), ("QEMU", qemu)):
        pairs = list(zip(paths, expected))
        if len(pairs) < len(expected) or any(path and path != want for path, want in pairs):
            return f"{who} has it on {described(paths)}"
    if any(path and path != other for path, other in zip(libvirt.paths, qemu)):
        return f"libvirt has it on {described(libvirt.paths)}, QEMU on {described(qemu)}"
    return ""


def described(paths: t.Sequence[str]) -> str:
    """A chain for people, top first."""
    return " over ".join(shown(path) if path else "a volume" for path in paths) or "nothing"


def paths_in(text: str) -> frozenset[str]:
    """Every absolute path that an XML of libvirt's names anywhere."""
    found: set[str] = set()
    for element in xml.parse_any(text).iter():
        if isinstance(element.tag, str):
            values = [*element.attrib.values(), (element.text or "").strip()]
            found.update(value for value in values if value.startswith("/"))
    return frozenset(found)
