# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What works for long on a hypervisor does not end with the connection: roles call it by async."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml
from awx_lab import ROOT

#: Modules that copy, trim, or wait for guests.
LONG = (
    *("domain_backup", "domain_compact", "domain_discard", "domain_disk_bus"),
    *("domain_helper_disk", "domain_machine", "domain_restore", "domain_trim"),
    *("image_compact", "image_convert"),
)


def tasks(entries: list[dict]) -> Iterator[dict]:
    """Each task with its blocks' own."""
    for entry in entries:
        yield entry
        for part in ("block", "rescue", "always"):
            yield from tasks(entry.get(part, []))


def long_calls() -> Iterator[tuple[str, str, dict]]:
    """(role, module, task) of each call that may take long."""
    for path in sorted((ROOT / "roles").glob("*/tasks/*.yml")):
        for task in tasks(yaml.safe_load(path.read_text()) or []):
            for module in LONG:
                # what is only looked at is quick
                if f"thinvirt.kvm.{module}" in task and task.get("check_mode") is not True:
                    yield path.parts[-3], module, task


CALLS = [
    pytest.param(role, task, id=f"{role} {module}: {task['name']}")
    for role, module, task in long_calls()
]


@pytest.mark.parametrize(("role", "task"), CALLS)
def test_a_long_call_outlives_its_connection(role, task):
    assert f"{role}_async_seconds | int" in task["async"]
    assert "0 if ansible_check_mode" in task["async"]  # older cores refuse it there
    assert task["poll"] == f"{{{{ {role}_poll_seconds | int }}}}"


@pytest.mark.parametrize(("role", "task"), CALLS)
def test_it_is_asked_for_with_the_python_of_where_it_runs(role, task):
    """ansible-core takes the guest's, and asks for ever if that is not there."""
    if "delegate_to" in task:
        python = f"{{{{ __{role}_host_python }}}}"
        assert task["vars"] == {"ansible_python_interpreter": python}


def test_all_roles_that_work_on_hypervisors_were_seen():
    assert {param.values[0] for param in CALLS} == {
        *("backup_images", "compact_images", "kvm_domains", "linux_guest", "restore_images"),
        *("virtio_scsi", "zero_fill"),
    }
