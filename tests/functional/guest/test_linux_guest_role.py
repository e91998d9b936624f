# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role linux_guest asks of distributions that these tests can't boot.

**This tests the role's decisions, never those systems**: a stand-in answers in the place of the
guests.  What they are said to be is written after their documentation.
"""

from __future__ import annotations

import dataclasses

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest import checks, report
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest.model import (
    GuestState,
    Initramfs,
    MountedFileSystem,
    Timer,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest.stack import Device
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest.tables import (
    CronJob,
    CrypttabEntry,
)
from linux_stand_in import Guest
from support import run_playbook

GIB = 1 << 30
PLAY = """
- hosts: all
  gather_facts: false
  roles: [thinvirt.kvm.linux_guest]
"""
#: A guest with a file system on LUKS, that nobody has prepared.
NEGLECTED = GuestState(
    kernel="6.1",
    devices={
        "vda": Device("vda", "vda", "disk", "8:0", discard_max_bytes=GIB, below=()),
        "dm-0": Device("dm-0", "safe", "crypt", "254:0", discard_max_bytes=0, below=("vda",)),
    },
    file_systems=(
        MountedFileSystem("/dev/dm-0", "ext4", ("dm-0",), ("/srv",), ("rw",), read_only=False),
    ),
    crypttab=(CrypttabEntry("safe", False),),
    timer=Timer(enablement="disabled", command=(("/usr/sbin/fstrim", "--fstab"),)),
    agent_enabled=False,
)
#: Facts and state by distribution.
GUESTS = {
    "rhel": (
        ("RedHat", "dnf", "systemd"),
        {
            "selinux_enforcing": True,
            "selinux_agent": False,
            "initramfs": Initramfs("dracut", "/boot/initramfs-6.1.img", virtio_scsi=False),
        },
    ),
    "suse": (
        ("Suse", "zypper", "systemd"),
        {
            "agent_installed": True,
            "initramfs": Initramfs("dracut", "/boot/initrd-6.1", virtio_scsi=True),
        },
    ),
    "arch": (
        ("Archlinux", "pacman", "systemd"),
        {"initramfs": Initramfs("mkinitcpio", "/boot/initramfs-linux.img", virtio_scsi=False)},
    ),
    "alpine": (
        ("Alpine", "apk", "openrc"),
        {
            "timer": None,
            "agent_enabled": None,
            "initramfs": Initramfs("mkinitfs", "/boot/initramfs-virt", virtio_scsi=False),
        },
    ),
    "consent": (
        ("Debian", "apt", "sysvinit"),
        {
            "timer": None,
            "agent_enabled": None,
            "agent_installed": True,
            "agent_running": True,
            "selinux_enforcing": True,
            "selinux_agent": True,
            "initramfs": Initramfs("initramfs-tools", "/boot/initrd.img-6.1", virtio_scsi=True),
        },
    ),
    # cron trims already, and a run of the role was ended when it had changed crypttab
    "again": (
        ("Debian", "apt", "sysvinit"),
        {
            "timer": None,
            "agent_enabled": None,
            "agent_installed": True,
            "agent_running": True,
            "cron_jobs": (CronJob("/etc/cron.weekly/fstrim", 0, "fstrim -a"),),
            "crypttab": (CrypttabEntry("safe", True),),
            "initramfs": Initramfs(
                "initramfs-tools",
                "/boot/initrd.img-6.1",
                virtio_scsi=True,
                older_than_crypttab=True,
            ),
        },
    ),
}
INSTALLED = {"state": "present"}
SERVICE = {"enabled": True, "state": "started"}


def stand_in(folder, name):
    (family, packages, services), state = GUESTS[name]
    full = dataclasses.replace(NEGLECTED, **state)
    facts = {"os_family": family, "pkg_mgr": packages, "service_mgr": services}
    return Guest(
        folder / name,
        {
            "linux_guest_info": report.result(full, checks.findings(full)),
            "setup": {"ansible_facts": {f"ansible_{key}": value for key, value in facts.items()}},
        },
    )


def applied(folder, *names, options=()):
    """Apply the role to these guests, in one run, as it takes its time; they, and its output."""
    guests = {name: stand_in(folder, name) for name in names}
    hosts = {
        name: {"ansible_connection": "local", "ansible_python_interpreter": str(guest.python)}
        for name, guest in guests.items()
    }
    for name in {"consent", "again"} & set(names):
        hosts[name]["linux_guest_luks_discard"] = True
    (folder / "play.yml").write_text(PLAY)
    done = run_playbook(folder, "play.yml", {"all": {"hosts": hosts}}, *options, patience=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return guests, done.stdout


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """What was asked of each guest but to tell how it is."""
    guests, output = applied(tmp_path_factory.mktemp("distributions"), *GUESTS)
    for name in set(guests) - {"consent"}:
        assert f"{name}] =>" in output
    assert output.count("guest-discard-dm-crypt") == len(guests)
    found = {}
    for name, guest in guests.items():
        first, *_others = guest.calls
        assert first[0] == "linux_guest_info"
        found[name] = [call for call in guest.calls if call[0] not in ("linux_guest_info", "setup")]
    return found


def assert_called(calls, module, **arguments):
    """Exactly one call of a module has these arguments; what else it has."""
    matching = [
        given
        for name, given in calls
        if name == module and {key: given.get(key) for key in arguments} == arguments
    ]
    assert len(matching) == 1, (module, arguments, calls)
    return matching[0]


def names(calls):
    return [name for name, _given in calls]


def test_rhel_with_selinux(calls):
    asked = calls["rhel"]
    assert_called(asked, "dnf", name=["qemu-guest-agent"], **INSTALLED)
    assert_called(asked, "dnf", name=["python3-libsemanage"], **INSTALLED)
    assert_called(asked, "systemd", name="qemu-guest-agent", **SERVICE)
    boolean = "virt_qemu_ga_read_nonsecurity_files"
    assert_called(asked, "seboolean", name=boolean, state=True, persistent=True)
    assert names(asked).index("dnf") < names(asked).index("seboolean")
    assert_timer(asked)
    file = "/etc/dracut.conf.d/thinvirt.conf"
    assert_called(asked, "lineinfile", path=file, line='add_drivers+=" virtio_scsi "')
    assert_rebuilt(asked, ["dracut", "--force", "--regenerate-all"])


def test_suse(calls):
    asked = calls["suse"]
    assert "zypper" not in names(asked), "the agent is there"
    assert_called(asked, "systemd", name="qemu-guest-agent", **SERVICE)
    assert_timer(asked)
    assert {"seboolean", "lineinfile"}.isdisjoint(names(asked))


def test_arch(calls):
    asked = calls["arch"]
    assert_called(asked, "pacman", name=["qemu-guest-agent"], **INSTALLED)
    assert_timer(asked)
    file = "/etc/mkinitcpio.conf.d/thinvirt.conf"
    assert_called(asked, "lineinfile", path=file, line="MODULES+=(virtio_scsi)")
    assert_rebuilt(asked, ["mkinitcpio", "--allpresets"])


def test_alpine_with_openrc(calls):
    asked = calls["alpine"]
    assert_called(asked, "apk", name=["qemu-guest-agent", "util-linux"], **INSTALLED)
    assert_called(asked, "service", name="qemu-guest-agent", **SERVICE)
    assert_cron(asked, "apk", "busybox", manager="service", service="crond")
    # mkinitfs takes the features that its settings name, and no others
    folder = "/etc/mkinitfs"
    driver = "kernel/drivers/scsi/virtio_scsi.ko*"
    assert_called(asked, "lineinfile", path=f"{folder}/features.d/thinvirt.modules", line=driver)
    feature = 'features="$features thinvirt"'
    assert_called(asked, "lineinfile", path=f"{folder}/mkinitfs.conf", line=feature)
    assert_rebuilt(asked, ["mkinitfs"])


def test_debian_without_systemd(calls):
    asked = calls["consent"]
    assert_cron(asked, "apt", "cron", manager="sysvinit", service="cron")
    assert "seboolean" not in names(asked), "it is on already"


def test_crypttab_is_left_alone_without_consent(calls):
    assert {name for name in calls if "crypttab" in names(calls[name])} == {"consent"}
    asked = calls["consent"]
    assert_called(asked, "crypttab", name="safe", opts="discard", state="opts_present")
    assert_rebuilt(asked, ["update-initramfs", "-u", "-k", "all"])


def test_a_job_of_cron_that_trims_already_is_not_doubled(calls):
    assert {"cron", "apt"}.isdisjoint(names(calls["again"]))


def test_what_a_run_that_was_ended_has_not_rebuilt_is_rebuilt(calls):
    asked = calls["again"]
    assert "crypttab" not in names(asked), "it is as it should be"
    assert_rebuilt(asked, ["update-initramfs", "-u", "-k", "all"])


def assert_timer(asked):
    timer = "/etc/systemd/system/fstrim.timer.d/thinvirt.conf"
    text = assert_called(asked, "blockinfile", path=timer)["block"]
    assert "OnCalendar=weekly\nRandomizedDelaySec=86400" in text
    service = "/etc/systemd/system/fstrim.service.d/thinvirt.conf"
    text = assert_called(asked, "blockinfile", path=service)["block"]
    assert "ExecStart=\nExecStart=/usr/sbin/fstrim --all --verbose" in text
    assert_called(asked, "systemd_service", name="fstrim.timer", masked=False, **SERVICE)
    assert "cron" not in names(asked)


def assert_cron(asked, installer, package, *, manager, service):
    assert_called(asked, installer, name=package, **INSTALLED)
    assert_called(asked, manager, name=service, **SERVICE)
    job = assert_called(asked, "cron", user="root", name="thinvirt.kvm trim")
    assert job["job"].endswith("fstrim --all")
    # a day's spread, beginning on Monday, as the timer's week does
    assert str(job["weekday"]) == "1"
    assert 0 <= int(job["hour"]) < 24
    assert 0 <= int(job["minute"]) < 60
    assert "blockinfile" not in names(asked)


def assert_rebuilt(asked, argv):
    commands = [given["argv"] for name, given in asked if name == "command"]
    assert commands.count(argv) == 1, commands


def test_check_mode_has_nothing_done(tmp_path):
    """It asks for all that a run asks for, but to rebuild what nothing has changed."""
    names = ("rhel", "alpine", "consent")
    guests, _output = applied(tmp_path, *names, options=("--check",))
    for name, guest in guests.items():
        made = [call for call in guest.calls if call[0] == "command"]
        only_reads = [["systemd-analyze", "calendar", "weekly"]] if name == "rhel" else []
        assert [given["argv"] for _name, given in made] == only_reads
        assert guest.done == ["command"] * len(only_reads)
    asked = {each for guest in guests.values() for each, _given in guest.calls}
    assert asked >= {"blockinfile", "cron", "crypttab", "lineinfile", "systemd_service"}


def test_guests_do_not_trim_at_once(calls):
    jobs = [
        [(given["hour"], given["minute"]) for name, given in calls[guest] if name == "cron"]
        for guest in ("alpine", "consent")
    ]
    assert jobs[0] != jobs[1]
