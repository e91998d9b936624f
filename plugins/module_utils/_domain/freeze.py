# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""File systems of a guest at rest for an instant, by its agent; thawed whatever happens."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import agent
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    AgentError,
    RefusedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import signals_wait

#: Seconds that a guest may take to write back what it has in memory.
FREEZE_TIMEOUT = 60
#: Seconds for each attempt to thaw, and between them.
THAW_TIMEOUT = 10
_THAW_PAUSE_SECONDS = 1.0
_THAW_ATTEMPTS = 6


class ThawError(AgentError):
    """A guest's file systems may still be frozen."""


class Freezable(agent.Agent, t.Protocol):
    """A guest (see ``connection.Guest``)."""

    def is_active(self) -> bool: ...


@dataclasses.dataclass
class Freeze:
    """Whether a guest's file systems were at rest at the instant of the copy.

    :param state: ``frozen``; ``off``: it was not asked for; ``no_agent``; ``failed``.
    :param filesystems: how many were frozen, as the guest says.
    :param error: why they were not.
    :param seconds: how long they stood still.
    """

    state: str = "off"
    filesystems: int = 0
    error: str = ""
    seconds: float = 0.0


@contextlib.contextmanager
def frozen(
    guest: Freezable, *, quiesce: str, connected: bool, note: t.Callable[[], None]
) -> t.Iterator[Freeze]:
    """Freeze a guest's file systems, and thaw them in any case.

    :param quiesce: ``off``, ``auto``: if that can be done; ``required``.
    :param connected: libvirt says that an agent has opened its channel.
    :param note: writes down for the next run that the guest may be frozen; called before it is.
    :raises AgentError: ``required``, and it can't be.
    :raises ThawError: they could not be thawed.
    :raises RefusedError: somebody else has frozen them.
    """
    freeze = Freeze()
    if quiesce == "off":
        yield freeze
        return
    try:
        if not connected:
            raise AgentError(
                f"No guest agent of domain {guest.name} is connected.",
                remedy="Install and start qemu-guest-agent in the guest, or set quiesce=auto.",
            )
        agent.ping(guest)
        _refuse_frozen(guest)
    except AgentError as error:
        if quiesce == "required":
            raise
        freeze.state, freeze.error = "no_agent", str(error)
        yield freeze
        return
    note()
    begin = time.monotonic()
    try:
        try:
            freeze.filesystems = agent.freeze(guest, timeout=FREEZE_TIMEOUT)
            freeze.state = "frozen"
        except AgentError as error:
            freeze.state, freeze.error = "failed", str(error)
            if quiesce == "required":
                raise
            thaw(guest)  # it may do so late
        yield freeze
    finally:
        with signals_wait():
            thaw(guest)
        freeze.seconds = time.monotonic() - begin


def thaw(guest: Freezable) -> None:
    """Thaw a guest's file systems, with patience; nothing if it does not run any more.

    :raises ThawError: the agent does not answer.
    """
    for attempt in range(_THAW_ATTEMPTS):
        try:
            agent.thaw(guest, timeout=THAW_TIMEOUT)
            return
        except AgentError as error:
            if not guest.is_active():
                return
            if attempt == _THAW_ATTEMPTS - 1:
                raise ThawError(
                    f"The file systems of domain {guest.name} may be frozen and could not be "
                    f"thawed: {error.message}",
                    remedy=f"Run virsh domfsthaw {guest.name}, and look at the guest's console. "
                    "The next run of this module tries it again.",
                ) from error
        time.sleep(_THAW_PAUSE_SECONDS)


def _refuse_frozen(guest: agent.Agent) -> None:
    if agent.is_frozen(guest):
        raise RefusedError(
            f"The file systems of domain {guest.name} are frozen already, by somebody else; "
            "nothing was changed.",
            remedy=f"Wait for what has frozen them, or run virsh domfsthaw {guest.name}.",
        )
