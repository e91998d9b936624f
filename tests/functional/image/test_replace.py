# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The swap at its last instant, and what is made of what a killed run has left."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import recover as recovery
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import replace
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import (
    Identity,
    Record,
    open_journal,
    temp_name,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.recover import recover
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.extents import file_usage
from image_lab import create, qemu_io
from qemu_machine import Machine, blockdev


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


def identity(path) -> Identity:
    return Identity.of(os.lstat(path))


def names(path: Path) -> list[str]:
    return sorted(os.listdir(path.parent))


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


def run_recovery(path: Path) -> str:
    with open_journal(str(path)) as journal:
        return recover(str(path), journal)


# The last instant


def test_swap(path):
    before = identity(path)
    swap(path, source=before)
    assert names(path) == ["x.qcow2"]
    assert identity(path).ino != before.ino
    assert path.stat().st_nlink == 1


@contextlib.contextmanager
def writer_at(monkeypatch, call: str, path: Path, *, writes: bytes):
    """A program opens the image by its name just before a system call, and goes on with it."""
    code = (
        "import os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "os.write(fd, sys.argv[2].encode())\n"
        "print(flush=True)\n"
        "sys.stdin.read()\n"
    )
    real, children = getattr(os, call), []

    def late(*arguments, **more):
        if not children:
            argv = [sys.executable, "-c", code, path, writes]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            children.append(subprocess.Popen(argv, **pipes))
            children[0].stdout.readline()
        return real(*arguments, **more)

    monkeypatch.setattr(os, call, late)
    yield children
    monkeypatch.undo()
    for child in children:
        child.communicate()


@pytest.mark.parametrize("writes", [b"", b"late"])
@pytest.mark.parametrize("keep", ["", "x.qcow2.thinvirt-original"])
def test_a_program_that_opens_the_original_just_before_the_rename(path, monkeypatch, writes, keep):
    before = identity(path)
    with writer_at(monkeypatch, "rename", path, writes=writes):
        monkeypatch.setattr(replace, "LEAVE_SECONDS", 0.3)
        with pytest.raises(RefusedError, match="the original was opened at the last moment"):
            swap(path, keep=keep, source=before)
        assert path.read_bytes()[:4] == b"QFI\xfb"
        others = [name for name in names(path) if name not in ("x.qcow2", keep)]
        journal, *kept = [name for name in others if name.endswith("journal")] + others
        assert journal in kept
        original = path.parent / (keep or next(n for n in kept if n.endswith(".tmp")))
        assert original.stat().st_ino == before.ino
    # It has ended. What it has written is nowhere else.
    if writes:
        with pytest.raises(RefusedError, match="one of them was changed after a run"):
            run_recovery(path)
        assert original.read_bytes()[:4] == b"late"
    else:
        assert run_recovery(path).endswith("was finished.")
        assert original.exists() is bool(keep)


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


# What a killed run has left


class Left:
    """What a run has left that was killed somewhere in its swap."""

    def __init__(self, path: Path, *, keep_original: bool = False) -> None:
        self.path = path
        self.temp = path.parent / temp_name(str(path))
        kept = "x.qcow2.thinvirt-original" if keep_original else temp_name(str(path))
        self.kept = path.parent / kept
        self.temp.write_bytes(path.read_bytes())
        self.original = identity(path)
        self.copy = identity(self.temp)
        self.record = Record("rewrite", "copy", 7, self.original, temp=self.temp.name)
        self.swap = dataclasses.replace(
            self.record, stage="swap", kept=kept, keep_original=keep_original, copy=self.copy
        )

    def write(self, *records: Record) -> None:
        with open_journal(str(self.path)) as journal:
            for record in records:
                journal.write(record)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("stage", ["copy", "swap", "linked", "renamed", "dropped"])
def test_every_stage(path, stage, keep):
    left = Left(path, keep_original=keep)
    left.write(left.record)
    if stage != "copy":
        left.write(left.swap)
    if stage in ("linked", "renamed", "dropped"):
        os.link(path, left.kept)
    if stage in ("renamed", "dropped"):
        os.rename(left.temp, path)
    if stage == "dropped" and not keep:
        os.unlink(left.kept)
    said = run_recovery(path)
    finished = stage in ("renamed", "dropped")
    assert said.startswith("A run that was killed (process 7, rewrite, ")
    assert said.endswith("was finished." if finished else "was undone.")
    assert identity(path) == (left.copy if finished else left.original)
    assert names(path) == ["x.qcow2", left.kept.name] if keep and finished else ["x.qcow2"]
    assert path.stat().st_nlink == 1
    assert run_recovery(path) == ""


def test_punching_leaves_nothing_to_undo(path):
    left = Left(path)
    left.temp.unlink()
    left.write(Record("punch", "punch", 7, left.original))
    assert run_recovery(path).endswith("had left nothing to undo.")
    assert names(path) == ["x.qcow2"]


def refused(path: Path, says: str) -> None:
    """Time and again, and nothing changes."""
    before = {name: identity(path.parent / name) for name in names(path)}
    for _number in range(2):
        with pytest.raises(RefusedError, match=says):
            run_recovery(path)
        assert {name: identity(path.parent / name) for name in names(path)} == before


@pytest.mark.parametrize("keep", [False, True])
def test_a_domain_that_wrote_to_the_original_after_the_kill(path, keep):
    """It had opened it before it lost its name, and got its lock when the run was killed."""
    left = Left(path, keep_original=keep)
    os.link(path, left.kept)
    os.rename(left.temp, path)
    left.write(left.record, left.swap)
    qemu_io(left.kept, "write -P 2 0 64k")
    refused(path, "one of them was changed after a run that was killed")


def test_a_domain_that_writes_to_the_original_still(path):
    left = Left(path)
    os.link(path, left.kept)
    os.rename(left.temp, path)
    left.write(left.record, left.swap)
    machine = Machine(*blockdev(left.kept))
    try:
        refused(path, r"which a killed run has left, is in use by qemu-system-x86 \(")
    finally:
        machine.end()


def test_an_image_that_was_exchanged_after_the_kill(path):
    """The original has no other name than the one that the run gave it."""
    left = Left(path)
    os.link(path, left.kept)
    path.unlink()
    path.write_bytes(b"restored")
    left.write(left.record, left.swap)
    refused(path, "one of them was changed after a run that was killed")


def test_an_image_that_is_gone(path):
    left = Left(path)
    left.write(left.record)
    os.rename(path, path.parent / "moved")
    refused(
        path, r"x.qcow2 is gone, and its journal names \..*Give the right one of these its name"
    )


@pytest.mark.parametrize("field", ["temp", "kept"])
@pytest.mark.parametrize(
    "name",
    [
        "victim",
        "../victim",
        "x.qcow2",
        ".x.qcow2.thinvirt-journal",
        ".x.qcow2.thinvirt-../../victim00000.tmp",
        ".y.qcow2.thinvirt-0123456789abcdef.tmp",
    ],
)
def test_a_journal_that_names_what_is_no_copy(path, field, name):
    (path.parent / "victim").write_text("content")
    left = Left(path)
    left.write(dataclasses.replace(left.swap, **{field: name}))
    refused(path, "which is no copy of it")


def test_an_original_to_be_kept_under_the_name_of_something_else(path):
    """The link was refused by the kernel, and then the run was killed."""
    left = Left(path, keep_original=True)
    left.kept.write_text("theirs")
    left.write(left.record, left.swap)
    assert run_recovery(path).endswith("was undone.")
    assert names(path) == ["x.qcow2", left.kept.name]
    assert left.kept.read_text() == "theirs"


@pytest.mark.parametrize("target", ["x.qcow2", "victim", "gone"])
def test_a_copy_that_became_a_symlink_loses_only_that(path, target):
    (path.parent / "victim").write_text("content")
    left = Left(path)
    left.write(left.record)
    left.temp.unlink()
    os.symlink(target, left.temp)
    run_recovery(path)
    assert names(path) == ["victim", "x.qcow2"]
    assert identity(path) == left.original
