# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A block job of ours that does not come on, on a domain without a system."""

from __future__ import annotations

import json

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import Hypervisor
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import HypervisorError
from ansible_collections.thinvirt.kvm.plugins.module_utils._live import job as live_job
from image_lab import qemu_io
from lab import Disk, GuestSpec

MIB = 1 << 20


@pytest.fixture
def guest(lab):
    """On an overlay that has something to commit."""
    disk = Disk("sda", "scsi", size_bytes=128 * MIB)
    guest = lab.create(GuestSpec("stands", memory_mib=64, disks=(disk,)))
    path = guest.disk("sda").path
    qemu_io(path, "write -P 7 0 1M")
    lab.virsh("start", guest.name, "--paused")
    overlay = path.with_name("stands.overlay")
    options = ("--disk-only", "--no-metadata", "--atomic", "--diskspec", f"sda,file={overlay}")
    lab.virsh("snapshot-create-as", guest.name, "s", *options)
    write = 'qemu-io -d scsi0-0-0-0 "write -q -P 8 0 64M"'
    lab.virsh("qemu-monitor-command", guest.name, "--hmp", write)
    yield guest
    guest.destroy()
    lab.virsh("undefine", guest.name)
    overlay.unlink()
    path.unlink()


def qmp(lab, guest, command, **arguments):
    text = json.dumps({"execute": command, "arguments": arguments})
    return json.loads(lab.virsh("qemu-monitor-command", guest.name, text))["return"]


def test_one_that_stands_still_is_not_waited_for_without_end(lab, guest, monkeypatch):
    monkeypatch.setattr(live_job, "_STALLED_SECONDS", 1.0)
    told = []
    with Hypervisor(lab.uri) as hypervisor:
        (ours,) = hypervisor.guests([guest.name])
        ours.begin_commit("sda", bandwidth_bytes=2 * MIB)
        (running,) = qmp(lab, guest, "query-block-jobs")
        qmp(lab, guest, "block-job-pause", device=running["device"])
        base = str(guest.disk("sda").path)
        expected = [str(guest.disk("sda").path.with_name("stands.overlay")), base]
        job = live_job.Job(
            ours, "sda", switches=live_job.Switches(), expected=expected, mirror=base
        )
        with pytest.raises(HypervisorError, match="has not come on for 1 s"):
            job.wait_until_ready(lambda percent, done=None: told.append((percent, done)))
        qmp(lab, guest, "block-job-resume", device=running["device"])
        ours.abort_job("sda")
    assert told
    assert all(0 <= done <= 65 * MIB for _percent, done in told)
