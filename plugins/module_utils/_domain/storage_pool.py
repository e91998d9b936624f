# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A storage pool of libvirt as data (pure)."""

from __future__ import annotations

import dataclasses

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.xml import parse_any


@dataclasses.dataclass(frozen=True)
class StoragePool:
    """An active pool; sizes in bytes, as libvirt saw them when it last looked at the pool.

    :param kind: ``dir``, ``fs``, ``netfs``, ``logical``, ``rbd``, …
    :param path: the folder of its volumes on this host; empty if it has none.
    :param allocated_bytes: what is taken, by whatever lies there.
    """

    name: str
    kind: str
    path: str
    total_bytes: int
    allocated_bytes: int
    free_bytes: int


def parse_pool(text: str, *, total: int, allocated: int, free: int) -> StoragePool:
    """A pool from its XML and the figures that libvirt gives beside it.

    :raises HypervisorError: it is no XML.
    """
    tree = parse_any(text)
    path = (tree.findtext("target/path") or "").strip()
    return StoragePool(
        name=tree.findtext("name") or "",
        kind=tree.get("type", ""),
        path=path if path.startswith("/") else "",
        total_bytes=total,
        allocated_bytes=allocated,
        free_bytes=free,
    )
