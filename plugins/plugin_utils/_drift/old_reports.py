# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads reports that were written before, wherever they are kept on the controller."""

from __future__ import annotations

import json
import os
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown

#: A report of 1,000 disks has about 1 MB.
_MAX_BYTES = 64 << 20


def read(places: t.Iterable[str], *, newest: int) -> tuple[list[t.Any], list[str]]:
    """The reports' content, and a line for each file that can't be read.

    :param places: files, or folders with ``.json`` files in them; what does not exist is passed
        over, since before the first report there is none.
    :param newest: how many files of a folder to read, those that come last by their names.
    """
    reports: list[t.Any] = []
    unreadable: list[str] = []
    for path in (name for place in places for name in _files(place, newest)):
        try:
            reports.append(_content(path))
        except (OSError, ValueError, RecursionError) as error:  # the last: brackets in brackets
            unreadable.append(f"{shown(path)} is passed over, as it can't be read: {error}")
    return reports, unreadable


def _files(place: str, newest: int) -> list[str]:
    if not os.path.isdir(place):
        return [place] if os.path.exists(place) else []
    names = sorted(name for name in os.listdir(place) if name.endswith(".json"))
    return [os.path.join(place, name) for name in names[-newest:]]


def _content(path: str) -> t.Any:
    # A FIFO in the folder must not hold the run up.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_size > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES} bytes")
        with open(fd, "rb", closefd=False) as file:
            return json.loads(file.read(_MAX_BYTES))
    finally:
        os.close(fd)
