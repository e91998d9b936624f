# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs are kept within bounds; tried on real ones."""

from __future__ import annotations

import os
import sys
import time

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    CommandError,
    RequirementError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import process


def python(code: str, *, timeout: float = 10.0, **more: int) -> process.Completed:
    return process.run([sys.executable, "-c", code], timeout=timeout, **more)


def test_both_outputs_and_the_status_come_back():
    code = r"import os, sys; print('out'); os.write(2, b'err\xff\n'); sys.exit(3)"
    assert python(code) == process.Completed(3, b"out\n", "err\\xff\n")


def test_it_starts_in_a_plain_environment(monkeypatch):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("LD_PRELOAD_X", "1")
    code = "import os, sys; print(sorted(os.environ), os.environ['LC_ALL'], sys.stdin.read())"
    assert python(code).stdout == b"['LC_ALL', 'PATH'] C \n"


def test_what_takes_too_long_is_killed_with_all_its_children(tmp_path):
    pids = tmp_path / "pids"
    code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "print('begun', file=sys.stderr, flush=True)\n"
        "time.sleep(60)\n"
    )
    begin = time.monotonic()
    with pytest.raises(CommandError, match=r"did not end within 1 s and was killed") as caught:
        python(code, timeout=1)
    assert time.monotonic() - begin < 5
    assert caught.value.rc is None
    assert caught.value.stderr == "begun\n"
    for pid in map(int, pids.read_text().split()):
        wait_for_end(pid)


def wait_for_end(pid: int) -> None:
    """Init reaps an orphan in its own time."""
    for _number in range(100):
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return
        except FileNotFoundError:
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} lives on")


def test_a_child_that_outlives_the_program_is_killed_too(tmp_path):
    pids = tmp_path / "pids"
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(pids)!r}, 'w').write(str(child.pid))\n"
    )
    with pytest.raises(CommandError, match="did not end within 1 s"):
        python(code, timeout=1)
    wait_for_end(int(pids.read_text()))


def test_one_that_closes_its_output_and_lives_on_is_killed_too():
    with pytest.raises(CommandError, match="did not end"):
        python("import os, time; os.close(1); os.close(2); time.sleep(60)", timeout=1)


def test_what_prints_without_end_is_killed():
    with pytest.raises(CommandError, match="printed more than 100000 bytes"):
        python("while True: print('x' * 1000)", max_output_bytes=100000)


def test_memory_is_limited():
    completed = python(f"bytearray({process.MAX_MEMORY_BYTES})")
    assert completed.rc == 1
    assert "MemoryError" in completed.stderr


def test_a_program_that_is_not_there():
    completed = process.run(["/nowhere/qemu-img"], timeout=1)
    assert completed.rc == 127
    assert "failed to execute /nowhere/qemu-img: No such file" in completed.stderr
    with pytest.raises(RequirementError, match="no-such-tool is not installed"):
        process.find_program("no-such-tool", package="nothing")


def test_programs_are_not_looked_for_on_the_callers_path(tmp_path, monkeypatch):
    (tmp_path / "sh").write_text("#!/bin/sh\n")
    os.chmod(tmp_path / "sh", 0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert process.find_program("sh", package="dash") in ("/usr/bin/sh", "/bin/sh")
