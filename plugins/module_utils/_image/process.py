# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start one program and keep it within bounds: time, memory, output."""

from __future__ import annotations

import dataclasses
import math
import os
import selectors
import shutil
import signal
import subprocess
import time
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    CommandError,
    RequirementError,
)

#: Where programs are looked for; never the caller's PATH.
SEARCH_PATH = "/usr/bin:/bin:/usr/sbin:/sbin:/usr/local/bin"

#: Enough for a table of reference counts over 64 TiB; a hostile image that asks for more
#: makes qemu-img fail instead of the host.
MAX_MEMORY_BYTES = 4 * 1024**3
#: The most that a program may print.  ``map`` needs some 130 bytes for an extent.
MAX_OUTPUT_BYTES = 256 * 1024**2


@dataclasses.dataclass(frozen=True)
class Completed:
    """A program that ended by itself; ``rc`` is negative for the signal that ended it."""

    rc: int
    stdout: bytes
    stderr: str


class Runner(t.Protocol):
    """What starts programs: :func:`run`, or a stand-in in tests."""

    def __call__(self, argv: t.Sequence[str], *, timeout: float) -> Completed:
        """Run a program to its end, as :func:`run` does."""


def find_program(name: str, *, package: str) -> str:
    """The absolute path of a program.

    :param package: the package that brings it, for the remedy.
    :raises RequirementError: it is not installed.
    """
    path = shutil.which(name, path=SEARCH_PATH)
    if path is None:
        raise RequirementError(f"{name} is not installed.", remedy=f"Install {package}.")
    return path


def run(
    argv: t.Sequence[str], *, timeout: float, max_output_bytes: int = MAX_OUTPUT_BYTES
) -> Completed:
    """Run a program without a shell, its input closed, in the C locale.

    :param argv: the program's absolute path and its arguments.
    :param timeout: seconds, of the clock and of CPU time.
    :returns: an exit status other than 0 is no error here; 127 means that there is no such
        program.
    :raises CommandError: it took too long or printed too much; then it and its process group
        were killed.
    :raises RequirementError: prlimit(1) is missing.
    """
    try:
        process = subprocess.Popen(
            _limited(argv, cpu_seconds=math.ceil(timeout) + 1),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"LC_ALL": "C", "PATH": SEARCH_PATH},
            cwd="/",
            start_new_session=True,  # a group of its own, killed as one
        )
    except OSError as error:
        message = f"{argv[0]} cannot be started: {error.strerror}."
        raise CommandError(message, argv=argv, rc=None, stderr="") from error
    with process:
        try:
            complaint, output, errors = _collect(process, timeout, max_output_bytes)
        except BaseException:
            _kill(process)
            raise
        if complaint:
            _kill(process)
            raise CommandError(f"{argv[0]} {complaint}.", argv=argv, rc=None, stderr=errors)
        return Completed(rc=process.wait(), stdout=output, stderr=errors)


def _limited(argv: t.Sequence[str], *, cpu_seconds: int) -> list[str]:
    """The command under limits that hold from its first instruction on.

    prlimit(1) sets them and becomes the program.  Rejected: ``preexec_fn``, not safe where
    threads run, and prlimit(2) on a started child, which comes some milliseconds late.
    """
    return [
        find_program("prlimit", package="util-linux"),
        f"--as={MAX_MEMORY_BYTES}",
        f"--cpu={cpu_seconds}",
        "--core=0",
        *argv,
    ]


def _collect(
    process: subprocess.Popen[bytes], timeout: float, max_output_bytes: int
) -> tuple[str, bytes, str]:
    """Read both pipes until the program ends: (what went wrong or nothing, stdout, stderr)."""
    deadline = time.monotonic() + timeout
    texts = {"stdout": bytearray(), "stderr": bytearray()}
    complaint = ""
    with selectors.DefaultSelector() as selector:
        for name, pipe in (("stdout", process.stdout), ("stderr", process.stderr)):
            if pipe is not None:
                selector.register(pipe, selectors.EVENT_READ, name)
        while selector.get_map() and not complaint:
            for key, _events in selector.select(max(0.0, deadline - time.monotonic())):
                piece = os.read(key.fd, 65536)
                texts[key.data] += piece
                if not piece:
                    selector.unregister(key.fileobj)
            if sum(map(len, texts.values())) > max_output_bytes:
                complaint = f"printed more than {max_output_bytes} bytes and was killed"
            elif selector.get_map() and time.monotonic() >= deadline:
                complaint = f"did not end within {timeout:g} s and was killed"
    if not complaint:
        # Both pipes are closed; a program that lives on nevertheless is late as well.
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            complaint = f"did not end within {timeout:g} s and was killed"
    return complaint, bytes(texts["stdout"]), texts["stderr"].decode("utf-8", "backslashreplace")


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is None:  # not yet reaped: its number can't be somebody else's
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
