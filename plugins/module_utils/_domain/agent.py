# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the guest agent says, taken apart with suspicion (pure but for asking).

The guest is not trusted: every member of an answer may be missing, of another
type, or huge.  Protocol: qga/qapi-schema.json of QEMU.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import AgentError

#: More mounts than any sane guest has; what lies beyond is not reported.
MAX_MOUNTS = 1_000
#: Longest text taken from a guest, such as a mount point or an error.
MAX_TEXT = 1_000
#: Seconds that an agent may take to say that it is there.
PING_TIMEOUT = 10


class Agent(t.Protocol):
    """Somebody who passes a command to a guest agent (see ``connection.Guest``)."""

    name: str

    def agent(self, command: str, arguments: t.Mapping[str, t.Any], *, timeout: int) -> t.Any: ...


@dataclasses.dataclass(frozen=True)
class MountTrim:
    """What a guest says of one mount; no proof of anything on the host.

    :param trimmed_bytes: what the guest claims, None where it does not say (Windows).
    :param error: the guest's own words, empty if it reports none.
    """

    path: str
    trimmed_bytes: int | None
    error: str

    def result(self) -> dict[str, t.Any]:
        return dataclasses.asdict(self)


def parse_fstrim(answer: t.Any, name: str) -> tuple[MountTrim, ...]:
    """The answer to ``guest-fstrim``.

    :raises AgentError: it is no such answer.
    """
    paths = answer.get("paths") if isinstance(answer, dict) else None
    if not isinstance(paths, list) or not all(isinstance(entry, dict) for entry in paths):
        raise AgentError(
            f"The guest agent of domain {name} answered guest-fstrim with no list of paths.",
            remedy="Update qemu-guest-agent in the guest (2.4 or later reports per path).",
        )
    return tuple(
        MountTrim(
            path=_text(entry.get("path")),
            trimmed_bytes=_count(entry.get("trimmed")),
            error=_text(entry.get("error")),
        )
        for entry in paths[:MAX_MOUNTS]
    )


def ping(guest: Agent) -> None:
    """Return if an agent answers; raise AgentError within :data:`PING_TIMEOUT` if not."""
    guest.agent("guest-ping", {}, timeout=PING_TIMEOUT)


def fstrim(guest: Agent, *, minimum_bytes: int, timeout: int) -> tuple[MountTrim, ...]:
    """Have the guest trim every mounted file system that can be trimmed.

    :param minimum_bytes: smallest free extent worth a discard, 0 for all.
    :param timeout: seconds; the guest goes on trimming when they are over.
    :raises AgentError: no agent, no answer in time, or nonsense.
    """
    answer = guest.agent("guest-fstrim", {"minimum": minimum_bytes}, timeout=timeout)
    return parse_fstrim(answer, guest.name)


def set_time(guest: Agent, *, nanoseconds: int, timeout: int) -> None:
    """Set the guest's clock, system and hardware.

    :param nanoseconds: since 1970, UTC.
    :raises AgentError: it does not answer in time, or could not.
    """
    guest.agent("guest-set-time", {"time": nanoseconds}, timeout=timeout)


def _text(value: t.Any) -> str:
    return value[:MAX_TEXT] if isinstance(value, str) else ""


def _count(value: t.Any) -> int | None:
    valid = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63
    return value if valid else None
