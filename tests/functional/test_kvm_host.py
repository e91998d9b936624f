# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role kvm_host: its timer on a guest in a hypervisor's place, its packages on this machine.

The guest has no network, so nothing can be installed there; it is reached through its agent.
"""

from __future__ import annotations

import re

import pytest
from lab import GuestSpec
from support import run_playbook

PLAY = """
- hosts: all
  gather_facts: false
  roles: [thinvirt.kvm.kvm_host]
"""


@pytest.fixture
def host(lab):
    guest = lab.create(GuestSpec("hypervisor"))
    guest.start()
    guest.wait_for_agent()
    yield guest
    guest.destroy()
    lab.virsh("undefine", guest.name)


def apply(tmp_path, variables, *options) -> int:
    """Apply the role; how many tasks changed something."""
    inventory = {"all": {"hosts": {"hypervisor": variables}}}
    (tmp_path / "play.yml").write_text(PLAY)
    done = run_playbook(tmp_path, "play.yml", inventory, *options, patience=300)
    assert done.returncode == 0, done.stdout
    return int(re.search(r"changed=(\d+)", done.stdout)[1])


def test_the_host_trims_itself(lab, host, tmp_path):
    variables = {
        "ansible_connection": "community.libvirt.libvirt_qemu",
        "ansible_libvirt_uri": lab.uri,
        "ansible_python_interpreter": "/usr/bin/python3",
        "kvm_host_manage_packages": False,
    }
    host.run("systemctl", "mask", "fstrim.timer")
    assert apply(tmp_path, variables, "--check") == 1
    assert host.run("systemctl", "is-enabled", "fstrim.timer", check=False).stdout == "masked\n"
    assert apply(tmp_path, variables) == 1
    assert host.run("systemctl", "is-enabled", "fstrim.timer").stdout == "enabled\n"
    assert host.run("systemctl", "is-active", "fstrim.timer").stdout == "active\n"
    assert apply(tmp_path, variables) == 0


def test_the_packages_have_these_names_here(tmp_path):
    """They are installed already, as the tests need them too; a wrong name would be an error."""
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": "/usr/bin/python3",
        "kvm_host_manage_services": False,
        "kvm_host_manage_trim": False,
    }
    assert apply(tmp_path, variables, "--check") == 0
