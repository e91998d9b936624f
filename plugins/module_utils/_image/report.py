# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many images in one call: which ones are meant, and what is told about each."""

from __future__ import annotations

import collections
import dataclasses
import glob
import os
import stat
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    CommandError,
    ImageError,
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.chain import (
    BackingLink,
    DataFile,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.inspect import (
    ImageInfo,
    Options,
    inspect_image,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qcow2 import Qcow2Header
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.holders import (
    Holder,
    find_holders,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import (
    encodable,
    shown,
)

Result = dict[str, t.Any]


def expand_paths(patterns: t.Sequence[str]) -> tuple[list[str], list[str]]:
    """The images that names and globs mean: (paths in order, globs that match nothing).

    A name is taken as it is, whether it exists or not, and even with glob characters in it
    if it exists.  A glob means files, block devices and symlinks, not directories and the like.

    :raises RefusedError: a path is named twice.
    :raises ImageError: a glob is relative.
    """
    counts = collections.Counter(map(os.path.normpath, patterns))
    for path in (path for path, count in counts.items() if count > 1):
        raise RefusedError(f"{shown(path)} is named twice in paths.", remedy="Name it once.")
    paths: dict[str, None] = {}  # an ordered set
    unmatched = []
    for pattern in patterns:
        matches = [pattern]
        if "\0" not in pattern and glob.has_magic(pattern) and not os.path.lexists(pattern):
            if not os.path.isabs(pattern):
                raise ImageError(f"The glob {shown(pattern)} is relative.", remedy="Begin with /.")
            matches = sorted(filter(_may_be_image, glob.glob(pattern)))
            unmatched += [] if matches else [pattern]
        paths.update(dict.fromkeys(matches))
    return list(paths), unmatched


def _may_be_image(path: str) -> bool:
    try:
        mode = os.lstat(path).st_mode
    except OSError:  # deleted meanwhile
        return False
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode) or stat.S_ISLNK(mode)


def survey(
    paths: t.Sequence[str], options: Options
) -> tuple[list[Result], list[tuple[str, ThinvirtError]]]:
    """Inspect images one by one: (an entry for each, in order; those that failed).

    The entry of one that failed has only ``path``, ``error`` and what a program said.
    """
    outcomes = [(path, _inspect(path, options)) for path in paths]
    # One scan of /proc for all: it can take a second on a busy host.
    keys = {o.key for _path, o in outcomes if isinstance(o, ImageInfo) and o.locks.in_use}
    holders = find_holders(keys)
    entries = [
        failure_result(path, outcome)
        if isinstance(outcome, ThinvirtError)
        else image_result(outcome, holders.get(outcome.key, ()))
        for path, outcome in outcomes
    ]
    failed = [(shown(path), o) for path, o in outcomes if isinstance(o, ThinvirtError)]
    return entries, failed


def _inspect(path: str, options: Options) -> ImageInfo | ThinvirtError:
    try:
        return inspect_image(path, options)
    except ThinvirtError as error:
        return error


def failure_result(path: str, error: ThinvirtError) -> Result:
    """The entry of an image that could not be inspected."""
    more = error.result() if isinstance(error, CommandError) else {}
    more.pop("msg", None)
    return {"path": encodable(path), "error": str(error), **more}


def image_result(info: ImageInfo, holders: t.Iterable[Holder]) -> Result:
    """The entry of an image, as RETURN of ``image_info`` documents it."""
    header, layout, known = info.header, info.layout, info.locks.known
    return {
        "path": encodable(header.path),
        "format": header.format,
        "block_device": header.block_device,
        "virtual_size_bytes": header.virtual_size_bytes,
        "allocated_bytes": header.allocated_bytes,
        "length_bytes": header.length_bytes,
        "reclaimable_bytes": info.reclaimable_bytes,
        "holes": {"count": layout.hole_count, "bytes": layout.hole_bytes} if layout else None,
        "file_extents": layout.extents if layout else None,
        "in_use": info.locks.in_use if known else None,
        "writer": info.locks.writer if known else None,
        "holders": [dataclasses.asdict(holder) for holder in holders],
        "backing_chain": [_link_result(link) for link in info.chain],
        "data_file": _data_file_result(info.data_file) if info.data_file else None,
        "snapshots": [
            {**dataclasses.asdict(snapshot), "id": shown(snapshot.id), "name": shown(snapshot.name)}
            for snapshot in info.snapshots
        ],
        "bitmaps": [
            {**dataclasses.asdict(bitmap), "flags": list(bitmap.flags)} for bitmap in info.bitmaps
        ],
        **_header_result(header.qcow2),
        **_check_result(info),
    }


def _header_result(header: Qcow2Header | None) -> Result:
    """What only qcow2 has; a raw image has nothing of it."""
    features = header.features if header else frozenset()
    encryption = header.encryption if header else "none"
    return {
        "compat": header.compat if header else None,
        "cluster_size_bytes": header.cluster_size_bytes if header else None,
        "refcount_bits": header.refcount_bits if header else None,
        "compression_type": header.compression_type if header else None,
        "features": sorted(features),
        "dirty": "dirty" in features,
        "corrupt": "corrupt" in features,
        "encryption": encryption,
        "encrypted": encryption != "none",
    }


def _check_result(info: ImageInfo) -> Result:
    check = info.check
    return {
        "check": {
            "result": check.result if check else "skipped",
            "reason": info.check_skipped,
            "leaks": check.leaks if check else None,
            "corruptions": check.corruptions if check else None,
            "check_errors": check.check_errors if check else None,
            "image_end_offset_bytes": check.image_end_offset_bytes if check else None,
        },
        "total_clusters": check.total_clusters if check else None,
        "allocated_clusters": check.allocated_clusters if check else None,
        "compressed_clusters": check.compressed_clusters if check else None,
        "fragmented_clusters": check.fragmented_clusters if check else None,
    }


def _data_file_result(data_file: DataFile) -> Result:
    return {"path": encodable(data_file.storage.path), **dataclasses.asdict(data_file.usage)}


def _link_result(link: BackingLink) -> Result:
    header = link.header
    return {
        "path": encodable(link.path),
        "name": shown(link.name),
        "declared_format": link.declared_format,
        "format": header.format if header else None,
        "virtual_size_bytes": header.virtual_size_bytes if header else None,
        "allocated_bytes": header.allocated_bytes if header else None,
        "length_bytes": header.length_bytes if header else None,
        "error": link.error,
    }
