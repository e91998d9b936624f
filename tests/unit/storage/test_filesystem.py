# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""mountinfo as the kernel writes it, and file systems as df sees them."""

from __future__ import annotations

import os
import subprocess

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    NotFoundError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage import filesystem

MOUNTINFO = r"""22 1 254:1 / / rw,relatime shared:1 master:2 - ext4 /dev/vda1 rw,errors=remount-ro
30 22 0:27 /images /var/lib/libvirt/my\040images\134x rw - btrfs /dev/mapper/v\011g rw,space_cache
31 22 0:40 / /mnt/ro ro,nosuid - nfs4 host:/export rw,vers=4.2
32 22 0:41 / /mnt/frozen rw - xfs /dev/sdb ro
33 22 0:42 / /mnt/odd rw propagate_from:2 - fuse.sshfs user@host:/a\040-\040b rw
"""


def test_mountinfo():
    mounts = filesystem.parse_mountinfo(MOUNTINFO)
    assert list(mounts) == [22, 30, 31, 32, 33]
    assert mounts[22] == filesystem.Mount(
        id=22,
        device="254:1",
        root="/",
        mount_point="/",
        type="ext4",
        source="/dev/vda1",
        read_only=False,
        options=("rw", "relatime"),
        super_options=("rw", "errors=remount-ro"),
    )
    assert mounts[30] == filesystem.Mount(
        id=30,
        device="0:27",
        root="/images",
        mount_point=r"/var/lib/libvirt/my images\x",
        type="btrfs",
        source="/dev/mapper/v\tg",
        read_only=False,
        options=("rw",),
        super_options=("rw", "space_cache"),
    )
    assert mounts[31].read_only
    assert mounts[32].read_only
    assert mounts[33].source == "user@host:/a - b"


@pytest.mark.parametrize("line", ["x", "1 2 3", "a 1 0:1 / / rw - ext4 /dev/a rw", "- - -"])
def test_lines_that_are_not_mountinfo(line):
    with pytest.raises(ThinvirtError, match="mountinfo is not understood"):
        filesystem.parse_mountinfo(line + "\n")


@pytest.mark.parametrize("path", ["/", "/dev/shm", "/proc/self/status"])
def test_it_agrees_with_findmnt_and_df(path):
    columns = "TARGET,SOURCE,FSTYPE,MAJ:MIN"
    command = ["findmnt", "-n", "-r", "--nofsroot", "-o", columns, "-T", path]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    found = filesystem.file_system_of(path)
    listed = (found.mount_point, found.source, found.type, found.device)
    assert " ".join(listed) == answer.stdout.splitlines()[-1]  # the uppermost mount
    command = ["df", "-B1", "--output=size", path]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert str(found.total_bytes) == answer.stdout.split()[-1].replace("-", "0")


def test_an_open_file_will_do(tmp_path):
    with open(tmp_path / "x", "w") as file:
        by_file = filesystem.file_system_of(file.fileno())
    by_path = filesystem.file_system_of(str(tmp_path))
    assert by_file.mount_point == by_path.mount_point
    assert by_file.free_bytes <= by_file.total_bytes


def test_a_mount_that_is_not_listed_leaves_the_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(filesystem, "parse_mountinfo", lambda _text: {})
    found = filesystem.file_system_of(str(tmp_path))
    assert (found.type, found.mount_point, found.source) == ("unknown",) * 3
    device = os.stat(tmp_path).st_dev
    assert found.device == f"{os.major(device)}:{os.minor(device)}"
    assert found.total_bytes > 0


def test_nothing_there():
    with pytest.raises(NotFoundError, match="/nowhere/x does not exist"):
        filesystem.file_system_of("/nowhere/x")
