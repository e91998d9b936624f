# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is told of long work, while it runs and in the end."""

from __future__ import annotations

from ansible_collections.thinvirt.kvm.plugins.module_utils._image.progress import progress_logger
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.replace import Stages


def test_each_stage_and_each_tenth_is_told_once():
    lines: list[str] = []
    stages = Stages(report=progress_logger("/a", lines.append))
    with stages.stage("copy") as report:
        for percent in range(0, 26, 5):
            report(percent, percent * 1000)
    with stages.stage("check"):
        pass
    assert lines == [
        "/a: copy",
        "/a: copy, 10 %, 10000 bytes",
        "/a: copy, 20 %, 20000 bytes",
        "/a: check",
    ]


def test_bytes_add_up_over_the_disks_of_a_domain():
    stages = Stages()
    for size in (1000, 500):
        with stages.stage("copy") as report:
            report(50, size // 2)
            report(100, size)
    with stages.stage("check") as report:
        report(100)
    assert stages.moved_bytes == {"copy": 1500}
    assert list(stages.seconds) == ["copy", "check"]
