# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups of a guest that writes all the while, restored beside it, and killed at many moments.

What a copy holds is read with qemu-img, e2fsck and debugfs on the host, and by a restored guest
that has booted from it.  The writer orders its records over two disks: disk b is never ahead of
disk a.
"""

from __future__ import annotations

import collections
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._backup.job import Workplace
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import (
    Record,
    journal_path,
    open_journal,
)
from backup_lab import assert_nothing_left, assert_whole, backup, entry
from compact_lab import answer, start, wait_for
from lab import Disk, GuestSpec, processes
from libvirtd import comm, kill_libvirtd, start_libvirtd
from support import assert_explains, run_playbook

WRITER = Path(__file__).with_name("backup_writer.py").read_text(encoding="utf-8")
FULL = os.environ.get("THINVIRT_STORM") == "full"
SEED = int(os.environ.get("THINVIRT_STORM_SEED", random.SystemRandom().randrange(1 << 32)))
GIB = 1 << 30


@pytest.fixture(scope="module")
def writing(lab):
    """A guest that writes to two disks of its own."""
    disks = [Disk("sda", root=True)]
    disks += [Disk(f"sd{n}", serial=name, size_bytes=GIB) for n, name in (("b", "a"), ("c", "b"))]
    try:
        guest = lab.warm(GuestSpec("bk", disks=tuple(disks)))
        begin_to_write(guest, fresh=True)
        yield guest
    finally:
        lab.forget("bk")


def begin_to_write(guest, *, fresh=False):
    guest.wait_for_agent(timeout=600)
    make = "for d in a b; do disk=$(readlink -f /dev/disk/by-id/*_$d); "
    make += "mkfs.ext4 -q $disk; " if fresh else ""
    make += 'mkdir -p /$d; mount $disk /$d; done; printf %s "$1" >/run/writer.py; sync'
    guest.run("sh", "-euc", make, "sh", WRITER)
    guest.run("systemd-run", "--unit=writer", "python3", "/run/writer.py", "write")
    wait_for(lambda: committed(guest) > 0, seconds=60)


def committed(guest) -> int:
    """What the database in the guest has said to be committed."""
    return int(guest.run("sh", "-c", "cat /run/committed || echo 0").stdout)


def assert_goes_on_writing(guest):
    assert guest.agent("guest-fsfreeze-status") == "thawed"
    before = committed(guest)
    wait_for(lambda: committed(guest) > before, seconds=60)
    assert guest.run("systemctl", "is-active", "writer").stdout == "active\n"


def as_raw(version, target, tmp_path) -> Path:
    raw = tmp_path / f"{target}.raw"
    copy = Path(version, f"{target}.qcow2")
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", copy, raw], check=True)
    return raw


def read(raw, name, tmp_path) -> bytes:
    """A file of an ext4 image."""
    dump = tmp_path / "dump"
    subprocess.run(["debugfs", "-R", f"dump {name} {dump}", raw], check=True, capture_output=True)
    return dump.read_bytes()


def records(data: bytes) -> int:
    """How many whole records there are; all of them must be right, by the writer's own rule."""
    rule: dict = {}
    exec(WRITER.partition("def last_record")[0], rule)  # noqa: S102
    count = 0
    for line in data.splitlines(keepends=True):
        if line.endswith(b"\n"):
            count += 1
            assert line == rule["record"](count)
    return count


def assert_one_instant(version, tmp_path, *, frozen: bool) -> int:
    """Both disks are clean, and those of one instant; the last record of disk a."""
    found = {}
    for target, disk in (("sdb", "a"), ("sdc", "b")):
        raw = as_raw(version, target, tmp_path)
        features = subprocess.run(
            ["dumpe2fs", "-h", raw], check=True, capture_output=True, text=True
        ).stdout
        # A file system at rest has nothing in its journal.
        if frozen:
            assert "needs_recovery" not in features
        else:
            subprocess.run(["e2fsck", "-p", "-E", "journal_only", raw], check=True)
        argv = ["e2fsck", "-f", "-n", raw]
        forced = subprocess.run(argv, check=False, capture_output=True, text=True)
        assert forced.returncode == 0, forced.stdout
        found[disk] = records(read(raw, "/records", tmp_path))
        raw.unlink()
    assert 0 <= found["a"] - found["b"] <= 1, found
    return found["a"]


@pytest.mark.slow("a restored guest boots, which is what its administrator wants to know")
def test_restored_it_boots_beside_the_original(lab, writing, tmp_path):
    folder, disks = tmp_path / "backup", tmp_path / "disks"
    folder.mkdir()
    disks.mkdir()
    before = committed(writing)
    xml = writing.xml(inactive=True)
    made = entry(backup(lab, folder, writing.name, quiesce="required", keep=1))
    after = committed(writing)
    print(json.dumps({"seconds": made["seconds"], "freeze": made["freeze"]}))
    assert made["consistency"] == "frozen"
    assert made["freeze"]["filesystems"] >= 3
    assert [disk["compared"] for disk in made["disks"]] == [True, True, True]
    assert after > before
    assert_nothing_left(lab, writing, folder)
    assert_goes_on_writing(writing)
    assert writing.xml(inactive=True) == xml
    manifest = assert_whole(made["version"])
    assert manifest["freeze"]["state"] == "frozen"
    last = assert_one_instant(made["version"], tmp_path, frozen=True)
    assert before <= last

    found = booted(lab, made["version"], disks)
    assert found["database"] == "ok"
    assert found["a"] == last
    assert before <= found["committed"] <= last
    assert found["count"] == found["committed"] // 10
    assert_goes_on_writing(writing)


def booted(lab, version, disks) -> dict:
    """Restore a version by the playbook, beside the original; it boots and checks its own disks."""
    here = {
        "ansible_connection": "local",
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_remote_tmp": str(disks.parent / "ansible-tmp"),
    }
    given = {
        "thinvirt_uri": lab.uri,
        "restore_images_src": version,
        "restore_images_name": "bk-new",
        "restore_images_dest_dir": str(disks),
        "restore_images_min_free_bytes": 0,
    }
    inventory = {"kvm_hosts": {"hosts": {"hypervisor": here}, "vars": given}}
    done = run_playbook(disks.parent, "thinvirt.kvm.restore", inventory, patience=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "changed=1 " in done.stdout
    guest = lab.guest("bk-new")
    try:
        guest.start()
        guest.wait_for_agent(timeout=600)
        # What was not frozen is like after a power failure: the journal is replayed by mounting.
        script = "for d in a b; do disk=$(readlink -f /dev/disk/by-id/*_$d); mkdir -p /$d; "
        script += "mount $disk /$d; umount /$d; e2fsck -fn $disk; mount $disk /$d; done >&2; "
        script += 'printf %s "$1" >/run/w.py; python3 /run/w.py check'
        return json.loads(guest.run("sh", "-euc", script, "sh", WRITER, timeout=180).stdout)
    finally:
        guest.destroy()
        lab.virsh("undefine", "bk-new")
        for path in disks.iterdir():
            path.unlink()


def test_what_a_killed_run_has_frozen_is_thawed(lab, writing, tmp_path):
    """Killed in the fraction of a second between the freeze and the thaw."""
    dead = subprocess.run(["true"], check=True) and 2**22 - 1
    uuid = lab.virsh("domuuid", writing.name).strip()
    place = Workplace(str(lab.state / "disks"), uuid)
    with open_journal(place.journal) as journal:
        journal.write(Record(operation="backup", stage="freeze", pid=dead, source=None))
    lab.virsh("domfsfreeze", writing.name)
    assert writing.agent("guest-fsfreeze-status") == "frozen"
    made = entry(backup(lab, tmp_path, writing.name, disks=["sdb"], keep=1))
    assert str(dead) in made["recovered"]
    assert made["consistency"] == "frozen"
    assert_goes_on_writing(writing)
    assert_nothing_left(lab, writing, tmp_path)


def begin(lab, folder, name, **arguments):
    given = {"uri": lab.uri, "domains": [name], "dest_dir": str(folder), "keep": 2}
    return start(module="domain_backup", **given, **arguments)


def is_frozen(guest) -> bool:
    return guest.agent("guest-fsfreeze-status") == "frozen"


def kill_while_frozen(lab, guest, folder) -> bool:
    """Kill a run between its freeze and its thaw; whether that came about."""
    uuid = lab.virsh("domuuid", guest.name).strip()
    journal = Path(journal_path(Workplace(str(lab.state / "disks"), uuid).journal))
    process = begin(lab, folder, guest.name, disks=["sdb"])

    def stage() -> str:
        lines = journal.read_text().split() and journal.read_text().splitlines()
        record = json.loads(lines[-1]) if lines else {}
        return record["stage"] if record.get("pid") == process.pid else ""

    try:
        wait_for(lambda: journal.exists() and stage() == "freeze")
        while stage() == "freeze":
            process.send_signal(signal.SIGSTOP)
            if is_frozen(guest):
                return True
            process.send_signal(signal.SIGCONT)
            time.sleep(0.01)
        return False
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def test_a_guest_is_thawed_though_the_run_was_killed_in_its_freeze(lab, writing, tmp_path):
    """Without a next run: a guest must not stand still until tomorrow."""
    attempts = iter(range(20))
    while not kill_while_frozen(lab, writing, tmp_path):
        assert next(attempts) < 19, "it was never frozen when it was killed"
    wait_for(lambda: not is_frozen(writing), seconds=30)
    assert_goes_on_writing(writing)
    made = entry(backup(lab, tmp_path, writing.name, disks=["sdb"], keep=1))
    assert made["recovered"]
    assert_nothing_left(lab, writing, tmp_path)


def test_what_somebody_else_has_frozen_stays(lab, writing, tmp_path):
    lab.virsh("domfsfreeze", writing.name)
    try:
        result = backup(lab, tmp_path, writing.name, disks=["sdb"])
        assert_explains(result, "are frozen already", "virsh domfsthaw")
        assert writing.agent("guest-fsfreeze-status") == "frozen"
    finally:
        lab.virsh("domfsthaw", writing.name)
    assert_goes_on_writing(writing)
    assert_nothing_left(lab, writing, tmp_path)


def test_libvirtd_is_restarted_meanwhile(lab, writing, tmp_path):
    process = begin(lab, tmp_path, writing.name, bandwidth_bytes=96 << 20)
    wait_for(lambda: list(tmp_path.glob("bk/.*.partial/sda.qcow2")), seconds=60)
    kill_libvirtd(lab)
    start_libvirtd(lab)
    result = answer(process, patience=180)
    assert_goes_on_writing(writing)
    assert_nothing_left(lab, writing, tmp_path)
    made = entry(result)
    assert made["consistency"] == "frozen"
    assert_one_instant(made["version"], tmp_path, frozen=True)


@pytest.mark.storm
@pytest.mark.slow("eleven backups of a guest that writes all the while")
def test_killed_at_any_moment_nothing_is_left(lab, writing, tmp_path):
    """The module is killed again and again; the guest goes on, and the next run puts it right."""
    chance = random.Random(SEED)  # noqa: S311
    print(f"seed {SEED}")
    seen: collections.Counter[str] = collections.Counter()
    begun = time.monotonic()
    entry(backup(lab, tmp_path, writing.name, keep=1))
    whole = time.monotonic() - begun
    for _number in range(60 if FULL else 5):
        process = begin(lab, tmp_path, writing.name)
        time.sleep(chance.uniform(0, 1.1 * whole))
        seen["ended before" if process.poll() is not None else "killed"] += 1
        process.send_signal(signal.SIGKILL)
        process.communicate()
        seen["job left"] += "backup" in lab.virsh("domjobinfo", writing.name).lower()
        made = entry(backup(lab, tmp_path, writing.name, disks=["sdc"], keep=1))
        seen["recovered"] += bool(made["recovered"])
        print(f"{seen['killed'] + seen['ended before']}: {dict(seen)}", flush=True)
        assert_nothing_left(lab, writing, tmp_path)
        assert_goes_on_writing(writing)
    print(dict(seen))
    assert seen["killed"]
    made = entry(backup(lab, tmp_path, writing.name, keep=1))
    assert_one_instant(made["version"], tmp_path, frozen=made["consistency"] == "frozen")


@pytest.mark.storm
@pytest.mark.skipif(not FULL, reason="20 backups under load take minutes: make storm")
def test_twenty_backups_under_load(lab, writing, tmp_path):
    folder, disks = tmp_path / "backup", tmp_path / "disks"
    folder.mkdir()
    disks.mkdir()
    seconds = []
    for number in range(20):
        before = committed(writing)
        frozen = number % 2 == 0
        quiesce = "required" if frozen else "off"
        begun = time.monotonic()
        made = entry(backup(lab, folder, writing.name, quiesce=quiesce, keep=1))
        seconds.append(round(time.monotonic() - begun, 1))
        last = assert_one_instant(made["version"], tmp_path, frozen=frozen)
        assert before <= last
        if number % 5 in (0, 1):  # of both kinds
            found = booted(lab, made["version"], disks)
            assert found["database"] == "ok"
            assert found["a"] == last
            assert before <= found["committed"] <= last
            print(f"{number}: frozen={frozen}, booted, {found}", flush=True)
        assert_goes_on_writing(writing)
        assert_nothing_left(lab, writing, folder)
    print(f"seconds of each: {seconds}")


@pytest.mark.storm
@pytest.mark.skipif(not FULL, reason="each kill is a boot: make storm")
@pytest.mark.parametrize("victim", ["libvirtd", "qemu-system-x86"])
def test_what_serves_it_is_killed(lab, writing, tmp_path, victim):
    chance = random.Random(SEED)  # noqa: S311
    print(f"seed {SEED}")
    for number in range(10):
        process = begin(lab, tmp_path, writing.name, bandwidth_bytes=96 << 20)
        time.sleep(chance.uniform(0.3, 8))
        if victim == "libvirtd":
            kill_libvirtd(lab)
            start_libvirtd(lab)
        else:
            for pid in processes.owned_pids(lab.state):
                if comm(pid) == victim:
                    os.kill(pid, signal.SIGKILL)
        result = answer(process, patience=180)
        if victim != "libvirtd":
            # The run may have been done before, and libvirt learns of the kill only now.
            wait_for(lambda: writing.state() == "shut off", seconds=60)
            assert_nothing_left(lab, writing, tmp_path)
            writing.start()  # a cold boot: its QEMU was killed, and its disks are as that left them
            begin_to_write(writing)
        else:
            assert "Traceback" not in json.dumps(result)
        print(f"{number}: {result.get('msg') or result['summary']}", flush=True)
        made = entry(backup(lab, tmp_path, writing.name, keep=1))
        assert_one_instant(made["version"], tmp_path, frozen=True)
        assert_nothing_left(lab, writing, tmp_path)
        assert_goes_on_writing(writing)
