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


def write_whole(
    path: str, text: str, *, mode: int = 0o600, owner: int = -1, group: int = -1
) -> None:
    """Write a file, by default for the owner alone, whole or not at all, by way of ``PATH.tmp``.

    :param mode: permission bits, whatever the umask is.
    :param owner: user ID, -1 for who writes it; ``group`` likewise.  Mode and owner are right
        before the file has its name, so that whoever reads it can do so at every instant.
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
            # By the open file: its folder may belong to others, who could exchange a name.
            os.fchown(file.fileno(), owner, group)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.rename(temp, path)
        sync_folder(os.path.dirname(path))
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temp)
        raise failure(path, "written", error) from error
