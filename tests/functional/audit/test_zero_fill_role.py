# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role zero_fill from its plan to its report, without a guest: this machine plays it.

What the "guest" fills is a file system in a loop device, and its /run is a folder of its own, so
that its lock is not this machine's. Its domain is one of libvirt's test driver, whose image lies on
another such file system: that is the host that is watched. To fill all would take minutes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time

import pytest
from host_xml import disk, domain, host
from image_lab import create, run

MIB = 1 << 20
GIB = 1 << 30
SIZE = 4 * GIB  # none of it is taken from the disk before it is written
KEEP = GIB
IMAGE = GIB
RESERVE = 8 * MIB
PLAY = """
- hosts: kvm_linux_guests
  gather_facts: false
  tasks:
    - block:
        - ansible.builtin.include_role:
            name: thinvirt.kvm.zero_fill
      always:
        - ansible.builtin.copy:
            content: "{{ zero_fill_result | default({}) | combine({'complete': zero_fill_complete})
              | to_json }}"
            dest: result.json
          delegate_to: hypervisor
          when: not ansible_check_mode
"""
GUEST_PYTHON = """#!/bin/sh
export PYTHONPATH={folder}/slow
exec unshare --mount sh -c 'mount --bind {folder}/run /run && exec "$0" "$@"' \\
  /usr/bin/python3 "$@"
"""
# The filler writes 4 MiB at once. By strace it would be slow too, and keep Ansible's pipes open.
SLOW = """
import os, time
write = os.write
def slow_write(fd, data):
    if len(data) >= 1 << 20:
        time.sleep(1)
    return write(fd, data)
os.write = slow_write
"""


@contextlib.contextmanager
def file_system(folder, name):
    """A folder of 4 GiB, on a loop device."""
    point, image = folder / name, folder / f"{name}.img"
    point.mkdir()
    with contextlib.ExitStack() as stack:
        with open(image, "wb") as file:
            file.truncate(SIZE)
        run("mkfs.ext4", "-q", "-F", "-m", "0", image)
        device = run("losetup", "-f", "--show", image).strip()
        stack.callback(run, "losetup", "-d", device)
        run("mount", device, point)
        stack.callback(run, "umount", point)
        yield point


class World:
    """The guest, its host, and Ansible as their administrator."""

    def __init__(self, folder, guest, images) -> None:
        self.folder, self.guest, self.images = folder, guest, images
        self.lock = folder / "run" / "thinvirt-zero-fill.lock"
        self.other = images / "other"
        image = create(images / "web.qcow2", str(IMAGE))
        self.uri = host(folder / "host.xml", domain("web", disk("vda", image), running=True))
        (folder / "run").mkdir()
        (folder / "slow").mkdir()
        (folder / "slow" / "sitecustomize.py").write_text(SLOW)
        python = folder / "python"
        python.write_text(GUEST_PYTHON.format(folder=folder))
        python.chmod(0o755)
        local = {
            "ansible_connection": "local",
            "ansible_remote_tmp": str(folder / "ansible-tmp"),
            "ansible_async_dir": str(folder / "async"),
        }
        member = {**local, "ansible_python_interpreter": str(python), "kvm_domain": "web"}
        hypervisor = {**local, "ansible_python_interpreter": "/usr/bin/python3"}
        inventory = {
            "kvm_hosts": {"hosts": {"hypervisor": hypervisor}},
            "kvm_linux_guests": {"hosts": {"member": {**member, "kvm_host": "hypervisor"}}},
        }
        (folder / "inventory.json").write_text(json.dumps(inventory))
        (folder / "play.yml").write_text(PLAY)

    def start(self, *options: str, **variables) -> subprocess.Popen[str]:
        given = {
            "uri": self.uri,
            "paths": [str(self.guest)],
            "keep_free_bytes": RESERVE,
            "accept_growth": True,
            "host_min_free_bytes": KEEP,
        } | variables
        extra = json.dumps({f"zero_fill_{name}": value for name, value in given.items()})
        return subprocess.Popen(
            ["ansible-playbook", "-i", "inventory.json", "-e", extra, *options, "play.yml"],
            cwd=self.folder,
            env=os.environ | {"ANSIBLE_NOCOLOR": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def free(self) -> int:
        run("sync", "-f", self.guest)
        return int(run("df", "-B1", "--output=avail", self.guest).split()[-1])

    def filler(self) -> int:
        """The process that fills, once it has taken something; by the kernel's list of locks."""
        inode = self.lock.stat().st_ino if self.lock.exists() else 0
        locks = re.findall(rf"FLOCK +ADVISORY +WRITE (\d+) \w+:\w+:{inode} ", read("/proc/locks"))
        return int(locks[0]) if locks else 0

    def assert_clean(self, free: int) -> None:
        """Nobody fills, and what was filled is free; ext4 frees it when its file is closed."""
        run("flock", "--wait", "20", self.lock, "true")
        assert self.free() == free
        assert os.listdir(self.guest) == ["lost+found"]


def ended(play: subprocess.Popen[str], *, ok: bool) -> str:
    """What it said."""
    try:
        output = play.communicate(timeout=240)[0]
    finally:
        play.kill()
    assert (play.returncode == 0) is ok, output
    return " ".join(output.split())


def read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def wait_for(what, *, seconds: float = 120):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("role")
    with file_system(folder, "guest") as guest, file_system(folder, "images") as images:
        yield World(folder, guest, images)


def test_it_is_stopped_before_the_host_is_full(world):
    """Somebody else takes the host's space meanwhile."""
    free = world.free()
    play = world.start()
    try:
        wait_for(world.filler)
        with open(world.other, "wb") as file:
            room = os.fstatvfs(file.fileno())
            size = room.f_bavail * room.f_frsize - KEEP + 64 * MIB
            os.posix_fallocate(file.fileno(), 0, size)
        output = ended(play, ok=False)
    finally:
        world.other.unlink(missing_ok=True)
    result = json.loads((world.folder / "result.json").read_text())
    assert "member was stopped, as hypervisor had less than" in output
    assert "What it had filled is free again in the guest." in output
    assert (result["complete"], result["stopped_for_host"]) == (False, True)
    (one,) = result["file_systems"]
    assert one["stopped_by"] == "stopped"
    assert one["planned_bytes"] == result["budget_bytes"] == IMAGE, "it can't grow beyond that"
    assert one["keep_free_bytes"] == RESERVE
    assert one["written_bytes"] < one["planned_bytes"]
    world.assert_clean(free)


def test_check_mode_writes_nothing(world):
    free = world.free()
    output = ended(world.start("--check"), ok=True)
    assert "changed=1" in output
    assert not world.filler()
    assert world.free() == free


def test_a_hypervisor_that_does_not_know_the_domain(world):
    free = world.free()
    output = ended(world.start(uri=f"test://{world.folder}/none.xml"), ok=False)
    assert "hypervisor can't tell what web may write" in output
    assert world.free() == free
