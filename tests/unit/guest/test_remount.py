# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What may be unmounted; that it is mounted again is tested on a real guest."""

from __future__ import annotations

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest import remount
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.filesystem import (
    parse_mountinfo,
)

MOUNTS = tuple(
    parse_mountinfo("""\
20 1 8:1 / / rw - ext4 /dev/sda1 rw
21 20 8:2 / /srv rw,noatime - ext4 /dev/sda2 rw,stripe=4
22 20 8:3 / /xfs rw - xfs /dev/sda3 rw
23 20 8:4 / /two rw - ext4 /dev/sda4 rw
24 20 8:4 /a /bind rw - ext4 /dev/sda4 rw
25 20 8:5 / /top rw - ext4 /dev/sda5 rw
26 25 8:6 / /top/below rw - ext4 /dev/sda6 rw
27 20 8:7 / /over rw - ext4 /dev/sda7 rw
28 27 8:8 / /over rw - ext4 /dev/sda8 rw
29 20 8:9 /a /part rw - ext4 /dev/sda9 rw
30 20 8:10 / /srvdata rw - ext4 /dev/sda10 rw
""").values()
)


def test_a_plain_ext4():
    (plan,) = remount.plan(["/srv", "/srv"], MOUNTS)
    assert plan == remount.Plan("/srv", MOUNTS[1])


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/", "root"),
        ("/xfs", "xfs sends"),
        ("/two", "several places"),
        ("/bind", "several places"),
        ("/part", "several places"),  # its root may be mounted where we don't see it
        ("/top", "below it"),
        ("/over", "over each other"),
        ("/none", "Nothing is mounted"),
    ],
)
def test_what_is_left_alone(path, reason):
    (plan,) = remount.plan([path], MOUNTS)
    assert plan.mount is None
    assert reason in plan.reason
