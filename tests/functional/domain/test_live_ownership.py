# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Live compaction where QEMU is no root and libvirt gives it its files, as distributions have it.

Owners and modes are read with stat; the domain has no system, what writes is its QEMU.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from image_lab import qemu_io
from lab import Disk, GuestSpec, Lab, daemon
from live_lab import CONTENT, MIB, Writer, assert_one_file, compact_live

#: Debian's, see lab.daemon.ACCOUNTS.
QEMU_UID = 64055
CONF = """
user = "libvirt-qemu"
group = "libvirt-qemu"
dynamic_ownership = 1
remember_owner = 1
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture(scope="module")
def owned_lab():
    # Where every user may look into; checkouts of root are often not.
    state = Path(tempfile.mkdtemp(prefix="thinvirt-", dir="/var/tmp"))
    state.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(daemon, "QEMU_CONF_ROOT", CONF)
        lab = Lab(state)
        try:
            lab.start()
            yield lab
        finally:
            lab.clean()


@pytest.fixture
def guest(owned_lab):
    disk = Disk("sda", "scsi", size_bytes=128 * MIB)
    guest = owned_lab.create(GuestSpec("owned", memory_mib=64, disks=(disk,)))
    path = guest.disk("sda").path
    qemu_io(path, *CONTENT)
    path.chmod(0o640)
    owned_lab.virsh("start", guest.name, "--paused")
    try:
        yield guest
    finally:
        guest.destroy()
        owned_lab.virsh("undefine", guest.name)
        shutil.rmtree(owned_lab.state / "elsewhere", ignore_errors=True)


def owner_and_mode(path):
    status = os.stat(path)
    return status.st_uid, status.st_gid, status.st_mode & 0o7777


def test_the_new_file_is_qemus_and_the_guest_starts_again(owned_lab, guest):
    path = guest.disk("sda").path
    before = owner_and_mode(path)
    assert before == (QEMU_UID, QEMU_UID, 0o640)
    inode = path.stat().st_ino
    writer = Writer(owned_lab, guest, random.Random(8))  # noqa: S311
    with writer:
        result = compact_live(owned_lab, guest.name)
    assert not result["failed"], result["msg"]
    assert result["changed"]
    assert path.stat().st_ino != inode
    assert owner_and_mode(path) == before
    assert_one_file(guest)
    writer.assert_whole()
    guest.destroy()
    assert owner_and_mode(path)[2] == 0o640
    owned_lab.virsh("start", guest.name, "--paused")
    assert owner_and_mode(path) == before
    with writer:  # it may write
        pass
    count = writer.count
    with writer:
        while writer.count == count:
            assert writer.errors == []
    writer.assert_whole()


def test_to_a_folder_of_roots(owned_lab, guest):
    path = guest.disk("sda").path
    folder = owned_lab.state / "elsewhere"
    folder.mkdir(mode=0o711)
    before = owner_and_mode(path)
    result = compact_live(owned_lab, guest.name, dest_dir=str(folder))
    assert not result["failed"], result["msg"]
    new = folder / path.name
    assert not path.exists()
    assert owner_and_mode(new) == before
    guest.destroy()
    owned_lab.virsh("start", guest.name, "--paused")
    assert owner_and_mode(new) == before


def test_to_a_folder_that_qemu_cannot_get_to(owned_lab, guest):
    path = guest.disk("sda").path
    folder = owned_lab.state / "elsewhere"
    folder.mkdir(mode=0o700)
    configured = guest.xml(inactive=True)
    result = compact_live(owned_lab, guest.name, dest_dir=str(folder))
    assert result["failed"]
    assert "The disk is as it was" in result["msg"]
    assert "Traceback" not in result["msg"]
    assert os.listdir(folder) == []
    assert guest.xml(inactive=True) == configured
    assert_one_file(guest)
    assert owner_and_mode(path)[0] == QEMU_UID
