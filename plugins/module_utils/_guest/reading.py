# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files and programs of the guest, within bounds."""

from __future__ import annotations

import os
import stat
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import CommandError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import process
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure

#: Tables below /etc that are longer are not read to their end.
MAX_BYTES = 1 << 20
_TIMEOUT = 60
#: An lsblk of thousands of devices, and the list of a large initial RAM disk.
_MAX_OUTPUT_BYTES = 64 << 20


def read_text(path: str, *, limit: int = MAX_BYTES, missing: str | None = None) -> str:
    """A text file, up to *limit* bytes of it.  What is no regular file reads as empty.

    :param missing: the text for a file that is not there or can't be read.
    :raises NotFoundError: it is not there, and *missing* is None.
    """
    try:
        # Not blocking: a FIFO in cron.d must not hang us.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return missing or ""
            return file.read(limit).decode("utf-8", "backslashreplace")
    except OSError as error:
        if missing is None:
            raise failure(path, "read", error) from error
        return missing


def output_of(argv: t.Sequence[str], *, timeout: float = _TIMEOUT) -> str:
    """What a program prints.

    :param argv: the program's absolute path and its arguments.
    :raises CommandError: it failed, took too long or printed too much.
    """
    done = process.run(argv, timeout=timeout, max_output_bytes=_MAX_OUTPUT_BYTES)
    if done.rc != 0:
        raise CommandError(
            f"{argv[0]} failed with status {done.rc}.", argv=argv, rc=done.rc, stderr=done.stderr
        )
    return done.stdout.decode("utf-8", "backslashreplace")
