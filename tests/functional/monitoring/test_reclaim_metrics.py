# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the playbook compact gave back, as Prometheus is told: compared with what stat says."""

from __future__ import annotations

import json

import pytest
from image_lab import qemu_io
from lab import Disk, GuestSpec
from prometheus_client.parser import text_string_to_metric_families
from support import run_playbook

MIB = 1 << 20


@pytest.fixture
def guests(lab):
    """Two that are off: one with zeros to give back, one whose image is none."""
    made = [
        lab.create(
            GuestSpec(
                name, machine="pc", memory_mib=64, disks=(Disk("sda", "scsi", size_bytes=MIB * 16),)
            )
        )
        for name in ("t-zeros", "t-none")
    ]
    yield made
    for guest in made:
        lab.virsh("undefine", guest.name)


def test_what_came_back_is_counted_also_if_another_guest_fails(lab, guests, tmp_path):
    zeros, none = guests
    path = zeros.disk("sda").path
    qemu_io(path, "write -P 0 0 8M")
    none.disk("sda").path.write_bytes(b"no image" * 1000)
    hypervisor = {
        "ansible_connection": "local",
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_remote_tmp": str(tmp_path / "tmp"),
        "thinvirt_uri": lab.uri,
        "thinvirt_domains": [guest.name for guest in guests],
        "compact_images_metrics_dir": str(tmp_path),
        "compact_images_min_reclaim_bytes": MIB,
        "compact_images_poll_seconds": 1,
    }
    inventory = {"kvm_hosts": {"hosts": {"hypervisor": hypervisor}}}
    before = path.stat().st_blocks * 512

    checked = run_playbook(tmp_path, "thinvirt.kvm.compact", inventory, "--check")
    assert checked.returncode == 2, checked.stdout
    assert not (tmp_path / "thinvirt.prom").exists()

    done = run_playbook(tmp_path, "thinvirt.kvm.compact", inventory)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "t-none" in json.dumps(done.stdout)
    freed = before - path.stat().st_blocks * 512
    assert freed >= 7 * MIB
    found = {
        sample.name: sample.value
        for family in text_string_to_metric_families((tmp_path / "thinvirt.prom").read_text())
        for sample in family.samples
        if sample.labels["domain"] == "t-zeros"
    }
    assert found["thinvirt_domain_freed_bytes_total"] == freed
    assert found["thinvirt_disk_freed_bytes_total"] == freed
    assert found["thinvirt_domain_last_compaction_timestamp_seconds"] > 0
