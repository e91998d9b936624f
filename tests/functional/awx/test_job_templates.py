# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook that makes job templates, with the real modules of ``awx.awx``.

**A stand-in answers in the place of AWX**: see tests/awx_stand_in.py for what that proves.
"""

from __future__ import annotations

import importlib
import json
import os

import pytest
import yaml
from awx_lab import AWX, PROJECT, SURVEYS, survey
from awx_stand_in import TOKEN, serve
from support import run_playbook

pytestmark = pytest.mark.slow("the modules of awx.awx ask and answer for each template")

INVENTORY = {"all": {"hosts": {"localhost": {"ansible_connection": "local"}}}}
CREDENTIAL = "SSH to hypervisors"


@pytest.fixture
def awx(monkeypatch):
    with serve([path.name for path in PROJECT.glob("*.yml")]) as server:
        monkeypatch.setenv("CONTROLLER_HOST", server.url)
        monkeypatch.setenv("CONTROLLER_OAUTH_TOKEN", TOKEN)
        yield server


@pytest.fixture
def create(tmp_path):
    def create(*options: str, **variables) -> dict:
        given = {
            "ansible_python_interpreter": os.environ.get("PYTHON", "/usr/bin/python3"),
            "ansible_remote_tmp": str(tmp_path / "tmp"),
            "thinvirt_awx_credentials": [CREDENTIAL],
            "thinvirt_awx_execution_environment": "registry.example.com/thinvirt-ee:1",
        } | variables
        extra = ("-e", json.dumps(given), *options)
        playbook = AWX / "job_templates.yml"
        json_callback = "ansible.posix.json"
        done = run_playbook(tmp_path, playbook, INVENTORY, *extra, callback=json_callback)
        assert TOKEN not in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        told = json.loads(done.stdout[done.stdout.index("{") :])
        return told["stats"]["localhost"] | {"rc": done.returncode, "stdout": done.stdout}

    return create


def test_all_is_made_in_order_and_once(awx, create):
    run = create()
    assert run["rc"] == 0, run["stdout"]
    assert awx.refused == []
    # a survey can only be given to a template that is there, and a playbook to an updated project
    template = [("job_templates", "POST"), ("credentials", "POST"), ("survey_spec", "POST")]
    assert awx.writes == [
        ("execution_environments", "POST"),
        ("projects", "POST"),
        *(template * len(SURVEYS)),
    ]
    templates = awx.named("job_templates")
    made = {item["playbook"].removesuffix(".yml"): item for item in templates.values()}
    assert set(made) == set(SURVEYS)
    for name, item in made.items():
        assert awx.surveys[item["id"]] == survey(name)
        assert item["survey_enabled"] is True
        assert item["ask_job_type_on_launch"] is True  # check mode
        assert item["become_enabled"] is True
        assert item["project"] == awx.named("projects")["thinvirt.kvm"]["id"]
        assert item["inventory"] == awx.named("inventories")["Hypervisors"]["id"]
    awx.writes.clear()
    again = create()
    assert (again["rc"], again["changed"], awx.writes) == (0, 0, [])


def test_what_somebody_has_changed_is_set_back(awx, create):
    assert create(thinvirt_awx_templates=["compact"])["rc"] == 0
    (item,) = awx.named("job_templates").values()
    item["ask_limit_on_launch"] = False
    awx.surveys[item["id"]] = awx.surveys[item["id"]] | {"spec": []}
    assert create("--check", thinvirt_awx_templates=["compact"])["changed"] == 1
    assert item["ask_limit_on_launch"] is False
    assert create(thinvirt_awx_templates=["compact"])["changed"] == 1
    assert item["ask_limit_on_launch"] is True
    assert awx.surveys[item["id"]] == survey("compact")


def test_a_playbook_that_the_project_lacks_is_refused(awx, create):
    awx.playbooks = ["audit.yml"]
    run = create(thinvirt_awx_templates=["compact"])
    assert run["rc"] == 2
    assert "Playbook not found for project" in run["stdout"]


def test_arguments_are_those_that_the_modules_have():
    """By the documentation of each; awx.awx comes from PyPI's ``ansible``."""
    (play,) = yaml.safe_load((AWX / "job_templates.yml").read_text())
    seen = set()
    for task in play["tasks"]:
        (action,) = (name for name in task if name.startswith("awx.awx."))
        name = action.rpartition(".")[2]
        module = importlib.import_module(f"ansible_collections.awx.awx.plugins.modules.{name}")
        options = yaml.safe_load(module.DOCUMENTATION)["options"]
        assert set(task[action]) <= set(options), name
        seen.add(name)
    assert seen == {"execution_environment", "project", "job_template"}
