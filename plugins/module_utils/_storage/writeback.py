# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Have the kernel begin to write a file to the disk, so that a later fsync has less to wait for."""

from __future__ import annotations

import ctypes

#: SYNC_FILE_RANGE_WRITE of sync_file_range(2).
_WRITE = 2


def begin_writeback(fd: int) -> None:
    """Begin to write all of an open file; a hint, which proves nothing and may be ignored."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "sync_file_range"):  # not every architecture has it
        libc.sync_file_range(ctypes.c_int(fd), ctypes.c_int64(0), ctypes.c_int64(0), _WRITE)
