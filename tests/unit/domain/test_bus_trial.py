# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a trial of another bus is begun on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import restart, xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware.bus_trial import Trial

BEFORE = "<domain><name>web1</name><vcpu>1</vcpu></domain>"


def trial(now):
    guest = SimpleNamespace(name="web1", configured_xml=lambda **_more: now)
    return Trial(None, guest, None, shutdown_timeout=1, boot_timeout=1, done=restart.Done())


def test_our_own_note_is_no_change():
    noted = xml.with_note(BEFORE, "7 boot 1")
    assert trial(noted)._unchanged_since(BEFORE) == noted


def test_what_somebody_changed_while_the_guest_was_off_is_left_alone():
    with pytest.raises(RefusedError, match="changed by somebody else while it was shut down"):
        trial(BEFORE.replace("1</vcpu>", "2</vcpu>"))._unchanged_since(BEFORE)
