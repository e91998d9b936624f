# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists of initial RAM disks as their generators print them."""

from __future__ import annotations

import gzip
import os

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest import initramfs

LSINITRAMFS = "usr/lib/modules/6.1.0/kernel/drivers/scsi/{}.ko\nusr/lib/modules/6.1.0/x.ko\n"
LSINITRD = (
    "Image: /boot/initramfs-5.14.0.img: 30M\ndrwxr-xr-x 3 root root 0 Jan 1 2024 .\n"
    "-rw-r--r-- 1 root root 9 Jan 1 2024 usr/lib/modules/5.14.0/kernel/drivers/scsi/{}.ko.xz\n"
)
LSINITCPIO = "usr/lib/modules/6.9.1-arch1-1/kernel/{}.ko.zst\n"


@pytest.mark.parametrize("text", [LSINITRAMFS, LSINITRD, LSINITCPIO])
def test_lists(text):
    assert initramfs.listed(text.format("virtio_scsi")) is True
    assert initramfs.listed(text.format("virtio_blk")) is False
    assert initramfs.listed(text.format("not_virtio_scsi")) is False


@pytest.mark.parametrize(("times", "older"), [((1, 2), True), ((2, 1), False), ((2, 2), False)])
def test_one_that_was_made_before_crypttab_was_written(tmp_path, times, older):
    names = [str(tmp_path / name) for name in ("initrd", "crypttab")]
    for name, time in zip(names, times, strict=True):
        with open(name, "wb"):
            os.utime(name, ns=(time, time))
    assert initramfs.is_older(*names) is older
    assert not initramfs.is_older(names[0], f"{names[1]}-none")
    assert not initramfs.is_older(f"{names[0]}-none", names[1])


def test_a_list_without_modules_tells_nothing():
    assert initramfs.listed("bin\nbin/busybox\n") is None


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"x" * 3_000 + b"lib/modules/6.6/kernel/drivers/scsi/virtio_scsi.ko.gz\0", True),
        (b"x" * 3_000 + b"lib/modules/6.6/kernel/drivers/scsi/virtio_scsi.ko\0", True),
        (b"lib/modules/6.6/kernel/drivers/scsi/virtio_scsi.koala\0", False),
        (b"", False),
    ],
)
def test_alpine(tmp_path, content, found, monkeypatch):
    """mkinitfs makes a gzipped cpio archive and has no lister; names lie across the pieces read."""
    monkeypatch.setattr(initramfs, "_PIECE", 20)
    content = os.urandom(2000) + content
    path = tmp_path / "initramfs-virt"
    path.write_bytes(gzip.compress(content))
    assert initramfs.gzip_has_driver(str(path)) is found


@pytest.mark.parametrize("content", [b"", b"\x28\xb5\x2f\xfd", b"\x1f\x8bnot gzip at all"])
def test_another_compression_is_unknown(tmp_path, content):
    path = tmp_path / "initramfs-virt"
    path.write_bytes(content)
    assert initramfs.gzip_has_driver(str(path)) is None


def test_a_bomb_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(initramfs, "_MAX_UNPACKED_BYTES", 1 << 20)
    path = tmp_path / "initramfs-virt"
    path.write_bytes(gzip.compress(bytes(1 << 24)))
    assert initramfs.gzip_has_driver(str(path)) is None
