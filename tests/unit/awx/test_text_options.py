# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that are true or false come as text from the command line, and from surveys by some
versions of ansible-core; a condition that is text fails since 2.19.  Modules take both.
"""

from __future__ import annotations

import re

import pytest
import yaml
from awx_lab import ROOT

ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())
#: Where an expression begins; and what hands a value on to a module as it is.
EXPRESSION = r"(?:when: |that: |    - |\{\{ |\bif |\band |\bor |\bnot |\()"
HANDED_ON = r'^\s+\w+: "\{\{ \w+ (\| default\(omit\) )?\}\}"$'
#: What may follow in an expression; in a message it is another word.
GOES_ON = r"(?=\s*$|\)| \}\}| \||\s(?:and|or|else)\b)"


def bare(role: str) -> list[str]:
    """Where an option of that kind is used as it is."""
    path = ROOT / "roles" / role
    spec = yaml.safe_load((path / "meta" / "argument_specs.yml").read_text())
    options = spec["argument_specs"]["main"]["options"]
    names = "|".join(name for name, option in options.items() if option.get("type") == "bool")
    if not names:
        return []
    use = re.compile(rf"{EXPRESSION}(?:{names})\b(?! \| bool){GOES_ON}")
    return [
        f"{file.name}: {line.strip()}"
        for folder in ("tasks", "vars", "handlers")
        for file in sorted((path / folder).glob("*.yml"))
        for line in file.read_text().splitlines()
        if use.search(line) and not re.match(HANDED_ON, line)
    ]


@pytest.mark.parametrize("role", ROLES)
def test_roles_make_bools_of_text(role):
    assert bare(role) == []
