# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What roles/windows_guest/files/state.ps1 prints, taken apart with suspicion (pure).

The guest is not trusted: every member may be missing, of another type, or huge.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown

#: Longest text taken from a guest, such as a volume's name.
MAX_TEXT = 300
#: More entries of a kind than any sane guest has; what lies beyond is not reported.
MAX_ENTRIES = 100
#: Windows' names of the events "retrim completed" and "retrim could not be completed".
EVENT_DONE, EVENT_FAILED = 258, 264


@dataclasses.dataclass(frozen=True)
class Driver:
    """A driver of virtio-win.

    :param name: ``vioscsi``, ``viostor`` or ``vioser`` (the channel of the guest agent).
    :param running: loaded, so bound to a device or ready at boot.
    :param version: of the file, such as ``100.95.104.26200``.
    """

    name: str
    running: bool
    version: str

    @property
    def virtio_win(self) -> int | None:
        """N of the release virtio-win 0.1.N: the last part of the version, by a hundred."""
        last = self.version.rpartition(".")[2]
        return int(last) // 100 if re.fullmatch(r"\d{3,7}", last) else None


@dataclasses.dataclass(frozen=True)
class Disk:
    """A disk as Windows sees it.

    :param provisioning: ``Thin``, ``Fixed`` or ``Unknown``.
    :param media: ``SSD``, ``HDD``, ``Unspecified``.
    :param sector_bytes: the logical sector.
    """

    number: int
    name: str
    serial: str
    provisioning: str
    media: str
    sector_bytes: int

    def line(self) -> str:
        """For people."""
        serial = f", serial {self.serial}" if self.serial else ""
        return (
            f"disk {self.number} ({self.name}{serial}): provisioning {self.provisioning}, "
            f"media {self.media}, sectors of {self.sector_bytes} bytes"
        )


@dataclasses.dataclass(frozen=True)
class Event:
    """A word of the storage optimizer in the event log.

    :param about: what it worked on: the operation (in Windows' language) and the volume.
    """

    id: int
    time: str
    about: tuple[str, str]
    reason: str


@dataclasses.dataclass(frozen=True)
class State:
    """One Windows.

    :param agent: status of the service QEMU-GA such as ``Running``, empty if there is none.
    :param agent_start: how it starts, such as ``Automatic``.
    :param agent_msi: the agent's installer on a virtio-win ISO that is inserted, or empty.
    :param delete_notify: what fsutil says, by file system (empty where it names none): True if
        Windows keeps deletions to itself.
    :param retrim_task: state of the task ScheduledDefrag such as ``Ready``, empty if there is none.
    :param maintenance_disabled: automatic maintenance, which runs that task, is switched off.
    :param fast_startup: shutting down is hibernating in part.
    """

    os: str
    drivers: tuple[Driver, ...]
    agent: str
    agent_start: str
    agent_msi: str
    iso: str
    delete_notify: dict[str, bool]
    retrim_task: str
    maintenance_disabled: bool
    fast_startup: bool
    disks: tuple[Disk, ...]
    events: tuple[Event, ...]


def parse_state(text: str) -> State:
    """The state that the script printed.

    :raises ThinvirtError: it is no JSON object.
    """
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise ThinvirtError(
            "The guest printed something else than its state in JSON; nothing was changed: "
            f"{_text(text) or 'nothing at all'}",
            remedy="Run roles/windows_guest/files/state.ps1 in the guest by hand; it only reads.",
        )
    agent, task, iso = (_dict(told.get(key)) for key in ("agent", "retrim_task", "virtio_win_iso"))
    return State(
        os=_text(told.get("os")),
        drivers=tuple(
            Driver(
                name=_text(entry.get("name")).lower(),
                running=entry.get("running") is True,
                version=_text(entry.get("version")),
            )
            for entry in _dicts(told.get("drivers"))
        ),
        agent=_text(agent.get("status")),
        agent_start=_text(agent.get("start_type")),
        agent_msi=_text(iso.get("agent_msi")),
        iso=_text(iso.get("label")),
        delete_notify=parse_delete_notify(_list(told.get("delete_notify"))),
        retrim_task=_text(task.get("state")),
        maintenance_disabled=told.get("maintenance_disabled") == 1,
        fast_startup=told.get("fast_startup") == 1,
        disks=tuple(
            Disk(
                number=_count(entry.get("number")),
                name=_text(entry.get("name")),
                serial=_text(entry.get("serial")),
                provisioning=_text(entry.get("provisioning")) or "Unknown",
                media=_text(entry.get("media")) or "Unspecified",
                sector_bytes=_count(entry.get("sector_bytes")),
            )
            for entry in _dicts(told.get("disks"))
        ),
        events=tuple(_event(entry) for entry in _dicts(told.get("retrim_events"))),
    )


def parse_delete_notify(lines: t.Iterable[t.Any]) -> dict[str, bool]:
    """What ``fsutil behavior query DisableDeleteNotify`` prints.

    Windows before 10 prints one line without a file system.  Of one that is "not currently set"
    Windows has its default, which is to tell the disk.
    """
    found = {}
    for line in lines:
        match = re.match(r"\s*(?:(NTFS|ReFS)\s+)?DisableDeleteNotify\s*=\s*(\d)", _text(line))
        if match:
            found[match[1] or ""] = match[2] != "0"
    return found


def _event(entry: dict[str, t.Any]) -> Event:
    """Its properties are the operation, the volume, and for a failure the reason."""
    operation, volume, reason = ([*map(_text, _list(entry.get("properties"))), "", "", ""])[:3]
    return Event(
        id=_count(entry.get("id")),
        time=_text(entry.get("time")),
        about=(operation, volume),
        reason=reason,
    )


def _dict(value: t.Any) -> dict[str, t.Any]:
    return value if isinstance(value, dict) else {}


def _list(value: t.Any) -> list[t.Any]:
    return value[:MAX_ENTRIES] if isinstance(value, list) else []


def _dicts(value: t.Any) -> list[dict[str, t.Any]]:
    return [entry for entry in _list(value) if isinstance(entry, dict)]


def _text(value: t.Any) -> str:
    """On one line, printable, and no template: it goes to terminals, and through set_fact.

    ansible-core before 2.19 templates what a filter returns, so ``{{ lookup('pipe', ...) }}`` from
    a guest would be carried out on the controller.
    """
    if not isinstance(value, str):
        return ""
    return re.sub(r"\{(?=[{%#])", "{ ", shown(value.strip()[:MAX_TEXT].strip()))


def _count(value: t.Any) -> int:
    valid = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31
    return value if valid else 0
