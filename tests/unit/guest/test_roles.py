# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What roles decide by themselves: their expressions, evaluated without a guest."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from jinja2.nativetypes import NativeEnvironment

ROLES = Path(__file__).parents[3] / "roles"


def task(role, name):
    (found,) = (one for one in yaml.safe_load((ROLES / role).read_text()) if one["name"] == name)
    return found


def evaluated(expression, **variables):
    environment = NativeEnvironment()
    environment.filters["bool"] = bool
    return environment.from_string(expression).render(variables)


@pytest.mark.parametrize("kind", ["scripts", "lines of crontabs"])
def test_a_cron_job_is_removed_that_does_nothing_else_and_is_not_our_own(kind):
    jobs = [
        {"path": f"{removable}, {own}", "removable": removable, "own": own}
        for removable in (True, False)
        for own in (True, False)
    ]
    name = f"Remove {kind} that do nothing but fstrim"
    rule = task("linux_guest/tasks/cron_jobs.yml", name)["vars"]["__linux_guest_jobs"]
    chosen = list(evaluated(rule, __linux_guest_info={"cron_jobs": jobs}))
    assert [job["path"] for job in chosen] == ["True, False"]


@pytest.mark.parametrize(
    ("free", "accepted", "check", "how", "allowed"),
    [
        (True, False, False, "keep", True),
        (False, True, False, "keep", True),
        (False, False, False, "keep", False),
        (False, False, True, "keep", False),
        (False, False, True, "save_restore", True),
        (False, False, False, "save_restore", False),
    ],
)
def test_images_grow_with_consent_alone(free, accepted, check, how, allowed):
    rule = task("zero_fill/tasks/plan.yml", "Check for consent where the host may grow")
    given = {
        "__zero_fill_share": {"zeros_are_free": free},
        "zero_fill_accept_growth": accepted,
        "ansible_check_mode": check,
        "zero_fill_detect_zeroes": how,
    }
    that = rule["ansible.builtin.assert"]["that"]
    assert bool(evaluated(f"{{{{ {that} }}}}", **given)) is allowed


@pytest.mark.parametrize(("limit", "budget", "written"), [("5", 7, 5), (7, 5, 5)])
def test_zeros_are_written_up_to_the_smaller_bound(limit, budget, written):
    facts = task("zero_fill/tasks/plan.yml", "Take this guest's share")["ansible.builtin.set_fact"]
    given = {"__zero_fill_limit": limit, "__zero_fill_mine": {"budget_bytes": budget}}
    assert evaluated(facts["__zero_fill_budget"], **given) == written
