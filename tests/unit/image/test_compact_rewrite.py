# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a rewrite would save, told before a copy is made."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import compact_policy
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact_rewrite import Rewrite

MIB = 1 << 20


@pytest.mark.parametrize(
    ("least", "zeros", "saved"),
    [
        (100, 0, 0),
        (100, 2, 0),  # as many zeros as its tables have: the copy has them too
        (100, 12, 10),
        (70, 2, 30),  # clusters of no use
        (70, 12, 40),
        (120, 2, 0),  # a copy may need more
        (0, 100, 100),  # never more than there is
    ],
)
def test_tables_of_zeros_come_back_with_the_copy(least, zeros, saved):
    header = SimpleNamespace(qcow2=True, virtual_size_bytes=1 << 30, allocated_bytes=100 * MIB)
    work = Rewrite.__new__(Rewrite)
    work.facts = compact_policy.Facts(header, data_bytes=100 * MIB, unwritten_bytes=0, links=1)
    empty = SimpleNamespace(required_bytes=2 * MIB)
    work.tool = SimpleNamespace(measure_empty=lambda *_given, **_more: empty)
    work.zeros, work.journal = lambda _enough: zeros * MIB, None
    plan = SimpleNamespace(
        least_bytes=least * MIB, copy=SimpleNamespace(format="qcow2", options={}), tables=None
    )
    assert work._estimate(plan, 10 * MIB) == saved * MIB
