# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is made of what a killed run has left."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import recover as recovery
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import (
    Live,
    Record,
    open_journal,
    temp_name,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.exchange import exchange_names
from image_lab import create, qemu_io
from qemu_machine import Machine, blockdev
from recovery_lab import identity, names, recovery_refused, run_recovery


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(recovery, "LEAVE_SECONDS", 0.3)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "x.qcow2"
    create(path)
    qemu_io(path, "write -P 1 0 1M")
    return path


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
@pytest.mark.parametrize("stage", ["copy", "swap", "linked", "exchanged", "renamed", "dropped"])
def test_every_stage(path, stage, keep):
    left = Left(path, keep_original=keep)
    left.write(left.record)
    if stage != "copy":
        left.write(left.swap)
    if stage in ("linked", "exchanged", "renamed", "dropped"):
        os.link(path, left.kept)
    if stage == "exchanged":
        assert exchange_names(str(path), str(left.temp))
    if stage in ("renamed", "dropped"):
        os.rename(left.temp, path)
    if stage == "dropped" and not keep:
        os.unlink(left.kept)
    said = run_recovery(path)
    finished = stage in ("exchanged", "renamed", "dropped")
    assert said.startswith("A run that was killed (process 7, rewrite, ")
    assert said.endswith("was finished." if finished else "was undone.")
    assert identity(path) == (left.copy if finished else left.original)
    assert names(path) == ["x.qcow2", left.kept.name] if keep and finished else ["x.qcow2"]
    assert path.stat().st_nlink == 1
    assert run_recovery(path) == ""


def test_a_reboot_that_gave_the_device_another_number(path):
    """As LVM, NFS and btrfs do after a power loss."""
    left = Left(path)
    os.link(path, left.kept)
    os.rename(left.temp, path)
    before = dataclasses.replace(left.original, dev=left.original.dev + 1)
    copy = dataclasses.replace(left.copy, dev=left.copy.dev + 1)
    left.write(dataclasses.replace(left.swap, source=before, copy=copy))
    assert run_recovery(path).endswith("was finished.")
    assert names(path) == ["x.qcow2"]


def test_punching_leaves_nothing_to_undo(path):
    left = Left(path)
    left.temp.unlink()
    left.write(Record("punch", "punch", 7, left.original))
    assert run_recovery(path).endswith("had left nothing to undo.")
    assert names(path) == ["x.qcow2"]


@pytest.mark.parametrize("keep", [False, True])
def test_a_domain_that_wrote_to_the_original_after_the_kill(path, keep):
    """It had opened it before it lost its name, and got its lock when the run was killed."""
    left = Left(path, keep_original=keep)
    os.link(path, left.kept)
    os.rename(left.temp, path)
    left.write(left.record, left.swap)
    qemu_io(left.kept, "write -P 2 0 64k")
    recovery_refused(path, "one of them was changed after a run that was killed")


def test_a_domain_that_writes_to_the_original_still(path):
    left = Left(path)
    os.link(path, left.kept)
    os.rename(left.temp, path)
    left.write(left.record, left.swap)
    machine = Machine(*blockdev(left.kept))
    try:
        recovery_refused(path, r"which a killed run has left, is in use by qemu-system-x86 \(")
    finally:
        machine.end()


def test_an_image_that_was_exchanged_after_the_kill(path):
    """The original has no other name than the one that the run gave it."""
    left = Left(path)
    os.link(path, left.kept)
    path.unlink()
    path.write_bytes(b"restored")
    left.write(left.record, left.swap)
    recovery_refused(path, "one of them was changed after a run that was killed")


@pytest.mark.parametrize("stage", ["copy", "swap"])
def test_an_image_that_is_gone(path, stage):
    left = Left(path)
    left.write(left.record if stage == "copy" else left.swap)
    os.rename(path, path.parent / "moved")
    says = r"x.qcow2 is gone, and its journal names \..*remove the journal \(/.*\.journal\)"
    recovery_refused(path, says)


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
    recovery_refused(path, "which is no copy of it")


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


def test_a_guest_may_have_written_above_it(path):
    """Then only who knows of domains can tell which of the files is the disk."""
    left = Live("d0e1", "sda", "x.qcow2.thinvirt-1.overlay", "<source/>", "qcow2")
    with open_journal(str(path)) as journal:
        journal.write(Record("live", "copy", 7, identity(path), live=left))
    recovery_refused(path, "thinvirt.kvm.domain_compact and state=recovered")


@pytest.mark.parametrize("stage", ["copy", "renamed"])
def test_the_folder_is_flushed_before_and_after(path, monkeypatch, stage):
    """The killed run may not have: without the new name on the disk the old one is all there is."""
    left = Left(path)
    left.write(left.record)
    if stage == "renamed":
        left.write(left.swap)
        os.link(path, left.kept)
        os.rename(left.temp, path)
    done, sync, remove = [], recovery.sync_folder, recovery.remove_name
    monkeypatch.setattr(recovery, "sync_folder", lambda at: (done.append("flush"), sync(at)))
    monkeypatch.setattr(recovery, "remove_name", lambda at: (done.append("remove"), remove(at)))
    run_recovery(path)
    assert (done[0], done[-1]) == ("flush", "flush")
    assert set(done[1:-1]) == {"remove"}
