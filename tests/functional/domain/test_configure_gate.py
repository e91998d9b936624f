# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check mode of the playbook configure as a gate in CI: no change on a host that is configured.

On a real libvirt, with a domain that is off; a guest is not needed to see that its configuration
differs.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lab import Disk, GuestSpec
from support import run_playbook

pytestmark = pytest.mark.slow("a playbook runs four times")

README = Path(__file__).parents[3] / "roles" / "thin_report" / "README.md"
NAME = "t-gate"


@pytest.fixture
def guest(lab):
    disks = (
        Disk("sda", "scsi", size_bytes=1 << 20, discard="unmap"),
        Disk("vda", "virtio", size_bytes=1 << 20),
    )
    guest = lab.create(GuestSpec(NAME, machine="pc", memory_mib=64, disks=disks))
    yield guest
    lab.virsh("undefine", guest.name)


@pytest.fixture
def configure(lab, guest, tmp_path):
    def configure(*options):
        """What Ansible printed of the domain's host."""
        hypervisor = {
            "ansible_connection": "local",
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_remote_tmp": str(tmp_path / "tmp"),
            "thinvirt_uri": lab.uri,
            "thinvirt_domains": [guest.name],
            # these would be this machine's own
            "kvm_host_manage_packages": False,
            "kvm_host_manage_services": False,
            "kvm_host_manage_trim": False,
        }
        inventory = {"kvm_hosts": {"hosts": {"hypervisor": hypervisor}}}
        done = run_playbook(tmp_path, "thinvirt.kvm.configure", inventory, *options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return configure


def test_the_gate_is_shut_until_the_host_is_configured(lab, guest, configure):
    # What README tells CI jobs to look for.
    patterns = set(re.findall(r"grep -E '([^']*)' configure.log", README.read_text()))
    assert len(patterns) == 1
    (drift,) = patterns
    before = guest.xml(inactive=True)

    checked = configure("--check", "--diff")
    assert re.search(drift, checked)
    assert re.search(r'\+ .*"discard": "unmap"', checked)
    assert guest.xml(inactive=True) == before

    assert "changed=1" in configure()
    assert not re.search(drift, configure("--check", "--diff"))

    # somebody takes it away again
    changed = guest.xml(inactive=True).replace(" discard='unmap'", "", 1)
    path = lab.state / "gate.xml"
    path.write_text(changed)
    lab.virsh("define", str(path))
    assert re.search(drift, configure("--check"))
