# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""domain_backup on domains without a system: paused ones count as running.

Copies are compared with qemu-img, jobs are looked for with virsh, files with os.listdir.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._backup.job import Workplace
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import (
    Record,
    open_journal,
)
from backup_lab import assert_nothing_left, assert_whole, backup, entry, versions
from compact_lab import answer, start, wait_for
from image_lab import qemu_io, run
from lab import Disk, GuestSpec
from live_lab import pid_of
from support import assert_explains, run_module

MIB = 1 << 20


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "backup"
    path.mkdir()
    return path


def make(lab, name, *, second="raw", data_mib=8):
    """Define a domain without a system, two disks with data."""
    disks = (
        Disk("sda", "scsi", size_bytes=64 * MIB),
        Disk("vdb", "virtio", size_bytes=64 * MIB, format=second),
    )
    guest = lab.create(GuestSpec(name, memory_mib=64, disks=disks))
    path = guest.disk("sda").path
    source = path.parent / "random"
    source.write_bytes(os.urandom(data_mib * MIB))
    qemu_io(path, f"write -s {source} 0 {data_mib}M")
    if second == "raw":
        with open(guest.disk("vdb").path, "r+b") as file:
            file.write(os.urandom(MIB))
    source.unlink()
    return guest


def remove(lab, guest):
    if guest.name not in lab.virsh("list", "--all", "--name").splitlines():
        return
    guest.destroy()
    lab.virsh("undefine", guest.name, "--managed-save", "--checkpoints-metadata")


@pytest.fixture
def domain(lab):
    """Define domains without a system; a function of the name."""
    guests = []

    def domain(name="b-off", **more):
        guests.append(make(lab, name, **more))
        return guests[-1]

    yield domain
    for guest in guests:
        remove(lab, guest)


@pytest.fixture(scope="module")
def paused(lab):
    """A domain that counts as running, for tests that do not change it."""
    guest = make(lab, "b-paused")
    try:
        lab.virsh("start", guest.name, "--paused")
        yield guest
    finally:
        remove(lab, guest)


def assert_same(version, guest):
    """The copies hold what the disks hold; qemu-img reads both."""
    for disk in guest.spec.disks:
        copy = Path(version, f"{disk.target}.qcow2")
        formats = ("-f", "qcow2", "-F", disk.format, "-U")
        run("qemu-img", "compare", *formats, copy, disk.path)


@pytest.mark.parametrize("running", [True, False])
def test_check_then_run_then_again(lab, domain, folder, running):
    guest = domain()
    if running:
        lab.virsh("start", guest.name, "--paused")
    checked = backup(lab, folder, guest.name, check=True)
    assert checked["changed"]
    assert os.listdir(folder) == []

    made = entry(backup(lab, folder, guest.name))
    assert made["changed"]
    assert made["consistency"] == ("crash" if running else "off")
    assert [disk["compared"] for disk in made["disks"]] == [True, True]
    manifest = assert_whole(made["version"])
    assert manifest["uuid"] == made["uuid"]
    assert_same(made["version"], guest)
    assert os.stat(made["version"]).st_mode & 0o777 == 0o700
    assert_nothing_left(lab, guest, folder)
    info = json.loads(run("qemu-img", "info", "--output=json", Path(made["version"], "sda.qcow2")))
    assert info["cluster-size"] == 2 * MIB
    assert info["format-specific"]["data"]["compression-type"] == "zstd"

    again = entry(backup(lab, folder, guest.name))
    assert again["changed"] is running
    assert len(versions(folder, guest.name)) == (2 if running else 1)
    if not running:
        assert again["status"] == "unchanged"
        assert not backup(lab, folder, guest.name, check=True)["changed"]
        qemu_io(guest.disk("sda").path, "write -P 9 0 1M")
        assert entry(backup(lab, folder, guest.name))["changed"]


def test_only_too_many_versions_of_our_own_are_removed(lab, paused, folder):
    guest = paused
    first = entry(backup(lab, folder, guest.name))["version"]
    changed = entry(backup(lab, folder, guest.name))["version"]
    os.utime(Path(changed, "sda.qcow2"))
    foreign = Path(folder, guest.name, "20200101T000000Z")
    foreign.mkdir()
    (foreign / "manifest.json").write_text("{}")
    third = entry(backup(lab, folder, guest.name))["version"]

    checked = entry(backup(lab, folder, guest.name, keep=2, check=True))
    made = entry(backup(lab, folder, guest.name, keep=2))
    assert checked["removed"] == made["removed"] == [first]
    left = [foreign, changed, third, made["version"]]
    assert versions(folder, guest.name) == sorted(os.path.basename(path) for path in left)
    assert_nothing_left(lab, guest, folder)


def test_versions_of_one_disk_do_not_displace_another_disk(lab, paused, folder):
    both = entry(backup(lab, folder, paused.name, keep=1))["version"]
    alone = entry(backup(lab, folder, paused.name, keep=1, disks=["sda"]))
    assert (alone["removed"], os.path.isfile(f"{both}/vdb.qcow2")) == ([], True)
    again = entry(backup(lab, folder, paused.name, keep=1, disks=["vdb"]))
    assert again["removed"] == [both]
    assert len(versions(folder, paused.name)) == 2


def test_a_clock_that_was_wrong_decides_nothing(lab, domain, folder, tmp_path):
    guest = domain("b-clock")
    first = Path(entry(backup(lab, folder, guest.name))["version"])
    future = first.with_name("20990101T000000Z")
    first.rename(future)  # as if the clock had been wrong when it was made
    text = (future / "manifest.json").read_text().replace(first.name, future.name)
    (future / "manifest.json").write_text(text)
    qemu_io(guest.disk("sda").path, "write -P 9 0 1M")
    second = entry(backup(lab, folder, guest.name))["version"]
    (tmp_path / "restored").mkdir()
    result = run_module(
        "domain_restore",
        uri=lab.uri,
        src=str(folder / guest.name),
        name="b-clock-new",
        dest_dir=str(tmp_path / "restored"),
        min_free_bytes=0,
        check=True,
    )
    assert (result["failed"], result["version"]) == (False, second)
    qemu_io(guest.disk("sda").path, "write -P 10 0 1M")
    assert entry(backup(lab, folder, guest.name, keep=2))["removed"] == [str(future)]


def test_a_version_that_is_read_is_not_removed(lab, paused, folder):
    guest = paused
    first = entry(backup(lab, folder, guest.name))["version"]
    with open(Path(first, "vdb.qcow2"), "rb"):
        result = backup(lab, folder, guest.name, keep=1)
    assert_explains(result, "is read by", f"({os.getpid()})", "was not removed")
    assert len(versions(folder, guest.name)) == 2
    assert_whole(first)
    assert entry(backup(lab, folder, guest.name, keep=1))["removed"] != []
    assert len(versions(folder, guest.name)) == 1


def foreign_job(lab, guest, folder):
    """Another tool's backup job, and what is to be seen of it."""
    job = folder / "job.xml"
    scratch = lab.state / "tmp" / "foreign"
    job.write_text(
        "<domainbackup mode='pull'><server transport='unix' "
        f"socket='{lab.state}/tmp/foreign.sock'/><disks><disk name='sda' backup='yes' type='file'>"
        f"<scratch file='{scratch}'/></disk><disk name='vdb' backup='no'/></disks></domainbackup>"
    )
    lab.virsh("backup-begin", guest.name, str(job))
    job.unlink()
    return scratch


def test_another_programs_backup_is_left_alone(lab, paused, folder):
    guest = paused
    scratch = foreign_job(lab, guest, folder)
    before = lab.virsh("backup-dumpxml", guest.name)
    for check in (True, False):
        result = backup(lab, folder, guest.name, check=check)
        assert_explains(
            result, "Another program is backing up", str(scratch), "nothing was changed"
        )
        assert lab.virsh("backup-dumpxml", guest.name) == before
    assert versions(folder, guest.name) == []
    lab.virsh("domjobabort", guest.name)
    assert entry(backup(lab, folder, guest.name))["changed"]


def test_another_programs_backup_is_left_alone_though_a_killed_run_left_something(
    lab, domain, folder
):
    guest = domain()
    lab.virsh("start", guest.name, "--paused")
    place = Workplace(str(lab.state / "disks"), lab.virsh("domuuid", guest.name).strip())
    with open_journal(place.journal) as journal:
        journal.write(Record(operation="backup", stage="backup", pid=2**22 - 1, source=None))
    os.mkdir(place.folder)
    Path(place.folder, "sda").write_bytes(b"scratch")
    foreign_job(lab, guest, folder)
    before = lab.virsh("backup-dumpxml", guest.name)
    assert_explains(backup(lab, folder, guest.name), "Another program is backing up")
    assert lab.virsh("backup-dumpxml", guest.name) == before
    lab.virsh("domjobabort", guest.name)
    assert_nothing_left(lab, guest, folder)


def test_a_block_job_is_left_alone(lab, domain, folder):
    guest = domain()
    lab.virsh("start", guest.name, "--paused")
    copy = lab.state / "tmp" / "copy.qcow2"
    lab.virsh("blockcopy", guest.name, "sda", str(copy), "--transient-job", "--format", "qcow2")
    assert_explains(backup(lab, folder, guest.name), "block job on disk sda", "nothing was changed")
    assert "sda" in lab.virsh("blockjob", guest.name, "sda", "--info") or copy.exists()
    lab.virsh("blockjob", guest.name, "sda", "--abort")


def test_checkpoints_stay(lab, domain, folder):
    guest = domain(second="qcow2")
    lab.virsh("start", guest.name, "--paused")
    lab.virsh("checkpoint-create-as", guest.name, "monday")
    before = lab.virsh("checkpoint-dumpxml", guest.name, "monday", "--size")
    assert entry(backup(lab, folder, guest.name))["changed"]
    assert lab.virsh("checkpoint-dumpxml", guest.name, "monday", "--size") == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"disks": ["vdz"]}, ["has a disk vdz"]),
        ({"disks": ["sda", "sda"]}, ["names sda twice"]),
        ({"domains": ["nobody"]}, ["no domain nobody"]),
        ({"dest_dir": "/nonexistent"}, ["is no folder", "Make it first"]),
        ({"dest_dir": "relative"}, ["not the absolute path"]),
        ({"scratch_dir": "/nonexistent"}, ["is no folder"]),
        ({"min_free_bytes": 1 << 60}, ["bytes free, less than min_free_bytes"]),
        ({"quiesce": "required"}, ["No guest agent", "quiesce=auto"]),
        ({"keep": -1}, ["keep must be at least 0"]),
        ({"timeout": 0}, ["timeout"]),
        ({"uri": "qemu+ssh://elsewhere/system"}, ["leads to another machine"]),
    ],
)
def test_what_cannot_be_done_changes_nothing(lab, paused, folder, arguments, words):
    given = {"uri": lab.uri, "domains": [paused.name], "dest_dir": str(folder), **arguments}
    assert_explains(run_module("domain_backup", **given), *words)
    assert os.listdir(folder) == []
    assert_nothing_left(lab, paused, folder)


def test_a_name_does_not_lead_out_of_the_folder(lab, domain, folder):
    guest = domain("..b %2E\u00fc\u202e")
    lab.virsh("start", guest.name, "--paused")
    made = entry(backup(lab, folder, guest.name))
    assert os.listdir(folder) == ["%2E.b %252E\u00fc%E2%80%AE"]
    assert_whole(made["version"])


def test_disks_can_be_chosen(lab, paused, folder):
    guest = paused
    made = entry(backup(lab, folder, guest.name, disks=["vd*"], compression="none"))
    assert [disk["target"] for disk in made["disks"]] == ["vdb"]
    manifest = assert_whole(made["version"])
    assert [disk["file"] for disk in manifest["disks"]] == ["vdb.qcow2"]


def test_passwords_are_left_out_unless_asked_for(lab, domain, folder, tmp_path):
    guest = domain()
    graphics = "<graphics type='vnc' port='-1' passwd='hunter2'/></devices>"
    (tmp_path / "domain.xml").write_text(guest.xml(inactive=True).replace("</devices>", graphics))
    lab.virsh("define", str(tmp_path / "domain.xml"))
    for wanted in (False, True):
        made = entry(backup(lab, folder, guest.name, with_secrets=wanted))
        manifest = Path(made["version"], "manifest.json")
        assert ("hunter2" in manifest.read_text()) is wanted
        assert manifest.stat().st_mode & 0o777 == 0o600
    lab.virsh("undefine", guest.name)
    lab.virsh("create", str(tmp_path / "domain.xml"), "--paused")
    try:  # it has no configuration but that of the running one
        for wanted in (False, True):
            made = entry(backup(lab, folder, guest.name, with_secrets=wanted))
            text = Path(made["version"], "manifest.json").read_text()
            assert ("hunter2" in text) is wanted
    finally:
        lab.virsh("define", str(tmp_path / "domain.xml"))


@pytest.fixture
def slow(lab, domain):
    """A paused domain whose backup takes seconds, and how that is started."""
    guest = domain("b-slow", data_mib=24)
    lab.virsh("start", guest.name, "--paused")

    def begin(folder):
        return start(
            module="domain_backup",
            uri=lab.uri,
            domains=[guest.name],
            dest_dir=str(folder),
            bandwidth_bytes=4 * MIB,
        )

    return guest, begin


def test_who_has_waited_longest_comes_first(lab, domain, folder):
    names = ("b-a", "b-b", "b-c")
    for name in names:
        lab.virsh("start", domain(name).name, "--paused")
    first = entry(backup(lab, folder, "b-b"))["version"]
    # Versions are dated by seconds: two of one second come in the order of their domains' names.
    wait_for(lambda: time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) > os.path.basename(first))
    assert entry(backup(lab, folder, "b-a"))["changed"]
    result = backup(lab, folder, "b-[abc]")
    assert not result["failed"], result["msg"]
    assert [made["name"] for made in result["domains"]] == list(names)
    times = {m["name"]: os.stat(m["version"] + "/manifest.json") for m in result["domains"]}
    order = sorted(names, key=lambda name: times[name].st_mtime_ns)
    assert order == ["b-c", "b-b", "b-a"]


def test_side_by_side(lab, domain, folder):
    guests = [domain(name, data_mib=16) for name in ("b-a", "b-b")]
    for guest in guests:
        lab.virsh("start", guest.name, "--paused")
    given = {"uri": lab.uri, "domains": ["b-[ab]"], "dest_dir": str(folder)}
    process = start(module="domain_backup", bandwidth_bytes=4 * MIB, parallel=2, **given)
    # Both are at work at one instant.
    wait_for(lambda: all(copying(guest, folder) for guest in guests))
    result = answer(process)
    assert not result["failed"], result["msg"]
    for guest, made in zip(guests, result["domains"], strict=True):
        assert_whole(made["version"])
        assert_same(made["version"], guest)
        assert_nothing_left(lab, guest, folder)
    refusal = backup(lab, folder, "b-[ab]", parallel=0)
    assert_explains(refusal, "parallel must be between")


def copying(guest, folder):
    """The job runs and something of it is copied."""
    partial = [name for name in versions(folder, guest.name) if name.endswith(".partial")]
    return partial and "sda.qcow2" in os.listdir(Path(folder, guest.name, partial[0]))


def test_killed_the_next_run_ends_its_job_and_only_that(lab, slow, folder):
    guest, begin = slow
    process = begin(folder)
    wait_for(lambda: copying(guest, folder))
    busy = backup(lab, folder, guest.name)
    assert_explains(busy, "Another run", "is at work")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    # The job outlives its client: this is what the next run has to deal with.
    assert "backup" in lab.virsh("domjobinfo", guest.name).lower()
    checked = entry(backup(lab, folder, guest.name, check=True))
    assert "would be" in checked["recovered"]
    made = entry(backup(lab, folder, guest.name))
    assert f"process {process.pid}" in made["recovered"]
    assert "never finished" in made["recovered"]
    assert_same(made["version"], guest)
    assert_nothing_left(lab, guest, folder)


def test_killed_the_job_is_found_though_all_folders_are_others(lab, slow, folder, tmp_path):
    guest, begin = slow
    process = begin(folder)
    wait_for(lambda: copying(guest, folder))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    scratch, other = tmp_path / "scratch", tmp_path / "other"
    scratch.mkdir()
    other.mkdir()
    made = entry(backup(lab, other, guest.name, scratch_dir=str(scratch)))
    assert f"process {process.pid}" in made["recovered"]
    assert_nothing_left(lab, guest, other)
    assert os.listdir(scratch) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_in_order_it_leaves_nothing(lab, slow, folder, number):
    guest, begin = slow
    process = begin(folder)
    wait_for(lambda: copying(guest, folder))
    process.send_signal(number)
    assert_explains(answer(process), "Stopped by")
    assert versions(folder, guest.name) == []
    assert_nothing_left(lab, guest, folder)


def test_the_guest_is_destroyed_meanwhile(lab, slow, folder):
    guest, begin = slow
    process = begin(folder)
    wait_for(lambda: copying(guest, folder))
    lab.virsh("destroy", guest.name)
    assert_explains(answer(process), guest.name)
    assert versions(folder, guest.name) == []
    assert_nothing_left(lab, guest, folder)
    assert entry(backup(lab, folder, guest.name))["consistency"] == "off"


def test_a_guest_that_dies_meanwhile_is_started_again(lab, slow, folder):
    guest, begin = slow
    process = begin(folder)
    wait_for(lambda: copying(guest, folder))
    os.kill(pid_of(guest, lab.state), signal.SIGKILL)
    assert_explains(answer(process), f"Domain {guest.name} died", "started again")
    assert guest.state() == "running"
    assert versions(folder, guest.name) == []
    assert_nothing_left(lab, guest, folder)


def test_somebody_aborts_the_job_meanwhile(lab, slow, folder):
    guest, begin = slow
    process = begin(folder)
    wait_for(lambda: copying(guest, folder))
    lab.virsh("domjobabort", guest.name)
    assert_explains(answer(process), guest.name)
    assert versions(folder, guest.name) == []
    assert_nothing_left(lab, guest, folder)


def test_too_little_space_on_the_way_is_an_end_in_order(lab, slow, tmp_path):
    guest, _begin = slow
    image = tmp_path / "small"
    image.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", image)
    try:
        result = backup(lab, image, guest.name)
        assert_explains(result, "1 of 1 domains failed", guest.name)
        assert os.listdir(image) == []
        assert_nothing_left(lab, guest, image)
    finally:
        run("umount", image)


def restore(lab, src, name, dest, **arguments):
    given = {"min_free_bytes": 0, "src": str(src), "dest_dir": str(dest), **arguments}
    return run_module("domain_restore", uri=lab.uri, name=name, **given)


@pytest.fixture
def restored(lab, tmp_path):
    """A folder for restored disks; domains called r-... are removed in the end."""
    dest = tmp_path / "restored"
    dest.mkdir()
    yield dest
    for name in lab.virsh("list", "--all", "--name").splitlines():
        if name.startswith("r-"):
            lab.virsh("undefine", name)


def test_restored_as_a_new_domain(lab, domain, folder, restored):
    guest = domain()
    lab.virsh("start", guest.name, "--paused")
    version = entry(backup(lab, folder, guest.name))["version"]
    before = guest.xml(inactive=True)
    checked = restore(lab, version, "r-1", restored, check=True)
    assert checked["changed"]
    assert os.listdir(restored) == []
    assert "r-1" not in lab.virsh("list", "--all", "--name").split()

    made = restore(lab, folder / guest.name, "r-1", restored)
    assert (made["changed"], made["version"]) == (True, version)
    assert sorted(os.listdir(restored)) == ["r-1-sda.qcow2", "r-1-vdb.qcow2"]
    for disk in guest.spec.disks:
        formats = ("-f", "qcow2", "-F", disk.format, "-U")
        run("qemu-img", "compare", *formats, made["disks"][disk.target], disk.path)
    new = lab.virsh("dumpxml", "r-1", "--inactive")
    assert made["uuid"] in new
    assert lab.virsh("domuuid", guest.name).strip() != made["uuid"]
    assert guest.xml(inactive=True) == before
    assert str(guest.disk("sda").path) not in new
    lab.virsh("start", "r-1", "--paused")
    lab.virsh("destroy", "r-1")
    assert_whole(version)

    again = restore(lab, version, "r-1", restored)
    assert (again["failed"], again["changed"]) == (False, False)


def test_nothing_is_written_over(lab, domain, folder, restored):
    guest = domain()
    version = entry(backup(lab, folder, guest.name))["version"]
    assert_explains(restore(lab, version, guest.name, restored), "There is a domain b-off already")
    (restored / "r-1-vdb.qcow2").write_text("mine")
    for check in (True, False):
        result = restore(lab, version, "r-1", restored, check=check)
        assert_explains(result, "r-1-vdb.qcow2 exists already", "nothing was changed")
    assert (restored / "r-1-vdb.qcow2").read_text() == "mine"
    assert os.listdir(restored) == ["r-1-vdb.qcow2"]
    # A copy of this collection's, of something else: no killed restore of this version has made it.
    mine, other = {"min_free_bytes": 0}, restored / "r-1-sda.qcow2"
    mine |= {"src": str(guest.disk("vdb").path), "src_format": "raw", "dest": str(other)}
    assert run_module("image_convert", **mine)["changed"]
    (restored / "r-1-vdb.qcow2").unlink()
    before = sorted((name, (restored / name).read_bytes()) for name in os.listdir(restored))
    assert_explains(restore(lab, version, "r-1", restored), "r-1-sda.qcow2 exists already")
    assert before == sorted((name, (restored / name).read_bytes()) for name in os.listdir(restored))
    result = restore(lab, version, "r-2", restored, keep_uuid=True)
    assert_explains(result, "has the UUID")
    for name in ("", "../x", ".x", "-x", "a\nb"):
        assert_explains(restore(lab, version, name, restored), "cannot be the name")


def test_a_damaged_version_is_refused(lab, domain, folder, restored):
    guest = domain()
    version = Path(entry(backup(lab, folder, guest.name))["version"])
    with open(version / "vdb.qcow2", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    assert_explains(restore(lab, version, "r-1", restored), "vdb.qcow2 is not what it was")
    assert os.listdir(restored) == []
    assert "r-1" not in lab.virsh("list", "--all", "--name").split()


def test_a_killed_restore_is_taken_up_again(lab, slow, folder, restored):
    guest, _begin = slow
    version = entry(backup(lab, folder, guest.name))["version"]
    given = {"src": version, "name": "r-1", "dest_dir": str(restored), "uri": lab.uri}
    process = start(module="domain_restore", **given)
    wait_for(lambda: (restored / "r-1-sda.qcow2").exists() or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    lab.virsh("list")
    made = restore(lab, version, "r-1", restored)
    assert not made["failed"], made["msg"]
    assert sorted(os.listdir(restored)) == ["r-1-sda.qcow2", "r-1-vdb.qcow2"]
    for target, path in made["disks"].items():
        run("qemu-img", "compare", path, Path(version, f"{target}.qcow2"))


def test_the_variables_of_the_firmware_go_along(lab, domain, folder, restored, tmp_path):
    guest = domain()
    nvram, loader = tmp_path / "vars.fd", tmp_path / "code.fd"
    nvram.write_bytes(b"boot entries")
    loader.write_bytes(b"code")
    firmware = f"<loader readonly='yes' type='pflash'>{loader}</loader><nvram>{nvram}</nvram></os>"
    (tmp_path / "domain.xml").write_text(guest.xml(inactive=True).replace("</os>", firmware))
    lab.virsh("define", str(tmp_path / "domain.xml"))
    try:
        version = entry(backup(lab, folder, guest.name))["version"]
        assert Path(version, "nvram.fd").read_bytes() == b"boot entries"
        assert_whole(version)
        assert entry(backup(lab, folder, guest.name))["status"] == "unchanged"
        made = restore(lab, version, "r-1", restored)
        assert not made["failed"], made["msg"]
        assert (restored / "r-1-nvram.fd").read_bytes() == b"boot entries"
        assert f">{restored}/r-1-nvram.fd</nvram>" in lab.virsh("dumpxml", "r-1", "--inactive")
        nvram.write_bytes(b"other entries")
        assert entry(backup(lab, folder, guest.name))["changed"]
    finally:
        for name in lab.virsh("list", "--all", "--name").splitlines():
            if name in ("r-1", guest.name):
                lab.virsh("undefine", name, "--keep-nvram")
