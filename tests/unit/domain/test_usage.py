# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose disk an image is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.usage import Users
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.files import open_image

BARE = "<domain><name>web1</name><uuid>u1</uuid><devices>{}</devices></domain>"
DISK = (
    "<disk type='file' device='disk'><driver type='raw'/><source file='{}'/>"
    "<target dev='vdb' bus='virtio'/></disk>"
)


@pytest.mark.parametrize(
    ("configured", "live", "forbids"),
    [(False, False, []), (True, False, [True]), (False, True, [True]), (True, True, [True])],
)
def test_a_disk_is_the_domains_that_has_it_now_or_at_its_next_start(
    tmp_path, configured, live, forbids
):
    path = tmp_path / "a.raw"
    path.write_bytes(bytes(512))
    texts = [BARE.format(DISK.format(path) if has else "") for has in (configured, live)]
    guest = SimpleNamespace(
        name="web1",
        uuid="u1",
        configured_xml=lambda **_more: texts[0],
        live_xml=lambda: texts[1],
        is_active=lambda: True,
        has_managed_save=lambda: False,
        snapshot_count=lambda: 0,
        checkpoint_count=lambda: 0,
    )
    host = SimpleNamespace(all_guests=lambda: [guest], disk_path=lambda disk: disk.path)
    with open_image(str(path)) as image:
        found = [one for one in Users(host).obstacles(image) if one.unless_format != "raw"]
    assert [obstacle.forbids_punch for obstacle in found] == forbids
