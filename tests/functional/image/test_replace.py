# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The proof of a copy, and the swap at its last instant."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    GaveWayError,
    ImageError,
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import recover as recovery
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import replace
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import (
    Identity,
    Record,
    has_journal,
    journal_path,
    open_journal,
    temp_name,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_img import Copy
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage import lease
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.extents import file_usage
from compact_lab import wait_for
from image_lab import create, qemu_io
from qemu_machine import Machine, blockdev
from recovery_lab import identity, names, recovery_refused, run_recovery


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(replace, "LEAVE_SECONDS", 0.3)
    monkeypatch.setattr(recovery, "LEAVE_SECONDS", 0.3)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "x.qcow2"
    create(path)
    qemu_io(path, "write -P 1 0 1M")
    return path


@contextlib.contextmanager
def a_copy(path: Path):
    """A copy of an image that is ready for the swap."""
    temp = path.parent / temp_name(str(path))
    temp.write_bytes(path.read_bytes() if path.exists() else b"new")
    fd = os.open(temp, os.O_RDWR)
    try:
        yield replace.NewCopy(str(temp), fd, file_usage(fd))
    finally:
        os.close(fd)


def swap(path: Path, *, keep: str = "", source: Identity | None = None) -> None:
    """The swap as a run does it, up to whatever happens to it."""
    with open_journal(str(path)) as journal, a_copy(path) as copy:
        record = Record("rewrite", "copy", 7, source, temp=os.path.basename(copy.name))
        journal.write(record)
        stages = replace.Stages()
        try:
            replace.swap_in(
                copy, str(path), journal=journal, record=record, stages=stages, keep=keep
            )
        except ThinvirtError:
            Path(copy.name).unlink(missing_ok=True)
            if not copy.swapping:
                journal.clear()
            raise


# The last instant


def test_swap(path):
    before = identity(path)
    swap(path, source=before)
    assert names(path) == ["x.qcow2"]
    assert identity(path).ino != before.ino
    assert path.stat().st_nlink == 1


def test_the_journal_stays_until_the_last_name_is_on_the_disk(path, monkeypatch):
    sizes = []
    real = replace.sync_folder

    def noted(folder):
        sizes.append(os.stat(journal_path(str(path))).st_size)
        real(folder)

    monkeypatch.setattr(replace, "sync_folder", noted)
    swap(path, source=identity(path))
    assert len(sizes) == 2
    assert all(sizes)


#: Opens a file for writing, writes something to it, and goes on with it.
WRITER = """
import os, sys
print(flush=True)
fd = os.open(sys.argv[1], os.O_RDWR)
os.write(fd, sys.argv[2].encode())
print(flush=True)
sys.stdin.read()
"""


def at_exchange(monkeypatch, before=lambda: None, after=lambda: None) -> None:
    """Do something just before the names are exchanged for the first time, or just after."""
    real, done = replace.exchange_names, []

    def exchange(*names):
        done.append(names)
        if len(done) == 1:
            before()
        result = real(*names)
        if len(done) == 1:
            after()
        return result

    monkeypatch.setattr(replace, "exchange_names", exchange)


@contextlib.contextmanager
def writers():
    """Starts programs that write to a file; those that are kept waiting are not waited for."""
    children = []

    def start(path, *, writes=b"", waits: bool):
        argv = [sys.executable, "-c", WRITER, path, writes]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        children.append(subprocess.Popen(argv, **pipes))
        children[-1].stdout.readline()
        if waits:
            wchan = Path(f"/proc/{children[-1].pid}/wchan")
            wait_for(lambda: "lease" in wchan.read_text())
        else:
            children[-1].stdout.readline()

    try:
        yield start
    finally:
        for child in children:
            child.communicate()


@pytest.mark.parametrize("keep", ["", "x.qcow2.thinvirt-original"])
@pytest.mark.parametrize("instant", ["before", "after"])
def test_a_program_that_opens_the_image_while_it_gets_its_copy(path, monkeypatch, keep, instant):
    """It has looked up the name already, and gets the image that has it again."""
    before, original = identity(path), path.parent / "other name"
    os.link(path, original)
    with writers() as start:

        def come():
            start(original, writes=b"late", waits=True)

        at_exchange(monkeypatch, **{instant: come})
        with pytest.raises(GaveWayError, match="and was let in first; nothing was changed"):
            swap(path, keep=keep, source=before)
    assert identity(path).ino == before.ino
    assert path.read_bytes()[:4] == b"late"
    assert names(path) == ["other name", "x.qcow2"]


def test_a_program_that_opens_the_copy_by_its_new_name_waits(path, monkeypatch):
    """And then has what is the image."""
    with writers() as start:
        at_exchange(monkeypatch, after=lambda: start(path, writes=b"new", waits=True))
        swap(path, source=identity(path))
    assert path.read_bytes()[:3] == b"new"
    assert names(path) == ["x.qcow2"]


def test_two_programs_of_which_each_has_another_of_the_files(path, monkeypatch):
    """Neither may lose what it writes."""
    before, original = identity(path), path.parent / "other name"
    os.link(path, original)
    with writers() as start:

        def come():
            start(original, writes=b"one", waits=True)
            start(path, writes=b"two", waits=True)

        at_exchange(monkeypatch, after=come)
        with pytest.raises(RefusedError, match="the original was opened at the last moment"):
            swap(path, source=before)
    assert path.read_bytes()[:3] == b"two"
    (kept,) = [name for name in names(path) if name.endswith(".tmp")]
    assert (path.parent / kept).read_bytes()[:3] == b"one"
    recovery_refused(path, "one of them was changed after a run that was killed")


@pytest.mark.parametrize("seen", [False, True])
def test_an_image_that_is_exchanged_as_its_copy_gets_the_name(path, monkeypatch, seen):
    before, restored = identity(path), path.parent / "restored"
    restored.write_bytes(b"from a backup")
    at_exchange(monkeypatch, lambda: os.rename(restored, path))
    if not seen:
        with pytest.raises(RefusedError, match="changed or exchanged by somebody else; it was lef"):
            swap(path, source=before)
        assert names(path) == ["x.qcow2"]
        assert path.read_bytes() == b"from a backup"
        return
    monkeypatch.setattr(replace._Held, "can_go_back", lambda _held: False)
    with open_journal(str(path)) as journal, a_copy(path) as copy:
        record = Record("rewrite", "copy", 7, before, temp=os.path.basename(copy.name))
        with pytest.raises(RefusedError, match="it is the copy now, and what was"):
            replace.swap_in(
                copy, str(path), journal=journal, record=record, stages=replace.Stages()
            )
    assert copy.is_theirs
    assert Path(copy.name).read_bytes() == b"from a backup"
    recovery_refused(path, "one of them was changed after a run that was killed")


def test_a_file_system_that_exchanges_no_names(path, monkeypatch):
    monkeypatch.setattr(replace, "exchange_names", lambda *_names: False)
    before = identity(path)
    swap(path, source=before)
    assert names(path) == ["x.qcow2"]
    assert identity(path).ino != before.ino


# Where there are no leases


@pytest.fixture
def no_leases(monkeypatch):
    """As on NFS."""
    monkeypatch.setattr(lease, "_place", lambda _fd, _kind: None)


@pytest.mark.usefixtures("no_leases")
@pytest.mark.parametrize("writes", [b"", b"late"])
@pytest.mark.parametrize("keep", ["", "x.qcow2.thinvirt-original"])
def test_a_program_that_opens_the_original_just_before_the_rename(path, monkeypatch, writes, keep):
    before = identity(path)
    with writers() as start:
        at_exchange(monkeypatch, lambda: start(path, writes=writes, waits=False))
        with pytest.raises(RefusedError, match="the original was opened at the last moment"):
            swap(path, keep=keep, source=before)
        assert path.read_bytes()[:4] == b"QFI\xfb"
        assert has_journal(str(path))
        (kept,) = [name for name in names(path) if name != "x.qcow2"]
        original = path.parent / kept
        assert kept == keep or kept.endswith(".tmp")
        assert original.stat().st_ino == before.ino
        if not keep:
            recovery_refused(path, r"which a killed run has left, is in use by .* \(")
    # It has ended. What it has written is nowhere else.
    if writes:
        with pytest.raises(RefusedError, match="one of them was changed after a run"):
            run_recovery(path)
        assert original.read_bytes()[:4] == b"late"
    else:
        assert run_recovery(path).endswith("was finished.")
        assert original.exists() is bool(keep)


@pytest.mark.usefixtures("no_leases")
def test_a_program_that_wrote_to_the_original_and_is_gone_again(path, monkeypatch):
    """Just before the rename: what it wrote is in no copy."""

    def write():
        with open(path, "r+b") as file:
            file.write(b"late")
        os.utime(path)

    before = identity(path)
    at_exchange(monkeypatch, write)
    with pytest.raises(RefusedError, match="the original was opened at the last moment"):
        swap(path, source=before)
    (kept,) = [name for name in names(path) if name.endswith(".tmp")]
    assert (path.parent / kept).read_bytes()[:4] == b"late"
    recovery_refused(path, "one of them was changed after a run that was killed")


def test_an_image_that_is_exchanged_at_the_last_moment(path, monkeypatch):
    """Just before its second name is made: that one is not to be lost either."""
    before, real = identity(path), os.link
    restored = path.parent / "restored"
    restored.write_bytes(b"from a backup")

    def link(*arguments, **more):
        os.rename(restored, path)
        real(*arguments, **more)

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(RefusedError, match="was changed or exchanged by somebody else"):
        swap(path, source=before)
    assert names(path) == ["x.qcow2"]
    assert path.read_bytes() == b"from a backup"


@pytest.fixture
def no_links(monkeypatch):
    """As on vfat."""

    def link(*_arguments, **_more):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)


@pytest.mark.usefixtures("no_links")
def test_an_image_that_was_exchanged_where_there_are_no_links(path):
    before, restored = identity(path), path.parent / "restored"
    restored.write_bytes(b"from a backup")
    os.rename(restored, path)
    with pytest.raises(RefusedError, match="was changed or exchanged by somebody else"):
        swap(path, source=before)
    assert names(path) == ["x.qcow2"]
    assert path.read_bytes() == b"from a backup"


@pytest.mark.usefixtures("no_links")
def test_a_new_name_where_there_are_no_links(tmp_path):
    swap(tmp_path / "new")
    assert names(tmp_path / "new") == ["new"]
    assert (tmp_path / "new").read_bytes() == b"new"


def test_a_copy_that_was_exchanged_at_the_last_moment(path, monkeypatch):
    before, real = identity(path), os.link

    def link(*arguments, **more):
        (temp,) = (name for name in names(path) if name.endswith(".tmp"))
        (path.parent / "evil").write_bytes(b"evil")
        os.rename(path.parent / "evil", path.parent / temp)
        real(*arguments, **more)

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(RefusedError, match="was changed or exchanged by somebody else"):
        swap(path, source=before)
    assert names(path) == ["x.qcow2"]
    assert identity(path) == before


def test_an_original_that_is_used_by_somebody_who_cannot_be_seen(path, monkeypatch):
    """In another container: there is no process to be found, but its lock."""
    before = identity(path)
    monkeypatch.setattr(replace, "probe_locks", lambda _fd: types.SimpleNamespace(used=(101,)))
    with pytest.raises(RefusedError, match="the original was opened at the last moment"):
        swap(path, source=before)
    (kept,) = (name for name in names(path) if name.endswith(".tmp"))
    assert identity(path.parent / kept).ino == before.ino


def test_a_folder_that_cannot_be_flushed_once_the_copy_has_the_name(path, monkeypatch):
    """The journal stays, with the original: after a loss of power either may have the name."""
    before, real = identity(path), replace.sync_folder

    def sync(folder):
        if identity(path).ino != before.ino:
            raise OSError(errno.EIO, "Input/output error")
        real(folder)

    monkeypatch.setattr(replace, "sync_folder", sync)
    with pytest.raises(ThinvirtError, match="cannot be replaced: Input/output error"):
        swap(path, source=before)
    (kept,) = (name for name in names(path) if name.endswith(".tmp"))
    assert identity(path.parent / kept).ino == before.ino
    monkeypatch.undo()
    assert run_recovery(path).endswith("was finished.")
    assert names(path) == ["x.qcow2"]


def test_a_name_that_somebody_takes_at_the_last_moment(tmp_path, monkeypatch):
    """A new copy never replaces what was not there when it was begun."""
    path, real = tmp_path / "new", os.link

    def link(*arguments, **more):
        path.write_bytes(b"theirs")
        real(*arguments, **more)

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(RefusedError, match="was changed or exchanged by somebody else"):
        swap(path)
    assert names(path) == ["new"]
    assert path.read_bytes() == b"theirs"


def test_a_new_name(tmp_path):
    swap(tmp_path / "new")
    assert names(tmp_path / "new") == ["new"]


@pytest.mark.parametrize("role", ["backing", "image"])
def test_a_machine_that_has_come_meanwhile(path, role):
    option = blockdev(path)
    if role == "backing":
        create(path.parent / "top", backing="x.qcow2")
        option = blockdev(path.parent / "top")
    before = identity(path)
    machine = Machine(*option)
    try:
        with pytest.raises(RefusedError, match="is in use by qemu-system"):
            swap(path, source=before)
    finally:
        machine.end()
    assert identity(path).ino == before.ino
    assert not [name for name in names(path) if "thinvirt" in name]


def test_a_kept_name_that_is_taken(path):
    (path.parent / "kept").write_text("theirs")
    with pytest.raises(RefusedError, match="kept exists already"):
        swap(path, keep="kept", source=identity(path))
    assert names(path) == ["kept", "x.qcow2"]


# The proof


class Tool:
    """A qemu-img that makes a copy, and says what it is told to say of it."""

    def __init__(self, *, result: str, same: bool) -> None:
        self.result = result
        self.same = same

    def convert(self, _spec, target, **_more) -> None:
        Path(target).write_bytes(b"copy")

    def check(self, _spec, **_more):
        return types.SimpleNamespace(result=self.result)

    def compare(self, _spec, _other, **_more) -> bool:
        return self.same


@pytest.mark.parametrize(
    ("result", "same", "says"),
    [
        ("leaks", True, "is leaks; it was removed"),
        ("corrupt", True, "is corrupt; it was removed"),
        ("clean", False, "has another content; it was removed. Check the memory and the disks"),
        ("clean", True, ""),
    ],
)
def test_a_copy_is_not_used_before_it_is_proved(path, result, same, says):
    """An image can be the same to a guest, and have tables that will not stay so."""
    before, fd = identity(path), os.open(path, os.O_RDONLY)

    def copy() -> str:
        with (
            open_journal(str(path)) as journal,
            replace.verified_copy(
                replace.Source(str(path), fd, "S"),
                str(path),
                copy=Copy("qcow2"),
                min_free_bytes=0,
                journal=journal,
                tool=Tool(result=result, same=same),
                stages=replace.Stages(),
            ) as (new, record),
        ):
            assert record.source == before
            return Path(new.name).read_text()

    try:
        if says:
            with pytest.raises(ImageError, match=says):
                copy()
        else:
            assert copy() == "copy"
    finally:
        os.close(fd)
    assert names(path) == ["x.qcow2"]
    assert identity(path) == before


def test_the_journal_stays_where_the_original_may_not_go(path, monkeypatch):
    """What the copy was made by knows of no end: the next run does."""
    fd = os.open(path, os.O_RDONLY)
    monkeypatch.setattr(replace, "probe_locks", lambda _fd: types.SimpleNamespace(used=(101,)))
    try:
        with (
            open_journal(str(path)) as journal,
            pytest.raises(RefusedError, match="opened at the last moment"),
            replace.verified_copy(
                replace.Source(str(path), fd, "S"),
                str(path),
                copy=Copy("qcow2"),
                min_free_bytes=0,
                journal=journal,
                tool=Tool(result="clean", same=True),
                stages=replace.Stages(),
            ) as (new, record),
        ):
            replace.swap_in(new, str(path), journal=journal, record=record, stages=replace.Stages())
    finally:
        os.close(fd)
    monkeypatch.undo()
    with open_journal(str(path)) as journal:
        assert journal.left.stage == "swap"
    assert run_recovery(path).endswith("was finished.")
    assert names(path) == ["x.qcow2"]
