# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A note beside a copy, ``COPY.thinvirt.json``: of what it is one, and with which options.

It tells the next run that the copy is up to date, and that it is ours to replace or remove: only
while the copy is as it was when it was made.  It is written just before the copy gets its name, and
so it names the copy that had the name before as well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import (
    Identity,
    sync_folder,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure

SUFFIX = ".thinvirt.json"
_MAX_BYTES = 64 * 1024


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What is known of a copy.

    :param src: the image's path, symlinks resolved.
    :param source: the image as it was copied.
    :param options: what the copy was made with.
    :param copy: the copy as it was left.
    :param previous: the copy that had the name before, as it was left; None if there was none.
    :param created: UTC, such as ``20261124T204455Z``.
    :param pending: the new copy never got the name: a run was killed just before.
    """

    src: str
    source: Identity
    options: t.Mapping[str, t.Any]
    copy: Identity
    previous: Identity | None
    created: str
    pending: bool = False

    def is_of(self, src: str, source: Identity, options: t.Mapping[str, t.Any]) -> bool:
        """Whether a new copy would be the same."""
        same = (self.src, self.source, dict(self.options)) == (src, source, dict(options))
        return same and not self.pending


def read_manifest(copy: str) -> Manifest | None:
    """The manifest of a copy; None without one that fits the file as it is now."""
    try:
        fd = os.open(copy + SUFFIX, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fields = json.loads(os.read(fd, _MAX_BYTES))
        files = {
            name: Identity(**fields[name]) if fields[name] else None
            for name in ("source", "copy", "previous")
        }
        manifest = Manifest(**{**fields, **files, "pending": False})
        now = Identity.of(os.lstat(copy))
    except (ValueError, TypeError, KeyError, OSError):
        return None
    finally:
        os.close(fd)
    if now == manifest.copy:
        return manifest
    return dataclasses.replace(manifest, pending=True) if now == manifest.previous else None


def write_manifest(copy: str, manifest: Manifest) -> None:
    """Write the manifest of a copy, whole or not at all.

    :raises ThinvirtError: it can't be written.
    """
    path = copy + SUFFIX
    temp = f"{path}.tmp"
    text = json.dumps(dataclasses.asdict(manifest), indent=2) + "\n"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(temp, flags, 0o600)
        try:
            os.write(fd, text.encode("utf-8", "surrogateescape"))
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temp, path)
        sync_folder(os.path.dirname(path))
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temp)
        raise failure(path, "written", error) from error


def remove_with_manifest(copy: str) -> None:
    """Remove a copy that is ours, and then its manifest.

    :raises ThinvirtError: the kernel refuses.
    """
    try:
        os.unlink(copy)
        os.unlink(copy + SUFFIX)
        sync_folder(os.path.dirname(copy))
    except OSError as error:
        raise failure(copy, "removed", error) from error
