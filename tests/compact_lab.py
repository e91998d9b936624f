# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images to make small, the module that does it, and proofs that nothing was lost or changed."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import typing as t
from pathlib import Path

from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import places
from image_lab import create, qemu_io, run
from support import _RUN, run_module

MIB = 1 << 20
#: What tools and killed runs leave behind would have such names.
LEFTOVERS = ("*thinvirt-*", ".*thinvirt-*")


def compact(*paths: object, uri: str = "", **parameters: t.Any) -> dict[str, t.Any]:
    """Run the module, unless told otherwise without libvirt and for small file systems."""
    given = {"min_free_bytes": 0, **parameters}
    return run_module("image_compact", uri=uri, paths=list(map(str, paths)), **given)


def entry_of(path: object, **parameters: t.Any) -> dict[str, t.Any]:
    """The entry of one image that did not fail."""
    result = compact(path, **parameters)
    assert not result["failed"], result["msg"]
    (entry,) = result["images"]
    assert result["changed"] is entry["changed"]
    assert result["freed_bytes"] == entry["freed_bytes"]
    return t.cast("dict[str, t.Any]", entry)


def refused(path: object, *words: str, **parameters: t.Any) -> str:
    """It is refused in check mode and in a real run, in the same words, and nothing changes."""
    folder = Path(str(path)).parent
    before, messages = state(folder), []
    for check in (True, False):
        result = compact(path, check=check, **parameters)
        assert result["failed"], result["summary"]
        assert not result["changed"]
        (entry,) = result["images"]
        assert set(entry) == {"path", "error"}
        messages.append(entry["error"]["msg"])
        assert state(folder) == before
    assert messages[0] == messages[1]
    assert "\n" not in messages[0]
    for word in words:
        assert word in messages[0], messages[0]
    return messages[0]


def state(folder: Path) -> dict[str, tuple[t.Any, ...]]:
    """All that can be told of the files in a folder: content, blocks, owner, mode, times."""
    found: dict[str, tuple[t.Any, ...]] = {}
    for path in sorted(folder.rglob("*")):
        s = path.lstat()
        times = () if path.is_dir() else (s.st_mtime_ns, s.st_ctime_ns, s.st_nlink)
        content = sha256(path) if path.is_file() and not path.is_symlink() else ""
        found[str(path.relative_to(folder))] = (
            *(s.st_ino, s.st_mode, s.st_uid, s.st_gid, s.st_blocks, s.st_size, content),
            *times,
        )
    return found


def leftovers(folder: Path) -> list[str]:
    """What a run may have left: journals, copies, second names."""
    names = {path.name for pattern in LEFTOVERS for path in folder.glob(pattern)}
    here = os.path.realpath(folder)
    left = [os.path.split(place.path) for place in places()]
    names |= {f"journal of {name}" for parent, name in left if parent == here}
    return sorted(name for name in names if not name.endswith(".thinvirt-original"))


def sha256(path: object) -> str:
    with open(str(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def allocated(path: object) -> int:
    """Blocks on the host, by du."""
    return int(run("du", "-B1", path).split()[0])


def assert_same(
    path: object, other: object, *, forms: tuple[str, str] = ("qcow2", "qcow2")
) -> None:
    """A guest reads the same from both, and the tables of both are in order."""
    run("qemu-img", "compare", "-f", forms[0], "-F", forms[1], path, other)
    sizes = set()
    for name, form in zip((path, other), forms, strict=True):
        sizes.add(
            json.loads(run("qemu-img", "info", "--output=json", "-f", form, name))["virtual-size"]
        )
        if form == "qcow2":
            run("qemu-img", "check", "-q", "-f", "qcow2", name)
    assert len(sizes) == 1


def info(path: object) -> dict[str, t.Any]:
    """What qemu-img says of an image, without what may change."""
    document = json.loads(run("qemu-img", "info", "--output=json", "-f", "qcow2", path))
    for name in ("actual-size", "children", "filename"):
        document.pop(name, None)
    return t.cast("dict[str, t.Any]", document)


def image(path: Path, *, data_mib: int = 16, zeros_mib: int = 24, **options: object) -> Path:
    """A qcow2 image of 128 MiB with random data, and zeros that a guest has written."""
    create(path, "128M", **options)
    fill(path, data_mib=data_mib, zeros_mib=zeros_mib)
    return path


def fill(path: Path, *, data_mib: int, zeros_mib: int = 0, at_mib: int = 0) -> None:
    """Write random data, and zeros behind it, as a guest would."""
    commands = []
    source = path.parent / "random"
    if data_mib:
        source.write_bytes(os.urandom(data_mib * MIB))
        commands.append(f"write -s {source} {at_mib}M {data_mib}M")
    if zeros_mib:
        commands.append(f"write -P 0 {at_mib + data_mib}M {zeros_mib}M")
    try:
        qemu_io(path, *commands)
    finally:
        source.unlink(missing_ok=True)


def with_dead_clusters(path: Path, *, zeros_mib: int = 0) -> Path:
    """Half of the data is referred to by nothing: a guest has discarded it, the host has not."""
    image(path, data_mib=48, zeros_mib=zeros_mib)
    forget(path, "0 24M")
    return path


def forget(path: Path, what: str) -> None:
    """Discard, and leave the clusters that are free then as they are."""
    node = f"driver=qcow2,discard=unmap,pass-discard-request=off,file.filename={path}"
    run("qemu-io", "--image-opts", "-c", f"discard {what}", node)


def raw_image(path: Path, *, data_mib: int = 16, zeros_mib: int = 24, tail: int = 0) -> Path:
    """A raw image: random data, zeros, and more data at the end."""
    with open(path, "wb") as file:
        file.write(os.urandom(data_mib * MIB) + bytes(zeros_mib * MIB) + os.urandom(tail))
        os.fsync(file.fileno())
    return path


#: Comes before the module: a qemu-img of :func:`make_holder` is found before the real one.
_HELD = """
import sys
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import process
process.SEARCH_PATH = sys.argv[2] + ":" + process.SEARCH_PATH
"""
#: Stops itself in a stage, once, and tells who it is: none ends before a test could stop it.
_HOLDER = """#!/bin/sh
if [ "$1" = {stage} ] && mkdir {folder}/held 2>/dev/null; then
    echo $$ >{folder}/pid
    kill -STOP $$
fi
exec {real} "$@"
"""
_HOLDERS: dict[subprocess.Popen, Path] = {}


@functools.cache
def _holders() -> Path:
    """The folder of what holds; it stays, for modules remember where they found a program."""
    folder = Path(tempfile.mkdtemp(prefix="thinvirt-hold-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def make_holder(stage: str, *, real: str = "/usr/bin/qemu-img") -> Path:
    """A folder with a qemu-img that stands still when this subcommand begins, once."""
    folder = Path(tempfile.mkdtemp(dir=_holders()))
    program = folder / "qemu-img"
    program.write_text(_HOLDER.format(stage=stage, folder=folder, real=real))
    program.chmod(0o755)
    return folder


def held_in(folder: Path) -> int | None:
    """The process that a program of :func:`make_holder` is, if it stands still."""
    with contextlib.suppress(OSError, ValueError):
        pid = int((folder / "pid").read_text())
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            return pid
    return None


def start(
    *paths: object,
    module: str = "image_compact",
    prefix: t.Sequence[str] = (),
    hold: str = "",
    **parameters: t.Any,
) -> subprocess.Popen:
    """Start a module and do not wait for it; its answer is on its standard output."""
    given = {"uri": "", "min_free_bytes": 0, **parameters}
    if paths:
        given["paths"] = list(map(str, paths))
    return start_module(module, prefix=prefix, hold=hold, **given)


def start_module(
    module: str, /, *, prefix: t.Sequence[str] = (), hold: str = "", **arguments: t.Any
) -> subprocess.Popen:
    """Start any module, as :func:`start` does.

    :param hold: the subcommand of qemu-img that stands still when it begins, see
        :func:`held_child`.
    """
    argv = [*prefix, sys.executable, "-c", (_HELD if hold else "") + _RUN, module]
    holder = make_holder(hold) if hold else None
    if holder:
        argv.append(str(holder))
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if holder:
        _HOLDERS[process] = holder
    assert process.stdin is not None
    process.stdin.write(json.dumps(arguments))
    process.stdin.close()
    process.stdin = None
    return process


def held_child(process: subprocess.Popen) -> int:
    """The ``qemu-img`` that stands still, as :func:`start` was asked for; waits for it."""
    folder = _HOLDERS.pop(process)

    def find() -> int | None:
        pid = held_in(folder)
        assert pid or process.poll() is None, answer(process)
        return pid

    return t.cast("int", wait_for(find))


def answer(process: subprocess.Popen, *, patience: float = 180) -> dict[str, t.Any]:
    """What a module returns that was started."""
    out, err = process.communicate(timeout=patience)
    assert err == ""
    result = json.loads(out)
    assert (process.returncode != 0) is result.setdefault("failed", False)
    return t.cast("dict[str, t.Any]", result)


def wait_for(condition: t.Callable[[], t.Any], *, seconds: float = 120) -> t.Any:
    """Wait until something is so, and return it."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.0005)
    return value


def users_of(folder: Path) -> list[int]:
    """The processes that have a file of a folder open, deleted ones too."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{name}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{name}/fd/{fd}").startswith(f"{folder}/"):
                        found.append(int(name))
                        break
    return found


def go_on(pid: int) -> None:
    """Have what was held go on, unless the module has seen a reason to end it meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def child_of(process: subprocess.Popen, command: str) -> int:
    """The ``qemu-img`` with this command that a process has started; waits for it."""

    def find() -> int | None:
        assert process.poll() is None, "it has ended"
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                argv = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
                # Before it is qemu-img it is setpriv, which must not be stopped.
                if argv[0].endswith(b"qemu-img") and argv[1] == command.encode():
                    return int(pid)
        return None

    return t.cast("int", wait_for(find))


@contextlib.contextmanager
def held(path, stage: str, **parameters):
    """A rewrite of an image that stands still in a stage: the process, and QEMU's in it."""
    process = start(path, hold=stage, **{"method": "rewrite", **parameters})
    try:
        yield process, held_child(process)
    finally:
        end(process)


def end(process: subprocess.Popen) -> None:
    """Kill what a test has started, unless it has ended, and close its pipes."""
    process.kill()
    process.communicate()


def assert_as_it_was(path: Path, before: dict) -> None:
    """And nobody is at work on it any more."""
    assert state(path.parent) == before
    assert wait_for(lambda: users_of(path.parent) == [])
