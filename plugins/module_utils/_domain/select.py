# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which domains, disks and hosts a user means (pure)."""

from __future__ import annotations

import fnmatch
import typing as t
import urllib.parse

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown


def is_remote(uri: str) -> bool:
    """Whether a libvirt URI leads to another machine than this one (pure)."""
    try:
        parsed = urllib.parse.urlparse(uri)
    except ValueError:  # only a host can be malformed in a way that urllib minds
        return True
    return bool(parsed.hostname) and "+unix" not in parsed.scheme and parsed.scheme != "test"


def is_glob(pattern: str) -> bool:
    return any(character in pattern for character in "*?[")


def refuse_duplicates(parameter: str, values: t.Sequence[str]) -> None:
    """A list that names something twice is a typing mistake, of which nothing good comes."""
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise RefusedError(
                f"{parameter} names {value} twice; nothing was changed.",
                remedy="Name it once.",
            )
        seen.add(value)


def select(
    patterns: t.Iterable[str],
    names: t.Sequence[str],
    *,
    aliases: t.Mapping[str, str] | None = None,
) -> dict[str, set[str]]:
    """For each pattern the names that it means (pure).

    What something is called changes nothing for the others: ``*`` means all, also where one has
    that name, and a UUID means what has it, also where another one is called so.

    :param aliases: UUIDs, in lower case, and the names of what has them.
    :raises RefusedError: a pattern is the name of one and a glob for others.
    """
    chosen: dict[str, set[str]] = {}
    for pattern in patterns:
        alias = (aliases or {}).get(pattern.lower())
        if alias is not None:
            chosen[pattern] = {alias}
            continue
        found = {name for name in names if fnmatch.fnmatchcase(name, pattern)}
        if pattern in names and pattern not in found:
            if found:
                raise RefusedError(
                    f"{shown(pattern)} is the name of one and, as a pattern, means "
                    f"{', '.join(map(shown, sorted(found)))}; nothing was changed.",
                    remedy="Use the UUID of the one, or other patterns for the others.",
                )
            found = {pattern}
        chosen[pattern] = found
    return chosen
