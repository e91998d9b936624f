# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo's last words."""

from __future__ import annotations

from demo.scenario import MIB, Row, allocated, table


def test_sizes_are_right_aligned_mib():
    rows = [Row("demo", "sda", 10240 * MIB, 894 * MIB, 395 * MIB)]
    assert table(rows).splitlines() == [
        "disk              promised        before         after         freed",
        "demo/sda        10,240 MiB       894 MiB       395 MiB       499 MiB",
    ]


def test_allocated_counts_blocks_not_length(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.write(b"x" * MIB)
        file.truncate(64 * MIB)
    assert MIB <= allocated(path) < 2 * MIB
