# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""zero_free_space on real file systems in loop devices; what it left is read from their images."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support import _RUN, assert_explains, run_module

MIB = 1 << 20
SIZE = 512 * MIB
MKFS = {
    "ext2": ["mkfs.ext2", "-q", "-F", "-m", "0"],
    "ext4": ["mkfs.ext4", "-q", "-F", "-m", "0"],
    "xfs": ["mkfs.xfs", "-q"],
}
SECRET = b"not a zero in sight"
SLOWLY = ["strace", "-D", "-qq", "-e", "trace=fdatasync"]  # -D: the module is the child, not strace
SLOWLY += ["-e", "inject=fdatasync:delay_exit=1000000", "-o"]
LEFTOVER = ".thinvirt-zero-fill"


def run(*argv: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = list(map(str, argv))
    return subprocess.run(command, capture_output=True, text=True, check=check, timeout=60)


@contextlib.contextmanager
def file_system(folder: Path, kind: str, *mkfs: object):
    """(mount point, image), the file system made by a command."""
    image, point = folder / f"{kind}.img", folder / kind
    point.mkdir()
    with contextlib.ExitStack() as stack:
        with open(image, "wb") as file:
            file.truncate(SIZE)
        stack.callback(os.unlink, image)
        run(*mkfs, image)
        device = run("losetup", "-f", "--show", image).stdout.strip()
        stack.callback(run, "losetup", "-d", device)
        run("mount", "-t", kind, device, point)
        stack.callback(run, "umount", point)
        yield point, image


@pytest.fixture(scope="module", params=MKFS)
def mounted(request, tmp_path_factory):
    with file_system(tmp_path_factory.mktemp("zero"), request.param, *MKFS[request.param]) as made:
        yield made


@pytest.fixture(scope="module")
def ext4(tmp_path_factory):
    with file_system(tmp_path_factory.mktemp("zero"), "ext4", *MKFS["ext4"]) as (point, _image):
        yield point


def free(point: Path) -> int:
    figures = os.statvfs(point)
    return figures.f_bavail * figures.f_frsize


def synced_free(point: Path) -> int:
    run("sync", "-f", point)
    return free(point)


def wait_until_free(point: Path, wanted: int) -> None:
    """XFS frees removed files in the background."""
    deadline = time.monotonic() + 10
    while synced_free(point) != wanted:
        assert time.monotonic() < deadline


def fill(point: Path, **arguments):
    wanted = {"max_bytes": 10 * SIZE, "keep_free_bytes": 0} | arguments
    return run_module("zero_free_space", paths=[str(point)], **wanted)


@contextlib.contextmanager
def running(point: Path, **arguments):
    """The module as a process; yields it when it has written what a test says.

    With a *log* for strace each flush takes a second, so that there is time to interfere.
    """
    after = arguments.pop("after", 16 * MIB)
    prefix = [*SLOWLY, arguments.pop("log")] if "log" in arguments else []
    given = {"paths": [str(point)], "max_bytes": 10 * SIZE, "keep_free_bytes": 0} | arguments
    before = synced_free(point)
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", _RUN, "zero_free_space"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        process.stdin.write(json.dumps(given).encode())
        process.stdin.close()
        process.stdin = None
        while free(point) > before - after:
            assert process.poll() is None, process.communicate()
        yield process
    finally:
        process.kill()
        process.communicate()


def secrets(image: Path) -> int:
    run("sync")
    return int(run("grep", "-aoc", SECRET.decode(), image, check=False).stdout)


def test_what_was_deleted_is_gone_from_the_image(mounted):
    point, image = mounted
    with open(point / "secret", "wb") as file:
        file.writelines((SECRET + b"\n").ljust(4096, b"x") * 256 for block in range(100))
        os.fsync(file.fileno())
    os.unlink(point / "secret")
    (point / "kept").write_bytes(SECRET + b"\n")
    assert secrets(image) > 20_000
    before = synced_free(point)
    result = fill(point)
    assert not result["failed"], result
    (one,) = result["file_systems"]
    assert result["changed"]
    assert one["stopped_by"] == "reserve"
    assert one["written_bytes"] == result["written_bytes"] > before - 16 * MIB
    assert (one["free_before_bytes"], one["free_after_bytes"]) == (before, synced_free(point))
    assert synced_free(point) == before
    # A few blocks may be where no file's data goes; the live file stays.
    assert 1 <= secrets(image) < 1000
    assert (point / "kept").read_bytes() == SECRET + b"\n"
    assert LEFTOVER not in os.listdir(point)


def test_the_reserve_is_respected_while_another_one_writes(mounted, tmp_path):
    """Read where it stays: ext4 counts blocks twice while they are allocated, up to 1 MiB."""
    point, _image = mounted
    rest = ["-e", "trace=fsync", "-e", "inject=fsync:delay_exit=1000000"]  # the last call of all
    prefix = ["strace", "-D", "-qq", *rest, "-o", str(tmp_path / "log")]
    keep, least, ended = 100 * MIB, [SIZE], threading.Event()
    before = synced_free(point)

    def observe() -> None:
        last, since = free(point), time.monotonic()
        while not ended.is_set():
            now = free(point)
            if now != last:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > 0.2:
                least[0] = min(least[0], now)

    observer = threading.Thread(target=observe)
    observer.start()
    try:
        with open(point / "other", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, 100 * MIB)
        result = fill(point, keep_free_bytes=keep, prefix=prefix)
    finally:
        ended.set()
        observer.join()
        os.unlink(point / "other")
        wait_until_free(point, before)
    assert result["file_systems"][0]["stopped_by"] == "reserve"
    assert keep <= least[0] < keep + 8 * MIB


def test_somebody_else_takes_the_space_meanwhile(ext4, tmp_path):
    before = synced_free(ext4)
    with running(ext4, keep_free_bytes=50 * MIB, log=tmp_path / "log") as process:
        with open(ext4 / "other", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, free(ext4) - 20 * MIB)
        result = json.loads(process.communicate(timeout=60)[0])
    os.unlink(ext4 / "other")
    (one,) = result["file_systems"]
    assert one["stopped_by"] == "reserve"
    assert one["written_bytes"] < one["planned_bytes"] - 50 * MIB
    assert synced_free(ext4) == before


def test_the_budget_is_for_all_paths(ext4, tmp_path):
    with file_system(tmp_path, "xfs", *MKFS["xfs"]) as (xfs, _image):
        budget = free(ext4) - 10 * MIB
        arguments = {"paths": [str(ext4), str(xfs)], "keep_free_bytes": 100 * MIB}
        arguments["max_bytes"] = budget
        check = run_module("zero_free_space", check=True, **arguments)
        result = run_module("zero_free_space", **arguments)
    assert result["written_bytes"] == budget
    assert [one["stopped_by"] for one in result["file_systems"]] == ["reserve", "budget"]
    assert check["changed"]
    assert check["written_bytes"] == 0
    for promised, done in zip(check["file_systems"], result["file_systems"], strict=True):
        assert abs(promised["planned_bytes"] - done["written_bytes"]) < 2 * MIB


def test_check_mode_writes_nothing(ext4):
    counter = Path("/sys/dev/block") / os.path.basename(
        f"{os.major(ext4.stat().st_dev)}:{os.minor(ext4.stat().st_dev)}"
    )
    run("sync", "-f", ext4)
    before = (counter / "stat").read_text().split()[6]  # sectors written
    assert run_module("zero_free_space", check=True, paths=[str(ext4)], max_bytes=SIZE)["changed"]
    run("sync", "-f", ext4)
    assert (counter / "stat").read_text().split()[6] == before


def test_files_have_a_largest_size(ext4):
    prefix = ["prlimit", f"--fsize={48 * MIB}"]
    given = {"paths": [str(ext4)], "max_bytes": 200 * MIB, "keep_free_bytes": 0}
    result = run_module("zero_free_space", prefix=prefix, **given)
    assert result["written_bytes"] == 200 * MIB
    assert result["file_systems"][0]["stopped_by"] == "budget"


@pytest.mark.parametrize(
    ("number", "seed"), [(signal.SIGTERM, 1), (signal.SIGTERM, 2), (signal.SIGHUP, 3)]
)
def test_a_signal_at_any_moment(mounted, number, seed):
    point, _image = mounted
    before = synced_free(point)
    moment = random.Random(f"{number}-{seed}").randrange(MIB, 300 * MIB)  # noqa: S311
    with running(point, after=moment) as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    result = json.loads(out)
    assert err == b""
    assert process.returncode == 0
    assert result["file_systems"][0]["stopped_by"] == "stopped"
    assert synced_free(point) == before
    assert LEFTOVER not in os.listdir(point)


def test_killed_at_any_moment(mounted):
    point, _image = mounted
    before = synced_free(point)
    for seed in range(4):
        moment = random.Random(seed).randrange(MIB, 300 * MIB)  # noqa: S311
        with running(point, after=moment) as process:
            process.kill()
            process.communicate()
        wait_until_free(point, before)
        assert LEFTOVER not in os.listdir(point)


def test_the_time_limit(ext4, tmp_path):
    before = synced_free(ext4)
    prefix = [*SLOWLY, tmp_path / "log"]
    given = {"paths": [str(ext4)], "max_bytes": SIZE, "keep_free_bytes": 0, "timeout": 2}
    started = time.monotonic()
    result = run_module("zero_free_space", prefix=prefix, **given)
    assert time.monotonic() - started > 2
    assert 0 < result["written_bytes"] < SIZE // 2
    assert not result["failed"]
    assert result["file_systems"][0]["stopped_by"] == "timeout"
    assert synced_free(ext4) == before


@pytest.mark.parametrize(
    ("fault", "outcome"), [("ENOSPC", "full"), ("EDQUOT", "full"), ("EIO", "Input/output error")]
)
def test_the_file_system_fails(ext4, tmp_path, fault, outcome):
    """Faults of the kernel's own kind at the third flush, injected by strace."""
    before = synced_free(ext4)
    inject = f"inject=fdatasync:error={fault}:when=3"
    prefix = ["strace", "-qq", "-o", tmp_path / "log", "-e", "trace=fdatasync", "-e", inject]
    given = {"paths": [str(ext4)], "max_bytes": SIZE, "keep_free_bytes": 0}
    result = run_module("zero_free_space", prefix=prefix, **given)
    if fault == "EIO":
        assert_explains(result, str(ext4), outcome)
    else:
        assert result["file_systems"][0]["stopped_by"] == outcome
        assert result["written_bytes"] == 192 * MIB
    assert synced_free(ext4) == before


def test_a_second_filler_is_refused_and_the_first_can_be_ended(mounted, ext4, tmp_path):
    point, _image = mounted
    before = synced_free(point)
    with running(point, log=tmp_path / "log") as process:
        assert_explains(fill(ext4), f"Process {process.pid} ", "state=absent")
        check = run_module("zero_free_space", check=True, state="absent", paths=[str(point)])
        assert (check["changed"], check["ended"]) == (True, True)
        assert process.poll() is None
        ended = run_module("zero_free_space", state="absent", paths=[str(point)])
        result = json.loads(process.communicate(timeout=10)[0])
    assert (ended["changed"], ended["ended"], ended["removed"]) == (True, True, [])
    assert result["file_systems"][0]["stopped_by"] == "stopped"
    assert synced_free(point) == before
    again = run_module("zero_free_space", state="absent", paths=[str(point)])
    assert (again["changed"], again["ended"]) == (False, False)
    assert not fill(ext4, max_bytes=MIB)["failed"]


def test_a_filler_that_does_not_heed_is_killed(ext4):
    """One that is stopped gets SIGTERM only when it goes on, SIGKILL at once."""
    before = synced_free(ext4)
    with running(ext4) as process:
        process.send_signal(signal.SIGSTOP)
        assert run_module("zero_free_space", state="absent", timeout=4)["ended"]
        process.communicate(timeout=10)
    assert process.returncode == -signal.SIGKILL
    assert synced_free(ext4) == before


def test_what_a_killed_run_left_is_removed_and_nothing_else(ext4):
    """A name is left only by a kill between two system calls, so it is put there by hand."""
    leftover = ext4 / LEFTOVER
    leftover.touch()
    result = run_module("zero_free_space", check=True, state="absent", paths=[str(ext4)])
    assert (result["changed"], result["removed"], leftover.exists()) == (True, [str(ext4)], True)
    result = run_module("zero_free_space", state="absent")
    assert result["removed"] == [str(ext4)]
    assert not leftover.exists()
    leftover.touch()
    assert not fill(ext4, max_bytes=MIB)["failed"]
    assert not leftover.exists()
    leftover.write_text("somebody's own")
    assert not run_module("zero_free_space", state="absent", paths=[str(ext4)])["changed"]
    assert not fill(ext4, max_bytes=MIB)["failed"]
    assert leftover.read_text() == "somebody's own"
    leftover.unlink()
    leftover.symlink_to("/etc/passwd")
    assert not run_module("zero_free_space", state="absent", paths=[str(ext4)])["changed"]
    leftover.unlink()


def test_a_file_system_without_nameless_files(tmp_path):
    """vfat knows no O_TMPFILE, and files of 4 GiB at most; never tried, so only when forced."""
    if "\tvfat\n" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no vfat")
    with file_system(tmp_path, "vfat", "mkfs.vfat") as (point, _image):
        before = synced_free(point)
        assert_explains(fill(point), "(vfat) was never tried", "force=true")
        with running(point, force=True) as process:
            assert os.listdir(point) == []
            process.kill()
            process.communicate()
        assert synced_free(point) == before
        assert fill(point, force=True)["file_systems"][0]["stopped_by"] == "reserve"
        assert synced_free(point) == before


def test_refusals_change_nothing(ext4, tmp_path):
    (ext4 / "folder").mkdir(exist_ok=True)
    link = tmp_path / "link"
    link.symlink_to(ext4)
    (tmp_path / "tmpfs").mkdir()
    before = synced_free(ext4)
    cases = {
        f"{ext4}/folder": "is not a mount point",
        str(link): "is no folder",
        f"{ext4}/": "not an absolute path in its shortest form",
        "ext4": "not an absolute path",
        f"{ext4}/none": "does not exist",
        "/proc": "is on no disk",
    }
    for path, reason in cases.items():
        assert_explains(run_module("zero_free_space", paths=[path], max_bytes=MIB), reason)
    twice = run_module("zero_free_space", paths=[str(ext4), str(ext4)], max_bytes=MIB)
    assert_explains(twice, "one file system")
    for wrong in ({"max_bytes": -1}, {"max_bytes": MIB, "keep_free_bytes": -1}):
        assert_explains(run_module("zero_free_space", paths=[str(ext4)], **wrong), "negative")
    run("mount", "-o", "remount,ro", ext4)
    try:
        assert_explains(fill(ext4, force=True), "mounted read-only")
    finally:
        run("mount", "-o", "remount,rw", ext4)
    run("mount", "-t", "tmpfs", "none", tmp_path / "tmpfs")
    try:
        assert_explains(fill(tmp_path / "tmpfs", force=True), "(tmpfs) is on no disk")
    finally:
        run("umount", tmp_path / "tmpfs")
    assert synced_free(ext4) == before


def test_only_root(ext4):
    # It reads the checkout, which may well lie in root's home.
    reading = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    as_nobody = ["setpriv", "--reuid=65534", "--clear-groups", *reading]
    given = {"paths": [str(ext4)], "max_bytes": MIB}
    assert_explains(run_module("zero_free_space", prefix=as_nobody, **given), "root", "become")


def test_btrfs_is_refused_unless_forced(tmp_path):
    if "\tbtrfs\n" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no btrfs")
    with file_system(tmp_path, "btrfs", "mkfs.btrfs", "-q") as (point, _image):
        assert_explains(fill(point), "compresses zeros", "force=true")
        assert fill(point, force=True, max_bytes=32 * MIB)["written_bytes"] == 32 * MIB


def test_a_file_system_that_says_it_knows_no_nameless_files(ext4, tmp_path):
    """What vfat says, injected by strace; the name lives for one system call and has no bytes."""
    log = tmp_path / "log"
    prefix = ["strace", "-y", "-o", log, "-P", str(ext4), "-e", "trace=openat,unlinkat,write"]
    given = {"paths": [str(ext4)], "max_bytes": 8 * MIB, "keep_free_bytes": 0}
    assert not run_module("zero_free_space", prefix=prefix, **given)["failed"]
    opened = [line for line in log.read_text().splitlines() if line.startswith("openat")]
    (number,) = [n for n, line in enumerate(opened, 1) if "O_TMPFILE" in line]
    prefix += ["-e", f"inject=openat:error=EOPNOTSUPP:when={number}"]
    before = synced_free(ext4)
    result = run_module("zero_free_space", prefix=prefix, **given)
    assert result["written_bytes"] == 8 * MIB
    calls = log.read_text().splitlines()
    (made,) = [n for n, line in enumerate(calls) if LEFTOVER in line and "O_EXCL" in line]
    assert "INJECTED" in calls[made - 1]
    assert calls[made + 1].startswith("unlinkat(")
    assert LEFTOVER in calls[made + 1]
    assert LEFTOVER not in os.listdir(ext4)
    assert synced_free(ext4) == before
