# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts in batches: where a whole batch fails Ansible ends the run, and the playbooks do not.

In batches of one, those that fail come first: a host that is down, one whose libvirt is, and one
with a wrong variable.
"""

from __future__ import annotations

import json
import re

import pytest
from compact_lab import allocated
from image_lab import qemu_io
from lab import Disk, GuestSpec
from support import run_playbook

pytestmark = pytest.mark.slow("playbooks over several hosts, one after the other")

MIB = 1 << 20
#: No module gets there: Ansible says UNREACHABLE.
DOWN = {"ansible_remote_tmp": "/proc/nowhere"}
#: What no role takes ends it before it has any result.
WRONG = {"compact_images_power": "maybe", "backup_images_quiesce": "maybe"}


@pytest.fixture
def waste(lab):
    """A domain that is off, whose image holds 16 MiB of zeros."""
    guest = lab.create(GuestSpec("t-serial", disks=(Disk("sda", size_bytes=64 * MIB),)))
    qemu_io(guest.disk("sda").path, "write -P 7 0 1M", "write -P 0 1M 16M")
    yield guest
    lab.virsh("undefine", guest.name)


@pytest.fixture
def play(lab, waste, tmp_path):
    """Run a playbook on four hosts, one at a time; the good one is last."""

    def play(playbook, **variables):
        uris = {
            "a-down": "test:///default",
            "b-deaf": "test:///nowhere.xml",
            "b-wrong": lab.uri,
            "c-good": lab.uri,
        }
        hosts = {
            name: {
                "ansible_connection": "local",
                "ansible_python_interpreter": "/usr/bin/python3",
                "ansible_remote_tmp": str(tmp_path / "tmp"),
                "ansible_async_dir": str(tmp_path / "async"),
                "thinvirt_uri": uri,
            }
            for name, uri in uris.items()
        }
        hosts["a-down"] |= DOWN
        hosts["b-wrong"] |= WRONG
        given = {"thinvirt_serial": 1, "thinvirt_domains": [waste.name], **variables}
        inventory = {"kvm_hosts": {"hosts": hosts}}
        done = run_playbook(tmp_path, playbook, inventory, "-e", json.dumps(given), patience=300)
        output = done.stdout + done.stderr
        assert done.returncode == 2, output
        assert "Traceback" not in output
        recap = done.stdout.split("PLAY RECAP")[1]
        failed = {
            line.split()[0]: int(re.search(r"failed=(\d+)", line)[1])
            for line in recap.splitlines()
            if "failed=" in line
        }
        assert failed == {"a-down": 1, "b-deaf": 1, "b-wrong": 1, "c-good": 0}, output
        # What is said of them in the end, for whoever reads only that.
        end = done.stdout.rpartition("PLAY [Fail for")[2]
        return output, end

    return play


COMPACT = {
    "compact_images_min_reclaim_bytes": MIB,
    "compact_images_min_free_bytes": 0,
    "compact_images_poll_seconds": 1,
}


def test_compact_does_the_others_work_and_reports(waste, play, tmp_path):
    path = waste.disk("sda").path
    before = allocated(path)
    output, end = play("thinvirt.kvm.compact", thinvirt_report=True, **COMPACT)
    freed = before - allocated(path)
    assert freed >= 16 * MIB
    assert output.count("PLAY [Compact the disks of domains]") == 4
    assert end.count("fatal: [") == 1  # the report's play has failed for the two others
    assert "compact_images_power" in end
    assert "b-deaf: error host-not-read" in output

    report = json.loads((tmp_path / "thinvirt-report" / "report.json").read_text())
    statuses = {host["host"]: host["status"] for host in report["hosts"]}
    assert statuses == {
        "a-down": "unreachable", "b-deaf": "failed", "b-wrong": "read", "c-good": "read"
    }  # fmt: skip
    failed = {row["host"]: row for row in report["work"] if row["status"] == "failed"}
    assert set(failed) == {"a-down", "b-deaf", "b-wrong"}
    assert "compact_images_power" in failed["b-wrong"]["reason"]
    assert "nowhere" in failed["b-deaf"]["reason"]
    (done,) = (row for row in report["work"] if row["status"] == "done")
    assert (done["host"], done["domain"], done["freed_bytes"]) == ("c-good", waste.name, freed)
    assert report["summary"]["freed_bytes"] == freed


def test_backup_does_the_others_work(waste, play, tmp_path):
    _output, end = play(
        "thinvirt.kvm.backup",
        backup_images_dest_dir=str(tmp_path),
        backup_images_min_free_bytes=0,
        backup_images_poll_seconds=1,
    )
    assert list((tmp_path / waste.name).rglob("sda.qcow2"))
    assert "a-down could not be reached" in end
    assert "nowhere.xml" in end
