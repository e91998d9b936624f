# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables below /etc that decide on trimming: fstab, crypttab, cron's (pure)."""

from __future__ import annotations

import dataclasses
import re

_OCTAL = re.compile(r"\\([0-7]{3})")
_FSTRIM = re.compile(r"(^|[^\w.-])fstrim($|[^\w.-])")
_REDIRECTION = re.compile(r"[0-9]*(>>?|<)(&[0-9-]|\s*[\w/.-]+)")
_BETWEEN = re.compile(r"&&|\|\||[;&|]|\$\(|`")
_HARMLESS = re.compile(
    r"|:|true|false|set [-+]\w+|exit( [0-9]+)?|(export )?PATH=[\w/:$]+|logger( .*)?"
)
#: What this collection's role calls its own job; ansible.builtin.cron writes it above the line.
OWN_JOB = "#Ansible: thinvirt.kvm trim"
_MAX_TEXT = 300


@dataclasses.dataclass(frozen=True)
class FstabEntry:
    """One line of fstab (man 5 fstab)."""

    source: str
    mount_point: str
    type: str
    options: tuple[str, ...]

    @property
    def notrim(self) -> bool:
        """Left out by fstrim when it reads fstab; util-linux 2.38 and newer."""
        return "X-fstrim.notrim" in self.options


@dataclasses.dataclass(frozen=True)
class CrypttabEntry:
    """One line of crypttab (man 5 crypttab)."""

    name: str
    discard: bool


@dataclasses.dataclass(frozen=True)
class CronJob:
    """A job that runs fstrim.

    :param path: crontab or script.
    :param line: number of the line; 0 if the whole file is a script.
    :param text: that line, or the script's first line with fstrim.
    :param removable: it does nothing but fstrim, so nothing else is lost with it.
    :param own: the role made it.
    """

    path: str
    line: int
    text: str
    removable: bool = True
    own: bool = False


def parse_fstab(text: str) -> tuple[FstabEntry, ...]:
    """The entries that are understood; mount(8) skips the others as well."""
    found = []
    for fields in _lines(text):
        if len(fields) >= 3:
            options = fields[3] if len(fields) > 3 else "defaults"
            found.append(
                FstabEntry(
                    source=_unescape(fields[0]),
                    mount_point=_unescape(fields[1]),
                    type=fields[2],
                    options=tuple(_unescape(options).split(",")),
                )
            )
    return tuple(found)


def parse_crypttab(text: str) -> tuple[CrypttabEntry, ...]:
    """The entries by the names of their mappings."""
    return tuple(
        CrypttabEntry(
            name=_unescape(fields[0]),
            discard=len(fields) > 3
            and bool({"discard", "allow-discards"} & {*fields[3].split(",")}),
        )
        for fields in _lines(text)
        if len(fields) >= 2
    )


def crontab_jobs(path: str, text: str) -> tuple[CronJob, ...]:
    """The jobs of a crontab that run fstrim."""
    found, before = [], ""
    for number, line in enumerate(text.splitlines(), start=1):
        if _runs_fstrim(line):
            own = before.strip() == OWN_JOB
            alone = _does_nothing_else(line)
            found.append(CronJob(path, number, line.strip()[:_MAX_TEXT], removable=alone, own=own))
        before = line
    return tuple(found)


def script_jobs(path: str, text: str) -> tuple[CronJob, ...]:
    """A script of cron.daily and the like, if it runs fstrim."""
    commands = [line.strip() for line in text.splitlines() if not _is_comment(line)]
    trims = [line for line in commands if _runs_fstrim(line)]
    if not trims:
        return ()
    alone = all(map(_does_nothing_else, commands))
    return (CronJob(path, 0, trims[0][:_MAX_TEXT], removable=alone),)


def _does_nothing_else(line: str) -> bool:
    """Whether each command of a line is fstrim, or one whose loss nobody notices.

    A shell's grammar is not followed: what looks like more is taken for more, and stays.
    """
    parts = _BETWEEN.split(_REDIRECTION.sub(" ", line))
    return all(_FSTRIM.search(part) or _HARMLESS.fullmatch(part.strip()) for part in parts)


def _runs_fstrim(line: str) -> bool:
    return not _is_comment(line) and _FSTRIM.search(line) is not None


def _is_comment(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#")


def _lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if not _is_comment(line)]


def _unescape(field: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field)
