# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the guest agent says, taken apart with suspicion (pure but for asking).

The guest is not trusted: every member of an answer may be missing, of another
type, or huge.  Protocol: qga/qapi-schema.json of QEMU.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    AgentError,
    AgentTimeoutError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._findings import Finding
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown

#: More mounts than any sane guest has; what lies beyond is not reported.
MAX_MOUNTS = 1_000
#: Longest text taken from a guest, such as a mount point or an error.
MAX_TEXT = 1_000
#: Seconds that an agent may take to say that it is there.
PING_TIMEOUT = 10
#: What defrag.exe ends its line with when the disk does not take discards of the volume.
_NOT_SUPPORTED_BY_HARDWARE = "(0x8900002a)"


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


@dataclasses.dataclass(frozen=True)
class GuestOs:
    """The system in the guest, as it calls itself.

    :param id: ``mswindows``, or what /etc/os-release says, such as ``debian``; may be empty.
    :param name: for people, such as ``Windows Server 2022 Standard``; may be empty.
    """

    id: str
    name: str

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


def parse_osinfo(answer: t.Any) -> GuestOs | None:
    """The answer to ``guest-get-osinfo``; None if it tells nothing."""
    told = answer if isinstance(answer, dict) else {}
    system = GuestOs(id=_text(told.get("id")), name=_text(told.get("pretty-name")))
    return system if system.id or system.name else None


def trim_findings(name: str, mounts: t.Iterable[MountTrim]) -> tuple[Finding, ...]:
    """A finding for each mount that the guest says it could not trim."""
    return tuple(
        Finding(
            id="trim-failed-in-guest",
            severity="warning",
            reason=f"The guest could not trim {mount.path or 'a file system'}: {mount.error}",
            remedy=_remedy(mount.error),
            domain=name,
        )
        for mount in mounts
        if mount.error
    )


def _remedy(error: str) -> str:
    if _NOT_SUPPORTED_BY_HARDWARE in error.lower():
        # virtio-win issues 1574 (32768 and 65536 were tried) and 392 (drivers of before 2019)
        return (
            "Update the virtio-win drivers. If that does not help (Windows 11 since the updates of "
            "May 2026), set discard_granularity_bytes to 65536 with thinvirt.kvm.domain_discard "
            "and power the guest off and on."
        )
    return "Look with thinvirt.kvm.thin_info whether its disk takes discards at all."


def ping(guest: Agent) -> None:
    """Return if an agent answers; raise AgentError within :data:`PING_TIMEOUT` if not."""
    try:
        guest.agent("guest-ping", {}, timeout=PING_TIMEOUT)
    except AgentTimeoutError as error:
        raise AgentTimeoutError(
            error.message,
            remedy="Start qemu-guest-agent in the guest, or restart it: libvirt leaves one that "
            "sent nonsense alone until then. If an earlier trim ran out of time, the agent may "
            "still be at it, as Windows takes minutes per drive: try again later.",
        ) from error


def guest_os(guest: Agent) -> GuestOs | None:
    """Which system the guest runs; None where the agent does not tell (before 2.10)."""
    try:
        return parse_osinfo(guest.agent("guest-get-osinfo", {}, timeout=PING_TIMEOUT))
    except AgentError:
        return None


def fstrim(guest: Agent, *, minimum_bytes: int, timeout: int) -> tuple[MountTrim, ...]:
    """Have the guest trim every mounted file system that can be trimmed.

    Windows starts ``defrag.exe /L`` for one drive after the other, and reports success whatever
    becomes of them (qga/commands-win32.c): each mount's ``error`` tells.

    :param minimum_bytes: smallest free extent worth a discard, 0 for all.
    :param timeout: seconds; the guest goes on trimming when they are over.
    :raises AgentError: no agent, no answer in time, or nonsense.
    """
    try:
        answer = guest.agent("guest-fstrim", {"minimum": minimum_bytes}, timeout=timeout)
    except AgentTimeoutError as error:
        raise AgentTimeoutError(
            error.message,
            remedy="The guest goes on trimming if it has begun. Give it more time: raise timeout. "
            "Windows takes minutes per drive.",
        ) from error
    return parse_fstrim(answer, guest.name)


def set_time(guest: Agent, *, nanoseconds: int, timeout: int) -> None:
    """Set the guest's clock, system and hardware.

    :param nanoseconds: since 1970, UTC.
    :raises AgentError: it does not answer in time, or could not.
    """
    guest.agent("guest-set-time", {"time": nanoseconds}, timeout=timeout)


def is_frozen(guest: Agent) -> bool:
    """Whether file systems are frozen, as far as the agent knows: by its own command."""
    return bool(guest.agent("guest-fsfreeze-status", {}, timeout=PING_TIMEOUT) == "frozen")


def freeze(guest: Agent, *, timeout: int) -> int:
    """Freeze all file systems; how many the guest says that it were.

    :param timeout: seconds; the guest may freeze them when they are over, so thaw in any case.
    :raises AgentError: no agent, no answer in time, or nonsense.
    """
    frozen = _count(guest.agent("guest-fsfreeze-freeze", {}, timeout=timeout))
    if frozen is None:
        raise AgentError(
            f"The guest agent of domain {guest.name} answered guest-fsfreeze-freeze with no number."
        )
    return frozen


def thaw(guest: Agent, *, timeout: int) -> None:
    """Thaw what is frozen; nothing if nothing is."""
    guest.agent("guest-fsfreeze-thaw", {}, timeout=timeout)


def _text(value: t.Any) -> str:
    """On one line and printable: it goes to logs and terminals."""
    return shown(value[:MAX_TEXT].strip()) if isinstance(value, str) else ""


def _count(value: t.Any) -> int | None:
    valid = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63
    return value if valid else None
