# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which image a journal is of: by its path, by its folder, and by its file.

The path is what a person knows it by; the same folder may be mounted elsewhere by now, another one
may have its path, and the image may have other names.  The journal's first line says all three.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.state import (
    file_system_ids,
    is_same_file_system,
)

SUFFIX = ".journal"


@dataclasses.dataclass(frozen=True)
class Place:
    """An image, or the name that one is going to have.

    :param path: absolute, symlinks in its folder resolved.
    :param systems: what its folder's file system is known by.
    :param folder: inode of the folder.
    :param file: inode of the image; 0 if nothing has the name.
    """

    path: str
    systems: t.Mapping[str, str]
    folder: int
    file: int

    @classmethod
    def of(cls, path: str) -> Place:
        """What has a path now.

        :raises NotFoundError: the folder does not exist.
        :raises ThinvirtError: it can't be examined.
        """
        folder, name = os.path.realpath(os.path.dirname(path)), os.path.basename(path)
        try:
            inode = os.stat(folder).st_ino
            systems = file_system_ids(folder)
            try:
                file = os.lstat(os.path.join(folder, name)).st_ino
            except FileNotFoundError:
                file = 0
        except OSError as error:
            raise failure(folder, "examined", error) from error
        return cls(os.path.join(folder, name), systems, inode, file)

    def file_name(self) -> str:
        """How its journal is called, unless the folder had another path when it was begun."""
        return hashlib.sha256(os.fsencode(self.path)).hexdigest()[:32] + SUFFIX

    def line(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode("ascii") + b"\n"

    def is_same(self, other: Place) -> bool:
        """Whether a name in a folder is the same, whatever path leads there."""
        same = os.path.basename(self.path) == os.path.basename(other.path)
        same = same and self.folder == other.folder
        # A file system that does not tell is the same one, if its path is.
        unknown = self.path == other.path
        return same and is_same_file_system(self.systems, other.systems, unknown=unknown)

    def is_other_name(self, other: Place) -> bool:
        """Whether it is the same file by another name."""
        same = self.file != 0 and self.file == other.file
        return same and is_same_file_system(self.systems, other.systems, unknown=False)


def parse_place(data: bytes) -> Place | None:
    """What a journal's first line says; None if it was cut short, or is not one."""
    line, newline, _rest = data.partition(b"\n")
    try:
        place = Place(**json.loads(line)) if newline else None
        if place is None or not os.path.isabs(place.path) or not isinstance(place.systems, dict):
            return None
        return place if isinstance(place.folder, int) and isinstance(place.file, int) else None
    except (ValueError, TypeError, RecursionError):
        return None
