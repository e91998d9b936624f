# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whoever is refused something reads why, and what to do about it."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REFUSALS = ("RefusedError", "UnsupportedError")


def refusals():
    """(place, message, remedy) of each refusal that is made anywhere; None for what is missing."""
    for path in sorted((ROOT / "plugins").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in REFUSALS:
                words = {word.arg: word.value for word in node.keywords}
                place = f"{path.relative_to(ROOT)}:{node.lineno}"
                yield place, node.args[0] if node.args else None, words.get("remedy")


def is_empty(node):
    return node is None or (isinstance(node, ast.Constant) and not node.value)


def test_each_has_a_reason_and_a_remedy():
    found = list(refusals())
    assert len(found) > 150
    assert [place for place, reason, remedy in found if is_empty(reason) or is_empty(remedy)] == []
