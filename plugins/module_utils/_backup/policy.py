# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which disks are backed up, what is refused, and when a new version would be the same (pure)."""

from __future__ import annotations

import copy
import dataclasses
import re
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import policy, xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.archive_manifest import Manifest
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import Identity

_TARGET = re.compile("[A-Za-z0-9]{1,32}")


def choose_disks(domain: xml.Domain, patterns: t.Sequence[str]) -> tuple[xml.Disk, ...]:
    """The disks that the user means; by default all that the guest writes, wherever they are."""
    if patterns:
        return policy.choose_disks(domain, patterns)
    return tuple(disk for disk in domain.disks if disk.device == "disk" and policy.is_written(disk))


def left_out(domain: xml.Domain) -> list[dict[str, str]]:
    """Disks that a guest writes and that are not copied unless named: target and why."""
    return [
        {"target": disk.target, "reason": f"It is a device of the host (device='{disk.device}')."}
        for disk in domain.disks
        if policy.is_written(disk) and disk.device != "disk"
    ]


def refuse_disks(
    domain: xml.Domain,
    disks: t.Sequence[xml.Disk],
    paths: t.Mapping[str, str],
    *,
    running: bool,
) -> None:
    """Refuse disks of which no copy can be made that is worth something.

    :param paths: where each lies on this host, by target; empty for one that does not.
    :raises RefusedError: there is one; nothing was changed.
    """
    for disk in disks:
        where = f"Disk {disk.target!r} of domain {domain.name}"
        rest = "name the disks to be backed up without it (disks)"
        if not _TARGET.fullmatch(disk.target):
            raise RefusedError(
                f"{where} has a target that cannot be the name of a file; nothing was changed.",
                remedy=f"Give it another one, or {rest}.",
            )
        if disk.device != "disk":
            raise RefusedError(
                f"{where} is a {disk.device}, not a disk; nothing was changed.",
                remedy=f"Copy it by hand if need be, and {rest}.",
            )
        if running and disk.shareable:
            raise RefusedError(
                f"{where} is shared: what other domains write to it meanwhile would tear the copy; "
                "nothing was changed.",
                remedy=f"Back it up while all of them are shut off, or {rest}.",
            )
        if not running and not paths.get(disk.target):
            raise RefusedError(
                f"{where} is of type {disk.source_type}, and cannot be read while the domain is "
                "shut off; nothing was changed.",
                remedy=f"Back it up while the domain runs, or {rest}.",
            )
        if not running and disk.format not in ("raw", "qcow2", ""):
            raise RefusedError(
                f"{where} has the format {disk.format}; nothing was changed.",
                remedy=f"Convert it to qcow2 or raw with qemu-img convert, or {rest}.",
            )


def with_plugged_disks(configured: str, live: str) -> str:
    """The configuration with the disks that were plugged in while the domain runs."""
    tree = xml.parse_tree(configured)
    known = {_target(disk) for disk in tree.iterfind("devices/disk")}
    plugged = [
        disk for disk in xml.parse_tree(live).iterfind("devices/disk") if _target(disk) not in known
    ]
    if not plugged:
        return configured
    devices = tree.find("devices")
    for disk in plugged:
        devices.append(copy.deepcopy(disk))
    return xml.serialize(tree)


def _target(disk: t.Any) -> str:
    target = disk.find("target")
    return target.get("dev", "") if target is not None else ""


def is_same(
    manifest: Manifest,
    *,
    configuration: str,
    options: t.Mapping[str, t.Any],
    sources: t.Mapping[str, t.Sequence[Identity]],
    nvram_changed: bool,
) -> bool:
    """Whether a version of a domain that is shut off would be the same as one that there is.

    :param options: of its copies.
    :param sources: the images of each disk; none where that can't be told.
    """
    before = {disk.target: [_lasting(file) for file in disk.sources] for disk in manifest.disks}
    now = {target: [_lasting(file) for file in files] for target, files in sources.items()}
    return (
        all(now.values())
        and now == before
        and manifest.xml == configuration
        and not nvram_changed
        and all(dict(disk.options) == dict(options) for disk in manifest.disks)
    )


def _lasting(file: Identity) -> Identity:
    """What stays the same over a reboot: a device may get another number."""
    return dataclasses.replace(file, dev=0)
