# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guest image: a small Debian that boots fast, with the guest agent and no network.

Built once by mmdebstrap for each release of Debian that is asked for, cached under a checksum of
this file: a changed recipe is a new image.
Never run directly: each guest gets a full copy, as audits would see a backing chain.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .cache import note_use, remove_unused
from .errors import LabError, call

SUITE = "bookworm"
ROOT_BYTES = 10 << 30
PACKAGES = (
    "initramfs-tools,zstd,systemd-sysv,udev,dbus,qemu-guest-agent,"
    "python3,e2fsprogs,xfsprogs,btrfs-progs,lvm2,cryptsetup-bin,util-linux,kmod"
)
# The kernel, and what only some releases have. The archive of a release that is no longer supported
# lists security updates of the kernel that it does not hold: there it is the release's own.
PACKAGES_OF_SUITE = {
    "bullseye": "linux-image-cloud-amd64/bullseye,cron",
    "bookworm": "linux-image-cloud-amd64,util-linux-extra,cron",
    "trixie": "linux-image-cloud-amd64,util-linux-extra,systemd-cryptsetup,cron",
}
# The block drivers by name: an initrd of everything (MODULES=most) is three times as long to load.
INITRD_MODULES = "virtio_pci virtio_scsi virtio_blk virtio_console ata_piix sd_mod sr_mod ext4"
# Units that cost boot time or write on their own. fstrim.timer is only disabled: nothing must trim
# by itself, but a test may enable it.
MASKED = (
    "apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer "
    "e2scrub_reap.service xfs_scrub_all.timer getty@tty1.service serial-getty@ttyS0.service "
    "systemd-random-seed.service systemd-pstore.service systemd-journal-flush.service "
    "systemd-binfmt.service systemd-update-utmp.service systemd-update-utmp-runlevel.service "
    "systemd-sysusers.service systemd-modules-load.service systemd-user-sessions.service "
    "modprobe@configfs.service modprobe@dm_mod.service modprobe@drm.service "
    "modprobe@fuse.service modprobe@loop.service modprobe@efi_pstore.service "
    "lvm2-monitor.service blk-availability.service cron.service "
    "dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount "
    "sys-kernel-config.mount sys-fs-fuse-connections.mount proc-sys-fs-binfmt_misc.automount"
)
PREPARE = f"""
mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d"
echo MODULES=list >"$1/etc/initramfs-tools/conf.d/lab"
printf '%s\\n' {INITRD_MODULES} >"$1/usr/share/initramfs-tools/modules.d/lab"
"""
# A fixed machine-id: without one systemd takes each boot for the first and enables every unit.
FINISH = f"""
chroot "$1" systemctl mask {MASKED}
chroot "$1" systemctl disable fstrim.timer
chroot "$1" systemctl set-default multi-user.target
echo thinvirt-guest >"$1/etc/hostname"
echo 7468696e766972740000000000000001 >"$1/etc/machine-id"
echo 'LABEL=root / ext4 noatime 0 0' >"$1/etc/fstab"
mkdir -p "$1/etc/systemd/journald.conf.d"
printf '[Journal]\\nStorage=volatile\\n' >"$1/etc/systemd/journald.conf.d/lab.conf"
rm -rf "$1"/var/cache/apt/*.bin "$1"/usr/share/locale/*
"""


@dataclass(frozen=True)
class GuestImage:
    """The files of a built guest image, and its kernel's modules."""

    disk: Path
    kernel: Path
    initrd: Path
    modules: Path

    @property
    def release(self) -> str:
        """The kernel's version, as ``uname -r`` says it."""
        return (self.modules / "release").read_text(encoding="ascii")


def _key() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]


def guest_image(
    cache: Path, say: Callable[[str], None] = print, *, suite: str = SUITE
) -> GuestImage:
    """The guest image below *cache*, built if it isn't there yet.

    Atomic and safe to call from many processes at once: the others wait for the first.

    :param suite: the release of Debian, one of :data:`PACKAGES_OF_SUITE`.
    :raises LabError: the build failed; the log that it names tells why.
    """
    if suite not in PACKAGES_OF_SUITE:
        raise LabError(f"no guest image is known for {suite}, only {', '.join(PACKAGES_OF_SUITE)}")
    folder = cache / f"image-{suite}-{_key()}"
    names = ("base.qcow2", "vmlinuz", "initrd", "modules")
    image = GuestImage(*(folder / name for name in names))
    if folder.is_dir():
        note_use(folder)
        return image
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            say(f"==> Building the guest image, {suite} (about 40 s, once)")
            _build(cache, folder, suite)
    return image


def _build(cache: Path, folder: Path, suite: str) -> None:
    for leftover in cache.glob("build-*"):  # of a killed build; the lock says that none is running
        shutil.rmtree(leftover)
    log = cache / "build.log"
    log.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=cache) as temp:
        work = Path(temp)
        done = work / "done"
        done.mkdir()
        _bootstrap(suite, work / "root.tar", log)
        _make_disk(work, done, log)
        os.rename(done, folder)
    remove_unused(cache, "image-*")


def _bootstrap(suite: str, tar: Path, log: Path) -> None:
    excluded = ("doc", "man", "info", "locale", "i18n")
    argv = [
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        f"--include={PACKAGES},{PACKAGES_OF_SUITE[suite]}",
        '--aptopt=Acquire::Languages "none"',
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in excluded),
        f"--extract-hook={PREPARE}",
        f"--customize-hook={FINISH}",
        suite,
        str(tar),
    ]
    try:
        # Not /tmp, which may be a small tmpfs; not the checkout: for an unprivileged user
        # mmdebstrap runs as other user ids, which can't enter a private home.
        call(argv, timeout=900, log=log, env=os.environ | {"TMPDIR": "/var/tmp"})  # noqa: S108
    except LabError as exc:
        raise LabError(f"the guest image could not be built: {exc}") from exc


def _make_disk(work: Path, done: Path, log: Path) -> None:
    """Tar to file system to qcow2; fakeroot keeps owners and devices without being root."""
    root, raw, tar = work / "root", work / "root.raw", work / "root.tar"
    root.mkdir()
    script = (
        'set -eu; tar -xpf "$1" -C "$2" --exclude="./dev/*"; '
        # Nothing is left to be zeroed in the background: it would grow the image during a test.
        'mke2fs -q -t ext4 -L root -E lazy_itable_init=0,lazy_journal_init=0 -d "$2" "$3"'
    )
    with raw.open("wb") as file:
        file.truncate(ROOT_BYTES)
    call(["fakeroot", "sh", "-c", script, "sh", tar, root, raw], timeout=300, log=log)
    for pattern, name in (("vmlinuz-*", "vmlinuz"), ("initrd.img-*", "initrd")):
        (kernel,) = (root / "boot").glob(pattern)
        shutil.copyfile(kernel, done / name)
    (modules,) = (root / "lib" / "modules").iterdir()
    shutil.copytree(modules, done / "modules", symlinks=True)
    (done / "modules" / "release").write_text(modules.name, encoding="ascii")
    call(
        ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, done / "base.qcow2"],
        timeout=300,
        log=log,
    )
