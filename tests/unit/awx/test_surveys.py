# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Surveys ask for what the roles take, as AWX wants to be given them."""

from __future__ import annotations

import pytest
import yaml
from awx_lab import (
    PLAYBOOKS,
    PROJECT,
    SURVEYS,
    answer_errors,
    answers_to,
    extra_vars,
    options_of,
    playbook_variables,
    survey,
    survey_errors,
)

QUESTIONS = [
    pytest.param(name, question, id=f"{name}-{question['variable']}")
    for name in SURVEYS
    for question in survey(name)["spec"]
]


def test_the_five_jobs_have_one():
    assert set(SURVEYS) >= {"audit", "configure", "reclaim", "compact", "backup"}


@pytest.mark.parametrize("name", SURVEYS)
def test_awx_takes_it(name):
    assert survey_errors(survey(name)) == []
    assert name in PLAYBOOKS


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"type": "bool"}, "there is no type bool"),
        ({"required": "yes"}, "required is not a bool"),
        ({"type": "integer", "default": "5"}, "its default is no int"),
        ({"default": "maybe"}, "its default is none of its choices"),
        ({"choices": [True, False]}, "its choices are no strings"),
        ({"min": "1"}, "min is no int"),
        ({"variable": "a"}, "its variable was used before"),
    ],
)
def test_what_awx_refuses_is_seen(wrong, error):
    first = {"variable": "a", "question_name": "A", "type": "text", "required": True}
    second = {"variable": "b", "question_name": "B", "type": "multiplechoice", "required": True}
    second |= {"choices": ["yes", "no"], "default": "no"}
    spec = {"name": "n", "description": "d", "spec": [first, second]}
    assert survey_errors(spec) == []
    spec["spec"][1] |= wrong
    assert [text.partition(": ")[2] for text in survey_errors(spec)] == [error]


@pytest.mark.parametrize(("name", "question"), QUESTIONS)
def test_a_question_is_an_option_of_the_playbook(name, question):
    variable, kind = question["variable"], question["type"]
    options, playbook_takes = options_of(name), playbook_variables(name)
    if variable.endswith("_lines"):
        # A wrapper makes a list of it.
        option = variable.removesuffix("_lines")
        assert kind == "textarea"
        assert option in playbook_takes
        assert variable in (PROJECT / f"{name}.yml").read_text()
    elif variable in options:
        _compare(question, options[variable])
    else:
        assert variable in playbook_takes, f"nothing in {name} takes {variable}"
        assert kind == "multiplechoice"
        assert question["choices"] == ["true", "false"]


def _compare(question, option):
    """A question asks for what the option takes, and its default is the option's."""
    types = {
        "int": "integer",
        "bool": "multiplechoice",
        "path": "text",
        "str": "multiplechoice" if "choices" in option else "text",
    }
    assert question["type"] == types[option["type"]]
    assert question["required"] is True  # an answer that is left out would be an empty string
    if option["type"] == "bool":
        assert question["choices"] == ["true", "false"]
        assert question["default"] == str(option["default"]).lower()
    else:
        assert question.get("choices") == option.get("choices")
        assert question.get("default") == option.get("default")


@pytest.mark.parametrize("name", SURVEYS)
def test_options_without_a_default_are_asked_for(name):
    required = {option for option, spec in options_of(name).items() if spec.get("required")}
    assert required <= {question["variable"] for question in survey(name)["spec"]}


@pytest.mark.parametrize("name", SURVEYS)
def test_answers_that_are_missing_or_no_choice_are_refused(name):
    spec = survey(name)
    given = {"backup_images_dest_dir": "/srv/backup"} if name == "backup" else {}
    answers = answers_to(name, **given)
    for question in spec["spec"]:
        variable = question["variable"]
        without = {key: value for key, value in answers.items() if key != variable}
        assert answer_errors(spec, without) == [f"{variable} is missing"]
        if question["type"] != "integer":
            assert answer_errors(spec, answers | {variable: ""}) != []


def test_answers_are_no_templates():
    text = extra_vars({"a": "{{ 1 + 1 }}", "b": 2})
    assert text == "a: !unsafe '{{ 1 + 1 }}'\nb: 2\n"


@pytest.mark.parametrize("name", PLAYBOOKS)
def test_each_playbook_has_a_wrapper_of_its_name(name):
    (play,) = yaml.safe_load((PROJECT / f"{name}.yml").read_text())
    assert play["ansible.builtin.import_playbook"] == f"thinvirt.kvm.{name}"
    assert ("thinvirt_domains" in playbook_variables(name)) is ("vars" in play)
    # a domain called 4711 comes as a number
    for value in play.get("vars", {}).values():
        assert "(thinvirt_domains_lines | string).splitlines()" in value


def test_each_wrapper_has_a_playbook():
    assert {path.stem for path in PROJECT.glob("*.yml")} == set(PLAYBOOKS)
