# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Before a guest is stopped: all that it needs to start again is there, as far as can be told."""

from __future__ import annotations

import glob
import os

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import needs
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import Guest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown


def refuse(guest: Guest, text: str, *, boots: bool = True) -> None:
    """Refuse to stop a guest that would not start again.

    :param text: XML of the next start.
    :param boots: that is a start of its configuration, not of its saved state.
    :raises RefusedError: nothing was changed.
    """
    needed = needs.needs_of(text)
    live_xml = guest.live_xml() if boots else ""
    if boots:
        needed += needs.chains_of(live_xml, needed)
    missing = [need.words for need in needed if _is_missing(guest, need)]
    reason = f"{shown(missing[0])} is missing on this host" if missing else ""
    if boots and not reason:
        with open("/proc/meminfo", encoding="ascii") as file:
            meminfo = file.read()
        running = needs.memory_of(live_xml)
        reason = needs.too_little_memory(needs.memory_of(text), running, meminfo)
    if boots and not reason and (complaint := guest.dry_start(text)):
        reason = f"libvirt says: {complaint}"
    if reason:
        raise RefusedError(
            f"Refused: domain {guest.name} would not start again once it is stopped: {reason}; "
            "nothing was changed.",
            remedy="Bring that back, or take it out of the domain (virsh edit, virsh "
            "change-media --eject).",
        )


def _is_missing(guest: Guest, need: needs.Need) -> bool:
    if need.kind == "network":
        return guest.lacks_network(need.name)
    if need.kind == "volume":
        return guest.lacks_volume(*need.name.split("/", 1))
    if need.kind == "usb":
        return need.name not in _usb_devices()
    paths = {
        "link": "/sys/class/net/",
        "pci": "/sys/bus/pci/devices/",
        "mdev": "/sys/bus/mdev/devices/",
    }
    try:
        os.stat(paths.get(need.kind, "") + need.name)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # it is there for libvirt, who knows
        return False
    return False


def _usb_devices() -> set[str]:
    """``VENDOR:PRODUCT`` of each."""
    found = set()
    for path in glob.glob("/sys/bus/usb/devices/*/idVendor"):
        ids = []
        for name in ("idVendor", "idProduct"):
            try:
                with open(os.path.join(os.path.dirname(path), name), encoding="ascii") as file:
                    ids.append(file.read().strip())
            except OSError:  # it was unplugged just now
                break
        found.add(":".join(ids))
    return found
