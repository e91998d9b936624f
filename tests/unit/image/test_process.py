# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs are kept within bounds; tried on real ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    CommandError,
    RequirementError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import process
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import (
    StoppedError,
    signals_raise,
)


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
    assert time.monotonic() - begin < 50  # the program and its child sleep for 60 s
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


def test_files_are_passed_on_under_their_numbers(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    fd = os.open(path, os.O_RDONLY)
    try:
        argv = ["/bin/cat", f"/proc/self/fd/{fd}"]
        assert process.run(argv, timeout=5, pass_fds=(fd,)).stdout == b"content"
        assert process.run(argv, timeout=5).rc == 1
    finally:
        os.close(fd)


def test_output_is_handed_on_as_it_comes():
    pieces = []
    code = "import time; print('a', flush=True); time.sleep(0.3); print('b')"
    completed = process.run([sys.executable, "-c", code], timeout=10, on_output=pieces.append)
    assert completed.stdout == b""
    assert [piece for piece in pieces if piece] == [b"a\n", b"b\n"]


def test_who_follows_is_called_when_nothing_is_printed_too():
    calls = []
    code = "import time; time.sleep(2.5)"
    process.run([sys.executable, "-c", code], timeout=10, on_output=calls.append)
    assert len(calls) >= 3


def test_an_error_of_who_follows_ends_the_program(tmp_path):
    pids = tmp_path / "pids"
    code = f"import os, time; open({str(pids)!r}, 'w').write(str(os.getpid())); print('x', flush=True); time.sleep(60)"  # noqa: E501

    def follow(piece: bytes) -> None:
        if piece:
            raise KeyError

    with pytest.raises(KeyError):
        process.run([sys.executable, "-c", code], timeout=10, on_output=follow)
    wait_for_end(int(pids.read_text()))


def test_variables_besides_the_usual_ones():
    code = "import os; print(sorted(os.environ))"
    completed = process.run([sys.executable, "-c", code], timeout=5, env={"LIBGUESTFS_X": "1"})
    assert completed.stdout == b"['LC_ALL', 'LIBGUESTFS_X', 'PATH']\n"


def test_another_memory_limit():
    code = f"bytearray({64 << 20})"
    assert python(code, max_memory_bytes=1 << 30).rc == 0
    assert python(code, max_memory_bytes=64 << 20).rc != 0


RUN_SLEEP = """
import signal
import subprocess
import sys
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import process
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import (
    StoppedError,
    signals_raise,
)
code = "import os, sys, time; print(os.getpid(), file=open(sys.argv[1], 'w')); time.sleep(60)"
process.run([sys.executable, "-c", code, sys.argv[1]], timeout=60)
"""


def test_a_program_dies_with_us_however_we_end(tmp_path):
    pids = tmp_path / "pids"
    with subprocess.Popen([sys.executable, "-c", RUN_SLEEP, pids]) as parent:
        while not (pids.exists() and pids.read_text().endswith("\n")):
            assert parent.poll() is None
            time.sleep(0.02)
        parent.kill()
    wait_for_end(int(pids.read_text()))


def test_a_program_whose_starter_is_gone_already_is_not_started(tmp_path):
    """It had no chance to tell the kernel that it wants to die with it."""
    argv = process._limited(
        ["/bin/touch", str(tmp_path / "x")], cpu_seconds=9, memory_bytes=1 << 30
    )
    assert subprocess.run(argv, check=False).returncode == 0
    (tmp_path / "x").unlink()
    argv[argv.index(str(os.getpid()))] = "1"
    assert subprocess.run(argv, check=False).returncode != 0
    assert os.listdir(tmp_path) == []


def test_an_old_setpriv_is_done_without(monkeypatch):
    monkeypatch.setattr(process, "_setpriv_knows_it", tuple)
    assert python("print('x')").stdout == b"x\n"


def test_a_signal_that_comes_while_a_program_is_started(tmp_path, monkeypatch):
    """The program is known, and ended, before anything else is done."""
    real, pids = subprocess.Popen, []

    def popen(*arguments, **more):
        started = real(*arguments, **more)
        pids.append(started.pid)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        return started

    monkeypatch.setattr(process.subprocess, "Popen", popen)
    with pytest.raises(StoppedError), signals_raise():
        python(f"import time; time.sleep(1); open({str(tmp_path / 'x')!r}, 'w')")
    assert not os.path.exists(f"/proc/{pids[0]}")
    assert os.listdir(tmp_path) == []
