# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where libvirt says that a disk is, after a switch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import HypervisorError
from ansible_collections.thinvirt.kvm.plugins.module_utils._live import checks

RICH = (Path(__file__).parent / "data" / "rich.xml").read_text(encoding="utf-8")
OTHER = RICH.replace("/srv/images/web1.qcow2", "/srv/images/web1.overlay")


def guest(live, configured, *, persistent=True):
    return SimpleNamespace(
        name="web1",
        live_xml=lambda: live,
        configured_xml=lambda **_more: configured,
        is_persistent=lambda: persistent,
    )


@pytest.mark.parametrize(
    ("live", "configured", "persistent", "agrees"),
    [
        (RICH, RICH, True, True),
        (RICH, OTHER, False, True),
        (RICH, OTHER, True, False),
        (OTHER, RICH, True, False),
    ],
)
def test_a_switch_counts_only_where_libvirt_has_it_too(live, configured, persistent, agrees):
    switched = guest(live, configured, persistent=persistent)
    if agrees:
        checks.refuse_disagreement(switched, "sda", "/srv/images/web1.qcow2")
        return
    with pytest.raises(HypervisorError, match="did not switch disk sda"):
        checks.refuse_disagreement(switched, "sda", "/srv/images/web1.qcow2")
