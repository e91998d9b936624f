# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""image_compact, stopped: by signals, by a second run, by somebody who changes the files.

QEMU's programs are held with SIGSTOP at the stage that matters, so that nothing depends on luck.
"""

from __future__ import annotations

import glob
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from compact_lab import (
    allocated,
    answer,
    assert_as_it_was,
    assert_same,
    compact,
    entry_of,
    go_on,
    held,
    image,
    leftovers,
    raw_image,
    sha256,
    start,
    state,
    wait_for,
)

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


# Signals


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("stage", ["convert", "compare"])
def test_a_signal_undoes_a_copy(tmp_path, stage, number):
    path = image(tmp_path / "x.qcow2")
    before = state(tmp_path)
    with held(path, stage) as (process, child):
        assert len(leftovers(tmp_path)) == 2
        process.send_signal(number)
        result = answer(process)
    assert result["failed"]
    assert f"Stopped by {number.name} before the end" in result["msg"]
    assert not os.path.exists(f"/proc/{child}")
    assert_as_it_was(path, before)
    assert entry_of(path, method="rewrite")["recovered"] == ""


@pytest.mark.parametrize("number", SIGNALS)
def test_many_signals_are_one(tmp_path, number):
    path = image(tmp_path / "x.qcow2")
    before = state(tmp_path)
    with held(path, "convert") as (process, _child):
        for each in (number, *SIGNALS, *SIGNALS):
            process.send_signal(each)
        assert "Stopped by" in answer(process)["msg"]
    assert_as_it_was(path, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_punching(tmp_path, number):
    """Each hole takes a millisecond of its own; the content is the same after each."""
    path = tmp_path / "x.raw"
    path.write_bytes((b"x" * 4096 + bytes(4096)) * 400)
    checksum = sha256(path)
    prefix = ("strace", "-qq", "-o", "/dev/null")
    prefix += ("-e", "trace=fallocate", "-e", "inject=fallocate:delay_enter=10000")
    process = start(path, prefix=prefix, method="punch", min_reclaim_bytes=0)
    full = allocated(path)
    wait_for(lambda: allocated(path) < full - 10 * 4096)
    (child,) = child_pids(process)
    os.kill(child, number)
    assert f"Stopped by {number.name}" in answer(process)["msg"]
    assert full - 400 * 4096 < allocated(path) < full
    assert sha256(path) == checksum
    assert leftovers(tmp_path) == []
    assert entry_of(path, method="punch")["changed"]


def child_pids(process: subprocess.Popen) -> list[int]:
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return list(map(int, text.split()))


def test_a_signal_between_exchange_and_end_waits_until_all_is_in_order(tmp_path):
    path = image(tmp_path / "x.qcow2")
    shutil.copy(path, tmp_path / "pristine")
    prefix = ("strace", "-qq", "-o", "/dev/null", "-e", "trace=renameat2")
    prefix += ("-e", "inject=renameat2:delay_exit=1000000")
    inode = path.stat().st_ino
    process = start(path, prefix=prefix, method="rewrite")
    wait_for(lambda: path.stat().st_ino != inode)
    (child,) = child_pids(process)
    os.kill(child, signal.SIGTERM)
    assert "Stopped by SIGTERM" in answer(process)["msg"]
    assert_same(path, tmp_path / "pristine")
    assert path.stat().st_nlink == 1
    assert leftovers(tmp_path) == []


# Two runs


@pytest.mark.parametrize("method", ["rewrite", "punch", "auto"])
def test_a_second_run_fails_at_once_and_names_the_first(tmp_path, method):
    path = image(tmp_path / "x.qcow2")
    with held(path, "convert") as (process, child):
        busy = f"Another run process {process.pid} (rewrite, copy) is at work on {path}"
        before = state(tmp_path)
        for check in (True, False):
            result = compact(path, method=method, check=check)
            assert busy in result["msg"]
            assert "Wait for it to end" in result["msg"]
        assert state(tmp_path) == before
        go_on(child)
        assert answer(process)["images"][0]["method"] == "rewrite"
    assert leftovers(tmp_path) == []


# A domain, or a stranger, in between


def test_an_image_that_is_written_to_while_it_is_copied(tmp_path):
    """By somebody who heeds no locks; the last byte of the file, whose time alone changes."""
    path = image(tmp_path / "x.qcow2")
    with held(path, "compare") as (process, child):
        os.utime(path)
        inode = path.stat().st_ino
        go_on(child)
        result = answer(process)
    assert "was written to while it was copied; the copy was removed" in result["msg"]
    assert path.stat().st_ino == inode
    assert leftovers(tmp_path) == []


def test_an_image_that_is_exchanged_while_it_is_copied(tmp_path):
    """Restored from a backup, for example: that one is not to be written over."""
    path = image(tmp_path / "x.qcow2")
    image(tmp_path / "restored", data_mib=8)
    checksum = sha256(tmp_path / "restored")
    with held(path, "convert") as (process, child):
        os.rename(tmp_path / "restored", path)
        go_on(child)
        result = answer(process)
    assert "was changed or exchanged by somebody else; it was left as it is" in result["msg"]
    assert sha256(path) == checksum
    assert os.listdir(tmp_path) == ["x.qcow2"]


def test_an_image_that_is_exchanged_before_it_is_copied(tmp_path):
    """What is copied is the file that was looked at, and so is what may be replaced."""
    path = image(tmp_path / "x.qcow2")
    image(tmp_path / "restored", data_mib=8)
    checksum = sha256(tmp_path / "restored")
    with held(path, "check") as (process, child):
        os.rename(tmp_path / "restored", path)
        go_on(child)
        result = answer(process)
    assert "was changed or exchanged by somebody else" in result["msg"]
    assert sha256(path) == checksum
    assert os.listdir(tmp_path) == ["x.qcow2"]


def test_a_copy_that_somebody_exchanges(tmp_path):
    path = image(tmp_path / "x.qcow2")
    before = state(tmp_path)
    with held(path, "compare") as (process, child):
        (temp,) = glob.glob(f"{tmp_path}/.x.qcow2.thinvirt-*.tmp")
        os.rename(raw_image(tmp_path / "evil"), temp)
        go_on(child)
        result = answer(process)
    assert result["failed"]
    assert "it was left as it is" in result["msg"]
    after = state(tmp_path)
    assert after["x.qcow2"][:-2] == before["x.qcow2"][:-2]
    assert leftovers(tmp_path) == []


def test_a_copy_that_somebody_writes_to(tmp_path):
    """What is compared is what gets the name."""
    path = image(tmp_path / "x.qcow2", data_mib=4)
    before = state(tmp_path)
    with held(path, "compare") as (process, child):
        (temp,) = glob.glob(f"{tmp_path}/.x.qcow2.thinvirt-*.tmp")
        with open(temp, "r+b") as file:
            file.seek(-70000, os.SEEK_END)
            file.write(os.urandom(70000))
        go_on(child)
        result = answer(process)
    assert "has another content; it was removed" in result["msg"]
    assert_as_it_was(path, before)
