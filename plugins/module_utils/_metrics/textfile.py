# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file that node_exporter reads: what it has, and what it is to have.

Its folder may belong to the user that node_exporter runs as, so nothing in it is trusted: no link
is followed, and owner and mode are set before the file has its name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import grp
import os
import pwd
import re
import stat
import time
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    BusyError,
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._metrics import audit as of_audit
from ansible_collections.thinvirt.kvm.plugins.module_utils._metrics import trims as of_trims
from ansible_collections.thinvirt.kvm.plugins.module_utils._metrics.text import read, render
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.durable import write_whole
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import (
    failure,
    shown,
)

#: More than 100,000 disks; node_exporter would not like it either.
_MAX_BYTES = 64 << 20
#: The first line of every file of ours; what lacks it is never written over.
_HEADER = "# Written by thinvirt.kvm.thin_metrics, which overwrites no file without this line."
_LOCK_SECONDS = 30


@dataclasses.dataclass(frozen=True)
class Attributes:
    """Who may read a file.

    :param mode: permission bits.
    :param owner: user ID; ``group`` likewise.
    """

    mode: int
    owner: int
    group: int


@dataclasses.dataclass(frozen=True)
class TextFile:
    """A file, or one that is to be."""

    text: str
    attributes: Attributes

    @property
    def samples(self) -> int:
        """How many samples it has."""
        return sum(bool(line) and line[0] != "#" for line in self.text.split("\n"))


@contextlib.contextmanager
def one_at_a_time(folder: str) -> t.Iterator[None]:
    """Keep a second run out: what both read and wrote back would lack what one has counted.

    The folder itself is locked, so nothing is left in it.

    :raises BusyError: another one has it for half a minute.
    :raises ThinvirtError: there is no such folder, or it can't be opened.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise failure(folder, "opened", error) from error
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BusyError(
                        f"{shown(folder)} was locked by another process for {_LOCK_SECONDS} s. "
                        "Nothing was changed.",
                        remedy="Find it in /proc/locks, and run this again when it is done.",
                    ) from None
                time.sleep(0.1)
        yield
    finally:
        os.close(fd)


def read_file(path: str) -> TextFile | None:
    """What is there; None if there is nothing.

    :raises RefusedError: it is no plain file, or too long.
    :raises ThinvirtError: it can't be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise failure(path, "opened", error) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
            raise RefusedError(
                f"{shown(path)} is no file that this module writes. Nothing was changed.",
                remedy="Remove it, or give another dest.",
            )
        with open(fd, "rb", closefd=False) as file:
            text = file.read(_MAX_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ThinvirtError(f"{shown(path)} cannot be read: {error}.") from error
    finally:
        os.close(fd)
    mode = stat.S_IMODE(status.st_mode)
    return TextFile(text, Attributes(mode, status.st_uid, status.st_gid))


def text_after(
    path: str,
    before: str,
    *,
    audit: t.Mapping[str, t.Any] | None,
    trims: t.Sequence[t.Mapping[str, t.Any]],
    now: int,
) -> str:
    """What the file is to have (pure).

    :param path: its name, for messages.
    :param before: what it has; empty if there is none.
    :param audit: it takes the place of the last audit; without one the last stays.
    :param trims: they are added to what earlier runs freed.
    :raises ThinvirtError: one of these is not what it should be.
    """
    if before and before.split("\n", 1)[0] != _HEADER:
        raise RefusedError(
            f"{shown(path)} was not written by this module. Nothing was changed.",
            remedy="Remove it, or give another dest.",
        )
    try:
        freed = read(before, of_trims.FAMILIES)
    except ThinvirtError as error:
        raise RefusedError(
            f"{shown(path)} was changed by somebody else. {error} Nothing was changed now.",
            remedy="Remove it; the count of what was freed begins anew then.",
        ) from error
    freed = of_trims.add(freed, trims, now=now)
    if audit is not None:
        audited = render(of_audit.families(audit))
        freed = of_trims.only_of(freed, of_audit.domain_names(audit))
    else:
        names = {family.name for family in of_trims.FAMILIES}
        lines = before.split("\n")[1:]
        audited = "".join(f"{line}\n" for line in lines if line and _name(line) not in names)
    return f"{_HEADER}\n{audited}{render(freed)}"


def attributes_after(
    before: TextFile | None, *, mode: str | int, owner: str | None, group: str | None
) -> Attributes:
    """Who may read the file, as a task wishes; owner and group stay if it does not.

    :param mode: an octal number as text; or a number, as YAML makes one of ``0644``.
    :param owner: name or number of a user; ``group`` likewise.
    :raises ThinvirtError: there is no such user or group, or that is no mode.
    """
    found = before.attributes if before else Attributes(0, os.geteuid(), os.getegid())
    return Attributes(
        mode=_permission_bits(mode),
        owner=found.owner if owner is None else _user_id(owner),
        group=found.group if group is None else _group_id(group),
    )


def write_file(path: str, wanted: TextFile) -> None:
    """Give the file this text, owner and mode, whole, under a name that node_exporter never reads.

    :raises ThinvirtError: it can't be written; what was there stays.
    """
    write_whole(path, wanted.text, **dataclasses.asdict(wanted.attributes))


def diff(path: str, before: TextFile | None, wanted: TextFile) -> list[dict[str, t.Any]]:
    """Ansible's diff: the text, and the attributes if they change."""
    text = before.text if before else ""
    header = {"before_header": path, "after_header": path}
    shown_text: dict[str, t.Any] = {**header, "before": text, "after": wanted.text}
    if before is None or before.attributes == wanted.attributes:
        return [shown_text]
    return [
        shown_text,
        {"before": _shown(before.attributes), "after": _shown(wanted.attributes)},
    ]


def _shown(attributes: Attributes) -> dict[str, t.Any]:
    return {**dataclasses.asdict(attributes), "mode": f"{attributes.mode:04o}"}


def _permission_bits(mode: str | int) -> int:
    bits = int(mode, 8) if isinstance(mode, str) and re.fullmatch("0*[0-7]{3}", mode) else mode
    # 644 without a 0 and without quotes is a decimal number, and would be 1204.
    if not isinstance(bits, int) or not 0 <= bits <= 0o777:
        raise ThinvirtError(f"mode must be an octal number such as '0644', not {mode}.")
    return bits


def _user_id(name: str) -> int:
    try:
        return int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid
    except KeyError:
        raise _nobody("user", name) from None


def _group_id(name: str) -> int:
    try:
        return int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise _nobody("group", name) from None


def _nobody(kind: str, name: str) -> ThinvirtError:
    return ThinvirtError(
        f"There is no {kind} {shown(name)} on this host. Nothing was changed.",
        remedy="If node_exporter's package makes it, install that first.",
    )


def _name(line: str) -> str:
    """The metric that a line of ours belongs to: a sample, ``# HELP NAME`` or ``# TYPE NAME``."""
    words = line.split(" ", 3)
    return words[2] if words[0] == "#" else line.split("{", 1)[0].split(" ", 1)[0]
