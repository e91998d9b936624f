# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start one program and keep it within bounds: time, memory, output.

``AnsibleModule.run_command`` knows no bounds, and what it has started goes on when we are killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import selectors
import shutil
import signal
import subprocess
import time
import types
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    CommandError,
    RequirementError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import (
    signals_noted,
    stop_if_asked,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.lease import give_way_if_asked

#: Where programs are looked for; never the caller's PATH.
SEARCH_PATH = "/usr/bin:/bin:/usr/sbin:/sbin:/usr/local/bin"

#: Enough for a table of reference counts over 64 TiB; a hostile image that asks for more
#: makes qemu-img fail instead of the host.
MAX_MEMORY_BYTES = 4 * 1024**3
#: The most that a program may print.  ``map`` needs some 130 bytes for an extent.
MAX_OUTPUT_BYTES = 256 * 1024**2
#: Whoever waits for a file that is worked on, a domain that starts, waits no longer than this.
_TICK_SECONDS = 0.25
_NO_ENV: t.Mapping[str, str] = types.MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class Completed:
    """A program that ended by itself; ``rc`` is negative for the signal that ended it."""

    rc: int
    stdout: bytes
    stderr: str


class Runner(t.Protocol):
    """What starts programs: :func:`run`, or a stand-in in tests."""

    def __call__(
        self,
        argv: t.Sequence[str],
        *,
        timeout: float,
        pass_fds: t.Sequence[int] = (),
        on_output: t.Callable[[bytes], None] | None = None,
        env: t.Mapping[str, str] = _NO_ENV,
        max_memory_bytes: int = MAX_MEMORY_BYTES,
    ) -> Completed:
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
    argv: t.Sequence[str],
    *,
    timeout: float,
    pass_fds: t.Sequence[int] = (),
    on_output: t.Callable[[bytes], None] | None = None,
    env: t.Mapping[str, str] = _NO_ENV,
    max_memory_bytes: int = MAX_MEMORY_BYTES,
    max_output_bytes: int = MAX_OUTPUT_BYTES,
) -> Completed:
    """Run a program without a shell, its input closed, in the C locale.

    It ends with this process, however that ends.

    :param argv: the program's absolute path and its arguments.
    :param timeout: seconds, of the clock and of CPU time.
    :param pass_fds: open files that it may use, as ``/proc/self/fd/N``.
    :param on_output: takes what it prints as it comes, which then is not returned; called with
        nothing at least every second besides.  What it raises ends the program.
    :param env: variables besides the locale and the search path.
    :returns: an exit status other than 0 is no error here; 127 means that there is no such
        program.
    :raises CommandError: it took too long or printed too much; then it and its process group
        were killed.
    :raises RequirementError: prlimit(1) is missing.
    """
    limited = _limited(argv, cpu_seconds=math.ceil(timeout) + 1, memory_bytes=max_memory_bytes)
    with contextlib.ExitStack() as stack:
        try:
            # A signal that came before Popen returns would leave a program that nobody ends.
            with signals_noted():
                process = subprocess.Popen(  # pylint: disable=ansible-bad-function
                    limited,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env={"LC_ALL": "C", "PATH": SEARCH_PATH, **env},
                    cwd="/",
                    pass_fds=pass_fds,
                    start_new_session=True,  # a group of its own, killed as one
                )
                stack.enter_context(process)
                stack.callback(_kill, process)  # if it is not at its end, for whatever reason
        except OSError as error:
            message = f"{argv[0]} cannot be started: {error.strerror}."
            raise CommandError(message, argv=argv, rc=None, stderr="") from error
        complaint, output, errors = _collect(process, timeout, max_output_bytes, on_output)
        if complaint:
            raise CommandError(f"{argv[0]} {complaint}.", argv=argv, rc=None, stderr=errors)
        return Completed(rc=process.wait(), stdout=output, stderr=errors)


def _limited(argv: t.Sequence[str], *, cpu_seconds: int, memory_bytes: int) -> list[str]:
    """The command under limits that hold from its first instruction on.

    prlimit(1) sets them and becomes the program.  Rejected: ``preexec_fn``, not safe where
    threads run, and prlimit(2) on a started child, which comes some milliseconds late.
    """
    return [
        *_dying_with_us(),
        find_program("prlimit", package="util-linux"),
        f"--as={memory_bytes}",
        f"--cpu={cpu_seconds}",
        "--core=0",
        *argv,
    ]


def _dying_with_us() -> tuple[str, ...]:
    """setpriv(1), so that the kernel kills the program when we are killed.

    Otherwise a copy that nobody wants any more would go on filling the disk.  If we are killed
    before setpriv has told the kernel, the program has another parent by then, and isn't started.
    Nothing where setpriv lacks the option (util-linux before 2.33): then it does go on.
    """
    if not _setpriv_knows_it():
        return ()
    script = 'unset PWD OLDPWD; test "$PPID" -eq "$0" && exec "$@"'
    return (*_setpriv_knows_it(), "/bin/sh", "-c", script, str(os.getpid()))


@functools.lru_cache(maxsize=1)
def _setpriv_knows_it() -> tuple[str, ...]:
    setpriv = shutil.which("setpriv", path=SEARCH_PATH)
    if setpriv is None:
        return ()
    answer = subprocess.run(  # pylint: disable=ansible-bad-function
        [setpriv, "--help"], capture_output=True, check=False, stdin=subprocess.DEVNULL, timeout=10
    )
    return (setpriv, "--pdeathsig", "KILL") if b"--pdeathsig" in answer.stdout else ()


def _collect(
    process: subprocess.Popen[bytes],
    timeout: float,
    max_output_bytes: int,
    on_output: t.Callable[[bytes], None] | None,
) -> tuple[str, bytes, str]:
    """Read both pipes until the program ends: (what went wrong or nothing, stdout, stderr)."""
    deadline = time.monotonic() + timeout
    texts = {"stdout": bytearray(), "stderr": bytearray()}
    take: dict[str, t.Callable[[bytes], None]] = {name: texts[name].extend for name in texts}
    if on_output is not None:
        take["stdout"] = on_output
    complaint = ""
    with selectors.DefaultSelector() as selector:
        for name, pipe in (("stdout", process.stdout), ("stderr", process.stderr)):
            if pipe is not None:
                selector.register(pipe, selectors.EVENT_READ, name)
        while selector.get_map() and not complaint:
            stop_if_asked()
            give_way_if_asked()
            take["stdout"](b"")
            patience = max(0.0, min(_TICK_SECONDS, deadline - time.monotonic()))
            for key, _events in selector.select(patience):
                piece = os.read(key.fd, 65536)
                take[key.data](piece)
                if not piece:
                    selector.unregister(key.fileobj)
            if sum(map(len, texts.values())) > max_output_bytes:
                complaint = f"printed more than {max_output_bytes} bytes and was killed"
            elif selector.get_map() and time.monotonic() >= deadline:
                complaint = f"did not end within {timeout:g} s and was killed"
    if not complaint and not _ends(process, deadline):
        complaint = f"did not end within {timeout:g} s and was killed"
    return complaint, bytes(texts["stdout"]), texts["stderr"].decode("utf-8", "backslashreplace")


def _ends(process: subprocess.Popen[bytes], deadline: float) -> bool:
    """Both pipes are closed; a program that lives on nevertheless is late as well."""
    try:
        process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is None:  # not yet reaped: its number can't be somebody else's
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
