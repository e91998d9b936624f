# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which guests with a note are started, and which stay off."""

from __future__ import annotations

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import left_off
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.left_off import Log, Note

LOG = """\
2026-11-29 14:00:00.123+0000: starting up libvirt version: 9.0.0, qemu version: 7.2.22
LC_ALL=C \\
/usr/bin/qemu-system-x86_64 \\
char device redirected to /dev/pts/0 (label charserial0)
2026-11-29 14:10:00.456+0000: shutting down, reason=shutdown
2026-11-29 14:20:00.789+0000: starting up libvirt version: 9.0.0, qemu version: 7.2.22
qemu-system-x86_64: terminating on signal 15 from pid 7 (/usr/sbin/libvirtd)
2026-11-29 14:30:00.000+0000: shutting down, reason=destroyed
"""
FIRST, SECOND = "2026-11-29T14:00:00.123", "2026-11-29T14:20:00.789"
ASKED = 1_000_000


@pytest.mark.parametrize(
    ("lines", "log"),
    [
        (0, Log()),
        (4, Log(started=FIRST)),
        (5, Log(FIRST, 1795961400, "shutdown")),
        (6, Log(started=SECOND)),
        (8, Log(SECOND, 1795962600, "destroyed")),
    ],
)
def test_the_log_tells_the_last_start_and_how_it_ended(lines, log):
    assert left_off.parse_log("".join(LOG.splitlines(keepends=True)[:lines])) == log


def note(**changes):
    return Note(**{"since": ASKED, "until": 0, "started": FIRST, "saved": False, **changes})


ASKING = {"until": ASKED + 600}
SAVED = {"saved": True}


@pytest.mark.parametrize(
    ("noted", "log", "reason", "hours", "why"),
    [
        ({}, Log(FIRST, ASKED, "shutdown"), "shutdown", 1, ""),
        ({}, Log(), "shutdown", 1, ""),
        ({}, Log(), "", 1, ""),
        ({}, Log(), "", 25, "24 hours ago"),
        ({}, Log(SECOND, ASKED, "shutdown"), "shutdown", 1, "started it since"),
        ({"started": ""}, Log(SECOND, ASKED, "shutdown"), "shutdown", 1, ""),
        (ASKING, Log(FIRST, ASKED + 599, "shutdown"), "", 20, ""),
        (ASKING, Log(FIRST, ASKED + 601, "shutdown"), "", 20, "too late"),
        (ASKING, Log(FIRST, ASKED + 60, "destroyed"), "", 0, "turned it off"),
        (ASKING, Log(FIRST, ASKED + 60, "crashed"), "", 0, ""),
        (ASKING, Log(), "destroyed", 0, "turned it off"),
        (ASKING, Log(), "shutdown", 0.1, ""),
        (ASKING, Log(), "shutdown", 0.2, "too late"),
        (SAVED, Log(SECOND), "", 1, "started it since"),
        ({**SAVED, "state": True}, Log(SECOND), "", 1, ""),
        ({**SAVED, "state": True}, Log(FIRST), "", 25, "24 hours ago"),
    ],
)
def test_a_guest_that_was_shut_down_on_purpose_stays_off(noted, log, reason, hours, why):
    state = noted.get("state", False)
    found = left_off.why_not(
        note(**{name: value for name, value in noted.items() if name != "state"}),
        log,
        reason=reason,
        has_saved_state=state,
        now=ASKED + hours * 3600,
    )
    assert (why in found) if why else not found, found


@pytest.mark.parametrize(
    ("process", "until"), [("1 b 2 until=17", 17), ("1 b 2", 0), ("1 b until=x", 0), ("", 0)]
)
def test_until_when_a_guest_obeys(process, until):
    assert left_off.until_of(process) == until
