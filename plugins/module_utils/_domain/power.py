# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turn a guest off and on again, so that a new QEMU reads its configuration.

A reboot inside the guest is not enough: the QEMU process stays the same.
"""

from __future__ import annotations

import time

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import agent
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import Guest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    AgentError,
    HypervisorError,
    RefusedError,
)

_POLL_SECONDS = 0.5
#: A guest may ignore one request, for example while it boots: it is asked again.
_ASK_AGAIN_SECONDS = 20


def power_cycle(guest: Guest, *, timeout: int, wait_for_agent: bool) -> float:
    """Shut a running guest down in order, start it, and wait until it is back.

    The guest is never forced off.

    :param timeout: seconds for the shutdown, and again for the agent to come back.
    :param wait_for_agent: the guest had an agent before, so wait for it afterwards.
    :returns: seconds without service, from the request until the agent answered (or until
        the start, without an agent).
    :raises RefusedError: the guest did not power off in time; it still runs.
    :raises HypervisorError: the guest is off and did not start again.
    :raises AgentError: the guest was started, and its agent did not come back in time.
    """
    begin = time.monotonic()
    _shut_down(guest, timeout)
    try:
        guest.start()
    except HypervisorError as error:
        raise HypervisorError(
            f"Domain {guest.name} was shut down to apply its new settings and does not start "
            f"again: {error.message}",
            remedy=f"Look at its log and run virsh start {guest.name}.",
        ) from error
    if wait_for_agent:
        _wait_for_agent(guest, timeout)
    return time.monotonic() - begin


def _shut_down(guest: Guest, timeout: int) -> None:
    begin = time.monotonic()
    asked = begin - _ASK_AGAIN_SECONDS
    refusal = ""
    while guest.is_active():
        now = time.monotonic()
        if now - begin > timeout:
            raise RefusedError(
                f"Domain {guest.name} did not power off within {timeout} s and was left running; "
                f"its new settings wait for its next start.{refusal}",
                remedy="Shut it down from inside, or raise timeout.",
            )
        if now - asked >= _ASK_AGAIN_SECONDS:
            asked = now
            try:
                guest.shutdown()
            except HypervisorError as error:
                # a guest that powers off at this instant cannot be asked any more
                refusal = f" {error.message}"
        time.sleep(_POLL_SECONDS)


def _wait_for_agent(guest: Guest, timeout: int) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            agent.ping(guest)
            return
        except AgentError as error:
            if time.monotonic() > deadline:
                raise AgentError(
                    f"Domain {guest.name} was shut down and started again, and its guest agent "
                    f"did not come back within {timeout} s.",
                    remedy="Look at the guest's console.",
                ) from error
        time.sleep(_POLL_SECONDS)
