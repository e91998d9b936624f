# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""thin_metrics as a module: the file that it writes, judged by promtool, stat and strace."""

from __future__ import annotations

import fcntl
import grp
import os
import re
import subprocess
import sys
import threading

import pytest
from metrics_parts import HOSTILE_NAMES, audit, disk, domain, finding, trim
from support import WITHOUT_OVERRIDE, assert_explains, run_module

AUDIT = audit(
    *(domain(name, disk(findings=[finding("discard-ignored")])) for name in HOSTILE_NAMES)
)
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def dest(tmp_path):
    return tmp_path / "thinvirt.prom"


def write(dest, **arguments):
    result = run_module("thin_metrics", dest=str(dest), **arguments)
    assert not result["failed"], result["msg"]
    return result


def kept(path):
    """What changes when a file does, or another one takes its name; reading it may change more."""
    status = os.lstat(path)
    return status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def test_promtool_finds_nothing_to_complain_of(dest):
    result = write(dest, audit=AUDIT, trims=[trim(name) for name in HOSTILE_NAMES])
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=dest.read_bytes(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
    samples = [line for line in dest.read_bytes().split(b"\n") if re.match(b"thinvirt_", line)]
    assert result["samples"] == len(samples)


def test_check_then_real_then_again(dest):
    before = os.listdir(dest.parent)
    promised = write(dest, audit=AUDIT, check=True)
    assert promised["changed"]
    assert os.listdir(dest.parent) == before
    done = write(dest, audit=AUDIT)
    assert done["changed"]
    assert done["diff"] == promised["diff"]
    assert done["diff"][0]["after"] == dest.read_bytes().decode()
    assert oct(dest.stat().st_mode & 0o7777) == "0o644"
    written = kept(dest)
    for check in (False, True):
        assert not write(dest, audit=AUDIT, check=check)["changed"]
    assert kept(dest) == written
    assert os.listdir(dest.parent) == [dest.name]


def test_trims_are_not_counted_in_check_mode(dest):
    write(dest, trims=[trim(freed_bytes=5)])
    assert write(dest, trims=[trim(freed_bytes=7)], check=True)["changed"]
    assert '_total{domain="web1",method="trim"} 5\n' in dest.read_text()
    write(dest, trims=[trim(freed_bytes=7)])
    assert '_total{domain="web1",method="trim"} 12\n' in dest.read_text()


@root_only
def test_owner_group_and_mode(dest):
    write(dest, audit=AUDIT, owner="65534", group="daemon", mode="0640")
    status = dest.stat()
    assert (status.st_uid, status.st_gid) == (65534, grp.getgrnam("daemon").gr_gid)
    assert oct(status.st_mode & 0o7777) == "0o640"
    # they stay when nothing is said of them; the mode has a default
    result = write(dest, audit=audit())
    assert (dest.stat().st_uid, dest.stat().st_gid) == (status.st_uid, status.st_gid)
    assert result["diff"][1]["before"]["mode"] == "0640"
    assert oct(dest.stat().st_mode & 0o7777) == "0o644"
    # and are a change of their own
    assert write(dest, audit=audit(), owner="0", check=True)["changed"]
    assert dest.stat().st_uid == 65534
    write(dest, audit=audit(), owner="0")
    assert dest.stat().st_uid == 0


@root_only
def test_whoever_reads_may_do_so_at_every_instant(dest, tmp_path):
    """Owner and mode are set while the file has a name that node_exporter does not read."""
    trace = tmp_path / "trace"
    calls = "trace=fchmod,fchown,chmod,chown,lchown,fchmodat,fchownat,rename,renameat,renameat2"
    prefix = ["strace", "-f", "-y", "-o", str(trace), "-e", calls]
    write(dest, audit=AUDIT, owner="65534", mode="0640", prefix=prefix)
    called = [line for line in trace.read_text().splitlines() if dest.name in line]
    names = [re.search(r"\d+ +(\w+)\(", line)[1] for line in called]
    assert names == ["fchown", "fchmod", "rename"], called
    assert not re.search(r"\.prom>", "".join(called[:2]))
    assert ".prom.tmp" in called[2]


def test_no_reader_sees_half_a_file(dest):
    """Read all the time while two audits of very different length take turns."""
    texts = set()
    small, large = AUDIT, audit(*(domain(f"d{n}", disk()) for n in range(3000)))
    for each in (small, large):
        write(dest, audit=each)
        texts.add(dest.read_bytes())
    seen, done = set(), threading.Event()

    def read():
        while not done.is_set():
            seen.add(dest.read_bytes())
        seen.add(dest.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for each in (small, large, small):
            write(dest, audit=each)
    finally:
        done.set()
        reader.join()
    assert len(texts) == 2
    assert seen
    assert seen <= texts


def test_two_runs_at_once_lose_nothing(dest):
    runs = [
        threading.Thread(target=write, args=(dest,), kwargs={"trims": [trim(freed_bytes=1)]})
        for _run in range(6)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert '_total{domain="web1",method="trim"} 6\n' in dest.read_text()


def test_a_folder_that_is_locked_is_waited_for(dest):
    fd = os.open(dest.parent, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    waiting = threading.Thread(target=write, args=(dest,), kwargs={"audit": AUDIT})
    waiting.start()
    waiting.join(3)
    assert waiting.is_alive()
    assert not dest.exists()
    os.close(fd)
    waiting.join(60)
    assert dest.exists()


@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "folder", "other", "binary"])
def test_what_is_not_ours_is_left_alone(dest, tmp_path, kind):
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    {
        "link": lambda: dest.symlink_to(victim),
        "dangling": lambda: dest.symlink_to(tmp_path / "nothing"),
        "fifo": lambda: os.mkfifo(dest),
        "folder": dest.mkdir,
        "other": lambda: dest.write_text("node_other 1\n"),
        "binary": lambda: dest.write_bytes(b"\xff\xfe"),
    }[kind]()
    before = kept(dest)
    result = run_module("thin_metrics", dest=str(dest), audit=AUDIT)
    assert_explains(result, str(dest))
    assert victim.read_text() == "precious\n"
    assert kept(dest) == before
    assert sorted(os.listdir(tmp_path)) == sorted({dest.name, "victim"})


def test_a_link_in_the_way_of_the_temporary_name_is_not_followed(dest, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    (tmp_path / f"{dest.name}.tmp").symlink_to(victim)
    write(dest, audit=AUDIT)
    assert victim.read_text() == "precious\n"
    assert not dest.is_symlink()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dest": "thinvirt.prom"}, ["absolute path"]),
        ({"dest": "/tmp/thinvirt.txt"}, ["ends in .prom"]),
        ({"dest": "/nowhere/thinvirt.prom"}, ["/nowhere does not exist"]),
        ({"mode": "u=rw"}, ["mode must be an octal number"]),
        ({"owner": "nobody-here"}, ["There is no user nobody-here"]),
        ({"audit": {"msg": "failed"}}, ["not what thinvirt.kvm.thin_info returns"]),
        ({"trims": [{"domains": [{}]}]}, ["trims has something else"]),
    ],
)
def test_wishes_that_are_refused(dest, arguments, words):
    result = run_module("thin_metrics", **{"dest": str(dest), "audit": AUDIT, **arguments})
    assert_explains(result, *words)
    assert os.listdir(dest.parent) == []


@root_only
def test_a_folder_without_the_right_to_write(dest):
    dest.parent.chmod(0o555)
    result = run_module("thin_metrics", dest=str(dest), audit=AUDIT, prefix=WITHOUT_OVERRIDE)
    assert_explains(result, str(dest), "Permission denied", "Run this as root")
    assert os.listdir(dest.parent) == []


@root_only
def test_a_folder_of_somebody_else(dest):
    os.chown(dest.parent, 65534, -1)
    for check in (True, False):
        result = run_module("thin_metrics", dest=str(dest), audit=AUDIT, check=check)
        assert_explains(result, str(dest.parent), "belongs to user nobody", "trusted_owners")
        assert os.listdir(dest.parent) == []
    result = run_module("thin_metrics", dest=str(dest), audit=AUDIT, trusted_owners=["nobody"])
    assert result["changed"], result["msg"]


def test_it_needs_nothing_but_python():
    """No libvirt, no lxml: hosts may have metrics of trims that were made elsewhere."""
    code = """
import importlib, sys
importlib.import_module("ansible_collections.thinvirt.kvm.plugins.modules.thin_metrics")
print([name for name in ("libvirt", "lxml", "yaml", "jinja2") if name in sys.modules])
"""
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert loaded.stdout.strip() == "[]"
