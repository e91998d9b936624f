# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role kvm_host: packages on this machine, check mode against a stand-in.

Its timer is in tests/live/test_linux_guest.
"""

from __future__ import annotations

import re

from linux_stand_in import Guest
from support import run_playbook

PLAY = """
- hosts: all
  gather_facts: false
  roles: [thinvirt.kvm.kvm_host]
"""


def apply(tmp_path, variables, *options) -> int:
    """Apply the role; how many tasks changed something."""
    inventory = {"all": {"hosts": {"hypervisor": variables}}}
    (tmp_path / "play.yml").write_text(PLAY)
    done = run_playbook(tmp_path, "play.yml", inventory, *options, patience=300)
    assert done.returncode == 0, done.stdout
    return int(re.search(r"changed=(\d+)", done.stdout)[1])


def test_the_packages_have_these_names_here(tmp_path):
    """They are installed already, as the tests need them too; a wrong name would be an error."""
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": "/usr/bin/python3",
        "kvm_host_manage_services": False,
        "kvm_host_manage_trim": False,
    }
    assert apply(tmp_path, variables, "--check") == 0


def test_check_mode_has_nothing_done(tmp_path):
    host = Guest(
        tmp_path / "host",
        {"service_facts": {"ansible_facts": {"services": {"libvirtd.service": {}}}}},
    )
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": str(host.python),
        "kvm_host_manage_packages": False,
    }
    assert apply(tmp_path, variables, "--check") == 2
    assert [given["name"] for name, given in host.calls if name == "systemd_service"] == [
        "libvirtd.socket",
        "fstrim.timer",
    ]
    assert host.done == []
