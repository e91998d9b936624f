# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who calls domain_trim for whom when the role linux_guest trims, on libvirt's test driver.

Its domains have no disks, so every trim is refused, by name: that shows whose it was.  A trim that
frees something is in tests/live.
"""

from __future__ import annotations

import json

import pytest
from support import run_playbook

TRIM = "Trim the guests of a hypervisor and measure there"
DOMAIN = (
    "<domain type='test'><name>{}</name><memory>8192</memory><os><type>hvm</type></os></domain>"
)
# The guests' own tasks would need guests.
PLAY = """
- hosts: kvm_linux_guests
  gather_facts: false
  serial: {serial}
  tasks:
    - ansible.builtin.include_role:
        name: thinvirt.kvm.linux_guest
        tasks_from: trim
        apply:
          ignore_errors: {ignore}
      vars:
        linux_guest_untrimmed: report
"""
GUESTS = {
    "g1": {"kvm_host": "h1", "kvm_domain": "d1"},
    "g2": {"kvm_host": "h2", "kvm_domain": "d2"},
    "g3": {"kvm_host": "h1", "kvm_domain": "d3"},
    "d4": {"kvm_host": "h1"},
}


@pytest.fixture
def run(tmp_path):
    domains = "".join(DOMAIN.format(f"d{number}") for number in range(1, 6))
    (tmp_path / "node.xml").write_text(f"<node>{domains}</node>")
    local = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
    # a task that runs in a guest instead of on its hypervisor is unreachable
    away = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}

    def run(guests=None, serial="100%", ignore=False):
        guests = guests or GUESTS
        uri = {"linux_guest_uri": f"test://{tmp_path}/node.xml"}
        inventory = {
            "kvm_hosts": {"hosts": {"h1": local, "h2": local}},
            "kvm_linux_guests": {"hosts": {n: {**away, **uri, **v} for n, v in guests.items()}},
        }
        (tmp_path / "play.yml").write_text(PLAY.format(serial=serial, ignore=ignore))
        done = run_playbook(tmp_path, "play.yml", inventory, callback="ansible.posix.json")
        tasks = [t for play in json.loads(done.stdout)["plays"] for t in play["tasks"]]
        calls, ends = [], {}
        for task in tasks:
            for host, result in task["hosts"].items():
                if task["task"]["name"].endswith(TRIM) and not result.get("skipped"):
                    calls.append((host, [entry["name"] for entry in result.get("domains", [])]))
                if result.get("failed"):
                    ends[host] = result["msg"]
        return calls, ends

    return run


def test_one_call_for_each_hypervisor(run):
    calls, ends = run()
    assert sorted(calls) == [("g1", ["d1", "d3", "d4"]), ("g2", ["d2"])]
    assert ends.keys() == GUESTS.keys()
    for guest, variables in GUESTS.items():
        assert f"domain {variables.get('kvm_domain', guest)} has no writable disk" in ends[guest]


@pytest.mark.slow("a role in batches, for each of them")
def test_each_batch_calls_for_itself(run):
    """As if something had been done to the guests, so that they are trimmed again."""
    acted = {"__linux_guest_acted": True}
    guests = {name: {**GUESTS[name], **acted} for name in ("g1", "g3")}
    calls, _ends = run(guests, serial=1, ignore=True)
    assert calls == [("g1", ["d1"])] * 2 + [("g3", ["d3"])] * 2


def test_a_guest_without_hypervisor_is_told_so_and_stops_no_other(run):
    calls, ends = run({"g1": GUESTS["g1"], "lost": {}})
    assert calls == [("g1", ["d1"])]
    assert "The hypervisor of lost is not known; the guest was not trimmed" in ends["lost"]


def test_a_call_that_fails_as_a_whole_fails_each_guest(run):
    calls, ends = run({"g1": GUESTS["g1"], "gone": {"kvm_host": "h1"}})
    assert calls == [("g1", [])]
    assert ends.keys() == {"g1", "gone"}
    assert all("gone" in message for message in ends.values())
