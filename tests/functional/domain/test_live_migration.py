# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A domain is migrated to another host, on shared storage, while its disk is compacted.

The other host is a second libvirtd on this machine, with a host UUID of its own.
"""

from __future__ import annotations

import random
import uuid

import pytest
from compact_lab import answer, child_of, start
from image_lab import qemu_io
from lab import Disk, GuestSpec, Lab, daemon
from lab.guest import Guest
from live_lab import CONTENT, MIB, Writer, assert_one_file, compact_live
from support import assert_explains


@pytest.fixture
def other_host(lab):
    with pytest.MonkeyPatch.context() as patch:
        conf = f'{daemon.LIBVIRTD_CONF}\nhost_uuid = "{uuid.uuid4()}"\n'
        patch.setattr(daemon, "LIBVIRTD_CONF", conf)
        other = Lab(lab.state.with_name(f"{lab.state.name}-b"), cache=lab.cache)
        try:
            other.start()
            yield other
        finally:
            other.clean()


@pytest.fixture
def guest(lab):
    disk = Disk("sda", "scsi", size_bytes=128 * MIB)
    guest = lab.create(GuestSpec("moves", memory_mib=64, disks=(disk,)))
    qemu_io(guest.disk("sda").path, *CONTENT)
    lab.virsh("start", guest.name, "--paused")
    yield guest
    guest.destroy()
    lab.virsh("undefine", guest.name)


def migrate(lab, other, name):
    options = ("--live", "--unsafe", "--persistent", "--migrateuri", "tcp://127.0.0.1")
    lab.virsh("migrate", name, other.uri, *options, timeout=120)


def test_migrated_away_meanwhile(lab, other_host, guest, tmp_path):
    path = guest.disk("sda").path
    inode = path.stat().st_ino
    writer = Writer(lab, guest, random.Random(9))  # noqa: S311
    slow = {"power": "live", "trim": False, "bandwidth_bytes": MIB}
    with writer:
        process = start(module="domain_compact", uri=lab.uri, domains=[guest.name], **slow)
        child_of(process, "convert")
    # What writes is QEMU itself, which ends with an assertion if it does so when it has moved out.
    migrate(lab, other_host, guest.name)
    result = answer(process, patience=120)
    # The guest's writes go to the overlay there, so nobody may touch that from here.
    # Whether it notices in the middle or afterwards is a matter of luck.
    afterwards = ("was migrated to another host", "Migrate it back")
    midway = "outgoing migration" in result["msg"]
    assert_explains(result, *(() if midway else afterwards))
    there = Guest(guest.spec, other_host.virsh)
    arrived = Writer(other_host, there, random.Random(10))  # noqa: S311
    arrived.acknowledged, arrived.asked = writer.acknowledged, writer.asked
    try:
        other_host.virsh("resume", there.name)
        assert there.name in other_host.virsh("list", "--name")
        assert arrived.top() != path
        with arrived:
            refused = compact_live(lab, guest.name, state="recovered")
            assert_explains(refused, *afterwards)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("THINVIRT_STATE_DIR", str(tmp_path / "state"))
                unknown = compact_live(other_host, guest.name, state="recovered")
            assert not unknown["changed"]
        assert arrived.top() != path
        # What was begun is known where it was begun.
        migrate(other_host, lab, guest.name)
        writer.acknowledged, writer.asked = arrived.acknowledged, arrived.asked
        recovered = compact_live(lab, guest.name, state="recovered")
        assert not recovered["failed"], recovered["msg"]
        # The guest has opened the image anew when it came back, and that is the copy.
        assert "was finished" in recovered["domains"][0]["recovered"]
        assert_one_file(guest)
        assert path.stat().st_ino != inode
        assert arrived.count > 0
        writer.assert_whole()
    finally:
        there.destroy()
        other_host.virsh("undefine", guest.name)
