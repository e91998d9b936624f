# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which machine types switch virtio-blk's discard off."""

from __future__ import annotations

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.machine import (
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
        ("q35", None, None),
        ("microvm", None, None),
        ("", None, None),
    ],
)
def test_machine_types(machine, version, discards):
    assert machine_version(machine) == version
    assert virtio_blk_discards(machine) is discards
