# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role virtio_scsi on two guests side by side: one comes up on its new bus, one does not.

The second one's initial RAM disk has no driver for virtio-scsi: it gives up soon, and powers off,
so that no test waits for the time in which a guest has to come up (tests/functional has that, and
what the role does in check mode and with a guest that was moved already).
Both have no network and are reached through their agents.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from lab import Disk, GuestSpec
from lab.image import guest_image
from support import _RUN, run_module, run_playbook

GOOD, BAD = "vs-good", "vs-bad"
LONG = pytest.mark.skipif(
    os.environ.get("THINVIRT_STORM") != "full", reason="two to three minutes: make storm"
)
#: An initial RAM disk that names the driver: what the guest itself would boot by.
SETUP = """
set -eu
printf '/dev/vda / ext4 noatime 0 1\\n/dev/vdb /mnt ext4 defaults 0 2\\n' >/etc/fstab
mkfs.ext4 -q /dev/vdb && mount /dev/vdb /mnt
dd if=/dev/urandom of=/mnt/keep bs=1M count=8 status=none
sha256sum /mnt/keep >/root/sums
mkdir -p /etc/default && echo 'GRUB_CMDLINE_LINUX="root=/dev/vda quiet"' >/etc/default/grub
python3 -c "$1" >"/boot/initrd.img-$(uname -r)"
sync
"""
MAKE_INITRD = """
import gzip, sys
def entry(name, mode):
    numbers = (1, mode, 0, 0, 1, 0, 0, 0, 0, 0, 0, len(name) + 1, 0)
    text = ("070701" + "".join("%08X" % n for n in numbers) + name).encode() + bytes(1)
    return text + bytes(-len(text) % 4)
names = ("usr/lib/modules/virtio_blk.ko", "usr/lib/modules/virtio_scsi.ko")
out = b"".join(entry(name, 0o100644) for name in names)
sys.stdout.buffer.write(gzip.compress(out + entry("TRAILER!!!", 0) + bytes(512)))
"""

#: What runs in the guest in the place of Windows: the stages are seen, and what they had to do.
STAGES = """
- name: "Play stage {{ __virtio_scsi_stage }}"
  ansible.builtin.command:
    argv: [lsblk, -dno, "SERIAL,TRAN"]
  changed_when: false
  register: seen
  failed_when: "'thinvirt-helper' not in seen.stdout"
- name: See the root
  ansible.builtin.command:
    argv: [findmnt, -no, SOURCE, /]
  changed_when: false
  register: root
  failed_when: >-
    root.stdout is not match({'driver': '/dev/vd', 'verify': '/dev/sd'}[__virtio_scsi_stage])
"""
#: One task of the role.
NAMES = """
- hosts: kvm_linux_guests
  gather_facts: false
  tasks:
    - thinvirt.kvm.linux_guest_device_names:
"""
KILLED = """
import os, signal, libvirt
create = libvirt.virDomain.create
def killed(*arguments):
    create(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
libvirt.virDomain.create = killed
"""


def without_driver(initrd):
    """The same initial RAM disk, in which virtio_scsi.ko is called otherwise."""
    packed = initrd.read_bytes()
    plain = (
        gzip.decompress(packed)
        if packed[:2] == b"\x1f\x8b"
        else subprocess.run(
            ["zstd", "-dc"], input=packed, stdout=subprocess.PIPE, check=True
        ).stdout
    )
    assert plain.count(b"/virtio_scsi.ko\0") == 1  # as a file of the archive
    return gzip.compress(plain.replace(b"/virtio_scsi.ko\0", b"/virtio_gone.ko\0"), 1)


@pytest.fixture
def guests(lab, tmp_path):
    folder = tmp_path / "guests"
    folder.mkdir()
    image = guest_image(lab.cache)
    (folder / "initrd").write_bytes(without_driver(image.initrd))
    made = {}
    try:
        for name in (GOOD, BAD):
            disks = (Disk("vda", "virtio", root=True), Disk("vdb", "virtio"))
            made[name] = lab.create(GuestSpec(name, machine="pc-i440fx-3.1", disks=disks))
        text = lab.virsh("dumpxml", BAD, "--inactive")
        text = re.sub(r"<initrd>.*</initrd>", f"<initrd>{folder}/initrd</initrd>", text)
        text = text.replace("</cmdline>", " rootdelay=5 panic=1</cmdline>")
        text = text.replace("<on_reboot>restart<", "<on_reboot>destroy<")
        (folder / "bad.xml").write_text(text)
        lab.virsh("define", str(folder / "bad.xml"))
        for guest in made.values():
            guest.start()
        for guest in made.values():
            guest.wait_for_agent(timeout=300)
            guest.run("/bin/sh", "-ec", SETUP, "sh", MAKE_INITRD)
        yield made
    finally:
        for name in made:
            lab.forget(name)


class Playbook:
    """Runs the playbook that ships, on both guests."""

    def __init__(self, lab, folder):
        folder.mkdir()
        self.folder = folder
        self.state_dir = folder / "state"
        hypervisor = {
            "ansible_connection": "local",
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_remote_tmp": str(folder / "tmp"),
            "ansible_async_dir": str(folder / "async"),
            "thinvirt_uri": lab.uri,
        }
        members = {
            name: {
                "ansible_connection": "guest_exec",
                "ansible_libvirt_uri": lab.uri,
                "ansible_host": name,
                "ansible_python_interpreter": "/usr/bin/python3",
                "kvm_host": "hypervisor",
            }
            for name in (GOOD, BAD)
        }
        self.inventory = {
            "kvm_hosts": {"hosts": {"hypervisor": hypervisor}},
            "kvm_linux_guests": {"hosts": members},
            "kvm_windows_guests": {"hosts": {}},
        }

    def run(self, *options, ok=True, windows=(), **more):
        """What it printed, in one line."""
        variables = {
            "virtio_scsi_boot_timeout": 400,
            "virtio_scsi_parallel": 2,
            "virtio_scsi_poll_seconds": 1,
            "virtio_scsi_state_dir": str(self.state_dir),
            **more,
        }
        groups = {"kvm_windows_guests": {"hosts": {name: {} for name in windows}}}
        return self._play(
            "thinvirt.kvm.virtio_scsi", groups, "-e", json.dumps(variables), *options, ok=ok
        )

    def find_by_uuid(self, guest, *options):
        """Have a guest find its disks by UUID, and no more of what the role does."""
        (self.folder / "names.yml").write_text(NAMES)
        return self._play("names.yml", {}, "--limit", guest, *options)

    def _play(self, playbook, groups, *options, ok=True):
        inventory = self.inventory | groups
        done = run_playbook(self.folder, playbook, inventory, *options, patience=1800)
        assert (done.returncode == 0) is ok, done.stdout
        return " ".join(done.stdout.split())


@pytest.fixture
def playbook(lab, tmp_path):
    return Playbook(lab, tmp_path / "ansible")


def buses(lab, name):
    text = lab.virsh("dumpxml", name, "--inactive")
    return re.findall(r"<target dev='(\w+)' bus='(\w+)'", text)


def way_to_root(guest):
    device = guest.run("findmnt", "-no", "SOURCE", "/").stdout.strip()
    return guest.run("readlink", "-f", f"/sys/class/block/{os.path.basename(device)}").stdout


def fstab(guest):
    return guest.run("cat", "/etc/fstab").stdout


@pytest.mark.slow("five boots, and the role's tasks in two guests")
def test_one_comes_up_and_the_other_is_rolled_back(lab, guests, playbook):
    boots = {
        name: guest.run("cat", "/proc/sys/kernel/random/boot_id").stdout
        for name, guest in guests.items()
    }
    assert "+UUID=" in playbook.find_by_uuid(GOOD, "--check", "--diff")
    assert fstab(guests[GOOD]).startswith("/dev/vda / ")
    output = playbook.run(ok=False)
    good, bad = guests[GOOD], guests[BAD]

    assert buses(lab, GOOD) == [("sda", "scsi"), ("sdb", "scsi")]
    assert re.search(r"/virtio\d+/host", way_to_root(good))
    assert re.search(
        r"^UUID=\S+ / ext4.*^UUID=\S+ /mnt ext4", fstab(good), re.MULTILINE | re.DOTALL
    )
    assert "root=UUID=" in good.run("cat", "/etc/default/grub").stdout
    good.run("sha256sum", "--check", "--quiet", "/root/sums")
    kept = good.run("/bin/sh", "-c", "cat /etc/fstab.*~").stdout
    assert kept.startswith("/dev/vda / ")

    assert f"Domain {BAD} did not come up on its new bus and was rolled back" in output
    assert "It runs on its old bus again" in output
    assert buses(lab, BAD) == [("vda", "virtio"), ("vdb", "virtio")]
    bad.run("sha256sum", "--check", "--quiet", "/root/sums")
    assert re.search(r"/virtio\d+/block/", way_to_root(bad))
    for name, guest in guests.items():
        assert guest.run("cat", "/proc/sys/kernel/random/boot_id").stdout != boots[name]
    uuids = {name: lab.virsh("domuuid", name).strip() for name in guests}
    kept = [path.name for path in (playbook.state_dir / "domains").iterdir()]
    assert len([name for name in kept if uuids[GOOD] in name]) == 2  # for state=restored
    assert [name for name in kept if uuids[BAD] in name] == []


def killed_and_recovered(lab, name, state_dir):
    """A run is killed when it has started the guest on its new bus; what the next one does."""
    common = {"uri": lab.uri, "domains": [name], "state_dir": str(state_dir)}
    given = {**common, "bus": "scsi", "power": "cycle", "_ansible_check_mode": False}
    done = subprocess.run(
        [sys.executable, "-c", KILLED + _RUN, "domain_disk_bus"],
        input=json.dumps(given),
        text=True,
        capture_output=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == -signal.SIGKILL, done.stdout
    assert buses(lab, name) == [("sda", "scsi"), ("sdb", "scsi")]
    assert lab.virsh("domstate", name).strip() == "running"
    return run_module(
        "domain_disk_bus", state="recovered", boot_timeout=400, patience=900, **common
    )


@pytest.mark.storm
@LONG
def test_windows_stages_and_a_killed_run(lab, guests, playbook, tmp_path):
    """The one guest plays Windows, meanwhile a run that moves the other one is killed.

    In the end the first one gets its old bus back.
    """
    good, bad = guests[GOOD], guests[BAD]
    bad_before = lab.virsh("dumpxml", BAD, "--inactive").replace("  <metadata/>\n", "")
    playbook.find_by_uuid(GOOD)
    (tmp_path / "stages.yml").write_text(STAGES)
    (tmp_path / "virtio-win.iso").write_bytes(bytes(1 << 20))
    given = {
        "virtio_scsi_iso": str(tmp_path / "virtio-win.iso"),
        "virtio_scsi_windows_stages": str(tmp_path / "stages.yml"),
    }
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(killed_and_recovered, lab, BAD, tmp_path / "state")
        output = playbook.run("--limit", f"{GOOD},hypervisor", windows=[GOOD], **given)
        recovered = other.result()

    for stage in ("driver", "verify"):
        assert f"Play stage {stage}" in output
    # the helper disk was sda meanwhile
    assert [bus for _target, bus in buses(lab, GOOD)] == ["scsi", "scsi"]
    assert "thinvirt-helper" not in good.xml() + good.xml(inactive=True)
    assert not list(good.disk("vda").path.parent.glob("*thinvirt-helper*"))
    good.run("sha256sum", "--check", "--quiet", "/root/sums")

    # found while it booted, or when it had given up
    assert "on its old bus" in recovered.get("msg", recovered["domains"][0].get("recovered"))
    assert lab.virsh("dumpxml", BAD, "--inactive").replace("  <metadata/>\n", "") == bad_before
    bad.wait_for_agent(timeout=300)
    bad.run("sha256sum", "--check", "--quiet", "/root/sums")

    restored = run_module(
        "domain_disk_bus",
        uri=lab.uri,
        domains=[GOOD],
        state="restored",
        power="cycle",
        state_dir=str(playbook.state_dir),
        patience=900,
    )
    assert not restored["failed"], restored["msg"]
    assert restored["domains"][0]["actions"] == ["shut_down", "restored", "started"]
    assert re.search(r"/virtio\d+/block/", way_to_root(good))
