# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""When the role zero_fill calls SDelete, over ``ansible_connection=psrp``.

**This tests orchestration, never Windows or SDelete**: a stand-in answers in their place. The
domains are of libvirt's test driver.
"""

from __future__ import annotations

import contextlib
import json

import pytest
from host_xml import disk, domain, host
from image_lab import create
from support import run_playbook
from wsman_stand_in import serve

pytestmark = pytest.mark.slow("two roles over a connection to Windows")

SDELETE = r"\\files\tools\sdelete64.exe"
CONSENT = {
    "zero_fill_windows_sdelete": SDELETE,
    "zero_fill_windows_accept_sdelete_eula": True,
    "zero_fill_accept_growth": True,
    "zero_fill_paths": ["C:", "D:"],
}
#: By host: what is said of it besides. All but the first two are refused.
HOSTS = {
    "desk": {},
    "failing": {},
    "unsigned": {"zero_fill_windows_accept_sdelete_eula": False},
    "folder": {"zero_fill_paths": [r"C:\Users"]},
    "none": {},
    "tight": {},
}
PLAY = """
- hosts: kvm_windows_guests
  gather_facts: false
  tasks:
    - ansible.builtin.include_role:
        name: thinvirt.kvm.zero_fill
    - ansible.builtin.debug:
        msg: "complete: {{ zero_fill_complete }}"
"""


class Windows:
    """Answers modules; remembers the commands that it was to run."""

    def __init__(self, *, sdelete: bool, code: int) -> None:
        self.commands: list[list[str]] = []
        self._sdelete, self._code = sdelete, code

    def __call__(self, name: str, arguments: dict) -> dict:
        module = name.rpartition(".")[2]
        if module == "win_stat":
            assert arguments["path"] == SDELETE
            return {"changed": False, "stat": {"exists": self._sdelete}}
        if module == "win_command":
            assert arguments["is_async"], "it takes hours"
            self.commands.append(arguments["argv"])
            return {"ansible_job_id": "j1", "started": 1, "finished": 0, "results_file": "j1"}
        assert module == "async_status"
        done = {"ansible_job_id": arguments["jid"], "started": 1, "finished": 1}
        return {**done, "changed": True, "rc": self._code}


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """(machines by host, what Ansible said), of one run."""
    folder = tmp_path_factory.mktemp("sdelete")
    domains = []
    for name in HOSTS:
        # the one that is too large for any host of these tests
        image = create(folder / f"{name}.qcow2", "1000T" if name == "tight" else "1G")
        element = disk("vda", image)
        if name != "tight":
            element.find("driver").set("detect_zeroes", "unmap")
        domains.append(domain(name, element, running=True))
    uri = host(folder / "host.xml", *domains)
    local = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
    machines = {
        name: Windows(sdelete=name != "none", code=int(name == "failing")) for name in HOSTS
    }
    with contextlib.ExitStack() as servers:
        guests = {
            name: {
                **servers.enter_context(serve(machines[name])).variables(),
                **CONSENT,
                **variables,
                "kvm_host": "hypervisor",
            }
            for name, variables in HOSTS.items()
        }
        inventory = {
            "kvm_hosts": {"hosts": {"hypervisor": local}},
            "kvm_windows_guests": {"hosts": guests},
        }
        (folder / "play.yml").write_text(PLAY)
        extra = json.dumps({"zero_fill_uri": uri, "zero_fill_host_min_free_bytes": 1 << 20})
        done = run_playbook(folder, "play.yml", inventory, "-e", extra, patience=300)
    return machines, " ".join((done.stdout + done.stderr).split())


def test_sdelete_fills_the_drives_that_were_named(played):
    machines, output = played
    call = [SDELETE, "-accepteula", "-nobanner", "-z", "C:", "D:"]
    called = {name: machine.commands for name, machine in machines.items() if machine.commands}
    assert called == {"desk": [call], "failing": [call]}, output
    assert output.count("complete: True") == 1
    assert "failing did not fill to the end" in output


@pytest.mark.parametrize(
    "reason",
    [
        "accept its licence with zero_fill_windows_accept_sdelete_eula.",
        "zero_fill_paths of folder has to name drives, such as C:. Nothing was written.",
        rf"none has no {SDELETE}. Nothing was written.",
        "SDelete knows no budget, and hypervisor can't take all that tight may write.",
    ],
)
def test_refused(played, reason):
    _machines, output = played
    assert reason.replace("\\\\", "\\") in output.replace("\\\\", "\\"), output
