# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files that a Linux guest boots by, what is mounted, and what they name.  Changes nothing."""

from __future__ import annotations

import dataclasses
import glob
import os
import shutil
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest import (
    device_names,
    initramfs,
    tables,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest.device_names import (
    BlockDevice,
    Rewritten,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest.reading import (
    output_of,
    read_text,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import process
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.filesystem import (
    parse_mountinfo,
)

FSTAB, CRYPTTAB = "/etc/fstab", "/etc/crypttab"
RESUME = "/etc/initramfs-tools/conf.d/resume"
#: Files that set kernel parameters and that people, or kernel-install, write.
_SETTINGS = (
    "/etc/default/grub",
    "/etc/default/grub.d/*.cfg",
    "/etc/kernel/cmdline",
    "/boot/loader/entries/*.conf",
    "/boot/efi/loader/entries/*.conf",
    "/efi/loader/entries/*.conf",
    RESUME,
)
#: Files that grub-mkconfig writes.
_GRUB_CFG = ("/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", "/boot/efi/EFI/*/grub.cfg")
#: Files of other boot loaders, and GRUB's saved variables: only looked at.
_OTHERS = (
    "/boot/grub/grubenv",
    "/boot/grub2/grubenv",
    "/boot/extlinux/extlinux.conf",
    "/boot/syslinux/syslinux.cfg",
    "/etc/lilo.conf",
    "/etc/zipl.conf",
)
#: More files than any sane guest has in these places.
MAX_FILES = 200
_COLUMNS = "KNAME,MAJ:MIN,FSTYPE,UUID,PARTUUID"


@dataclasses.dataclass(frozen=True)
class File:
    """One file that names disks in a way that changes."""

    path: str
    before: str
    now: Rewritten


@dataclasses.dataclass(frozen=True)
class Mounted:
    """A file system or swap area in use that comes back at each boot.

    :param mount_point: ``swap`` for swap.
    :param source: its UUID; where that is new at each boot, the name of its mapping.
    """

    mount_point: str
    source: str
    type: str


@dataclasses.dataclass(frozen=True)
class BootFiles:
    """What was found.

    :param files: those that have to be changed, or cannot be and need a person.
    :param stale_grub_cfg: those that grub-mkconfig has to write anew.
    :param mkconfig: the program for that; empty if there is none.
    :param initramfs_stale: crypttab or RESUME are newer than the initial RAM disk.
    :param mounted: what should be mounted after a reboot as it is now.
    :param problems: why the guest would not boot under other names, in sentences.
    """

    files: tuple[File, ...]
    stale_grub_cfg: tuple[str, ...]
    mkconfig: str
    initramfs_stale: bool
    mounted: tuple[Mounted, ...]
    problems: tuple[str, ...]

    @property
    def changed(self) -> tuple[File, ...]:
        return tuple(file for file in self.files if file.now.text != file.before)

    def refuse_problems(self) -> None:
        """
        :raises RefusedError: nothing was changed.
        """
        if self.problems:
            raise RefusedError(
                f"Refused: this guest would not boot with its disks under other names. "
                f"{' '.join(self.problems)} Nothing was changed.",
                remedy="Name these disks by UUID or label yourself.",
            )


def read() -> BootFiles:
    """Look at all of them.

    :raises RequirementError: lsblk is missing.
    :raises ThinvirtError: what lsblk or the kernel prints is not understood.
    """
    lsblk = process.find_program("lsblk", package="util-linux")
    devices = device_names.parse_lsblk(output_of([lsblk, "--json", "--list", "--output", _COLUMNS]))

    def stable(name: str, *, content: bool) -> str:
        return device_names.stable_name(
            devices, os.path.basename(os.path.realpath(name)), content=content
        )

    files = tuple(_files(stable))
    stale = tuple(path for path in _existing(_GRUB_CFG) if _kernel_names(path))
    mkconfig = next(
        filter(None, (shutil.which(f"{name}-mkconfig", path=_PATH) for name in ("grub", "grub2"))),
        "",
    )
    return BootFiles(
        files=files,
        stale_grub_cfg=stale,
        mkconfig=mkconfig,
        initramfs_stale=_initramfs_stale(files),
        mounted=tuple(_mounted(devices)),
        problems=tuple(_problems(files, stale, mkconfig)),
    )


_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def _files(stable: device_names.Stable) -> t.Iterator[File]:
    ways: list[tuple[str, t.Callable[[str, device_names.Stable], Rewritten]]] = [
        (FSTAB, device_names.in_fstab),
        (CRYPTTAB, device_names.in_crypttab),
        *((path, device_names.in_settings) for path in _existing(_SETTINGS)),
    ]
    for path, rewrite in ways:
        text = read_text(path, missing="")
        now = rewrite(text, stable)
        if now.replaced or now.unknown or now.ignored:
            yield File(path, text, now)


def _existing(patterns: t.Sequence[str]) -> list[str]:
    found = [path for pattern in patterns for path in sorted(glob.glob(pattern))]
    return found[:MAX_FILES]


def _kernel_names(path: str) -> tuple[str, ...]:
    return device_names.kernel_names(read_text(path, limit=1 << 22, missing=""))


def _problems(files: t.Sequence[File], stale: t.Sequence[str], mkconfig: str) -> t.Iterator[str]:
    for file in files:
        for line in file.now.unknown:
            yield f"{file.path} has {line[:200]!r}, for which no UUID is known."
    if stale and not mkconfig:
        yield f"{', '.join(stale)} names disks, and there is no grub-mkconfig to write it anew."
    others = [path for path in _existing(_OTHERS) if device_names.names_in(read_text(path))]
    for path in others:
        yield f"{path} names {', '.join(device_names.names_in(read_text(path)))}."
    running = device_names.names_in(read_text("/proc/cmdline", missing=""))
    known = stale or others or any(file.path not in (FSTAB, CRYPTTAB) for file in files)
    # A config that was written anew since the boot says so no more.
    newer = [path for path in _existing(_GRUB_CFG) if _mtime(path) > _boot_time()]
    if running and not known and not newer:
        yield (
            f"The kernel was started with {', '.join(running)}, and no file of a boot loader that "
            "is known here says so."
        )


def _initramfs_stale(files: t.Sequence[File]) -> bool:
    """A rewrite makes them newer as well, so a run that was ended between the two is noticed."""
    path = initramfs.examine(os.uname().release).path
    if not path:
        return False
    to_be_changed = {file.path for file in files if file.now.replaced}
    return any(
        name in to_be_changed or (os.path.exists(name) and _mtime(name) > _mtime(path))
        for name in (CRYPTTAB, RESUME)
    )


def _mtime(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0


def _boot_time() -> float:
    for line in read_text("/proc/stat", limit=1 << 22, missing="").splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    return 0


def _mounted(devices: t.Sequence[BlockDevice]) -> t.Iterator[Mounted]:
    by_kname = {device.kname: device for device in devices}
    by_number = {device.number: device for device in devices}
    fstab = tables.parse_fstab(read_text(FSTAB, missing=""))
    back = {
        entry.mount_point
        for entry in fstab
        if not {"noauto", "x-systemd.automount"} & {*entry.options}
    }
    seen = set()
    for mount in parse_mountinfo(read_text("/proc/self/mountinfo", limit=1 << 24)).values():
        kname = os.path.basename(os.path.realpath(mount.source))
        device = by_number.get(mount.device) or by_kname.get(kname)
        if device is not None and mount.mount_point in {"/", *back}:
            seen.add(Mounted(mount.mount_point, device.uuid or device.kname, mount.type))
    if any(entry.type == "swap" for entry in fstab):
        for line in read_text("/proc/swaps", missing="").splitlines()[1:]:
            device = by_kname.get(os.path.basename(os.path.realpath(line.split()[0])))
            if device is not None and not device.kname.startswith("zram"):
                mapping = f"/sys/block/{device.kname}/dm/name"
                name = read_text(mapping, missing="").strip()
                seen.add(Mounted("swap", name or device.uuid, "swap"))
    yield from sorted(seen, key=lambda each: (each.mount_point, each.source))
