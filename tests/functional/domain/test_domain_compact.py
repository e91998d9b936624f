# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""domain_compact on domains that are off, that run, and that are shut down meanwhile.

Blocks are counted with stat, power is read with virsh, content is checked in the guest.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from compact_lab import answer, start_module, wait_for
from image_lab import qemu_io, run
from lab import Disk, GuestSpec, LabError
from support import assert_explains, run_module

MIB = 1 << 20
NAMESPACE = "https://github.com/thinvirt/thinvirt.kvm/restart"


@pytest.fixture
def domain(lab):
    """Define domains without a system, 8 MiB of zeros written to their disk; a function of name."""
    guests = []

    def domain(name="c-off", *, file_format="qcow2"):
        disk = Disk("sda", "scsi", size_bytes=64 * MIB, format=file_format)
        guest = lab.create(GuestSpec(name, memory_mib=64, disks=(disk,)))
        guests.append(guest)
        if file_format == "qcow2":
            qemu_io(guest.disk("sda").path, "write -P 0 0 8M", "write -P 7 8M 1M")
        return guest

    yield domain
    for guest in guests:
        guest.destroy()
        lab.virsh("undefine", guest.name, "--managed-save", "--snapshots-metadata")


@pytest.fixture
def booted(lab):
    """A guest that runs and has an agent; its file /keep is checked with /keep.sum."""
    try:
        guest = lab.warm(GuestSpec("c-booted"))
        guest.run("sh", "-c", "head -c 8M /dev/urandom >/keep; sha256sum /keep >/keep.sum; sync")
        yield guest
    finally:
        lab.forget("c-booted")


def compact(lab, *names, **arguments):
    given = {"min_free_bytes": 0, **arguments}
    return run_module("domain_compact", uri=lab.uri, domains=list(names), **given)


def blocks(guest):
    return os.stat(guest.disk("sda").path).st_blocks * 512


def write_zeros(guest):
    """A guest that zero-fills, as administrators do by hand: the host's blocks grow."""
    guest.run("dd", "if=/dev/zero", "of=/zeros", "bs=1M", "count=200", "conv=fsync", timeout=120)
    guest.run("rm", "/zeros")
    guest.run("sync")


def has_note(guest):
    return NAMESPACE in guest.xml(inactive=True)


def leave_note(lab, guest, process):
    element = f"<restart process='{process}'/>"
    options = ("--uri", NAMESPACE, "--key", "thinvirt", "--set", element, "--config")
    lab.virsh("metadata", guest.name, *options)


def test_check_then_run_then_again(lab, domain):
    guest = domain()
    xml, before = guest.xml(inactive=True), blocks(guest)
    checked = compact(lab, guest.name, check=True)
    assert checked["changed"]
    assert blocks(guest) == before

    real = compact(lab, guest.name)
    assert real["diff"]["before"] == checked["diff"]["before"]
    assert real["freed_bytes"] == before - blocks(guest) >= 8 * MIB
    assert abs(real["freed_bytes"] - checked["freed_bytes"]) < MIB
    assert real["domains"][0]["disks"][0]["method"] == "punch"
    assert guest.xml(inactive=True) == xml
    assert "downtime_seconds" not in real["domains"][0]

    again = compact(lab, guest.name)
    assert not again["changed"]
    lab.virsh("start", guest.name, "--paused")


def linked(guest, folder):
    """Have the name of its disk lead to another folder, as OpenNebula does; the link."""
    link = Path(guest.disk("sda").path)
    folder.mkdir()
    os.rename(link, folder / "0")
    link.symlink_to(folder / "0")
    return link


@pytest.mark.parametrize("method", ["punch", "rewrite"])
def test_a_disk_that_the_domain_names_by_a_link(lab, domain, tmp_path, method):
    guest = domain()
    link = linked(guest, tmp_path / "snap")
    before = blocks(guest)
    run("qemu-img", "convert", "-O", "raw", link, tmp_path / "wanted")
    checked = compact(lab, guest.name, method=method, check=True)
    result = compact(lab, guest.name, method=method)
    assert checked["changed"]
    assert result["freed_bytes"] == before - blocks(guest) >= 8 * MIB
    assert link.is_symlink()
    assert "identical" in run("qemu-img", "compare", "-F", "raw", link, tmp_path / "wanted")
    (tmp_path / "backup").mkdir()
    given = {"dest_dir": str(tmp_path / "backup"), "min_free_bytes": 0}
    assert run_module("domain_backup", uri=lab.uri, domains=[guest.name], **given)["changed"]
    copies = [path for path in (tmp_path / "backup").rglob("*.qcow2") if path.is_file()]
    assert copies
    assert "identical" in run("qemu-img", "compare", copies[0], link)


def test_a_link_that_somebody_else_could_lead_elsewhere_is_not_followed(lab, domain, tmp_path):
    guest = domain()
    linked(guest, tmp_path / "snap")
    before = blocks(guest)
    run("chmod", "777", tmp_path / "snap")
    assert_explains(compact(lab, guest.name), "could exchange files", "nothing was changed. Give")
    given = {"dest_dir": str(tmp_path), "min_free_bytes": 0}
    refused = run_module("domain_backup", uri=lab.uri, domains=[guest.name], **given)
    assert_explains(refused, "could exchange files", "nothing was changed. Give")
    assert blocks(guest) == before


def test_a_link_beside_which_another_backing_file_lies(lab, domain, tmp_path):
    guest = domain()
    link = linked(guest, tmp_path / "snap")
    run("qemu-img", "rebase", "-u", "-b", "base.qcow2", "-F", "qcow2", link)
    assert_explains(compact(lab, guest.name), "which lies beside one or the other")


def test_a_running_domain_is_left_alone(lab, domain):
    guest = domain()
    lab.virsh("start", guest.name, "--paused")
    before = blocks(guest)
    result = compact(lab, guest.name)
    assert not result["changed"]
    assert result["summary"] == ["c-off: skipped. The domain is running."]
    assert (guest.state(), blocks(guest)) == ("paused", before)


def test_one_refused_domain_does_not_stop_the_others(lab, domain):
    refused, other = domain("c-a"), domain("c-b")
    lab.virsh("snapshot-create-as", refused.name, "s1")
    before = blocks(refused)
    result = compact(lab, refused.name, other.name, method="rewrite")
    assert_explains(result, "1 of 2 domains failed", "c-a: ", "snapshot", "nothing was changed")
    assert result["changed"]
    assert blocks(refused) == before
    assert [entry["status"] for entry in result["domains"]] == ["failed", "done"]
    # What leaves the content as it is may be done all the same.
    assert compact(lab, refused.name, method="punch")["changed"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"disks": ["vdz"]}, ["has a disk vdz", "virsh domblklist"]),
        ({"disks": ["sda", "sda"]}, ["names sda twice"]),
        ({"domains": ["nobody"]}, ["no domain nobody"]),
        ({"uri": "qemu+ssh://elsewhere/system"}, ["leads to another machine"]),
        ({"method": "trim"}, ["no way back", "accept_no_rollback"]),
        ({"min_reclaim_bytes": -1}, ["min_reclaim_bytes is negative"]),
        ({"timeout": 0}, ["timeout"]),
    ],
)
def test_bad_input_changes_nothing(lab, domain, arguments, words):
    guest = domain()
    before = blocks(guest)
    given = {"uri": lab.uri, "domains": [guest.name], **arguments}
    assert_explains(run_module("domain_compact", **given), *words)
    assert blocks(guest) == before


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("network", "<source protocol='nbd' name='x'><host name='elsewhere'/></source>"),
        ("block", "<source dev='/dev/disk/by-id/none'/>"),
    ],
)
def test_a_disk_that_is_no_file_is_refused(lab, domain, tmp_path, kind, source):
    guest = domain()
    disk = f"<disk type='{kind}' device='disk'>{source}<target dev='sdb' bus='scsi'/></disk>"
    text = guest.xml(inactive=True).replace("</devices>", f"{disk}</devices>")
    (tmp_path / "domain.xml").write_text(text)
    lab.virsh("define", str(tmp_path / "domain.xml"))
    before = guest.xml(inactive=True), blocks(guest)
    for check in (True, False):
        result = compact(lab, guest.name, disks=["sdb"], check=check)
        reason = f"disk sdb of domain c-off is of type {kind}, no image file on this host"
        assert_explains(result, reason, "nothing was changed. Have the guest trim it")
        assert not result["changed"]
    assert (guest.xml(inactive=True), blocks(guest)) == before


def test_another_format_is_refused(lab, domain):
    guest = domain(file_format="vmdk")
    assert_explains(compact(lab, guest.name), "has the format vmdk", "qemu-img convert")


def test_a_guest_that_does_not_power_off_is_left_running_and_not_forgotten(lab, domain):
    guest = domain()
    lab.virsh("start", guest.name, "--paused")
    before = blocks(guest)
    result = compact(lab, guest.name, power="cycle", shutdown_timeout=2)
    assert_explains(result, "did not power off within 2 s", "left running")
    assert (guest.state(), blocks(guest)) == ("paused", before)

    with contextlib.suppress(LabError):  # it may end before it has answered; as if it had obeyed
        lab.virsh("qemu-monitor-command", guest.name, "--hmp", "quit")
    wait_for(lambda: guest.state() == "shut off")
    result = compact(lab, guest.name)
    assert result["changed"]
    assert "started again" in result["domains"][0]["recovered"]
    assert guest.state() == "running"
    assert before - blocks(guest) >= 8 * MIB
    assert not has_note(guest)


def test_nothing_is_shut_down_for_what_would_be_refused(lab, domain):
    guest = domain()
    run("qemu-img", "snapshot", "-c", "s1", guest.disk("sda").path)
    qemu_io(guest.disk("sda").path, "write -P 8 8M 1M")
    lab.virsh("start", guest.name, "--paused")
    for check in (True, False):
        result = compact(lab, guest.name, power="cycle", method="rewrite", check=check)
        assert_explains(result, "internal snapshots", "nothing was changed")
        assert not result["changed"]
    assert not has_note(guest)


@pytest.mark.parametrize("check", [True, False])
def test_a_guest_that_would_come_back_by_itself_is_not_shut_down(lab, domain, tmp_path, check):
    guest = domain()
    xml = guest.xml(inactive=True).replace("<on_poweroff>destroy<", "<on_poweroff>restart<")
    (tmp_path / "domain.xml").write_text(xml)
    lab.virsh("define", str(tmp_path / "domain.xml"))
    lab.virsh("start", guest.name, "--paused")
    result = compact(lab, guest.name, power="cycle", check=check)
    assert_explains(result, "on_poweroff=restart", "nothing was changed")
    assert not has_note(guest)


def test_a_transient_domain_is_not_shut_down(lab, domain, tmp_path):
    guest = domain()
    lab.virsh("start", guest.name, "--paused")
    (tmp_path / "domain.xml").write_text(guest.xml(inactive=True))
    lab.virsh("undefine", guest.name)
    try:
        result = compact(lab, guest.name, power="cycle", check=True)
        assert_explains(result, "is transient", "virsh define")
    finally:
        lab.virsh("define", str(tmp_path / "domain.xml"))


def test_nothing_is_started_in_check_mode(lab, domain):
    guest = domain()
    leave_note(lab, guest, "999999 gone")
    assert compact(lab, guest.name, check=True)["changed"]
    assert guest.state() == "shut off"
    assert has_note(guest)


def test_a_guest_that_another_run_has_shut_down_is_left_to_it(lab, domain):
    guest = domain()
    with open("/proc/self/stat", encoding="ascii") as file:
        began = file.read().rpartition(")")[2].split()[19]
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    leave_note(lab, guest, f"{os.getpid()} {boot} {began}")
    result = compact(lab, guest.name)
    assert_explains(result, f"Another run (process {os.getpid()})", "Wait for it to end")
    assert guest.state() == "shut off"


@pytest.mark.slow("a guest shuts down and boots: that it comes back is what the test is about")
def test_power_cycle(lab, booted):
    write_zeros(booted)
    before = blocks(booted)
    checked = compact(lab, booted.name, power="cycle", check=True)
    assert checked["changed"]
    assert booted.state() == "running"

    result = compact(lab, booted.name, power="cycle")
    (entry,) = result["domains"]
    assert before - blocks(booted) >= 190 * MIB
    assert entry["downtime_seconds"] > 1
    assert booted.state() == "running"
    booted.run("sha256sum", "--check", "--quiet", "/keep.sum")
    assert not has_note(booted)

    again = compact(lab, booted.name, power="cycle")
    assert not again["changed"]
    assert again["domains"][0]["reason"] == "Nothing is worth a shutdown."


_RUN = """
import sys
sys.path[:0] = {path!r}
from support import run_module
run_module("domain_compact", uri={uri!r}, domains=["c-booted"], power="cycle", method="rewrite",
           min_free_bytes=0)
"""


def assert_kept(guest, tmp_path):
    """The file is as its sum says, read on the host: the guest need not have booted for that."""
    guest.destroy()
    image = guest.disk("sda").path
    run("qemu-img", "check", "-f", "qcow2", image)
    raw = tmp_path / "raw"
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw)
    for name in ("keep", "keep.sum"):
        run("debugfs", "-R", f"dump /{name} {tmp_path / name}", raw)
    raw.unlink()
    kept = hashlib.sha256((tmp_path / "keep").read_bytes()).hexdigest()
    assert (tmp_path / "keep.sum").read_text() == f"{kept}  /keep\n"


def test_killed_while_the_guest_is_off_the_next_run_starts_it(lab, booted, tmp_path):
    write_zeros(booted)
    program = _RUN.format(path=sys.path, uri=lab.uri)
    process = subprocess.Popen(
        [sys.executable, "-c", program], start_new_session=True, stderr=subprocess.DEVNULL
    )
    image = booted.disk("sda").path
    deadline = time.monotonic() + 120
    while not [name for name in os.listdir(os.path.dirname(image)) if name.endswith(".tmp")]:
        assert process.poll() is None
        assert time.monotonic() < deadline
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert booted.state() == "shut off"
    assert has_note(booted)
    run("qemu-img", "check", "-f", "qcow2", image)

    before = blocks(booted)
    result = compact(lab, booted.name)
    assert "started again" in result["domains"][0]["recovered"]
    assert before - blocks(booted) >= 190 * MIB
    assert booted.state() == "running"
    assert_kept(booted, tmp_path)
    folder = os.path.dirname(image)
    assert [name for name in os.listdir(folder) if "thinvirt" in name] == []


@pytest.fixture
def in_memory(lab, tmp_path):
    """Define domains with an image full of data; those of odd numbers on a tmpfs of their own."""
    guests, mounts = [], {}

    def on(*places):
        for number, place in enumerate(places):
            if place not in mounts:
                mounts[place] = tmp_path / f"place{place}"
                mounts[place].mkdir()
                run("mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", mounts[place])
            path = mounts[place] / f"disk{number}.qcow2"
            run("qemu-img", "create", "-f", "qcow2", path, "64M")
            qemu_io(path, "write -P 0 0 16M", "write -P 7 16M 16M")
            disk = Disk("sda", "scsi", path=path)
            guests.append(lab.create(GuestSpec(f"c-place{number}", disks=(disk,))))
        return [guest.name for guest in guests]

    yield on
    for guest in guests:
        lab.virsh("undefine", guest.name)
    for mount in mounts.values():
        run("umount", mount)


def images_of(pid: int | str) -> set[str]:
    """The images that a program has open."""
    opened = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
    return {path for path in opened if ".qcow2" in path}


def running_programs(process) -> set[int]:
    """The qemu-img processes at work on an image that a module has started, by all of its threads.

    One that measures the tables of an empty image has none open.
    """
    found = set()
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        with contextlib.suppress(OSError):
            for pid in (task / "children").read_text().split():
                argv = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
                if argv[0].endswith(b"qemu-img") and images_of(pid):
                    found.add(int(pid))
    return found


def hold(process, number: int) -> set[int]:
    """Stop what a module has started until so many are at work, and what else would come."""
    held: set[int] = set()
    deadline = time.monotonic() + 60
    more_until = 0.0
    while len(held) < number or time.monotonic() < more_until:
        assert process.poll() is None, answer(process)
        assert time.monotonic() < deadline, f"only {len(held)} of {number}"
        for pid in running_programs(process) - held:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                held.add(pid)
                more_until = time.monotonic() + 2
        held &= running_programs(process)
    return held


@contextlib.contextmanager
def rewriting(lab, names, **arguments):
    given = {"uri": lab.uri, "domains": names, "method": "rewrite", "min_free_bytes": 0}
    process = start_module("domain_compact", **given, **arguments)
    try:
        yield process
    finally:
        if process.poll() is None:  # what it has started ends with it
            process.kill()
            process.communicate()


def place_of(pid: int) -> str:
    """The folder of the images that a program works on."""
    (place,) = {os.path.dirname(path) for path in images_of(pid)}
    return os.path.basename(place)


@pytest.mark.parametrize(
    ("places", "parallel", "at_once"),
    [
        ((0, 1), 1, ["place0", "place1"]),
        ((0, 0), 1, ["place0"]),
        ((0, 0, 1), 1, ["place0", "place1"]),
        ((0, 0, 0), 2, ["place0", "place0"]),
    ],
)
def test_one_rewrite_on_each_file_system(lab, in_memory, places, parallel, at_once):
    with rewriting(lab, in_memory(*places), parallel=parallel) as process:
        held = hold(process, len(at_once))
        assert sorted(map(place_of, held)) == at_once
        for pid in held:
            os.kill(pid, signal.SIGCONT)
        result = answer(process)
    freed = [entry["freed_bytes"] // (15 * MIB) for entry in result["domains"]]
    assert freed == [1] * len(places), result


def test_a_signal_ends_all_rewrites(lab, in_memory, tmp_path):
    names = in_memory(0, 1)
    before = {path: path.read_bytes() for path in tmp_path.glob("place*/*")}
    assert len(before) == 2
    with rewriting(lab, names) as process:
        hold(process, 2)
        process.terminate()
        assert_explains(answer(process), "Stopped by SIGTERM")
    assert {path: path.read_bytes() for path in tmp_path.glob("place*/*")} == before


def test_stopped_while_the_guest_is_off_it_is_started_again(lab, domain):
    guest = domain()
    image = guest.disk("sda").path
    lab.virsh("start", guest.name, "--paused")
    before = image.stat()
    with rewriting(lab, [guest.name], power="cycle") as process:
        wait_for(lambda: has_note(guest))
        guest.destroy()  # as if it had obeyed
        hold(process, 1)
        assert guest.state() == "shut off"
        process.terminate()
        result = answer(process)
    assert_explains(result, "Stopped by SIGTERM")
    assert guest.state() == "running"
    assert not has_note(guest)
    after = image.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert [name for name in os.listdir(image.parent) if "thinvirt" in name] == []


@pytest.mark.parametrize("parallel", [0, 6])
def test_too_many_at_once(lab, domain, parallel):
    assert_explains(compact(lab, domain().name, parallel=parallel), "between 1 and 5")


@pytest.fixture
def killed_while_off(lab, domain):
    """A guest that is off because of a run that was killed."""
    guest = domain()
    lab.virsh("start", guest.name, "--paused")
    with rewriting(lab, [guest.name], power="cycle") as process:
        wait_for(lambda: has_note(guest))
        guest.destroy()  # as if it had obeyed
        hold(process, 1)
        wait_for(lambda: " until=" not in guest.xml(inactive=True))
        process.kill()
        process.communicate()
    assert (guest.state(), has_note(guest)) == ("shut off", True)
    return guest


def test_a_guest_without_a_system_is_started_by_the_next_run_too(lab, killed_while_off):
    result = compact(lab, killed_while_off.name)
    assert "started again" in result["domains"][0]["recovered"]
    assert (killed_while_off.state(), has_note(killed_while_off)) == ("running", False)


def test_what_was_started_and_turned_off_since_stays_off(lab, killed_while_off):
    guest = killed_while_off
    lab.virsh("start", guest.name)
    lab.virsh("destroy", guest.name)
    result = compact(lab, guest.name)
    assert "somebody has started it since" in result["domains"][0]["recovered"]
    assert (guest.state(), has_note(guest)) == ("shut off", False)


def test_a_guest_that_was_turned_off_after_it_had_refused_stays_off(lab, domain):
    guest = domain()
    lab.virsh("start", guest.name)
    result = compact(lab, guest.name, power="cycle", shutdown_timeout=1)
    assert_explains(result, "did not power off within 1 s")
    assert (guest.state(), has_note(guest)) == ("running", True)
    guest.destroy()
    assert "turned it off since" in compact(lab, guest.name)["domains"][0]["recovered"]
    assert (guest.state(), has_note(guest)) == ("shut off", False)


def test_a_note_expires(lab, killed_while_off):
    guest = killed_while_off
    text = guest.xml(inactive=True)
    (since,) = re.findall(r"since='(\d+)'|since=\"(\d+)\"", text)
    now = int("".join(since))
    path = lab.state / "tmp" / "expired.xml"
    path.write_text(text.replace(str(now), str(now - 25 * 3600)))
    lab.virsh("define", str(path))
    assert "24 hours ago" in compact(lab, guest.name)["domains"][0]["recovered"]
    assert (guest.state(), has_note(guest)) == ("shut off", False)
