# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The helper disk's file goes once no QEMU has it."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware import helper, helper_xml

BARE = """<domain><name>w</name><os><type machine='pc-q35-7.2'>hvm</type></os><devices>
<controller type='scsi' index='0' model='virtio-scsi'/></devices></domain>"""


@pytest.mark.parametrize("used", [False, True])
def test_a_file_that_a_guest_has_stays(tmp_path, used):
    path = tmp_path / "w-thinvirt-helper.img"
    path.touch()
    os.truncate(path, helper.SIZE_BYTES)
    live = helper_xml.with_devices(BARE, disk=str(path), iso="") if used else BARE
    guest = SimpleNamespace(is_active=lambda: True, live_xml=lambda: live)
    outcome = helper.Outcome(guest, now=BARE, file=str(path), remove=True)
    helper.carry_out(None, outcome, helper.Request(present=False))
    assert outcome.error is None
    assert (path.exists(), outcome.removed) == (used, not used)
