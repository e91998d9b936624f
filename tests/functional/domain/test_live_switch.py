# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A domain's QEMU is killed while it is switched from one overlay to another, and they differ.

domain_compact is killed when it asks for the switch, and the guest's QEMU with the copy at work.
What the one overlay has and the other has not is written by qemu-io afterwards: in a race it would
be there one time in some.
"""

from __future__ import annotations

import os
import shutil
import signal

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import peek
from compact_lab import leftovers, sha256, start, wait_for
from image_lab import qemu_io
from lab import Disk, GuestSpec
from live_lab import CONTENT, MIB, assert_one_file, compact_live, pid_of, put_on, source_of
from support import assert_explains

#: Kills its process when it is about to ask for the switch.
AT_THE_SWITCH = """
import os, signal
import libvirt
libvirt.virDomain.blockJobAbort = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""
#: In both overlays, with fives: it was copied when QEMU was killed.
BOTH = "30M"
#: In neither.
FRESH = "100M"


class Switched:
    """The domain, shut off now, and the files that were left."""

    def __init__(self, lab, guest, folders) -> None:
        self.lab, self.guest, self.folders = lab, guest, folders
        path = guest.disk("sda").path
        record = peek(str(path))
        assert record is not None
        assert record.stage == "pivot"
        assert record.live is not None
        self.overlay = path.parent / record.live.overlay
        self.second = folders[-1] / record.live.second

    def state(self):
        files = [folder / name for folder in self.folders for name in os.listdir(folder)]
        return self.guest.xml(), {path: sha256(path) for path in files if path.is_file()}

    def recover(self):
        return compact_live(self.lab, self.guest.name, state="recovered")

    def name_second(self, without=("backingStore",)) -> None:
        """Do what the remedy says."""
        put_on(self.lab, self.guest, self.second, without=without)

    def assert_recovered(self, result, *, moved: bool, **holds: int) -> None:
        """One file is left, and that holds what it has to, by address."""
        assert not result["failed"], result["msg"]
        assert result["domains"][0]["recovered"]
        path = self.folders[-1 if moved else 0] / self.guest.disk("sda").path.name
        assert_one_file(self.guest, path)
        left = [name for folder in self.folders for name in leftovers(folder)]
        assert [name for name in left if path.name in name] == []
        for folder in self.folders:
            assert (folder / path.name).exists() is (folder == path.parent)
        self.guest.destroy()
        for at, value in holds.items():
            assert_holds(path, at, value)
        assert_holds(path, "33M", 7)


def write(path, at: str, value: int) -> None:
    qemu_io(path, f"write -P {value} {at} 64k")


def assert_holds(path, at: str, value: int) -> None:
    qemu_io(path, f"read -P {value} {at} 64k")  # fails if it is another


@pytest.fixture(params=["in place", "moving"])
def switched(lab, tmp_path, request):
    disk = Disk("sda", "scsi", size_bytes=128 * MIB)
    guest = lab.create(GuestSpec("switched", memory_mib=64, disks=(disk,)))
    elsewhere = lab.state / "switched"
    elsewhere.mkdir()
    folders = [guest.disk("sda").path.parent]
    given = {"uri": lab.uri, "domains": [guest.name], "power": "live", "trim": False}
    if request.param == "moving":
        folders.append(elsewhere)
        given["dest_dir"] = str(elsewhere)
    (tmp_path / "sitecustomize.py").write_text(AT_THE_SWITCH)
    prefix = ("env", f"PYTHONPATH={tmp_path}:{os.environ['PYTHONPATH']}")
    try:
        qemu_io(guest.disk("sda").path, *CONTENT)
        lab.virsh("start", guest.name, "--paused")
        process = start(module="domain_compact", prefix=prefix, min_reclaim_bytes=0, **given)
        said = process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL, said
        os.kill(pid_of(guest, lab.state), signal.SIGKILL)
        wait_for(lambda: guest.state() == "shut off")
        it = Switched(lab, guest, folders)
        assert source_of(guest) == it.overlay
        for path in (it.overlay, it.second):
            write(path, BOTH, 5)
        yield it
    finally:
        guest.destroy()
        lab.virsh("undefine", guest.name)
        shutil.rmtree(elsewhere)


def test_a_cluster_that_the_second_lacks_tells_the_right_one(switched):
    write(switched.overlay, FRESH, 6)
    write(switched.overlay, BOTH, 8)
    result = switched.recover()
    switched.assert_recovered(result, moved=False, **{FRESH: 6, BOTH: 8})


def test_if_they_are_equal_either_is_right(switched):
    switched.assert_recovered(switched.recover(), moved=False, **{BOTH: 5})


@pytest.mark.parametrize(
    ("written", "at", "chosen", "kept"),
    [
        ("overlay", BOTH, "overlay", 8),
        ("second", BOTH, "second", 8),
        # The first lacks a cluster: its tables had not been written, or the guest was switched.
        ("second", FRESH, "overlay", 0),
    ],
)
def test_otherwise_an_administrator_decides(switched, written, at, chosen, kept):
    write(getattr(switched, written), at, 8)
    before = switched.state()
    result = switched.recover()
    assert switched.state() == before
    assert_explains(result, "they differ", "Nothing was changed", "start the domain")
    assert_explains(result, str(switched.second), "backingStore (virsh edit)", "state=recovered")

    if chosen == "second":
        switched.name_second()
    switched.lab.virsh("start", switched.guest.name, "--paused")
    result = switched.recover()
    switched.assert_recovered(result, moved=chosen == "second", **{at: kept})


@pytest.mark.parametrize("switched", ["moving"], indirect=True)
def test_a_backing_store_that_was_left_in_the_configuration_costs_a_second_run(switched):
    """libvirt then has the second overlay lie on the original, which holds the same."""
    write(switched.second, BOTH, 8)
    switched.name_second(without=())
    switched.lab.virsh("start", switched.guest.name, "--paused")
    assert_explains(switched.recover(), "no file was removed", "state=recovered")
    switched.assert_recovered(switched.recover(), moved=False, **{BOTH: 8})
