# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a guest that is off, and has a note of ours, is to be started again (pure).

A note outlives its process, so it may be old by the time it is found.  What has happened to the
guest since is told by libvirt's log of its QEMU, where that can be read, and by libvirt itself.
"""

from __future__ import annotations

import calendar
import dataclasses
import re
import time

#: A guest that has been off for longer than that is off because somebody wants it so.
MAX_AGE_SECONDS = 24 * 3600
#: A guest that was told to shut down, and did not in time, may still obey for so long.
OBEY_SECONDS = 300

# qemuDomainLogAppendMessage and qemuLogOperation, src/qemu/qemu_domain.c and qemu_process.c
_EVENT = re.compile(
    r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(\.\d+)?\+0000: "
    r"(?:(starting up) libvirt version|shutting down, reason=([a-z-]+))",
    re.MULTILINE,
)


@dataclasses.dataclass(frozen=True)
class Log:
    """The last events in libvirt's log of a domain's QEMU.

    :param started: when it was started for the last time, as the log has it; empty if not known.
    :param stopped: when it ended after that, seconds since the epoch; 0 if not known.
    :param reason: why, in libvirt's words.
    """

    started: str = ""
    stopped: float = 0
    reason: str = ""


def parse_log(text: str) -> Log:
    """Read libvirt's log of a QEMU, or its end."""
    log = Log()
    for moment, fraction, started, reason in _EVENT.findall(text):
        if started:
            log = Log(started=f"{moment}{fraction}".replace(" ", "T"))
        else:
            seconds = calendar.timegm(time.strptime(moment, "%Y-%m-%d %H:%M:%S"))
            log = dataclasses.replace(log, stopped=seconds, reason=reason)
    return log


@dataclasses.dataclass(frozen=True)
class Note:
    """What a run has noted; see :class:`.xml.Domain`.

    :param since: when, seconds since the epoch; 0 in notes of earlier releases.
    :param until: what is off by then obeys that run; 0 once it has seen the guest off itself.
    :param started: :attr:`Log.started` at that time.
    :param saved: the guest was to be saved instead of shut down.
    """

    since: int
    until: int
    started: str
    saved: bool


def until_of(process: str) -> int:
    """:attr:`Note.until` of a note's text; see ``restart.asking``."""
    found = re.search(r" until=(\d{1,12})$", process)
    return int(found[1]) if found else 0


def why_not(note: Note, log: Log, *, reason: str, has_saved_state: bool, now: float) -> str:
    """Why the guest is left off, in half a sentence; empty if it is started.

    :param reason: why it is off, as libvirt has it.
    """
    reason, stopped = log.reason or reason, log.stopped or now
    resumable = note.saved and has_saved_state  # whoever starts it uses that up
    if note.started and log.started and note.started != log.started and not resumable:
        return "somebody has started it since and turned it off again"
    if note.until and reason == "destroyed":
        return "somebody has turned it off since"
    if note.until and stopped > note.until:
        return "it was shut down since, too late for that to be that run's doing"
    if note.since and now - note.since > MAX_AGE_SECONDS:
        return f"that was more than {MAX_AGE_SECONDS // 3600} hours ago"
    return ""
