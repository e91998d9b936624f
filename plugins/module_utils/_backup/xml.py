# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The XML of backup jobs (pure): https://libvirt.org/formatbackup.html."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import HypervisorError

with contextlib.suppress(ImportError):  # xml.parse_tree says so
    from lxml import etree


@dataclasses.dataclass(frozen=True)
class Job:
    """A backup job that runs.

    :param mode: ``pull`` or ``push``.
    :param socket: where it is exported; empty if not by a UNIX socket.
    :param files: scratch files of pull mode, copies of push mode.
    """

    mode: str
    socket: str
    files: tuple[str, ...]

    def lies_in(self, folder: str) -> bool:
        """Whether all its scratch files lie in a folder: then whoever owns that began it."""
        return bool(self.files) and all(os.path.dirname(file) == folder for file in self.files)


def backup_xml(*, socket: str, scratch: t.Mapping[str, str], others: t.Iterable[str]) -> str:
    """A pull mode job: QEMU exports the disks as they are now, by their targets.

    :param socket: path of the UNIX socket that QEMU makes.
    :param scratch: the file, by target, that takes what the guest overwrites meanwhile.
    :param others: targets of the disks that are left out.
    """
    root = etree.Element("domainbackup", mode="pull")
    etree.SubElement(root, "server", transport="unix", socket=socket)
    disks = etree.SubElement(root, "disks")
    for target, path in scratch.items():
        disk = etree.SubElement(disks, "disk", name=target, backup="yes", type="file")
        disk.set("exportname", target)
        etree.SubElement(disk, "scratch", file=path)
    for target in others:
        etree.SubElement(disks, "disk", name=target, backup="no")
    return str(etree.tostring(root, encoding="unicode"))


def parse_job(text: str) -> Job:
    """Read what libvirt says of a job that runs.

    :raises HypervisorError: it is no such XML.
    """
    try:
        parser = etree.XMLParser(resolve_entities=False, no_network=True)
        root = etree.fromstring(text.encode("utf-8"), parser)
    except etree.XMLSyntaxError as error:
        raise HypervisorError(f"libvirt returned XML that cannot be parsed: {error}.") from error
    server = root.find("server")
    files = [
        found.get("file") or found.get("dev") or ""
        for found in (*root.iterfind("disks/disk/scratch"), *root.iterfind("disks/disk/target"))
    ]
    return Job(
        mode=root.get("mode", "push"),
        socket=server.get("socket", "") if server is not None else "",
        files=tuple(files),
    )
