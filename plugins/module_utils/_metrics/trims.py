# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What trims and compactions freed, counted over all of them (pure)."""

from __future__ import annotations

import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.module_utils._metrics.text import (
    Family,
    Labels,
    Value,
    label_value,
)

Entry = t.Mapping[str, t.Any]

_LAST = {
    "trim": "thinvirt_domain_last_trim_timestamp_seconds",
    "compaction": "thinvirt_domain_last_compaction_timestamp_seconds",
}
_DOMAIN_FREED = "thinvirt_domain_freed_bytes_total"
_DISK_FREED = "thinvirt_disk_freed_bytes_total"

#: What these metrics are, with no samples yet.
FAMILIES = (
    Family(_LAST["trim"], "gauge", "When the guest last trimmed for the host.", ("domain",)),
    Family(
        _LAST["compaction"],
        "gauge",
        "When a compaction of the domain last went through, whether it was worth it or not.",
        ("domain",),
    ),
    Family(
        _DOMAIN_FREED,
        "counter",
        "Blocks that the host got back from the domain.",
        ("domain", "method"),
    ),
    Family(
        _DISK_FREED,
        "counter",
        "Blocks that the host got back from the disk, as far as they were measured on it.",
        ("domain", "disk", "method"),
    ),
)


def add(before: t.Iterable[Family], results: t.Iterable[Entry], *, now: int) -> list[Family]:
    """The metrics after these runs.

    :param before: :data:`FAMILIES` with the samples of earlier runs.
    :param results: what ``domain_trim`` and ``domain_compact`` returned; failed ones too, as they
        tell what was freed all the same.
    :param now: seconds since the epoch.
    :raises ThinvirtError: they are something else.
    """
    families = list(before)
    after = {family.name: dict(family.samples) for family in families}
    try:
        for domain in (domain for result in results for domain in result.get("domains", ())):
            _add(after, domain, now)
    except (AttributeError, KeyError, TypeError) as error:
        raise ThinvirtError(
            "trims has something else than what thinvirt.kvm.domain_trim and "
            f"thinvirt.kvm.domain_compact return: {error!r}.",
            remedy="Give their registered results, whole, as a list.",
        ) from error
    return [family.with_samples(after[family.name]) for family in families]


def only_of(families: t.Iterable[Family], domains: t.Collection[str]) -> list[Family]:
    """The same without domains that no longer exist; all have ``domain`` as their first label."""
    return [
        family.with_samples(
            {labels: value for labels, value in family.samples.items() if labels[0] in domains}
        )
        for family in families
    ]


def _add(after: dict[str, dict[Labels, Value]], domain: Entry, now: int) -> None:
    """Add what one domain's entry tells."""
    status = domain["status"]
    if status in ("skipped", "would_trim"):
        return
    name = label_value(domain["name"])
    compaction = "recovered" in domain  # domain_trim has no such thing
    method = "compaction" if compaction else "trim"
    # The trim that a live compaction begins with is measured for the domain as a whole.
    trimmed = _bytes(domain.get("trimmed_bytes") or 0)
    freed: dict[Labels, int] = {(name, method): _bytes(domain["freed_bytes"]) - trimmed}
    if "trimmed_bytes" in domain:
        freed[(name, "trim")] = trimmed
        after[_LAST["trim"]][(name,)] = now
    if status != "failed":
        after[_LAST[method]][(name,)] = now
    _count(after[_DOMAIN_FREED], freed)
    disks: dict[Labels, int] = {
        (name, label_value(disk["target"]), method): _bytes(disk["freed_bytes"])
        for disk in domain["disks"]
        # Block devices have no figure, and a compaction tells what it left undone.
        if disk.get("freed_bytes") is not None and disk.get("changed", True)
    }
    _count(after[_DISK_FREED], disks)


def _count(counters: dict[Labels, Value], freed: dict[Labels, int]) -> None:
    for labels, number in freed.items():
        # A counter never falls; it begins at 0, so that the first increase is seen.
        counters[labels] = counters.get(labels, 0) + max(0, number)


def _bytes(value: t.Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is no number of bytes")
    return value
