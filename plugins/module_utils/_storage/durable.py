# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names and small files that are on the disk before the work goes on."""

from __future__ import annotations

import contextlib
import os

from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure


def sync_folder(folder: str) -> None:
    """Have the names in a folder on the disk before going on.

    :raises OSError: the folder can't be opened, or the disk fails.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_whole(path: str, text: str) -> None:
    """Write a file for the owner alone, whole or not at all, by way of ``PATH.tmp``.

    :raises ThinvirtError: it can't be written; what was there stays.
    """
    temp = f"{path}.tmp"
    try:
        # What a killed run has left, or somebody else has put there to be written to.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temp)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(temp, flags, 0o600), "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temp, path)
        sync_folder(os.path.dirname(path))
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temp)
        raise failure(path, "written", error) from error
