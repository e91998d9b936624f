# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How old a machine type is, and what it can no longer do (pure).

A machine type freezes the hardware that a guest sees at one version of QEMU.
virtio-blk learned discard in QEMU 4.0, and QEMU switches it off again for every
older machine type (``hw_compat_3_1`` in hw/core/machine.c).
"""

from __future__ import annotations

import re

#: First version of the machine type in which virtio-blk passes discards.
VIRTIO_BLK_DISCARD = (4, 0)

# Distributions name machine types after themselves; the QEMU that each froze.
# Ubuntu: debian/patches/ubuntu/define-ubuntu-machine-types.patch of its qemu package.
_UBUNTU = {
    "trusty": (2, 0),
    "utopic": (2, 1),
    "vivid": (2, 2),
    "wily": (2, 4),
    "xenial": (2, 5),
    "yakkety": (2, 6),
    "zesty": (2, 8),
    "artful": (2, 10),
    "bionic": (2, 11),
    "cosmic": (2, 12),
    "disco": (3, 1),
    "eoan": (4, 0),
    "focal": (4, 2),
    "groovy": (5, 0),
    "hirsute": (5, 2),
    "impish": (6, 0),
    "jammy": (6, 2),
    "kinetic": (7, 0),
    "lunar": (7, 2),
    "mantic": (8, 0),
    "noble": (8, 2),
    "oracular": (9, 0),
    "plucky": (9, 2),
    "questing": (10, 1),
    "resolute": (10, 2),
}
# RHEL: hw_compat_rhel_8_0 is made from hw_compat_3_1, hw_compat_rhel_8_1 from 4_0.
_RHEL_FIRST_4_0 = (8, 1)

# Until QEMU 1.3 i440fx had no name of its own (pc-0.12, pc-1.3); RHEL 6 called it rhel6.5.0.
# Ubuntu 12.04 had pc-1.0-precise and pc-1.0-qemu-kvm besides.
_I440FX = re.compile(r"^(pc|ubuntu|pc-i440fx-.+|pc-[01]\.\d+(-[\w-]+)?|rhel\d+\.\d+\.\d+)$")
_Q35 = re.compile(r"^(q35|ubuntu-q35|pc-q35-.+)$")

# What follows is a variant of the same age: pseries-rhel7.6.0-sxxm, pc-q35-8.1+pve0.
_VARIANT = r"(?:\.\d+)?(?:-[\w-]+)?(?:\+pve[\d.]+)?$"
_VERSION = re.compile(r"-(\d+)\.(\d+)" + _VARIANT)
_RHEL = re.compile(r"(?:^|-)rhel(\d+)\.(\d+)" + _VARIANT)


def machine_version(machine: str) -> tuple[int, int] | None:
    """QEMU's version of a machine type such as ``pc-q35-7.2``, None when it names none.

    RHEL's own numbers are told apart only around 4.0, which is all that matters here:
    (3, 1) below RHEL 8.1, (4, 0) from there on.
    """
    rhel = _RHEL.search(machine)
    if rhel:
        return (4, 0) if (int(rhel[1]), int(rhel[2])) >= _RHEL_FIRST_4_0 else (3, 1)
    plain = _VERSION.search(machine)
    if plain:
        return int(plain[1]), int(plain[2])
    for name, version in _UBUNTU.items():
        if f"-{name}" in machine:
            return version
    return None


def is_older(machine: str, other: str) -> bool | None:
    """Whether a machine type is older than another of its family; None when nobody can tell.

    RHEL's own numbers are compared with each other; QEMU's and Ubuntu's by QEMU's version.
    """
    ours, theirs = _RHEL.search(machine), _RHEL.search(other)
    if ours and theirs:
        return (int(ours[1]), int(ours[2])) < (int(theirs[1]), int(theirs[2]))
    if ours or theirs:
        return None
    mine, its = machine_version(machine), machine_version(other)
    return None if mine is None or its is None else mine < its


def family(machine: str) -> str:
    """``i440fx`` or ``q35``; empty for every other kind of machine."""
    if _I440FX.match(machine):
        return "i440fx"
    return "q35" if _Q35.match(machine) else ""


def virtio_blk_discards(machine: str) -> bool | None:
    """Whether virtio-blk can discard on this machine type; None when its age is unknown."""
    version = machine_version(machine)
    return None if version is None else version >= VIRTIO_BLK_DISCARD
