# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs inside a guest, as root, on the disks whose serials (the root disk: whose target) are named.

guest_disks.py fill TARGET...   file system, a file to keep, 100 MiB written and deleted again
guest_disks.py zero TARGET...   free space filled with zeros (100 MiB on the root disk)
guest_disks.py trim TARGET...   fstrim, whatever it makes of it
guest_disks.py check TARGET...  mount anew, so that the file to keep is read from the disk

Prints JSON by target: what fstrim says; with ``zero`` the bytes that the file system uses;
otherwise what sha256sum says of the file to keep.
"""

import contextlib
import json
import os
import subprocess
import sys
from glob import glob

MIB = 1 << 20
KEPT_BYTES = 8 * MIB
WASTE_BYTES = 100 * MIB
ROOT = "sda"
# The agent trims what is mounted when it is asked, so after a boot it waits for the mounts, and
# these for their disks: on a machine that has other work longer than systemd's 90 s.
MOUNT = (
    "LABEL={0} /mnt/{0} ext4 noatime,nofail,x-systemd.device-timeout=900,"
    "x-systemd.before=qemu-guest-agent.service 0 0\n"
)
# Each boot replaces folders in /tmp and /var/tmp. On the root disk the blocks of the old ones could
# come free after the first trim: the second one would rightly report a change.
QUIET = "tmpfs /tmp tmpfs mode=1777 0 0\ntmpfs /var/tmp tmpfs mode=1777 0 0\n"


def run(*argv):
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def folder(target):
    return "/" if target == ROOT else f"/mnt/{target}"


def format_and_mount(target):
    # virtio-vda, scsi-0QEMU_QEMU_HARDDISK_sdb, ata-QEMU_HARDDISK_hda: each ends with the serial
    (device,) = glob(f"/dev/disk/by-id/*[-_]{target}")
    # Nothing is left to be written in the background, nothing was discarded before.
    options = "nodiscard,lazy_itable_init=0,lazy_journal_init=0"
    run("mkfs.ext4", "-q", "-L", target, "-E", options, device)
    run("udevadm", "settle")
    os.mkdir(folder(target))
    fstab(MOUNT.format(target))
    run("mount", folder(target))


def fstab(lines):
    with open("/etc/fstab", "a") as file:
        file.write(lines)


def write(path, *blocks):
    with open(path, "wb") as file:
        file.writelines(blocks)
        os.fsync(file.fileno())


def fill(target):
    if target == ROOT:
        fstab(QUIET)
    else:
        format_and_mount(target)
    keep, waste = (os.path.join(folder(target), name) for name in ("keep", "waste"))
    write(keep, os.urandom(KEPT_BYTES))
    # One random block again and again: emulated guests are slow at more.
    write(waste, *[os.urandom(MIB)] * (WASTE_BYTES // MIB))
    os.remove(waste)
    os.sync()
    return checksum(target)


def zero(target):
    path = os.path.join(folder(target), "zeros")
    size = WASTE_BYTES if target == ROOT else os.statvfs(folder(target)).f_bfree * 4096
    with open(path, "wb") as file, contextlib.suppress(OSError):  # until the disk is full
        for _number in range(-(-size // MIB)):
            file.write(bytes(MIB))
            file.flush()
    os.sync()
    os.remove(path)
    os.sync()
    # All blocks but the free ones: statvfs leaves out journal and inode tables.
    device = run("findmnt", "-n", "-o", "SOURCE", folder(target)).strip()
    size = int(run("blockdev", "--getsize64", device))
    figures = os.statvfs(folder(target))
    used = size - figures.f_bfree * figures.f_frsize
    return {"used_bytes": used}


def trim(target):
    done = subprocess.run(
        ["fstrim", "--verbose", folder(target)],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    os.sync()
    return done.stdout.strip()


def check(target):
    if target != ROOT:
        run("umount", folder(target))
        run("mount", folder(target))
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as caches:
        caches.write("3")
    return checksum(target)


def checksum(target):
    return run("sha256sum", os.path.join(folder(target), "keep")).split()[0]


if __name__ == "__main__":
    action = {"fill": fill, "zero": zero, "trim": trim, "check": check}[sys.argv[1]]
    print(json.dumps({target: action(target) for target in sys.argv[2:]}))
