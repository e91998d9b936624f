# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work on a hypervisor goes on when the connection to it is lost, and the play gets its result.

The connections are those of a real sshd, which is killed with all its sessions while ``qemu-img``
stands still in the middle of a copy, and started again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from compact_lab import allocated, held_in, image, leftovers, make_holder, users_of, wait_for
from ssh_lab import Sshd

pytestmark = [
    pytest.mark.slow("Ansible has to lose a connection, and to find it again"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root has another qemu-img for sshd"),
]

MIB = 1 << 20
NAME = "ssh-off"
#: What Ansible says, at its most talkative, of a look at the work that could not be had.
LOST = "Exception during async poll, retrying..."


@pytest.fixture
def holder(tmp_path):
    """Of a qemu-img that stands still when it begins to copy."""
    shutil.copy("/usr/bin/qemu-img", tmp_path / "real")
    return make_holder("convert", real=str(tmp_path / "real"))


@pytest.fixture
def sshd(tmp_path, holder):
    (tmp_path / "ssh").mkdir()
    with Sshd(tmp_path / "ssh", qemu_img=holder / "qemu-img") as server:
        yield server


@pytest.fixture
def disk(lab, tmp_path):
    """The disk of a domain that is off: 24 MiB of zeros, and data that takes a while to copy."""
    (tmp_path / "disks").mkdir()
    path = image(tmp_path / "disks" / "disk.qcow2", data_mib=64)
    (tmp_path / "domain.xml").write_text(f"""
    <domain type='qemu'><name>{NAME}</name><memory unit='MiB'>64</memory>
      <os><type arch='x86_64'>hvm</type></os>
      <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
        <source file='{path}'/><target dev='vda' bus='virtio'/></disk></devices></domain>""")
    lab.virsh("define", str(tmp_path / "domain.xml"))
    yield path
    lab.virsh("undefine", NAME)


@pytest.fixture
def play(lab, sshd, tmp_path):
    """Start the playbook compact on the disk; its output is in a file."""
    started = []

    def play(**variables) -> tuple[subprocess.Popen, Path]:
        inventory = {"kvm_hosts": {"hosts": {"hypervisor": sshd.variables()}}}
        (tmp_path / "inventory.json").write_text(json.dumps(inventory))
        given = {
            "thinvirt_uri": lab.uri,
            "thinvirt_domains": [NAME],
            "compact_images_method": "rewrite",
            "compact_images_min_reclaim_bytes": MIB,
            "compact_images_min_free_bytes": 0,
            "compact_images_poll_seconds": 1,
        } | variables
        argv = ["ansible-playbook", "-vvvv", "-i", "inventory.json", "-e", json.dumps(given)]
        output = tmp_path / "output"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [*argv, "thinvirt.kvm.compact"],
                cwd=tmp_path,
                env=os.environ
                | {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        started.append(process)
        return process, output

    yield play
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


@contextlib.contextmanager
def held(process: subprocess.Popen, output: Path, holder: Path):
    """The copy that a play has begun stands still; its process."""

    def begun() -> int | None:
        pid = held_in(holder)
        assert pid or process.poll() is None, output.read_text()
        return pid

    pid = wait_for(begun)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_work_goes_on_and_the_play_gets_its_result(sshd, holder, disk, play):
    before = allocated(disk)
    process, output = play()
    with held(process, output, holder) as copy:
        assert sshd.sessions() != []
        sshd.stop()
        assert not sshd.listens()
        wait_for(lambda: LOST in output.read_text())  # the play has met it,
        assert process.poll() is None  # and goes on
        assert held_in(holder) == copy
        sshd.start()
    process.wait(timeout=120)
    text = output.read_text()
    assert process.returncode == 0, text
    told, _end = json.JSONDecoder().raw_decode(text, text.rindex("\n{\n") + 1)
    (result,) = (
        task["hosts"]["hypervisor"]
        for play in told["plays"]
        for task in play["tasks"]
        if task["task"]["name"].endswith("Compact what is worth it")
    )
    assert result["changed"]
    assert result["freed_bytes"] == before - allocated(disk) >= 23 * MIB
    assert told["stats"]["hypervisor"]["unreachable"] == 0
    assert leftovers(disk.parent) == []
    assert list((sshd.folder / "async").iterdir()) == []


def test_without_async_the_play_is_lost(sshd, holder, disk, play):
    """The other test can fail: it is async that survives, not Ansible."""
    process, output = play(compact_images_async_seconds=0)
    with held(process, output, holder):
        sshd.stop()
        process.wait(timeout=120)
        sshd.start()
    assert process.returncode == 2, output.read_text()
    assert "hypervisor could not be reached, and nothing is known" in output.read_text()
    wait_for(lambda: users_of(disk.parent) == [])
