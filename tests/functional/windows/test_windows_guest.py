# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role windows_guest, played through ``ansible-playbook`` over ``ansible_connection=psrp``.

**This tests orchestration, never PowerShell**: a stand-in answers in the place of Windows.  That
the role's scripts do in a real Windows what the stand-in says is proved nowhere; see the role's
README.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys

import pytest
from lab import Disk, GuestSpec
from support import run_playbook
from windows_machine import CONVERGED, EVENT_264, NEGLECTED, Windows
from wsman_stand_in import serve

MIB = 1 << 20
AS_JSON = {"callback": "ansible.posix.json", "patience": 180}
PLAY = """
- hosts: kvm_windows_guests
  gather_facts: false
  roles: [thinvirt.kvm.windows_guest]
"""


class Run:
    """What ansible-playbook did, by its JSON callback."""

    def __init__(self, text):
        told = json.loads(text[text.index("{") :])
        self.stats = told["stats"]
        self._tasks = [task for play in told["plays"] for task in play["tasks"]]

    def changed(self, host):
        return self.stats[host]["changed"]

    def failed(self, host):
        return self.stats[host]["failures"] + self.stats[host]["unreachable"] > 0

    def facts(self, host):
        found = {}
        for task in self._tasks:
            found |= task["hosts"].get(host, {}).get("ansible_facts", {})
        return found

    def findings(self, host):
        return {found["id"]: found for found in self.facts(host)["windows_guest_findings"]}

    def message(self, host):
        """Of the task that failed."""
        (message,) = (
            task["hosts"][host]["msg"]
            for task in self._tasks
            if task["hosts"].get(host, {}).get("failed")
        )
        return message


@pytest.fixture
def play(tmp_path):
    """Serve machines by host name and run the role on them; a function of options."""
    with contextlib.ExitStack() as servers:

        def play(machines, *options, variables=(), hosts=()):
            inventory = {
                "kvm_windows_guests": {
                    "hosts": {
                        name: servers.enter_context(serve(machine)).variables()
                        for name, machine in machines.items()
                    },
                    "vars": dict(variables),
                },
                "kvm_hosts": {"hosts": dict(hosts)},
            }
            (tmp_path / "play.yml").write_text(PLAY)
            done = run_playbook(tmp_path, "play.yml", inventory, *options, **AS_JSON)
            assert done.stdout, done.stderr
            return Run(done.stdout)

        yield play


def test_the_quartet(play):
    """Check, real, again, and again in check mode, on guests of every kind."""
    four_kn = [{**CONVERGED["disks"][0], "sector_bytes": 4096}]
    viostor = {"name": "viostor", "running": True, "version": "100.103.104.28500"}
    machines = {
        "converged": Windows(CONVERGED),
        "neglected": Windows(NEGLECTED),
        "no-iso": Windows({**NEGLECTED, "virtio_win_iso": None}),
        "event": Windows({**CONVERGED, "retrim_events": [EVENT_264]}),
        "stopped": Windows(
            {**CONVERGED, "agent": {"status": "Stopped", "start_type": "Manual"}, "fast_startup": 1}
        ),
        "four-kn": Windows(
            {**NEGLECTED, "drivers": [*CONVERGED["drivers"], viostor], "disks": four_kn}
        ),
    }
    mended = ["win_package", "delete_notify.ps1", "win_scheduled_task", "win_regedit"]
    calls = {
        "converged": [],
        "neglected": mended,
        "no-iso": mended[1:],
        "event": [],
        "stopped": ["win_service", "win_regedit"],
        "four-kn": [mended[0], mended[3]],  # nothing that makes Windows discard
    }
    variables = {"windows_guest_fast_startup_off": "true", "kvm_domain": "desk"}
    before = {name: json.dumps(machine.state) for name, machine in machines.items()}

    check = play(machines, "--check", variables=variables)
    for name, machine in machines.items():
        assert not check.failed(name)
        assert machine.calls == [f"{call} in check mode" for call in calls[name]]
        assert check.changed(name) == len(calls[name])
        assert json.dumps(machine.state) == before[name]
        machine.calls.clear()

    real = play(machines, variables=variables)
    for name, machine in machines.items():
        assert not real.failed(name)
        assert machine.calls == calls[name]
        assert real.changed(name) == len(calls[name])
        machine.calls.clear()

    for options in ((), ("--check",)):
        again = play(machines, *options, variables=variables)
        for name, machine in machines.items():
            assert not again.failed(name)
            assert (machine.calls, again.changed(name)) == ([], 0)

    assert {name: set(again.findings(name)) for name in machines} == {
        "converged": set(),
        "neglected": set(),
        "no-iso": {"windows-guest-agent-missing"},
        "event": {"windows-retrim-failed"},
        "stopped": set(),
        "four-kn": {"windows-viostor-4kn"},
    }
    found = again.findings("event")["windows-retrim-failed"]
    assert (found["severity"], found["domain"]) == ("error", "desk")
    assert "(C:)" in found["reason"]
    assert "kvm_domains_discard_granularity_bytes" in found["remedy"]


def test_guests_that_lie(play, tmp_path):
    """Windows that only pretends to have done it; nonsense for a state; a trap for Jinja."""
    proof = tmp_path / "proof"
    trap = f"{{{{ lookup('pipe', 'touch {proof}') }}}}"
    machines = {
        "deaf": Windows(NEGLECTED, deaf=True),
        "list": Windows([]),
        "empty": Windows({"drivers": 1}),
        "trap": Windows({**CONVERGED, "os": trap, "agent": None}),
    }
    run = play(machines)

    assert run.failed("deaf")
    assert "Domain deaf: Windows reported success" in run.message("deaf")
    assert "set DisableDeleteNotify of NTFS to 0" in run.message("deaf")
    assert (run.failed("list"), machines["list"].calls) == (True, [])
    assert "something else than its state" in run.message("list")
    # nothing is known, so nothing is done
    assert (run.failed("empty"), machines["empty"].calls) == (False, [])
    assert "windows-delete-notify-unknown" in run.findings("empty")
    assert not run.failed("trap")
    assert not proof.exists()


def test_the_playbook_that_ships(tmp_path):
    """It configures the guests of the group, and says nothing where there is no such group."""
    machine = Windows(NEGLECTED)
    with serve(machine) as server:
        inventory = {
            "kvm_hosts": {},
            "kvm_linux_guests": {},
            "kvm_windows_guests": {"hosts": {"desk": server.variables()}},
        }
        done = run_playbook(tmp_path, "thinvirt.kvm.configure", inventory, **AS_JSON)
        assert done.returncode == 0, done.stdout
        assert "win_package" in machine.calls
        machine.calls.clear()
        inventory["others"] = inventory.pop("kvm_windows_guests")
        done = run_playbook(tmp_path, "thinvirt.kvm.configure", inventory, **AS_JSON)
    assert done.returncode == 0, done.stdout
    assert machine.calls == []
    assert "kvm_windows_guests" not in done.stderr
    assert Run(done.stdout).stats == {}


@pytest.fixture
def desk(lab):
    """A domain that is off, with a raw disk of 8 MiB of data: what the host would hold."""
    guest = lab.create(
        GuestSpec(
            "t-windows",
            disks=(Disk("sda", "scsi", size_bytes=16 * MIB, format="raw", discard="unmap"),),
        )
    )
    path = guest.disk("sda").path
    with open(path, "r+b") as image:
        image.write(os.urandom(8 * MIB))
        os.fsync(image.fileno())
    yield path
    lab.virsh("undefine", "t-windows")


def hypervisor(lab):
    return {
        "hosts": {
            "host": {
                "ansible_connection": "local",
                "ansible_python_interpreter": sys.executable,
            }
        },
        "variables": {
            "windows_guest_retrim": "true",  # as -e gives it
            "windows_guest_uri": lab.uri,
            "kvm_host": "host",
            "kvm_domain": "t-windows",
        },
    }


def test_a_retrim_is_measured_on_the_host(lab, desk, play):
    def retrim():
        subprocess.run(["fallocate", "--punch-hole", "--length=5MiB", desk], check=True)
        return [{"volume": "C:", "error": ""}]

    machine = Windows(CONVERGED, retrim=retrim)
    before = os.stat(desk).st_blocks * 512
    check = play({"desk": machine}, "--check", **hypervisor(lab))
    assert (check.failed("desk"), check.changed("desk")) == (False, 0)
    assert (machine.calls, os.stat(desk).st_blocks * 512) == ([], before)

    real = play({"desk": machine}, **hypervisor(lab))
    freed = before - os.stat(desk).st_blocks * 512
    assert (real.failed("desk"), real.changed("desk")) == (False, 1)
    assert machine.calls == ["retrim.ps1"]
    assert int(real.facts("desk")["windows_guest_freed_bytes"]) == freed == 5 * MIB

    again = play({"desk": machine}, **hypervisor(lab))
    assert (again.failed("desk"), again.changed("desk")) == (False, 0)


def test_volumes_that_could_not_be_trimmed_fail_the_guest(lab, desk, play):
    def retrim():
        subprocess.run(["fallocate", "--punch-hole", "--length=1MiB", desk], check=True)
        return [{"volume": "C:", "error": ""}, {"volume": "E:", "error": "It is not supported."}]

    run = play({"desk": Windows(CONVERGED, retrim=retrim)}, **hypervisor(lab))
    assert run.failed("desk")
    assert "could not retrim E:: It is not supported." in run.message("desk")
    assert int(run.facts("desk")["windows_guest_freed_bytes"]) == MIB


@pytest.mark.parametrize("options", [(), ("--check",)])
def test_a_retrim_that_could_destroy_data_or_not_be_measured_is_refused(lab, play, options):
    viostor = {"name": "viostor", "running": True, "version": "100.103.104.28500"}
    danger = {**CONVERGED, "drivers": [viostor]}
    danger["disks"] = [{**CONVERGED["disks"][0], "sector_bytes": 4096}]
    machines = {"danger": Windows(danger), "homeless": Windows(CONVERGED)}
    given = hypervisor(lab)
    given["variables"]["kvm_host"] = "{{ 'host' if inventory_hostname == 'danger' else 'nobody' }}"
    run = play(machines, *options, **given)
    for name, machine in machines.items():
        assert (run.failed(name), machine.calls) == (True, [])
    assert "wrong sectors" in run.message("danger")
    assert "names no host of the inventory" in run.message("homeless")
