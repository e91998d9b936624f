# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which names of disks are replaced, in which files and places."""

from __future__ import annotations

import json

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest import device_names

BY_PATH = "/dev/disk/by-path/pci-0000:00:07.0-part1"
DEVICES = device_names.parse_lsblk(
    json.dumps(
        {
            "blockdevices": [
                {"kname": name, "maj:min": "254:0", "fstype": fs, "uuid": uuid, "partuuid": part}
                for name, fs, uuid, part in (
                    ("vda1", "ext4", "ROOT", "P1"),
                    ("vda2", "swap", "SWAP", "P2"),
                    ("vda3", None, None, "P3"),
                    ("vdb", None, None, None),
                    ("vdc", "xfs", "TWICE", None),
                    ("vdd", "xfs", "TWICE", None),
                    ("vde", "btrfs", "POOL", None),
                    ("vdf", "btrfs", "POOL", None),
                )
            ]
        }
    )
)


def stable(name, *, content):
    kname = {BY_PATH: "vda1", "/dev/disk/by-id/virtio-SER-part2": "vda2"}.get(name, name[5:])
    return device_names.stable_name(DEVICES, kname, content=content)


FSTAB = [
    ("/dev/vda1 / ext4 defaults 0 1\n", "UUID=ROOT / ext4 defaults 0 1\n"),
    ("/dev/vda2\tnone\tswap\tsw\t0\t0\n", "UUID=SWAP\tnone\tswap\tsw\t0\t0\n"),
    (f"{BY_PATH} / ext4 defaults\n", "UUID=ROOT / ext4 defaults\n"),
    ("/dev/disk/by-id/virtio-SER-part2 none swap sw\n", "UUID=SWAP none swap sw\n"),
    ("/dev/vda3 /x auto defaults\n", "PARTUUID=P3 /x auto defaults\n"),
    ("/dev/vde /pool btrfs defaults\n", "UUID=POOL /pool btrfs defaults\n"),
    ("# / was on /dev/vda1\nLABEL=root / ext4 defaults", None),
    ("/dev/mapper/vg-root / ext4 defaults\n/dev/vg/home /home ext4 x\n/dev/md0 /m ext4 x", None),
    ("UUID=ROOT / ext4 defaults\n/dev/sr0 /cd auto noauto\n/dev/nvme0n1p1 /n ext4 x\n", None),
    ("LABEL=x /dev/vda1 ext4 defaults\n", "unknown"),  # a mount point is no source
    ("/dev/vdb /x ext4 defaults\n", "unknown"),
    ("/dev/vdc /x xfs defaults\n", "unknown"),
    ("/dev/vdz /x ext4 defaults\n", "unknown"),
    ("/dev/vdb /x ext4 noatime,nofail\n", "ignored"),
    ("/dev/vdb /x ext4 noauto\n", "ignored"),
]


@pytest.mark.parametrize(("before", "after"), FSTAB)
def test_fstab(before, after):
    check(device_names.in_fstab(before, stable), before, after)


CRYPTTAB = [
    ("root /dev/vda1 none luks\n", "root UUID=ROOT none luks\n"),
    ("swap /dev/vda2 /dev/urandom swap\n", "swap PARTUUID=P2 /dev/urandom swap\n"),
    ("tmp /dev/vda2 /key plain\n", "tmp PARTUUID=P2 /key plain\n"),
    ("data /dev/vda1 /dev/sdb1:/key luks\n", "unknown"),
    ("data UUID=X none luks\n", None),
    ("data /dev/vdb none luks,nofail\n", "ignored"),
]


@pytest.mark.parametrize(("before", "after"), CRYPTTAB)
def test_crypttab(before, after):
    check(device_names.in_crypttab(before, stable), before, after)


SETTINGS = [
    ('GRUB_CMDLINE_LINUX="root=/dev/vda1 quiet"', 'GRUB_CMDLINE_LINUX="root=UUID=ROOT quiet"'),
    ("options root=/dev/vda1 resume=/dev/vda2", "options root=UUID=ROOT resume=UUID=SWAP"),
    ("cryptdevice=/dev/vda1:root:allow-discards", "cryptdevice=UUID=ROOT:root:allow-discards"),
    ("RESUME=/dev/vda2\n", "RESUME=UUID=SWAP\n"),
    ('RESUME="/dev/vda2"\n', 'RESUME="UUID=SWAP"\n'),
    ("GRUB_DISABLE_LINUX_UUID=true\n", "#GRUB_DISABLE_LINUX_UUID=true\n"),
    ("#GRUB_DISABLE_LINUX_UUID=true\nRESUME=none\nroot=UUID=/dev-vda1", None),
    ("GRUB_DEVICE=/dev/vda1\n", "unknown"),
    ("real_root=/dev/vda1\n", "unknown"),
    ("root=/dev/vdb\n", "unknown"),
]


@pytest.mark.parametrize(("before", "after"), SETTINGS)
def test_settings(before, after):
    check(device_names.in_settings(before, stable), before, after)


def check(found, before, after):
    if after in ("unknown", "ignored"):
        assert getattr(found, after) == (before.strip(),)
        assert not {"unknown": found.ignored, "ignored": found.unknown}[after]
    else:
        assert found.text == (before if after is None else after)
        assert bool(found.replaced) is (after is not None)
        assert (found.unknown, found.ignored) == ((), ())


def test_what_is_replaced_is_named_and_a_second_time_nothing():
    text = "/dev/vda1 / ext4 x\n/dev/vda2 none swap sw\n"
    found = device_names.in_fstab(text, stable)
    assert found.replaced == (("/dev/vda1", "UUID=ROOT"), ("/dev/vda2", "UUID=SWAP"))
    assert device_names.in_fstab(found.text, stable) == device_names.Rewritten(found.text)


def test_only_lines_that_start_a_kernel_count():
    text = (
        "# linux /vmlinuz root=/dev/vda1\n"
        "set root='hd0,msdos1'\nsearch --hint=/dev/vdb\n"
        "\tlinux\t/vmlinuz root=/dev/vda1 ro\n  APPEND root=/dev/sda2\n"
    )
    assert device_names.kernel_names(text) == ("/dev/vda1", "/dev/sda2")


@pytest.mark.parametrize("text", ["", "[]", '{"blockdevices": 3}', '{"blockdevices": [3]}'])
def test_nonsense_of_lsblk(text):
    with pytest.raises(ThinvirtError):
        device_names.parse_lsblk(text)
