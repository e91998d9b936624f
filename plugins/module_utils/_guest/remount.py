# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Unmount a file system and mount it again, as it was, so that ext4 forgets what it has trimmed.

``mount -o remount`` is not enough: ext4 keeps its notes for as long as the file system is mounted
anywhere, in any mount namespace.
"""

from __future__ import annotations

import dataclasses
import os
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    CommandError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest.reading import (
    output_of,
    read_text,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import process
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import signals_wait
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.filesystem import (
    Mount,
    parse_mountinfo,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown

#: The one type that remembers; the others send their discards again.
_TYPES = ("ext4",)
_TIMEOUT = 120


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to become of one mount point.

    :param mount: what is mounted there; None if nothing is to be done.
    :param reason: why not, one sentence.
    """

    path: str
    mount: Mount | None = None
    reason: str = ""


def plan(paths: t.Sequence[str], mounts: t.Sequence[Mount]) -> tuple[Plan, ...]:
    """What can be mounted anew (pure)."""
    return tuple(_plan(path, mounts) for path in dict.fromkeys(paths))


def _plan(path: str, mounts: t.Sequence[Mount]) -> Plan:
    here = [mount for mount in mounts if mount.mount_point == path]
    if not here:
        return Plan(path, reason="Nothing is mounted there.")
    reason = _obstacle(here[-1], mounts)
    return Plan(path, reason=reason) if reason else Plan(path, here[-1])


def _obstacle(mount: Mount, mounts: t.Sequence[Mount]) -> str:
    path = mount.mount_point
    places = [other for other in mounts if other.device == mount.device]
    for applies, reason in (
        (path == "/", "The root can't be unmounted while the guest runs: reboot it."),
        (
            mount.type not in _TYPES,
            f"{shown(mount.type)} sends its discards again without that.",
        ),
        (
            sum(other.mount_point == path for other in mounts) > 1,
            "Several file systems are mounted over each other there: reboot the guest.",
        ),
        (
            len(places) > 1 or mount.root != "/",
            "Its file system is mounted in several places: reboot the guest.",
        ),
        (
            any(other.mount_point.startswith(path + "/") for other in mounts),
            "Other file systems are mounted below it: reboot the guest.",
        ),
    ):
        if applies:
            return reason
    return ""


def read_mounts() -> tuple[Mount, ...]:
    """What is mounted now."""
    return tuple(parse_mountinfo(read_text("/proc/self/mountinfo", limit=1 << 24)).values())


def remount(mount: Mount) -> str:
    """Do it; returns why it was not done, or nothing.

    The kernel refuses to unmount what is in use; nothing has changed then.  Signals wait until it
    is mounted again: it takes some milliseconds.

    :raises ThinvirtError: it is unmounted and could not be mounted again.
    """
    umount = process.find_program("umount", package="mount")
    program = process.find_program("mount", package="mount")
    # What was mounted is mounted again, whatever fstab says meanwhile.
    options = ",".join(dict.fromkeys((*mount.options, *mount.super_options)))
    again = [program, "-t", mount.type, "-o", options, "--", mount.source, mount.mount_point]
    with signals_wait():
        try:
            output_of([umount, "--", mount.mount_point], timeout=_TIMEOUT)
        except CommandError as error:
            if _is_mounted(mount):
                return f"It is in use, so reboot the guest: {error.stderr.strip()}"
            raise
        kept = _is_kept(mount)
        _mount_again(again, [program, "--", mount.mount_point], mount)
    if kept:
        return "Another mount namespace (a container or a service) holds it: reboot the guest."
    return ""


def _mount_again(argv: list[str], by_fstab: list[str], mount: Mount) -> None:
    """Mount it as it was; if that is refused, as fstab says: anything is better than unmounted."""
    try:
        output_of(argv, timeout=_TIMEOUT)
    except ThinvirtError as first:
        try:
            output_of(by_fstab, timeout=_TIMEOUT)
        except ThinvirtError:
            raise ThinvirtError(
                f"{shown(mount.mount_point)} was unmounted and could not be mounted again: {first}",
                remedy=f"Mount it by hand: {' '.join(map(shown, argv))}",
            ) from first


def _is_mounted(mount: Mount) -> bool:
    return any(other.id == mount.id for other in read_mounts())


def _is_kept(mount: Mount) -> bool:
    """Whether ext4 still has the file system, unmounted as it is here."""
    name = os.path.basename(os.path.realpath(f"/sys/dev/block/{mount.device}"))
    return os.path.exists(f"/sys/fs/{mount.type}/{name}")
