# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role linux_guest on a guest with one disk of each kind; blocks are counted with stat.

The role kvm_host's part that trims is tried on a guest in a hypervisor's place.

Guests have no network and are reached through their agents.  Each test has one of its own, which
was restored and not booted.
"""

from __future__ import annotations

import functools
import json
import os
import re

import pytest
from lab import Disk, GuestSpec
from support import run_playbook

MIB = 1 << 20
PATIENCE = 600  # seconds, on a machine that has other work
WASTE_MIB = 64
# More than its tables, which may be allocated and are not in what a file system counts.
VOID_MIB = 192
WASTE = """
import os, sys
block = os.urandom(1 << 20)
with open(sys.argv[1], "wb") as file:
    for number in range(int(sys.argv[2])):
        file.write(block)
    os.fsync(file.fileno())
os.unlink(sys.argv[1])
os.sync()
"""
# Target and serial of each disk, and where its file system is mounted.
DISKS = {
    "sdb": ("xfs", "/mnt/xfs"),
    "sdc": ("lvm", "/mnt/lvm"),
    "sdd": ("luks", "/mnt/luks"),
    "sde": ("btrfs", "/mnt/btrfs"),
    "sdf": ("void", "/mnt/void"),
}
FOLDERS = {"sda": "/var/tmp"} | {target: path for target, (_serial, path) in DISKS.items()}
# An initial RAM disk with one driver, which is not virtio_scsi. Compressed, as lsinitramfs takes an
# archive that is not for microcode that comes before the disk itself.
MAKE_CPIO = """
import gzip, os, sys
def entry(name, mode):
    numbers = (1, mode, 0, 0, 1, 0, 0, 0, 0, 0, 0, len(name) + 1, 0)
    head = "070701" + "".join("%08X" % n for n in numbers)
    text = (head + name).encode() + bytes(1)
    return text + bytes(-len(text) % 4)
out = b"".join(entry(n.strip(), os.stat(n.strip()).st_mode) for n in sys.stdin)
sys.stdout.buffer.write(gzip.compress(out + entry("TRAILER!!!", 0) + bytes(512)))
"""
SETUP = """
set -eu
disk() { echo "/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_$1"; }
mkdir -p /mnt/xfs /mnt/lvm /mnt/luks /mnt/btrfs /mnt/void
mkfs.xfs -q "$(disk xfs)"
mkfs.btrfs -q "$(disk btrfs)" 2>/dev/null
mkfs.ext4 -q -E lazy_itable_init=0 "$(disk void)"
pvcreate -q "$(disk lvm)"
vgcreate -q vg "$(readlink -f "$(disk lvm)")"
lvcreate -q -l 100%VG -n data vg
mkfs.ext4 -q -E lazy_itable_init=0 /dev/vg/data
head -c 64 /dev/urandom >/etc/luks.key
cryptsetup luksFormat -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000 "$(disk luks)" /etc/luks.key
echo "safe $(disk luks) /etc/luks.key luks,nofail" >/etc/crypttab
cat >>/etc/fstab <<END
$(disk xfs) /mnt/xfs xfs nofail 0 0
/dev/vg/data /mnt/lvm ext4 nofail 0 0
/dev/mapper/safe /mnt/luks ext4 nofail 0 0
$(disk void) /mnt/void ext4 nofail,nodiscard 0 0
END
systemctl daemon-reload
systemctl start systemd-cryptsetup@safe
mkfs.ext4 -q -E lazy_itable_init=0 /dev/mapper/safe
mount -a
mount "$(disk btrfs)" /mnt/btrfs
systemctl mask fstrim.timer
printf '#!/bin/sh\\n# ours\\nfstrim -av\\n' >/etc/cron.weekly/trim
sed -i s/virtio_scsi// /usr/share/initramfs-tools/modules.d/lab
# they copy what other roots need, for minutes under TCG
find /usr/share/initramfs-tools/hooks -type f ! -name kmod -exec chmod -x {} +
mkdir -p /tmp/i/usr/lib/modules
touch /tmp/i/usr/lib/modules/virtio_blk.ko
cd /tmp/i
find . | python3 -c "$1" >"/boot/initrd.img-$(uname -r)"
"""
ROOT = Disk("sda", root=True, discard="unmap")
TRIM = "Trim the guests of a hypervisor and measure there"
TOLD = "Tell what the hypervisor gained"
ANSWER = {
    "linux_guest_trim_now": True,
    "linux_guest_untrimmed_min_bytes": 16 * MIB,
    "linux_guest_poll_seconds": 1,
}
#: Minutes each.
ONLY_STORM = pytest.mark.skipif(
    os.environ.get("THINVIRT_STORM") != "full", reason="minutes: make storm"
)
PLAY = """
- hosts: guests
  gather_facts: false
  roles: [thinvirt.kvm.linux_guest]
"""


@pytest.fixture
def guest(lab):
    """Nothing in it is as the role has it. All disks pass discards on but sdf: QEMU drops those."""
    disks = [
        Disk(
            target,
            serial=serial,
            size_bytes=512 * MIB,
            discard=None if serial == "void" else "unmap",
        )
        for target, (serial, _path) in DISKS.items()
    ]
    guest = lab.warm(GuestSpec("lg-kinds", disks=(ROOT, *disks)))
    try:
        guest.run("/bin/sh", "-c", SETUP, "sh", MAKE_CPIO, timeout=PATIENCE)
        yield guest
    finally:
        lab.forget(guest.name)


class Run:
    """An applied role: what it did and changed, what it found at first and in the end, the trims,
    why it failed.
    """

    def __init__(self, report):
        results = [
            (task["task"]["name"].rpartition(" : ")[2], task["hosts"]["g1"])
            for play in report["plays"]
            for task in play["tasks"]
            if "g1" in task["hosts"]
        ]
        self.ran = {name for name, result in results if not result.get("skipped")}
        self.changed = {name for name, result in results if result["changed"]}
        self.told = " ".join(str(result.get("msg")) for name, result in results if name == TOLD)
        self.failure = " ".join(result["msg"] for _name, result in results if result.get("failed"))
        self.calls = [result for name, result in results if name == TRIM]
        looks = [
            {finding["id"] for finding in result["findings"]}
            for _name, result in results
            if "findings" in result
        ]
        self.found, self.findings = looks[0], looks[-1]


def apply_role(lab, guest, folder, *options, ok=True, **variables):
    """Apply the role to a guest with these variables, its hypervisor being this machine."""
    g1 = {
        "ansible_connection": "guest_exec",
        "ansible_libvirt_uri": lab.uri,
        "ansible_host": guest.name,
        "ansible_python_interpreter": "/usr/bin/python3",
        "kvm_host": "h1",
        "kvm_domain": guest.name,
        "linux_guest_uri": lab.uri,
        **variables,
    }
    h1 = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
    inventory = {"guests": {"hosts": {"g1": g1}}, "kvm_hosts": {"hosts": {"h1": h1}}}
    (folder / "play.yml").write_text(PLAY)
    json_output = "ansible.posix.json"
    done = run_playbook(
        folder, "play.yml", inventory, *options, callback=json_output, patience=1200
    )
    assert (done.returncode == 0) is ok, done.stdout + done.stderr
    return Run(json.loads(done.stdout))


@pytest.fixture
def apply(lab, guest, tmp_path):
    return functools.partial(apply_role, lab, guest, tmp_path)


def blocks(guest):
    return {disk.target: os.stat(disk.path).st_blocks * 512 for disk in guest.spec.disks}


def shell(guest, script, timeout=PATIENCE):
    return guest.run("/bin/sh", "-c", script, timeout=timeout).stdout


def waste(guest, *targets, mib=WASTE_MIB):
    """Write files and delete them: their blocks stay allocated on the host; returns them all."""
    for target in targets:
        path = f"{FOLDERS[target]}/waste"
        guest.run("/usr/bin/python3", "-c", WASTE, path, str(mib), timeout=PATIENCE)
    return blocks(guest)


def freed_mib(guest, before):
    return {target: (before[target] - after) / MIB for target, after in blocks(guest).items()}


def settings(guest):
    return shell(
        guest,
        "cat /etc/crypttab /etc/initramfs-tools/modules; ls -R /etc/systemd/system /etc/cron.*; "
        "systemctl is-enabled fstrim.timer; sha256sum /boot/*",
    )


WANTED = {
    "linux_guest_trim_calendar": "Tue 03:00",
    "linux_guest_trim_delay_seconds": 7200,
    "linux_guest_cron_jobs": "remove",
    "linux_guest_luks_discard": True,
}
BROKEN = {
    "guest-discard-dm-crypt",
    "guest-timer-off",
    "guest-mount-not-in-fstab",
    "guest-mount-nodiscard",
    "guest-initramfs-without-virtio-scsi",
}


@pytest.mark.slow("the role's tasks, each some seconds in a guest without KVM, and disks to fill")
def test_a_neglected_guest_trims_itself_and_is_cured_of_the_void(lab, guest, apply, tmp_path):
    """It is set up, trims all that it can, and the second run changes nothing but what it cures.

    Check mode: tests/functional/guest.
    """
    run = apply(**WANTED)
    assert run.found == BROKEN
    assert run.changed >= {
        "Say when the timer fires",
        "Trim what is not in fstab as well, or as the distribution has it",
        "Have the timer run, now and after a reboot",
        "Remove scripts that do nothing but fstrim",
        "Allow discards of the encrypted disks that stop them",
        "Name the driver in the settings of what makes it",
    }
    assert run.findings == {"guest-discard-dm-crypt-reopen", "guest-mount-nodiscard"}
    assert_set_up(guest)
    assert_trims_what_it_can(guest)
    assert_trims_luks_once_it_is_opened_anew(guest)

    unchanged = settings(guest)
    held = into_the_void(lab, guest, tmp_path)
    run = apply(**WANTED, **ANSWER, linux_guest_untrimmed="remount")
    assert_noticed_and_cured(guest, run, held)
    assert "/mnt/void ext4 rw,relatime" in shell(guest, "cat /proc/mounts")
    assert run.changed <= {TRIM, "Mount the file systems anew"}
    assert settings(guest) == unchanged
    assert run.findings == {"guest-mount-nodiscard"}


def assert_set_up(guest):
    assert guest.run("systemctl", "is-enabled", "fstrim.timer").stdout == "enabled\n"
    assert guest.run("systemctl", "is-active", "fstrim.timer").stdout == "active\n"
    timer = guest.run("systemctl", "show", "fstrim.timer").stdout
    assert re.findall(r"OnCalendar=([^;]*) ;", timer) == ["Tue *-*-* 03:00:00"]
    assert "RandomizedDelayUSec=2h\n" in timer
    assert "luks,nofail,discard\n" in shell(guest, "cat /etc/crypttab")
    assert shell(guest, "ls /etc/cron.weekly | grep trim || :") == ""
    listing = shell(guest, "lsinitramfs /boot/initrd.img-$(uname -r)")
    assert "/virtio_scsi.ko" in listing
    assert "usr/sbin/modprobe\n" in listing, "a whole one"


def assert_trims_what_it_can(guest):
    before = waste(guest, "sda", "sdb", "sdc", "sdd", "sde")
    guest.run("systemctl", "start", "fstrim.service", timeout=PATIENCE)
    freed = freed_mib(guest, before)
    for target in ("sda", "sdb", "sdc", "sde"):
        assert freed[target] > 0.9 * WASTE_MIB, (target, freed)
    assert freed["sdd"] < 1, "LUKS was opened without discards"
    assert freed["sdf"] < 1, "QEMU drops those of sdf"


def assert_trims_luks_once_it_is_opened_anew(guest):
    before = blocks(guest)
    shell(
        guest,
        "umount /mnt/luks && systemctl daemon-reload && systemctl restart systemd-cryptsetup@safe "
        "&& mount /mnt/luks && fstrim /mnt/luks",
    )
    assert freed_mib(guest, before)["sdd"] > 0.9 * WASTE_MIB


@pytest.mark.storm
@ONLY_STORM
def test_the_void_is_filled_with_zeros(lab, guest, apply, tmp_path):
    """The blocks are written again and given back, so ext4 sends their discards once more."""
    held = into_the_void(lab, guest, tmp_path)
    refused = apply(**WANTED, **ANSWER, linux_guest_untrimmed="zero_fill", ok=False)
    assert "zero_fill_accept_growth" in refused.failure
    assert abs(blocks(guest)["sdf"] - held) < MIB

    consent = {"zero_fill_accept_growth": True, "zero_fill_keep_free_bytes": 16 * MIB}
    run = apply(**WANTED, **ANSWER, **consent, linux_guest_untrimmed="zero_fill")
    assert_noticed_and_cured(guest, run, held)
    assert "Fill with zeros" in run.ran
    assert shell(guest, "ls -A /mnt/void") == "lost+found\n"


@pytest.mark.storm
@ONLY_STORM
def test_a_reboot_has_the_guest_forget_the_void(lab, guest, apply, tmp_path):
    held = into_the_void(lab, guest, tmp_path)
    booted = boot(guest)
    run = apply(**WANTED, **ANSWER, linux_guest_untrimmed="report")
    (call,) = run.calls
    assert "untrimmed" in {finding["id"] for finding in call["domains"][0]["findings"]}
    assert boot(guest) == booted, "it only reports"
    assert abs(blocks(guest)["sdf"] - held) < MIB

    run = apply(**WANTED, **ANSWER, linux_guest_untrimmed="reboot")
    assert_noticed_and_cured(guest, run, held)
    assert boot(guest) != booted


def boot(guest):
    return guest.run("cat", "/proc/sys/kernel/random/boot_id").stdout


def into_the_void(lab, guest, tmp_path):
    """Have the guest trim sdf while QEMU drops its discards; what the host holds for it then."""
    pass_discards(lab, guest, tmp_path, on=False)
    held = waste(guest, "sdf", mib=VOID_MIB)["sdf"]
    assert "0 B" not in guest.run("fstrim", "-v", "/mnt/void", timeout=PATIENCE).stdout
    assert abs(blocks(guest)["sdf"] - held) < MIB
    pass_discards(lab, guest, tmp_path, on=True)
    assert guest.run("fstrim", "-v", "/mnt/void", timeout=PATIENCE).stdout.startswith(
        "/mnt/void: 0 B"
    )
    assert abs(blocks(guest)["sdf"] - held) < MIB
    return held


def assert_noticed_and_cured(guest, run, held):
    first, second = [call["domains"][0] for call in run.calls]
    (left,) = first["untrimmed"]
    assert (left["targets"], left["mount_points"]) == (["sdf"], ["/mnt/void"])
    assert abs(left["allocated_bytes"] - held) < MIB
    assert "untrimmed" in {finding["id"] for finding in first["findings"]}
    assert "After the trim the host still holds" in run.told
    assert second["untrimmed"] == []
    assert held - blocks(guest)["sdf"] > 0.9 * VOID_MIB * MIB


def pass_discards(lab, guest, tmp_path, *, on):
    """Save and restore with another discard on sdf: the guest does not notice, its mounts stay."""
    path = re.escape(str(guest.disk("sdf").path))
    driver = re.search(rf"<driver [^>]*/>(?=\s*<source file='{path}')", guest.xml())[0]
    discard = " discard='unmap'" if on else ""
    wanted = f"<driver name='qemu' type='qcow2'{discard}/>"
    if driver == wanted:
        return
    saved, xml = tmp_path / "saved", tmp_path / "saved.xml"
    lab.virsh("save", guest.name, str(saved), timeout=PATIENCE)
    text = lab.virsh("save-image-dumpxml", "--security-info", str(saved))
    text, times = re.subn(rf"<driver [^>]*/>(?=\s*<source file='{path}')", wanted, text)
    assert times == 1
    xml.write_text(text)
    lab.virsh("restore", str(saved), "--xml", str(xml), timeout=PATIENCE)
    guest.wait_for_agent(timeout=PATIENCE)


@pytest.mark.slow("a task by the connection that users have, without KVM")
def test_a_hypervisor_trims_itself(lab, tmp_path):
    """At first by the connection that users have. Packages and services: tests/functional."""
    guest = lab.warm(GuestSpec("lg-host", disks=(ROOT,)))
    variables = {
        "ansible_libvirt_uri": lab.uri,
        "ansible_host": guest.name,
        "ansible_python_interpreter": "/usr/bin/python3",
        "kvm_host_manage_packages": False,
        "kvm_host_manage_services": False,
    }
    (tmp_path / "play.yml").write_text(PLAY.replace("linux_guest", "kvm_host"))

    def changed(connection):
        host = {**variables, "ansible_connection": connection}
        inventory = {"guests": {"hosts": {"hypervisor": host}}}
        done = run_playbook(tmp_path, "play.yml", inventory, patience=PATIENCE)
        assert done.returncode == 0, done.stdout
        return int(re.search(r"changed=(\d+)", done.stdout)[1])

    try:
        guest.run("systemctl", "mask", "fstrim.timer")
        assert changed("community.libvirt.libvirt_qemu") == 1
        assert guest.run("systemctl", "is-enabled", "fstrim.timer").stdout == "enabled\n"
        assert guest.run("systemctl", "is-active", "fstrim.timer").stdout == "active\n"
        assert changed("guest_exec") == 0
    finally:
        lab.forget(guest.name)


@pytest.mark.storm
@ONLY_STORM
@pytest.mark.parametrize("suite", ["bullseye", "trixie"])
def test_other_releases_of_debian(lab, tmp_path, suite):
    """In short: it trims itself, and a second run changes nothing."""
    guest = lab.warm(GuestSpec(f"lg-{suite}", suite=suite, disks=(ROOT,)))
    try:
        assert apply_role(lab, guest, tmp_path).findings == set()
        assert guest.run("systemctl", "is-enabled", "fstrim.timer").stdout == "enabled\n"
        assert guest.run("systemctl", "is-active", "fstrim.timer").stdout == "active\n"
        before = waste(guest, "sda")
        guest.run("systemctl", "start", "fstrim.service", timeout=PATIENCE)
        assert freed_mib(guest, before)["sda"] > 0.9 * WASTE_MIB
        assert apply_role(lab, guest, tmp_path).changed == set()
    finally:
        lab.forget(guest.name)
