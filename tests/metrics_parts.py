# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What modules returned, in the shape that they document, for tests of what is made of it."""

from __future__ import annotations

import typing as t

GIB = 1 << 30
MIB = 1 << 20

#: Names that libvirt takes, and two that it does not: whatever comes in must come out the same.
HOSTILE_NAMES = (
    'quote"quote',
    "back\\slash",
    "ends with \\",
    "\\n is no newline",
    "a newline\nthinvirt_fake 1",
    "carriage\rreturn",
    "{brace}, comma=1",
    "# HELP thinvirt_fake",
    "{{ 7 * 7 }}",
    "<script>alert(1)</script>",
    "\x1b[31mred",
    "next\x85line \u2028 \u202egnp",
    "ünï©ödé 𝄞",
    "",
)


def disk(target: str = "vda", **values: t.Any) -> dict[str, t.Any]:
    """One that gives space back."""
    good = {
        "target": target,
        "bus": "virtio",
        "path": f"/srv/{target}.qcow2",
        "format": "qcow2",
        "promised_bytes": 20 * GIB,
        "allocated_bytes": 5 * GIB,
        "length_bytes": 6 * GIB,
        "reclaimable_bytes": GIB,
        "reclaimable_estimate": "guest",
        "guest_used_bytes": 4 * GIB,
        "mount_point": "/srv",
        "verdict": "works",
        "findings": [],
    }
    return {**good, **values}


def finding(identity: str, severity: str = "error", **values: t.Any) -> dict[str, t.Any]:
    return {
        "id": identity,
        "severity": severity,
        "reason": f"There is {identity}.",
        "remedy": f"Mend {identity}.",
        "domain": "",
        "disk": "",
        **values,
    }


def domain(name: str = "web1", *disks: dict[str, t.Any], **values: t.Any) -> dict[str, t.Any]:
    """One that runs, with the findings of its disks."""
    found = [{**f, "domain": name} for each in disks for f in each["findings"]]
    return {
        "name": name,
        "uuid": "f4e2b079-09dd-4204-b81e-9bec7bc31162",
        "active": True,
        "machine": "pc-q35-7.2",
        "disks": list(disks),
        "findings": found,
        **values,
    }


def file_system(mount_point: str = "/srv", **values: t.Any) -> dict[str, t.Any]:
    good = {
        "mount_point": mount_point,
        "source": "/dev/sdx1",
        "type": "ext4",
        "device": "8:1",
        "total_bytes": 100 * GIB,
        "free_bytes": 50 * GIB,
        "disks": 1,
        "promised_bytes": 120 * GIB,
        "allocated_bytes": 30 * GIB,
        "reclaimable_bytes": 3 * GIB,
        "guest_used_bytes": None,
        "overcommit_ratio": 1.5,
        "days_until_full": 12.5,
    }
    return {**good, **values}


def pool(name: str = "default", **values: t.Any) -> dict[str, t.Any]:
    shared = ("mount_point", "total_bytes", "free_bytes", "promised_bytes", "allocated_bytes")
    system = file_system()
    good = {key: system[key] for key in (*shared, "overcommit_ratio", "days_until_full")}
    return {**good, "name": name, "type": "dir", "path": "/srv/pool", **values}


def audit(*domains: dict[str, t.Any], **values: t.Any) -> dict[str, t.Any]:
    """What ``thin_info`` returns."""
    good = {
        "taken_at": "2026-11-25T04:00:00Z",
        "domains": list(domains),
        "file_systems": [file_system()],
        "pools": [pool()],
        "findings": [],
        "summary": [],
        "changed": False,
    }
    return {**good, **values}


def trim(name: str = "web1", freed_bytes: int = 300 * MIB, **values: t.Any) -> dict[str, t.Any]:
    """What ``domain_trim`` returns for one domain with one disk."""
    entry = {
        "name": name,
        "status": "trimmed",
        "freed_bytes": freed_bytes,
        "disks": [{"target": "vda", "freed_bytes": freed_bytes}],
        **values,
    }
    return {"changed": True, "freed_bytes": freed_bytes, "domains": [entry]}


def compaction(
    name: str = "web1", freed_bytes: int = 200 * MIB, *, trimmed_bytes: int = 0, **values: t.Any
) -> dict[str, t.Any]:
    """What ``domain_compact`` returns for one domain with one disk."""
    entry = {
        "name": name,
        "status": "done",
        "recovered": "",
        "freed_bytes": freed_bytes + trimmed_bytes,
        "disks": [{"target": "vda", "changed": True, "freed_bytes": freed_bytes}],
        **({"trimmed_bytes": trimmed_bytes} if trimmed_bytes else {}),
        **values,
    }
    return {"changed": True, "freed_bytes": entry["freed_bytes"], "domains": [entry]}
