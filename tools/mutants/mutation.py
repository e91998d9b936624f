# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The mutations, as ``tests/mutants`` lists them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LISTS = ROOT / "tests" / "mutants"


@dataclass(frozen=True)
class Mutation:
    """One small thing that is broken.

    :param id: stays the same for ever.
    :param file: of the product, from the checkout's root.
    :param old: a text that is in the file exactly once.
    :param new: what takes its place.
    :param kind: what is broken.
    :param tests: files, or single tests, that are to notice it; the quickest first.
    """

    id: str
    file: str
    old: str
    new: str
    kind: str
    tests: tuple[str, ...]

    def applied_to(self, text: str) -> str:
        """The file's text with the mutation in it.

        :raises ValueError: ``old`` is not in there exactly once.
        """
        if text.count(self.old) != 1:
            raise ValueError(f"{self.id}: its text is {text.count(self.old)} times in {self.file}")
        return text.replace(self.old, self.new)


def load() -> list[Mutation]:
    """All of them, by area, in the order in which they are written down."""
    return [
        Mutation(**{**fields, "tests": tuple(fields["tests"])})
        for path in sorted(LISTS.glob("*.toml"))
        for fields in tomllib.loads(path.read_text(encoding="utf-8"))["mutation"]
    ]
