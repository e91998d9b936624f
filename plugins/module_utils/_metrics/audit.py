# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an audit says of a host, as metrics (pure).

The names follow node_exporter's: ``size`` and ``avail`` of a file system, and its labels
``mountpoint``, ``device`` and ``fstype``, so that both can be joined.
"""

from __future__ import annotations

import datetime
import math
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.module_utils._metrics.text import (
    Family,
    Labels,
    Value,
    label_value,
)

Entry = t.Mapping[str, t.Any]
_VERDICTS = ("works", "broken", "unknown")
_DAY_SECONDS = 86400

_DISK = ("domain", "disk")
_FILE_SYSTEM = ("mountpoint",)
_POOL = ("pool",)

#: Sizes of things, by the key that the audit has for them, with what they mean.
_DISK_SIZES = {
    "promised_bytes": "Size of the disk that the guest sees.",
    "allocated_bytes": "Blocks that the disk occupies on the host.",
    "length_bytes": "Length of the disk's file, as ls shows it.",
    "reclaimable_bytes": "Estimate of what could come back to the host.",
    "guest_used_bytes": "What the guest's file systems on the disk use, as its agent says.",
}
_ROOM = {
    "total_bytes": ("size_bytes", "Its size."),
    "free_bytes": ("avail_bytes", "What may still be allocated, as df shows."),
    "promised_bytes": ("promised_bytes", "Sizes of the disks on it, as their guests see them."),
    "allocated_bytes": ("allocated_bytes", "What images occupy on it."),
    "overcommit_ratio": (
        "overcommit_ratio",
        "Promises over the room for them; above 1 guests can fill it.",
    ),
}
_FILE_SYSTEM_SIZES = {
    "reclaimable_bytes": "Estimate of what could come back.",
    "guest_used_bytes": "What the guests' file systems use.",
}


def families(audit: Entry) -> list[Family]:
    """All metrics of one audit.

    :param audit: what ``thin_info`` returned; domains that could not be read included.
    :raises ThinvirtError: it is something else.
    """
    try:
        return [
            *_host(audit),
            *_domains(audit["domains"]),
            *_disks(audit["domains"]),
            *_findings(audit),
            *_rooms("filesystem", _FILE_SYSTEM, audit["file_systems"], key="mount_point"),
            *_file_systems(audit["file_systems"]),
            *_pools(audit.get("pools", ())),
            *_rooms("pool", _POOL, audit.get("pools", ()), key="name"),
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ThinvirtError(
            f"The audit is not what thinvirt.kvm.thin_info returns: {error!r}.",
            remedy="Give the registered result of thinvirt.kvm.thin_info, whole.",
        ) from error


def domain_names(audit: Entry) -> set[str]:
    """The domains that an audit tells of."""
    return {label_value(domain["name"]) for domain in audit["domains"]}


def _host(audit: Entry) -> t.Iterator[Family]:
    taken_at = datetime.datetime.fromisoformat(audit["taken_at"].replace("Z", "+00:00"))
    read = all("error" not in domain for domain in audit["domains"])
    yield Family(
        "thinvirt_audit_timestamp_seconds",
        "gauge",
        "When the host was audited.",
        samples={(): int(taken_at.timestamp())},
    )
    yield Family(
        "thinvirt_audit_success",
        "gauge",
        "Whether every domain could be read.",
        samples={(): int(read)},
    )


def _domains(domains: t.Sequence[Entry]) -> t.Iterator[Family]:
    yield Family(
        "thinvirt_domain_info",
        "gauge",
        "A domain, its UUID and machine type.",
        ("domain", "uuid", "machine"),
        _unique(
            ((_text(d["name"]), _text(d["uuid"]), _text(d.get("machine", ""))), 1) for d in domains
        ),
    )
    yield Family(
        "thinvirt_domain_running",
        "gauge",
        "Whether the domain runs.",
        ("domain",),
        _unique(((_text(d["name"]),), int(bool(d["active"]))) for d in domains),
    )
    yield Family(
        "thinvirt_domain_audit_success",
        "gauge",
        "Whether the domain could be read.",
        ("domain",),
        _unique(((_text(d["name"]),), int("error" not in d)) for d in domains),
    )


def _disks(domains: t.Sequence[Entry]) -> t.Iterator[Family]:
    disks = [
        ((_text(domain["name"]), _text(disk["target"])), disk)
        for domain in domains
        for disk in domain.get("disks", ())
    ]
    about = ("path", "bus", "format", "mountpoint")
    yield Family(
        "thinvirt_disk_info",
        "gauge",
        "A disk, and where it lies.",
        (*_DISK, *about),
        _unique(
            (
                (
                    *where,
                    _text(disk["path"]),
                    _text(disk["bus"]),
                    _text(disk["format"]),
                    _text(disk["mount_point"] or ""),
                ),
                1,
            )
            for where, disk in disks
        ),
    )
    for key, meaning in _DISK_SIZES.items():
        yield Family(
            f"thinvirt_disk_{key}",
            "gauge",
            meaning,
            _DISK,
            _known((where, disk.get(key)) for where, disk in disks),
        )
    yield Family(
        "thinvirt_disk_discard_verdict",
        "gauge",
        "Whether the guest's discards reach the storage; 1 for the verdict that is true.",
        (*_DISK, "verdict"),
        _unique(
            ((*where, verdict), int(_verdict(disk) == verdict))
            for where, disk in disks
            for verdict in _VERDICTS
        ),
    )


def _findings(audit: Entry) -> t.Iterator[Family]:
    everywhere = [
        *audit.get("findings", ()),
        *(finding for domain in audit["domains"] for finding in domain.get("findings", ())),
    ]
    yield Family(
        "thinvirt_finding_info",
        "gauge",
        "What keeps a disk from being thin; its id is documented.",
        (*_DISK, "id", "severity"),
        _unique(
            (tuple(_text(finding[key]) for key in (*_DISK, "id", "severity")), 1)
            for finding in everywhere
        ),
    )


def _rooms(
    what: str, labels: tuple[str, ...], rooms: t.Sequence[Entry], *, key: str
) -> t.Iterator[Family]:
    """The figures that file systems and pools have in common."""
    for source, (name, meaning) in _ROOM.items():
        yield Family(
            f"thinvirt_{what}_{name}",
            "gauge",
            meaning,
            labels,
            _known(((_text(room[key]),), room.get(source)) for room in rooms),
        )
    yield Family(
        f"thinvirt_{what}_until_full_seconds",
        "gauge",
        "When it will be full if it goes on as in earlier audits; absent if it does not fill.",
        labels,
        _known(((_text(room[key]),), _seconds(room.get("days_until_full"))) for room in rooms),
    )


def _file_systems(systems: t.Sequence[Entry]) -> t.Iterator[Family]:
    yield Family(
        "thinvirt_filesystem_info",
        "gauge",
        "A file system that holds images.",
        (*_FILE_SYSTEM, "device", "fstype"),
        _unique(
            (tuple(_text(system[key]) for key in ("mount_point", "source", "type")), 1)
            for system in systems
        ),
    )
    for key, meaning in _FILE_SYSTEM_SIZES.items():
        yield Family(
            f"thinvirt_filesystem_{key}",
            "gauge",
            meaning,
            _FILE_SYSTEM,
            _known(((_text(system["mount_point"]),), system.get(key)) for system in systems),
        )
    yield Family(
        "thinvirt_filesystem_disks",
        "gauge",
        "Disks whose images are on it.",
        _FILE_SYSTEM,
        _known(((_text(system["mount_point"]),), system["disks"]) for system in systems),
    )


def _pools(pools: t.Sequence[Entry]) -> t.Iterator[Family]:
    yield Family(
        "thinvirt_pool_info",
        "gauge",
        "A storage pool; mountpoint is empty if it lies on no file system.",
        ("pool", "type", "mountpoint"),
        _unique(
            (
                (
                    _text(pool["name"]),
                    _text(pool.get("type", "")),
                    _text(pool["mount_point"] or ""),
                ),
                1,
            )
            for pool in pools
        ),
    )


def _verdict(disk: Entry) -> str:
    verdict = _text(disk["verdict"])
    if verdict not in _VERDICTS:
        raise ValueError(f"the verdict {verdict!r}")
    return verdict


def _seconds(days: Value | None) -> Value | None:
    number = _number(days)
    return None if number is None else round(number * _DAY_SECONDS)


def _known(samples: t.Iterable[tuple[Labels, t.Any]]) -> dict[Labels, Value]:
    """Those that have a number; what is not known has no sample."""
    numbers = ((labels, _number(value)) for labels, value in samples)
    return _unique((labels, number) for labels, number in numbers if number is not None)


def _unique(samples: t.Iterable[tuple[Labels, Value]]) -> dict[Labels, Value]:
    """Of samples with the same labels the last: node_exporter drops a file that has two."""
    return dict(samples)


def _number(value: t.Any) -> Value | None:
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return value
    raise TypeError(f"{value!r} is no number")


def _text(value: t.Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return label_value(value)
