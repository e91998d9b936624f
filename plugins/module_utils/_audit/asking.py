# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask running domains side by side what only they, or their guests, know.

QEMU's monitor and the guest agent may hang.  Both are asked in threads while the rest of the host
is read, each agent with a time limit of its own, and nobody is asked any more once the time for
all is over.  So a guest that hangs costs its own answer and no other one.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import time
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._discard import untrimmed
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.turns import MAX_WORKERS
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    AgentTimeoutError,
    BusyError,
    ThinvirtError,
)

#: Seconds after which nobody is asked any more.  Who is being asked then is waited for: libvirt
#: gives an agent 5 s to wake up besides its time limit, and waits 30 s for a domain that is busy.
TIME_FOR_ALL = 60.0

#: What became of a question to an agent.
Outcome = t.Literal["answered", "not-asked", "no-time", "silent", "refused"]


class Running(t.Protocol):
    """A running domain that can be asked (see ``connection.Guest``)."""

    uuid: str

    def agent(self, command: str, arguments: t.Mapping[str, t.Any], *, timeout: int) -> t.Any: ...

    def jobs(self, targets: t.Iterable[str]) -> list[str]: ...

    def stopped_by_io_error(self) -> bool: ...

    def io_errors(self) -> dict[str, str]: ...


@dataclasses.dataclass(frozen=True)
class Question:
    """What to ask one running domain.

    :param targets: its disks, for their block jobs.
    :param agent: whether to ask its guest agent.
    :param live_xml: where its disks hang.
    """

    guest: Running
    targets: tuple[str, ...]
    agent: bool
    live_xml: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a running domain has said.

    :param agent: what became of the question to its agent; ``not-asked`` on purpose.
    :param reason: why there is no answer, one sentence; empty otherwise.
    :param remedy: what to do about that.
    :param file_systems: of the guest, by its word.
    :param addresses: where the domain's disks hang, and their targets.
    :param jobs: what libvirt is working on in it.
    :param stopped: an I/O error has paused it, so its agent can't answer.
    :param io_errors: disks that failed then, and how, where QEMU tells.
    """

    agent: Outcome = "not-asked"
    reason: str = ""
    remedy: str = ""
    file_systems: tuple[untrimmed.GuestFileSystem, ...] = ()
    addresses: t.Mapping[untrimmed.Address, str] = dataclasses.field(default_factory=dict)
    jobs: tuple[str, ...] = ()
    stopped: bool = False
    io_errors: t.Mapping[str, str] = dataclasses.field(default_factory=dict)


class Asker:
    """Asks as soon as there is somebody to ask.

    :param agent_timeout: seconds for each agent.
    :param time_for_all: seconds after which nobody is asked any more.
    """

    def __init__(self, *, agent_timeout: int, time_for_all: float = TIME_FOR_ALL) -> None:
        self._timeout = agent_timeout
        self._deadline = time.monotonic() + time_for_all
        self._pool = concurrent.futures.ThreadPoolExecutor(MAX_WORKERS)
        self._asked: dict[str, concurrent.futures.Future[Answer]] = {}

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_exception: object) -> None:
        """Wait for who is being asked: the connection is theirs."""
        for future in self._asked.values():
            future.cancel()
        self._pool.shutdown()

    def ask(self, question: Question) -> None:
        """Have it asked; returns at once."""
        self._asked[question.guest.uuid] = self._pool.submit(self._answer, question)

    def answers(self) -> dict[str, Answer]:
        """What was answered, by the domains' UUIDs; waits for the last answer."""
        return {uuid: future.result() for uuid, future in self._asked.items()}

    def _answer(self, question: Question) -> Answer:
        if time.monotonic() > self._deadline:
            return Answer(agent="no-time" if question.agent else "not-asked")
        answer = _stopped(question) or (self._ask_agent(question) if question.agent else Answer())
        return dataclasses.replace(answer, jobs=_jobs(question))

    def _ask_agent(self, question: Question) -> Answer:
        try:
            told = question.guest.agent("guest-get-fsinfo", {}, timeout=self._timeout)
            return Answer(
                agent="answered",
                file_systems=untrimmed.parse_fsinfo(told),
                addresses=untrimmed.disk_addresses(question.live_xml),
            )
        except AgentTimeoutError as error:
            return Answer(agent="silent", reason=error.message)
        except ThinvirtError as error:
            return Answer(agent="refused", reason=error.message, remedy=error.remedy)


def _stopped(question: Question) -> Answer | None:
    try:
        if not question.guest.stopped_by_io_error():
            return None
    except ThinvirtError:
        return None  # it was shut off meanwhile
    try:
        return Answer(stopped=True, io_errors=question.guest.io_errors())
    except ThinvirtError:
        return Answer(stopped=True)


def _jobs(question: Question) -> tuple[str, ...]:
    try:
        return tuple(question.guest.jobs(question.targets))
    except BusyError:
        return ("something that keeps it from answering",)
    except ThinvirtError:
        return ()  # it was shut off meanwhile
