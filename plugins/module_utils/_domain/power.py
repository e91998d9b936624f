# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shut a guest down in order, and wait until one that was started is back."""

from __future__ import annotations

import time

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import agent
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import Guest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    AgentError,
    HypervisorError,
    RefusedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import stop_if_asked

_POLL_SECONDS = 0.5
#: A guest may ignore one request, for example while it boots: it is asked again.
_ASK_AGAIN_SECONDS = 20


def shut_down(guest: Guest, timeout: int) -> None:
    """Shut a running guest down in order, never by force.

    :param timeout: seconds until it must be off.
    :raises RefusedError: it is not; it was left running.
    """
    begin = time.monotonic()
    asked = begin - _ASK_AGAIN_SECONDS
    refusal = ""
    while guest.is_active():
        stop_if_asked()
        now = time.monotonic()
        if now - begin > timeout:
            raise RefusedError(
                f"Domain {guest.name} did not power off within {timeout} s and was left running; "
                f"what needs it to be off was not done.{refusal}",
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


def wait_for_agent(guest: Guest, timeout: int) -> None:
    """Wait until the agent of a guest that was started answers.

    :raises AgentError: it does not within ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            agent.ping(guest)
            return
        except AgentError as error:
            stop_if_asked()
            if _has_ended(guest):
                raise AgentError(
                    f"Domain {guest.name} was shut down and started again, and ended while it "
                    "booted.",
                    remedy="Look at the log of its QEMU.",
                ) from error
            if time.monotonic() > deadline:
                raise AgentError(
                    f"Domain {guest.name} was shut down and started again, and its guest agent "
                    f"did not come back within {timeout} s.",
                    remedy="Look at the guest's console.",
                ) from error
        time.sleep(_POLL_SECONDS)


def _has_ended(guest: Guest) -> bool:
    try:
        return not guest.is_active()
    except HypervisorError:  # libvirtd is being restarted
        return False
