# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""File systems of a guest at rest for an instant, by its agent; thawed whatever happens."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import subprocess
import time
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import agent
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    AgentError,
    HypervisorError,
    RefusedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.process import SEARCH_PATH
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import (
    signals_noted,
    signals_wait,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import typed

#: Seconds that a guest may take to write back what it has in memory.
FREEZE_TIMEOUT = 60
#: Seconds for each attempt to thaw, between them, and for all of them.
THAW_TIMEOUT = 10
_THAW_PAUSE_SECONDS = 1.0
_THAW_SECONDS = 60.0
#: Thaws a guest when its standard input ends without a word: when this process was killed.
_GUARD = 'read -r word || exec timeout 60 "$0" --connect "$1" domfsthaw "$2"'


class ThawError(AgentError):
    """A guest's file systems may still be frozen."""


class Freezable(agent.Agent, t.Protocol):
    """A guest (see ``connection.Guest``)."""

    uuid: str
    uri: str

    def is_active(self) -> bool: ...

    def is_lost(self) -> bool: ...

    def reconnect(self) -> None: ...


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
    with _guard(guest):
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


@contextlib.contextmanager
def _guard(guest: Freezable) -> t.Iterator[None]:
    """Have virsh(1) thaw the guest if this process is killed meanwhile; where there is a virsh.

    Without, a guest would stand still until the next run.
    """
    virsh = shutil.which("virsh", path=SEARCH_PATH)
    if virsh is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        with signals_noted():
            # run_command would wait for its end.
            process = subprocess.Popen(  # pylint: disable=ansible-bad-function
                ["/bin/sh", "-c", _GUARD, virsh, guest.uri, guest.uuid],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"LC_ALL": "C", "PATH": SEARCH_PATH},
                cwd="/",
                start_new_session=True,  # who kills our process group does not kill it
            )
            stack.enter_context(process)
        try:
            yield
        except ThawError:
            raise  # it may have more luck
        except BaseException:
            _dismiss(process)
            raise
        else:
            _dismiss(process)


def _dismiss(process: subprocess.Popen[bytes]) -> None:
    """The guest is thawed."""
    with contextlib.suppress(OSError):
        if process.stdin is not None:
            process.stdin.write(b"thawed\n")
            process.stdin.flush()


def thaw(guest: Freezable) -> None:
    """Thaw a guest's file systems, with patience; nothing if it does not run any more.

    :raises ThawError: the agent does not answer.
    """
    deadline = time.monotonic() + _THAW_SECONDS
    while True:
        try:
            agent.thaw(guest, timeout=THAW_TIMEOUT)
            return
        except AgentError as error:
            if not _may_be_frozen(guest):
                return
            if time.monotonic() > deadline:
                raise ThawError(
                    f"The file systems of domain {guest.name} may be frozen and could not be "
                    f"thawed: {error.message}",
                    remedy=f"Run virsh domfsthaw {typed(guest.name)}, and look at the guest's "
                    "console. The next run of this module tries it again.",
                ) from error
        time.sleep(_THAW_PAUSE_SECONDS)


def _may_be_frozen(guest: Freezable) -> bool:
    """Whether it still runs, as far as libvirt can be asked."""
    try:
        if guest.is_lost():  # its daemon was restarted
            guest.reconnect()
        return guest.is_active()
    except HypervisorError:
        return True


def _refuse_frozen(guest: agent.Agent) -> None:
    if agent.is_frozen(guest):
        raise RefusedError(
            f"The file systems of domain {guest.name} are frozen already, by somebody else; "
            "nothing was changed.",
            remedy=f"Wait for what has frozen them, or run virsh domfsthaw {typed(guest.name)}.",
        )
