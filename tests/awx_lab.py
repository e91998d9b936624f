# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What AWX does with surveys and project playbooks, as far as it can be had without AWX.

The rules are those of AWX 24: its API refuses a survey (``JobTemplateSurveySpec``) and answers
(``SurveyJobTemplateMixin._survey_element_validation``) that break them.
"""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
AWX = ROOT / "docs" / "awx"
PROJECT = AWX / "project"
SURVEYS = {path.stem: path for path in sorted((AWX / "surveys").glob("*.yml"))}
PLAYBOOKS = sorted(path.stem for path in (ROOT / "playbooks").glob("*.yml"))

#: The types of questions, and of what their defaults are.
TYPES: dict[str, type] = {
    **dict.fromkeys(("text", "textarea", "password", "multiplechoice", "multiselect"), str),
    "integer": int,
    "float": float,
}

Survey = dict[str, t.Any]


def survey(name: str) -> Survey:
    return t.cast("Survey", yaml.safe_load(SURVEYS[name].read_text()))


def survey_errors(spec: Survey) -> list[str]:
    """Why AWX would refuse to store a survey; empty if it takes it."""
    errors = [
        f"{field} is not a {kind.__name__}"
        for field, kind in (("name", str), ("description", str), ("spec", list))
        if not isinstance(spec.get(field), kind)
    ]
    if errors or not spec["spec"]:
        return errors or ["spec has no questions"]
    seen: set[str] = set()
    for question in spec["spec"]:
        found = _question_errors(question)
        if question.get("variable") in seen:
            found.append("its variable was used before")
        seen.add(question.get("variable", ""))
        errors += [f"{question.get('variable')}: {error}" for error in found]
    return errors


def _question_errors(question: dict[str, t.Any]) -> list[str]:
    errors = [
        f"{field} is not a {kind.__name__}"
        for field, kind in (
            *((field, str) for field in ("type", "question_name", "variable")),
            ("required", bool),
        )
        if not isinstance(question.get(field), kind)
    ]
    kind = question.get("type")
    if errors or kind not in TYPES:
        return errors or [f"there is no type {kind}"]
    default = question.get("default", "")
    if default != "" and not _is_a(default, TYPES[kind]):
        errors.append(f"its default is no {TYPES[kind].__name__}")
    errors += [
        f"{limit} is no int"
        for limit in ("min", "max")
        if not isinstance(question.get(limit), int | None)
    ]
    if kind in ("multiplechoice", "multiselect"):
        choices = question.get("choices")
        if not isinstance(choices, list) or not all(isinstance(one, str) for one in choices):
            errors.append("its choices are no strings")
        elif default != "" and default not in choices:
            errors.append("its default is none of its choices")
    return errors


def _is_a(value: object, kind: type) -> bool:
    """A bool is no int here, as it is none in JSON."""
    return isinstance(value, kind) and not isinstance(value, bool)


def answer_errors(spec: Survey, answers: dict[str, t.Any]) -> list[str]:
    """Why AWX would refuse to launch a job with these answers; empty if it does."""
    errors = []
    for question in spec["spec"]:
        name, kind = question["variable"], question["type"]
        if name not in answers:
            errors += [f"{name} is missing"] if question["required"] else []
            continue
        answer = answers[name]
        size = answer if kind in ("integer", "float") else len(answer)
        if not _is_a(answer, TYPES[kind]):
            errors.append(f"{name} is no {TYPES[kind].__name__}")
        elif kind == "multiplechoice" and answer not in question["choices"]:
            errors.append(f"{name} is none of its choices")
        elif not question.get("min", size) <= size <= question.get("max", size):
            errors.append(f"{name} is too small or too big")
    return errors


def answers_to(name: str, **given: t.Any) -> dict[str, t.Any]:
    """What AWX passes on as extra vars: the answers, and the defaults of other questions."""
    spec = survey(name)
    answers = {
        question["variable"]: question["default"]
        for question in spec["spec"]
        if "default" in question
    } | given
    assert answer_errors(spec, answers) == []
    return answers


class _Unsafe(str):
    """A string that Ansible must not take for a template."""

    __slots__ = ()


def _represent(dumper: yaml.SafeDumper, value: _Unsafe) -> yaml.ScalarNode:
    return dumper.represent_scalar("!unsafe", str(value))


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(_Unsafe, _represent)


def extra_vars(answers: dict[str, t.Any]) -> str:
    """Answers as AWX writes them for ansible-runner: YAML, where all strings are !unsafe."""
    return yaml.dump(
        {
            name: _Unsafe(value) if isinstance(value, str) else value
            for name, value in answers.items()
        },
        Dumper=_Dumper,
    )


def roles_of(playbook: str) -> list[str]:
    """The roles of this collection that a playbook has, those of the ones that it imports too."""
    plays = yaml.safe_load((ROOT / "playbooks" / f"{playbook}.yml").read_text())
    found: list[str] = []
    for play in plays:
        found += [role["role"].removeprefix("thinvirt.kvm.") for role in play.get("roles", [])]
        found += [
            task["ansible.builtin.include_role"]["name"].removeprefix("thinvirt.kvm.")
            for outer in play.get("tasks", [])
            for task in outer.get("block", [outer])
            if "ansible.builtin.include_role" in task
        ]
        if imported := play.get("ansible.builtin.import_playbook"):
            found += roles_of(Path(imported).stem)
    return found


def options_of(playbook: str) -> dict[str, dict[str, t.Any]]:
    """The options of the roles that a playbook has, by the argument specs."""
    options: dict[str, dict[str, t.Any]] = {}
    for role in roles_of(playbook):
        path = ROOT / "roles" / role / "meta" / "argument_specs.yml"
        options |= yaml.safe_load(path.read_text())["argument_specs"]["main"]["options"]
    return options


def playbook_variables(playbook: str) -> set[str]:
    """The variables that a playbook takes itself, as ``thinvirt_domains``."""
    text = (ROOT / "playbooks" / f"{playbook}.yml").read_text()
    return set(re.findall(r"\bthinvirt_\w+", text))
