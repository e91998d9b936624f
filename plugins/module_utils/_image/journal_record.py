# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a journal says, and the names that a run gives to its files (pure)."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import secrets

_MARK = r"\.thinvirt-[0-9a-f]{16}"


@dataclasses.dataclass(frozen=True)
class Identity:
    """What tells a file, and that nobody wrote to it; times in nanoseconds."""

    dev: int
    ino: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def is_still(self, other: Identity | None) -> bool:
        """Whether it is the same, a reboot later: the device may have another number by then."""
        return other is not None and dataclasses.replace(other, dev=self.dev) == self


@dataclasses.dataclass(frozen=True)
class Live:
    """What else is to be known where a running domain's image is compacted.

    :param domain: its UUID.
    :param target: the disk.
    :param overlay: name of the first overlay, beside the image.
    :param second: name of the second one, which lies on the copy; empty before it is made.
    :param source: where the domain's configuration had the disk (``xml.source_of``).
    :param image_format: of the image, and of its copy.
    :param base: path of an image that is moved to another folder; empty for one that is not.
    :param dest: path of its copy there.  A journal beside that says the same, so that the run is
        found from either side; the image's own is the one that counts.
    :param saved: the guest's memory may have been saved while it was on an overlay.
    """

    domain: str
    target: str
    overlay: str
    source: str
    image_format: str
    second: str = ""
    base: str = ""
    dest: str = ""
    saved: bool = False


@dataclasses.dataclass(frozen=True)
class Record:
    """How far a run has come.

    :param operation: ``rewrite``, ``punch``, ``convert`` or ``live``.
    :param stage: the stage that has begun, for people; ``swap`` is the only one that matters for
        recovery: from there on the image's name may mean the copy already.
    :param pid: of the run.
    :param source: the image that had the name; None if there was none.
    :param temp: name of the copy in the same folder; empty if none is made.
    :param kept: name of the link to the original in the same folder; empty before it is made.
    :param keep_original: leave that link behind in the end.
    :param copy: the copy, known from the stage ``swap`` on.
    :param live: for the operation ``live``.
    """

    operation: str
    stage: str
    pid: int
    source: Identity | None
    temp: str = ""
    kept: str = ""
    keep_original: bool = False
    copy: Identity | None = None
    live: Live | None = None


def temp_name(path: str) -> str:
    """A new name, in the image's folder, for a copy of it."""
    return f".{os.path.basename(path)}.thinvirt-{secrets.token_hex(8)}.tmp"


def is_temp_name(name: str, path: str) -> bool:
    """Whether :func:`temp_name` makes such names for this image: others are never removed."""
    return bool(re.fullmatch(rf"\.{re.escape(os.path.basename(path))}{_MARK}\.tmp", name))


def overlay_name(path: str) -> str:
    """A new name, in the image's folder, for an overlay that a guest writes to for a while.

    Not a hidden one: whoever looks into the folder is to see that it belongs to the image.
    """
    return f"{os.path.basename(path)}.thinvirt-{secrets.token_hex(8)}.overlay"


def overlaid(path: str) -> str:
    """The image that an overlay with such a name lies on; empty if it is no such name."""
    found = re.fullmatch(rf"(.+){_MARK}\.overlay", os.path.basename(path), re.DOTALL)
    return os.path.join(os.path.dirname(path), found[1]) if found else ""


def last_record(data: bytes) -> Record | None:
    """The last whole line of a journal."""
    for line in reversed(data.split(b"\n")):
        try:
            fields = json.loads(line)
            files = {
                name: Identity(**fields[name]) if fields[name] else None
                for name in ("source", "copy")
            }
            live = Live(**fields["live"]) if fields.get("live") else None
            return Record(**{**fields, **files, "live": live})
        except (ValueError, TypeError, KeyError):
            continue
    return None
