# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tables of a thin qcow2 image take, which ``qemu-img measure`` counts for a full one."""

from __future__ import annotations

import dataclasses
import os
import struct
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._image.header import ImageHeader
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_img import QemuImg

_L1_SIZE_AT = 36
_OFFSET_BITS = (1 << 56) - 512


@dataclasses.dataclass(frozen=True)
class Tables:
    """The tables of a copy.

    :param counted_bytes: what ``measure`` counts for them: a table for each part of the disk,
        though a part without data gets none.  Of a disk of 16 TiB that are 2 GiB.
    :param used_bytes: the most that they take.
    """

    counted_bytes: int
    used_bytes: int

    @property
    def spare_bytes(self) -> int:
        """By how much ``measure`` exceeds what is needed at most."""
        return max(0, self.counted_bytes - self.used_bytes)


def tables_of(
    fd: int, header: ImageHeader, tool: QemuImg, options: t.Mapping[str, str]
) -> Tables | None:
    """What is known of a copy's tables; None where the image does not tell.

    :param options: those of the copy.
    :raises OSError: it can't be read.
    """
    used = _used_bytes(fd, header, options)
    if used is None:
        return None
    full = tool.measure_empty(header.virtual_size_bytes, target_format="qcow2", options=options)
    return Tables(full.required_bytes, used)


def spare_table_bytes(
    fd: int, header: ImageHeader, tool: QemuImg, options: t.Mapping[str, str]
) -> int:
    """:attr:`Tables.spare_bytes`; 0 where the image does not tell."""
    tables = tables_of(fd, header, tool, options)
    return tables.spare_bytes if tables else 0


def _used_bytes(fd: int, header: ImageHeader, options: t.Mapping[str, str]) -> int | None:
    qcow2 = header.qcow2
    if qcow2 is None or qcow2.backing_file is not None:
        return None
    cluster = qcow2.cluster_size_bytes
    extended = "extended_l2" in qcow2.features
    if options.get("cluster_size") != str(cluster) or ("extended_l2" in options) != extended:
        return None
    size, offset = struct.unpack(">IQ", os.pread(fd, 12, _L1_SIZE_AT))
    entries = os.pread(fd, size * 8, offset)
    whole = entries[: len(entries) // 8 * 8]  # of a file that is cut off
    tables = sum(1 for (entry,) in struct.iter_unpack(">Q", whole) if entry & _OFFSET_BITS)
    return table_bytes(
        l1_entries=size,
        l2_tables=tables,
        data_bytes=header.allocated_bytes or 0,
        cluster=cluster,
        refcount_bits=int(options.get("refcount_bits", 16)),
    )


def table_bytes(
    *, l1_entries: int, l2_tables: int, data_bytes: int, cluster: int, refcount_bits: int
) -> int:
    """The header, both levels of tables, and the counts of so many bytes of clusters."""
    l1_clusters = -(-l1_entries * 8 // cluster)
    counted = -(-data_bytes // cluster) + l1_clusters + l2_tables + 1
    blocks = -(-counted * refcount_bits // (8 * cluster)) + 1
    refcount_table = -(-blocks * 8 // cluster)
    return (1 + l1_clusters + l2_tables + blocks + refcount_table) * cluster
