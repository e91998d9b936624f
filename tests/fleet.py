# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers of thin_info as a fleet would give them, for reports."""

from __future__ import annotations

import typing as t

GIB = 1 << 30
TAKEN_AT = "2026-11-25T04:00:00Z"
#: What a domain's name may hold: libvirt forbids only the slash and the newline.
HOSTILE = (
    "<script>alert(document.domain)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(2)>',
    "{{ lookup('pipe', 'id') }}",
    "{% for x in range(9) %}x{% endfor %}",
    "=cmd|' /C calc'!A0",
    "&lt;b&gt;&amp;",
    "</style></title></script><b>",
    "\u202egnp.cod",
    "a\tb",
    "j\u00fcrgen-\u6771\u4eac",
    "x" * 200,
)

Answer = dict[str, t.Any]


def disk(number: int, **given: t.Any) -> Answer:
    """A disk of thin_info; every third does not give space back."""
    verdict = ("works", "works", "broken")[number % 3]
    broken = verdict == "broken"
    allocated = (5 + number * 7 % 40) * GIB
    used = allocated * (30 + number * 13 % 70) // 100
    return {
        "target": "vda",
        "bus": "virtio",
        "source_type": "file",
        "path": f"/srv/images/disk{number}.qcow2",
        "format": "qcow2",
        "promised_bytes": 50 * GIB,
        "allocated_bytes": allocated,
        "length_bytes": allocated,
        "mount_point": "/srv/images",
        "backing_chain": [],
        "verdict": verdict,
        "broken_link": "discard" if broken else "",
        "reason": "QEMU drops the guest's discards." if broken else "",
        "remedy": "Set discard with thinvirt.kvm.domain_discard." if broken else "",
        "chain": [],
        "live": None,
        "configured": None,
        "findings": [],
        "reclaimable_bytes": allocated - used,
        "reclaimable_estimate": ("guest", "measure", "zeros")[number % 3],
        "guest_used_bytes": used,
        "fragmentation": None,
        **given,
    }


def domain(name: str, *disks: Answer, **given: t.Any) -> Answer:
    """A domain of thin_info, with a finding for each broken disk."""
    return {
        "name": name,
        "uuid": "f4e2b079-09dd-4204-b81e-9bec7bc31162",
        "active": True,
        "machine": "pc-q35-7.2",
        "agent_channel": True,
        "agent_connected": True,
        "disks": list(disks),
        "findings": [
            {
                "id": "discard-ignored",
                "severity": "error",
                "reason": item["reason"],
                "remedy": item["remedy"],
                "domain": name,
                "disk": item["target"],
            }
            for item in disks
            if item["verdict"] == "broken"
        ],
        **given,
    }


def file_system(*domains: Answer, **given: t.Any) -> Answer:
    """The file system that has these domains' disks."""
    disks = [item for entry in domains for item in entry["disks"]]
    promised = sum(item["promised_bytes"] or 0 for item in disks)
    allocated = sum(item["allocated_bytes"] or 0 for item in disks)
    free = allocated // 4
    return {
        "mount_point": "/srv/images",
        "source": "/dev/mapper/vg0-images",
        "type": "xfs",
        "device": "254:1",
        "read_only": False,
        "total_bytes": allocated + free,
        "free_bytes": free,
        "disks": len(disks),
        "promised_bytes": promised,
        "allocated_bytes": allocated,
        "overcommit_ratio": round(promised / (allocated + free), 3) if allocated else None,
        "reclaimable_bytes": sum(item["reclaimable_bytes"] or 0 for item in disks),
        "guest_used_bytes": sum(item["guest_used_bytes"] or 0 for item in disks),
        "days_until_full": 12.4,
        **given,
    }


def answer(*domains: Answer, **given: t.Any) -> Answer:
    """What thin_info returns for a host with these domains on one file system."""
    system = file_system(*domains)
    return {
        "changed": False,
        "taken_at": TAKEN_AT,
        "summary": [],
        "domains": list(domains),
        "file_systems": [system],
        "pools": [
            {
                "name": "images",
                "path": "/srv/images",
                **{
                    key: system[key]
                    for key in (
                        "mount_point",
                        "promised_bytes",
                        "allocated_bytes",
                        "total_bytes",
                        "free_bytes",
                        "overcommit_ratio",
                        "days_until_full",
                    )
                },
            }
        ],
        "findings": [finding for entry in domains for finding in entry["findings"]],
        **given,
    }


def fleet(*, hosts: int, disks: int) -> dict[str, Answer]:
    """Hosts with so many disks together, one to a domain."""
    domains = [
        [domain(f"web{number}", disk(number)) for number in range(disks) if number % hosts == host]
        for host in range(hosts)
    ]
    return {f"kvm{host}.example.com": answer(*domains[host]) for host in range(hosts)}


def small() -> dict[str, Answer]:
    """Three hosts that were read, in part or not; names of domains are hostile."""
    names = [*HOSTILE, *(f"web{number}" for number in range(18))]
    domains = [domain(name, disk(number)) for number, name in enumerate(names)]
    db = domain(
        "db1",
        disk(40, path="/srv/fast/db1.raw", format="raw", mount_point="/srv/fast"),
        disk(
            41,
            target="vdb",
            path="/dev/vg0/db1",
            source_type="block",
            format="raw",
            allocated_bytes=None,
            mount_point=None,
            reclaimable_bytes=None,
            guest_used_bytes=None,
            reclaimable_estimate="",
            verdict="unknown",
        ),
    )
    second = answer(*domains[15:], db)
    second["file_systems"] = [
        file_system(*domains[15:]),
        file_system(
            domain("db1", db["disks"][0]),
            mount_point="/srv/fast",
            days_until_full=None,
            guest_used_bytes=None,
            reclaimable_bytes=None,
            type="ext4",
        ),
    ]
    lost = domain("lost", error={"msg": "Its image /srv/images/lost.qcow2 does not exist."})
    third = answer(domain("mail", disk(7)), lost, failed=True, msg="1 of 2 domains failed.")
    return {
        "kvm1.example.com": answer(*domains[:15]),
        "kvm2.example.com": second,
        "kvm3.example.com": third,
        "kvm4.example.com": {"unreachable": True, "msg": "Failed to connect by SSH: timed out"},
        "kvm5.example.com": {"failed": True, "msg": "libvirtd does not run on <b>kvm5</b>."},
    }


def work() -> dict[str, Answer]:
    """What domain_trim and domain_compact have returned on three hosts, one of them down."""
    hung = {"name": "hung", "status": "failed", "disks": [], "error": {"msg": "It is silent."}}
    trimmed = {
        "failed": True,
        "freed_bytes": 3 * GIB,
        "domains": [
            {"name": "off", "status": "skipped", "reason": "The domain is shut off."},
            {"name": "web", "status": "trimmed", "disks": [_trimmed("vda", 3), _trimmed("vdb", 0)]},
            hung,
            {"name": HOSTILE[0], "status": "skipped", "reason": HOSTILE[1]},
        ],
    }
    compacted = {
        "failed": True,
        "freed_bytes": 5 * GIB,
        "domains": [
            {
                "name": "off",
                "status": "failed",
                "disks": [
                    {
                        "target": "vda",
                        "changed": True,
                        "method": "rewrite",
                        "freed_bytes": 5 * GIB,
                        "reason": "Worth it.",
                    },
                    {"target": "vdb", "error": {"msg": "It has snapshots. Delete them."}},
                    {"target": "vdc", "changed": False, "freed_bytes": 0, "reason": "Too little."},
                ],
            },
            {"name": "web", "status": "skipped", "reason": "It runs.", "disks": []},
            {"name": "hung", "status": "skipped", "reason": "It runs.", "disks": []},
            {"name": HOSTILE[0], "status": "skipped", "reason": HOSTILE[1], "disks": []},
        ],
    }
    return {
        "kvm1.example.com": {"trim": trimmed, "compact": compacted},
        "kvm2.example.com": {"trim": {"skipped": True}},
        "kvm4.example.com": {
            "trim": {"unreachable": True, "msg": "No route."},
            "compact": {"skipped": True},
        },
    }


def _trimmed(target: str, gib: int) -> Answer:
    return {"target": target, "path": f"/srv/images/{target}.qcow2", "freed_bytes": gib * GIB}
