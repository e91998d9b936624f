# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every finding that code can produce has its page in docs/findings, and every page its finding."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "findings"
#: Where a finding's ID stands: these arguments of these calls.
CALLS = {"Finding": "id", "Link": "finding"}
#: Of functions called _finding, which make one of these in this order.
SHORT_FORM = ("id", "severity", "reason", "remedy")
#: A link's severity follows from its state.
OF_STATE = {"broken": "error", "unknown": "warning"}
SECTIONS = ["How it shows", "Why", "Remedy", "Source"]
FIELD_FAILURES = 15


def calls():
    """(file, name, keyword arguments) of each call that makes a finding."""
    for path in sorted((ROOT / "plugins").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                name = node.func.id
                arguments = {word.arg: word.value for word in node.keywords}
                if name == "_finding" and len(node.args) == len(SHORT_FORM):
                    yield path, "Finding", dict(zip(SHORT_FORM, node.args, strict=True))
                elif name in CALLS and CALLS[name] in arguments:
                    yield path, name, arguments


def constants(node):
    """What an expression may be: its strings."""
    return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)} & {
        *("info", "warning", "error", "broken", "unknown")
    }


def produced():
    """The severities of each ID."""
    found: dict[str, set[str]] = {}
    for path, name, arguments in calls():
        given = arguments[CALLS[name]]
        if not isinstance(given, ast.Constant):
            # what is handed on was made elsewhere, or comes through a short form
            handed_on = isinstance(given, ast.Attribute)
            assert handed_on or f"def _finding({ast.unparse(given)}: " in path.read_text("utf-8")
            continue
        levels = constants(arguments["severity" if name == "Finding" else "state"])
        assert levels, f"{path}: {given.value} has no severity that could be read"
        found.setdefault(given.value, set()).update(OF_STATE.get(one, one) for one in levels)
    return found


FOUND = produced()
NAMES = sorted(path.stem for path in PAGES.glob("*.md") if path.stem != "README")


def page(name):
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")


def test_each_finding_has_a_page_and_each_page_a_finding():
    assert sorted(FOUND) == NAMES
    assert len(FOUND) > 60  # it does find them
    assert {"discard-ignored", "machine-too-old", "agent-silent", "windows-viostor-4kn"} <= {*FOUND}


@pytest.mark.parametrize("name", NAMES)
def test_a_page(name):
    text = page(name)
    assert re.findall(r"^# (.+)$", text, re.MULTILINE) == [name]
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS
    told = re.search(r"^Severity: (.+?)\. Reported by: ", text, re.MULTILINE | re.DOTALL)
    assert told
    assert {*re.findall(r"\b(info|warning|error)\b", told[1])} == FOUND[name]
    assert text.count("```yaml\n") == 1
    for section in re.split(r"^## .+$", text, flags=re.MULTILINE):
        assert section.strip()


def documented(name):
    """The options of a module, or None if there is no such module."""
    path = ROOT / "plugins" / "modules" / f"{name}.py"
    if not path.exists():
        return None
    text = path.read_text(encoding="utf-8")
    found = re.search(r'^DOCUMENTATION = r"""(.+?)"""', text, re.MULTILINE | re.DOTALL)
    documentation = yaml.safe_load(found[1])
    options = {*documentation.get("options", {})}
    for fragment in documentation.get("extends_documentation_fragment", []):
        if fragment.startswith("thinvirt.kvm."):
            options |= of_fragment(fragment.removeprefix("thinvirt.kvm."))
    return options


def of_fragment(name):
    file, _dot, part = name.partition(".")
    text = (ROOT / "plugins" / "doc_fragments" / f"{file}.py").read_text(encoding="utf-8")
    part = part.upper() or "DOCUMENTATION"
    found = re.search(rf'^    {part} = r"""(.+?)"""', text, re.MULTILINE | re.DOTALL)
    return {*(yaml.safe_load(found[1]) or {}).get("options", {})}


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_one_that_runs(name):
    (block,) = re.findall(r"^```yaml\n(.+?)^```$", page(name), re.MULTILINE | re.DOTALL)
    for task in yaml.safe_load(block):
        assert task["name"]
        for action, arguments in task.items():
            if action.startswith("thinvirt.kvm."):
                options = documented(action.removeprefix("thinvirt.kvm."))
                assert options is not None, action
                assert {*(arguments or {})} <= options
            if action == "ansible.builtin.include_role":
                role = arguments["name"].removeprefix("thinvirt.kvm.")
                specs = ROOT / "roles" / role / "meta" / "argument_specs.yml"
                spec = yaml.safe_load(specs.read_text(encoding="utf-8"))["argument_specs"]["main"]
                assert {*task.get("vars", {})} <= {*spec["options"]}


def test_the_table_of_contents():
    text = (PAGES / "README.md").read_text(encoding="utf-8")
    tables, field = text.split("## What goes wrong in the field")
    rows = re.findall(r"^\| \[(.+?)\]\((.+?)\.md\) \| (.+?) \| (.+?) \|$", tables, re.MULTILINE)
    assert Counter(row[0] for row in rows) == Counter(NAMES)
    for name, target, severity, _what in rows:
        assert name == target
        assert {*re.findall(r"\b(info|warning|error)\b", severity)} == FOUND[name]
    failures = re.findall(r"^\| (\d+) \| (.+?) \| (.+?) \|$", field, re.MULTILINE)
    assert [int(number) for number, *_rest in failures] == [*range(1, FIELD_FAILURES + 1)]
    for _number, _what, by in failures:
        assert "](" in by or by.startswith("No check: ")


def test_links_lead_somewhere():
    for path in PAGES.glob("*.md"):
        for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
            assert (PAGES / target).exists(), f"{path.name}: {target}"


def all_words(path, node):
    """The constant text of an expression; names and functions of the same file looked up."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named: dict[str, list[ast.AST]] = {}
    for one in ast.walk(tree):
        if isinstance(one, ast.FunctionDef):
            named.setdefault(one.name, []).append(one)
        elif isinstance(one, ast.Assign):
            for target in one.targets:
                named.setdefault(ast.unparse(target), []).append(one.value)
    parts = [node]
    for one in ast.walk(node):
        if isinstance(one, ast.Name):
            parts += named.get(one.id, [])
    return " ".join(
        one.value
        for part in parts
        for one in ast.walk(part)
        if isinstance(one, ast.Constant) and isinstance(one.value, str)
    )


#: What is mended in the guest, in a file that is none of this collection's.
BY_HAND = {"agent-refused"}


def test_remedies_of_an_audit_name_what_does_it():
    """A module, role or playbook of ours, or a command; thin_info finds, and others mend."""
    seen = set()
    for path, _name, arguments in calls():
        if "_audit" not in path.parts or "remedy" not in arguments:
            continue
        for key in ("id", "finding"):
            if isinstance(arguments.get(key), ast.Constant):
                seen.add(arguments[key].value)
                means = re.search(
                    r"thinvirt\.kvm\.\w+|\b(?:virsh|qemu-img) [a-z]",
                    all_words(path, arguments["remedy"]),
                )
                assert means or arguments[key].value in BY_HAND, arguments[key].value
    assert len(seen) > 25


def test_remedies_name_what_there_is():
    known = {
        *(path.stem for path in (ROOT / "plugins" / "modules").glob("*.py")),
        *(path.name for path in (ROOT / "roles").iterdir()),
        *(path.stem for path in (ROOT / "playbooks").glob("*.yml")),
    }
    named = set()
    for _path, _name, arguments in calls():
        words = " ".join(
            n.value
            for key in ("reason", "remedy")
            if key in arguments
            for n in ast.walk(arguments[key])
            if isinstance(n, ast.Constant) and isinstance(n.value, str)
        )
        named |= {*re.findall(r"thinvirt\.kvm\.(\w+)", words)}
    assert named
    assert named <= known
