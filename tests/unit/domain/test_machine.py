# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which machine types switch virtio-blk's discard off."""

from __future__ import annotations

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.machine import (
    family,
    is_older,
    machine_version,
    virtio_blk_discards,
)


@pytest.mark.parametrize(
    ("machine", "version", "discards"),
    [
        ("pc-i440fx-3.1", (3, 1), False),
        ("pc-i440fx-4.0", (4, 0), True),
        ("pc-q35-4.0.1", (4, 0), True),
        ("pc-q35-10.0", (10, 0), True),
        ("pc-i440fx-2.12", (2, 12), False),
        ("virt-7.2", (7, 2), True),
        ("pseries-3.1-sxxm", (3, 1), False),
        ("s390-ccw-virtio-2.9", (2, 9), False),
        ("pc-q35-rhel7.6.0", (3, 1), False),
        ("pc-q35-rhel8.0.0", (3, 1), False),
        ("pc-q35-rhel8.1.0", (4, 0), True),
        ("pc-q35-rhel9.4.0", (4, 0), True),
        ("pc-i440fx-bionic", (2, 11), False),
        ("pc-i440fx-focal-hpb", (4, 2), True),
        ("pc-q35-noble-v2", (8, 2), True),
        ("pc-q35-mantic-maxcpus", (8, 0), True),
        ("pc-i440fx-oracular", (9, 0), True),
        ("pc-q35-plucky", (9, 2), True),
        ("s390-ccw-virtio-questing", (10, 1), True),
        ("pc-q35-resolute", (10, 2), True),
        ("pc-1.0-qemu-kvm", (1, 0), False),
        ("pseries-2.12-sxxm", (2, 12), False),
        ("pseries-rhel7.6.0-sxxm", (3, 1), False),
        ("pseries-rhel8.2.0-sxxm", (4, 0), True),
        ("virt-rhel10.0.0", (4, 0), True),
        ("pc-q35-8.1+pve0", (8, 1), True),
        ("pc-q35-9.2+pve0.1", (9, 2), True),
        ("q35", None, None),
        ("microvm", None, None),
        ("", None, None),
    ],
)
def test_machine_types(machine, version, discards):
    assert machine_version(machine) == version
    assert virtio_blk_discards(machine) is discards


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        ("pc", "i440fx"),
        ("pc-i440fx-3.1", "i440fx"),
        ("pc-1.2", "i440fx"),
        ("pc-0.14", "i440fx"),
        ("pc-1.0-precise", "i440fx"),
        ("pc-1.0-qemu-kvm", "i440fx"),
        ("rhel6.5.0", "i440fx"),
        ("pc-i440fx-rhel7.6.0", "i440fx"),
        ("pc-i440fx-bionic", "i440fx"),
        ("ubuntu", "i440fx"),
        ("q35", "q35"),
        ("pc-q35-7.2", "q35"),
        ("pc-q35-rhel9.4.0", "q35"),
        ("ubuntu-q35", "q35"),
        ("virt-7.2", ""),
        ("pseries-3.1", ""),
        ("s390-ccw-virtio-6.2", ""),
        ("microvm", ""),
        ("isapc", ""),
        ("", ""),
    ],
)
def test_families(machine, name):
    assert family(machine) == name


@pytest.mark.parametrize(
    ("machine", "other", "older"),
    [
        ("pc-i440fx-3.1", "pc-i440fx-7.2", True),
        ("pc-i440fx-2.9", "pc-i440fx-2.12", True),
        ("pc-q35-10.0", "pc-q35-9.2", False),
        ("pc-q35-7.2", "pc-q35-7.2", False),
        ("pc-q35-4.0", "pc-q35-4.0.1", False),
        ("pc-i440fx-bionic", "pc-i440fx-7.2", True),
        ("pc-i440fx-noble", "pc-i440fx-7.2", False),
        ("pc-q35-rhel8.0.0", "pc-q35-rhel9.4.0", True),
        ("rhel6.5.0", "pc-i440fx-rhel7.6.0", True),
        ("pc-q35-noble", "pc-q35-resolute", True),
        ("pseries-rhel7.6.0-sxxm", "pseries-rhel8.2.0", True),
        ("pc-i440fx-rhel7.6.0", "pc-i440fx-7.2", None),
        ("pc-q35-9.0", "pc-q35-rhel9.4.0", None),
        ("pc", "pc-i440fx-7.2", None),
    ],
)
def test_which_is_older(machine, other, older):
    assert is_older(machine, other) is older
