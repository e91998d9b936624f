# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role zero_fill on a real guest, and what the host's images did meanwhile, by stat.

The guest has no network and is reached through its agent. Its disks are throttled where something
has to happen while it fills. What needs no guest is in tests/functional/audit/test_zero_fill_role.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import threading
import time
from pathlib import Path

import pytest
from lab import Disk, GuestSpec, LabError

pytestmark = pytest.mark.slow("the role's tasks in a guest without KVM, and disks to fill")

#: A minute each or more.
ONLY_STORM = pytest.mark.skipif(
    os.environ.get("THINVIRT_STORM") != "full", reason="a minute or more: make storm"
)
SLOW = pytest.mark.slow("Ansible's tasks run in the guest, and fill its disk")

MIB = 1 << 20
GIB = 1 << 30
SLOW_BYTES_PER_SECOND = 4 * MIB
DISK_BYTES = 512 * MIB
LOCK = "/run/thinvirt-zero-fill.lock"
LEFTOVER = "/thick/.thinvirt-zero-fill"
WASTE = """
import os
block = os.urandom(1 << 20)
with open("/thin/waste", "wb") as file:
    for number in range(200):
        file.write(block)
    os.fsync(file.fileno())
os.unlink("/thin/waste")
os.sync()
"""
PLAY = """
- hosts: kvm_linux_guests
  gather_facts: false
  tasks:
    - block:
        - ansible.builtin.include_role:
            name: thinvirt.kvm.zero_fill
      always:
        - ansible.builtin.copy:
            content: "{{ zero_fill_result | combine({'complete': zero_fill_complete}) | to_json }}"
            dest: "{{ lookup('env', 'ZERO_FILL_RESULT') }}"
          delegate_to: hypervisor
          when: zero_fill_result is defined and not ansible_check_mode
"""
SECOND = """
- hosts: kvm_linux_guests
  gather_facts: false
  tasks:
    - thinvirt.kvm.zero_free_space:
        paths: [/]
        max_bytes: 1000000
"""


class World:
    """The guest, and Ansible as its administrator."""

    def __init__(self, lab, guest, folder: Path) -> None:
        self.lab, self.guest, self.folder = lab, guest, folder
        self.thin, self.thick = guest.disk("sdb").path, guest.disk("sdc").path
        hypervisor = {
            "ansible_connection": "local",
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_remote_tmp": str(folder / "ansible-tmp"),
        }
        member = {
            "ansible_connection": "community.libvirt.libvirt_qemu",
            "ansible_libvirt_uri": lab.uri,
            "ansible_host": guest.name,
            "ansible_python_interpreter": "/usr/bin/python3",
            "kvm_domain": guest.name,
            "kvm_host": "hypervisor",
        }
        inventory = {
            "kvm_hosts": {"hosts": {"hypervisor": hypervisor}},
            "kvm_linux_guests": {"hosts": {"member": member}},
        }
        (folder / "inventory.json").write_text(json.dumps(inventory))

    def start(self, play: str = PLAY, *options: str, **variables) -> subprocess.Popen[str]:
        (self.folder / "play.yml").write_text(play)
        self.result_file.unlink(missing_ok=True)
        given = {"zero_fill_uri": self.lab.uri, "zero_fill_keep_free_bytes": 16 * MIB} | {
            f"zero_fill_{name}": value for name, value in variables.items()
        }
        argv = ["ansible-playbook", "-i", "inventory.json", "-e", json.dumps(given), *options]
        return subprocess.Popen(
            [*argv, "play.yml"],
            cwd=self.folder,
            env=os.environ | {"ANSIBLE_NOCOLOR": "1", "ZERO_FILL_RESULT": str(self.result_file)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *options: str, ok: bool = True, **variables) -> str:
        return ended(self.start(PLAY, *options, **variables), ok=ok)

    @property
    def result_file(self) -> Path:
        return self.folder / "result.json"

    @property
    def result(self) -> dict:
        return json.loads(self.result_file.read_text())

    def free(self, path: str) -> int:
        """What is free in the guest, in bytes."""
        self.guest.run("sync", "-f", path)
        return self.available(path)

    def available(self, path: str) -> int:
        return int(self.guest.run("df", "-B1", "--output=avail", path).stdout.split()[1])

    @contextlib.contextmanager
    def filling(self, free: int, **variables):
        """The role, on the slow thick disk, when a filler has taken 16 MiB of what was free."""
        with self.slow():
            play = self.start(paths=["/thick"], disks=["sdc"], accept_growth=True, **variables)
            try:
                # without a flush, which would take long
                wait_for(lambda: ran_out(play) or self.available("/thick") < free - 16 * MIB)
                yield play
            finally:
                play.kill()

    @contextlib.contextmanager
    def slow(self):
        """The thick disk takes no more than 4 MiB in a second: filling it takes two minutes."""
        tune = ("blkdeviotune", self.guest.name, "sdc", "--live", "--write-bytes-sec")
        self.lab.virsh(*tune, str(SLOW_BYTES_PER_SECOND))
        try:
            yield
        finally:
            self.lab.virsh(*tune, "0")


def ended(process: subprocess.Popen[str], *, ok: bool = True) -> str:
    try:
        output = process.communicate(timeout=900)[0]
    finally:
        process.kill()
    assert (process.returncode == 0) is ok, output
    return " ".join(output.split())  # messages are wrapped


def ran_out(process: subprocess.Popen[str]) -> None:
    """Fail if it has ended before its time."""
    assert process.poll() is None, process.communicate()[0]


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def wait_for(what, *, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextlib.contextmanager
def highest(path: Path):
    """A list whose one item is the most that a file ever occupied."""
    peak, over = [allocated(path)], threading.Event()

    def sample() -> None:
        while not over.wait(0.02):
            peak[0] = max(peak[0], allocated(path))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield peak
    finally:
        over.set()
        sampler.join()


@contextlib.contextmanager
def a_world(lab, name: str, folder: Path):
    thin = Disk("sdb", serial="thin", size_bytes=DISK_BYTES, discard="unmap", detect_zeroes="unmap")
    thick = Disk("sdc", serial="thick", size_bytes=DISK_BYTES)
    try:
        guest = lab.warm(GuestSpec(name, disks=(Disk("sda", root=True), thin, thick)))
        for label, kind in (("thin", "ext4"), ("thick", "xfs")):
            script = "mkdir /$0; mkfs.$1 -q /dev/disk/by-id/*_$0; mount /dev/disk/by-id/*_$0 /$0"
            guest.run("sh", "-ec", script, label, kind)
        yield World(lab, guest, folder)
    finally:
        lab.forget(name)


@pytest.fixture(scope="module")
def world(lab, tmp_path_factory):
    with a_world(lab, "zeros", tmp_path_factory.mktemp("zeros")) as world:
        yield world


@SLOW
def test_with_detect_zeroes_the_host_shrinks_and_never_grows(world):
    world.guest.run("python3", "-c", WASTE, timeout=600)
    start, free = allocated(world.thin), world.free("/thin")
    assert start > 200 * MIB
    with highest(world.thin) as peak:
        output = world.run(paths=["/thin"], disks=["sdb"])
    after = allocated(world.thin)
    assert peak[0] <= start * 1.05, output
    assert after < start - 150 * MIB
    assert world.free("/thin") == free
    result = world.result
    assert result["written_bytes"] > free - 32 * MIB
    assert (result["complete"], result["stopped_for_host"]) == (True, False)
    assert abs(result["allocated_before_bytes"] - start) < MIB
    assert result["allocated_before_bytes"] <= result["allocated_peak_bytes"] <= peak[0] + MIB
    assert abs(result["allocated_after_bytes"] - after) < MIB


@SLOW
def test_a_killed_filler_leaves_nothing(world):
    free = world.free("/thick")
    with world.filling(free) as play:
        world.guest.run("sh", "-c", f"kill -9 {filler(world)}")
        output = ended(play, ok=False)
    assert "member did not fill to the end" in output
    assert not world.result["complete"]
    assert_given_back(world, free)


@SLOW
def test_the_budget_is_respected_as_the_host_sees_it(world):
    """The run before it was killed as it made its file, as it were: that one is removed."""
    world.guest.run("touch", LEFTOVER)
    start, free = allocated(world.thick), world.free("/thick")
    with highest(world.thick) as peak:
        world.run(paths=["/thick"], disks=["sdc"], accept_growth=True, max_bytes=128 * MIB)
    assert peak[0] - start < 136 * MIB
    assert peak[0] > 128 * MIB, "though some of them were zeros of the killed one before"
    result = world.result
    assert result["complete"]
    assert result["written_bytes"] == 128 * MIB
    assert result["file_systems"][0]["stopped_by"] == "budget"
    assert abs(result["allocated_peak_bytes"] - peak[0]) < MIB
    assert_given_back(world, free)


@pytest.mark.storm
@ONLY_STORM
def test_a_second_filler_is_refused(world):
    free = world.free("/thick")
    with world.filling(free) as play:
        refusal = ended(world.start(SECOND), ok=False)
        pid = re.search(r"Process (\d+) is filling file systems of this guest already", refusal)[1]
        assert pid == filler(world)
        world.guest.run("sh", "-c", f"kill {pid}")
        output = ended(play, ok=False)
    assert "member did not fill to the end: somebody ended it" in output
    assert_given_back(world, free)


@pytest.mark.storm
@ONLY_STORM
def test_the_role_stops_before_the_host_is_full(world):
    """Somebody else takes 5 GiB of the host while the guest fills."""
    free = world.free("/thick")
    statvfs = os.statvfs(world.thick)
    keep = statvfs.f_bavail * statvfs.f_frsize - 4 * GIB
    other = world.thick.with_name("other")
    with world.filling(free, host_min_free_bytes=keep) as play:
        try:
            with open(other, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, 5 * GIB)
            output = ended(play, ok=False)
        finally:
            other.unlink(missing_ok=True)
    assert "member was stopped, as hypervisor had less than" in output
    assert world.result["stopped_for_host"]
    (one,) = world.result["file_systems"]
    assert one["stopped_by"] == "stopped"
    assert one["written_bytes"] < one["planned_bytes"]
    assert_given_back(world, free)


def filler(world: World) -> str:
    """The process that fills, by the guest's list of locks."""
    locks = world.guest.run("lslocks", "--noheadings", "--output=PID,PATH").stdout.splitlines()
    (pid,) = (line.split()[0] for line in locks if line.endswith(LOCK))
    return pid


def assert_given_back(world: World, free: int) -> None:
    """Nobody fills, by a tool of the guest's own, and all is free; XFS takes its time for that."""
    world.guest.run("flock", "--wait", "60", LOCK, "true", timeout=300)
    wait_for(lambda: world.free("/thick") == free)
    assert world.guest.run("ls", "-A", "/thick").stdout == ""


@pytest.mark.storm
@ONLY_STORM
def test_an_agent_that_dies_takes_the_filler_with_it(world):
    free = world.free("/thick")
    with world.filling(free) as play:
        back = ("systemd-run", "--on-active=25", "systemctl", "start", "qemu-guest-agent")
        world.guest.run(*back)
        with contextlib.suppress(LabError):
            world.guest.run("systemctl", "stop", "qemu-guest-agent", timeout=10)
        output = ended(play, ok=False)
    assert "member did not fill to the end" in output
    world.guest.wait_for_agent()
    assert_given_back(world, free)


@pytest.mark.storm
@ONLY_STORM
def test_save_restore_has_zeros_become_holes_without_a_reboot(lab, tmp_path):
    """In a guest of its own, whose thick disk is not thick afterwards."""
    with a_world(lab, "zeros-saved", tmp_path) as world:
        assert_zeros_become_holes(world)


def assert_zeros_become_holes(world: World) -> None:
    booted = world.guest.run("cat", "/proc/sys/kernel/random/boot_id").stdout
    start = allocated(world.thick)
    with highest(world.thick) as peak:
        output = world.run(paths=["/thick"], disks=["sdc"], detect_zeroes="save_restore")
    assert world.result["written_bytes"] > 300 * MIB, output
    assert peak[0] <= start * 1.05
    assert allocated(world.thick) < start / 2
    assert world.guest.run("cat", "/proc/sys/kernel/random/boot_id").stdout == booted
