# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tables of a thin image take."""

from __future__ import annotations

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.table_size import (
    Tables,
    table_bytes,
)

KIB, MIB, TIB = 1 << 10, 1 << 20, 1 << 40


@pytest.mark.parametrize(
    ("l1_entries", "l2_tables", "data", "cluster", "clusters"),
    [
        (1, 0, 0, 64 * KIB, 5),  # header, L1, refcount table, a block of it, and one to spare
        (1, 1, MIB, 64 * KIB, 6),
        (32768, 2, 48 * MIB, 64 * KIB, 10),
        (32768, 32768, 16 * TIB, 64 * KIB, 1 + 4 + 32768 + 8195 + 2),
        (1, 1, 64 * MIB, 2 * MIB, 6),
    ],
)
def test_table_bytes(l1_entries, l2_tables, data, cluster, clusters):
    found = table_bytes(
        l1_entries=l1_entries,
        l2_tables=l2_tables,
        data_bytes=data,
        cluster=cluster,
        refcount_bits=16,
    )
    assert (clusters - 1) * cluster <= found <= clusters * cluster


@pytest.mark.parametrize(("counted", "used", "spare"), [(10, 4, 6), (4, 10, 0), (4, 4, 0)])
def test_what_measure_counts_besides(counted, used, spare):
    assert Tables(counted, used).spare_bytes == spare
