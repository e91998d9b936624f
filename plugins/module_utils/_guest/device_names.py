# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of disks that change with their bus, in the files that a system boots by (pure).

``/dev/vda1`` becomes ``/dev/sda1`` on another bus, and names in ``/dev/disk/by-path`` and most in
``by-id`` change as well.  UUIDs stay.  Sources: man 5 fstab, man 5 crypttab, man 7 bootparam, man 7
dracut.cmdline, and GRUB's manual.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError

_NAME = (
    r"/dev/(?:(?:x?vd|sd|hd)[a-z]+[0-9]*"
    r"|disk/by-path/[^\s,\"']+|disk/by-id/(?:ata|scsi|virtio|wwn)-[^\s,\"']+)"
)
NAME = re.compile(_NAME + r"(?![\w/])")
#: Parameters of the kernel, dracut and Arch's initramfs that take ``UUID=`` in the place of a name.
_PARAMETER = re.compile(rf"(?<![\w.-])((?:root|resume|cryptdevice)=)({_NAME})(?=[\s:,\"']|$)")
_RESUME = re.compile(rf"^(\s*RESUME=[\"']?)({_NAME})(?=[\"'\s]|$)")
_NO_UUID = re.compile(r"^(\s*)(GRUB_DISABLE_LINUX_UUID=[\"']?true.*)$")
_FSTAB = re.compile(rf"^(\s*)({_NAME})(?=\s)")
_CRYPTTAB = re.compile(rf"^(\s*\S+\s+)({_NAME})(?=\s|$)")
#: Their keys are new at each boot, and so is what lies on the disk: no UUID in there stays.
_RANDOM_KEYS = ("/dev/urandom", "/dev/random", "/dev/hwrng")

#: Gives a name that stays, such as ``UUID=…``, or an empty text; ``content`` says whether what is
#: on the device stays.
Stable = t.Callable[..., str]


@dataclasses.dataclass(frozen=True)
class BlockDevice:
    """One device as lsblk tells it; empty texts for what it has not."""

    kname: str
    number: str
    fstype: str
    uuid: str
    partuuid: str


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """A file without names that change.

    :param replaced: old and new name of each place, in order.
    :param unknown: lines with a name for which there is no other, or in a place where it is not
        known whether another is understood; the system may need them to boot.
    :param ignored: such lines that the system boots without (``nofail``, ``noauto``).
    """

    text: str
    replaced: tuple[tuple[str, str], ...] = ()
    unknown: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


def parse_lsblk(text: str) -> tuple[BlockDevice, ...]:
    """``lsblk --json --list --output KNAME,MAJ:MIN,FSTYPE,UUID,PARTUUID``.

    :raises ThinvirtError: it is not that.
    """
    try:
        rows = json.loads(text)["blockdevices"]
        return tuple(
            dict.fromkeys(
                BlockDevice(
                    *(row.get(key) or "" for key in ("kname", "maj:min")),
                    *(row.get(key) or "" for key in ("fstype", "uuid", "partuuid")),
                )
                for row in rows
            )
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ThinvirtError(
            "lsblk prints something else than a list of devices; nothing was changed.",
            remedy="Look at lsblk --json in the guest.",
        ) from error


def stable_name(devices: t.Sequence[BlockDevice], kname: str, *, content: bool = True) -> str:
    """What a device is called on any bus: by the UUID of its content, or of its partition.

    A UUID that two devices have says nothing, unless both are parts of one btrfs.

    :param content: what is on it stays; a swap area with a new key at each boot does not.
    """
    device = next((device for device in devices if device.kname == kname), None)
    if device is None:
        return ""
    if content and device.uuid:
        same = [other for other in devices if other.uuid == device.uuid]
        if len(same) == 1 or all(other.fstype == "btrfs" for other in same):
            return f"UUID={device.uuid}"
    if device.partuuid and sum(d.partuuid == device.partuuid for d in devices) == 1:
        return f"PARTUUID={device.partuuid}"
    return ""


def in_fstab(text: str, stable: Stable) -> Rewritten:
    """The sources of fstab."""
    return _by_line(text, [_FSTAB], stable, boots_without=_boots_without)


def in_crypttab(text: str, stable: Stable) -> Rewritten:
    """The sources of crypttab; a key on a disk is somebody else's business."""

    def of_line(name: str, *, content: bool) -> str:
        return stable(name, content=content and not _has_random_key(name, text))

    return _by_line(text, [_CRYPTTAB], of_line, boots_without=_boots_without)


def in_settings(text: str, stable: Stable) -> Rewritten:
    """What sets kernel parameters, such as /etc/default/grub or a loader entry, or RESUME."""
    found = _by_line(text, [_PARAMETER, _RESUME], stable)
    lines, replaced = [], list(found.replaced)
    for line in found.text.splitlines(keepends=True):
        match = _NO_UUID.match(line)
        if match:
            replaced.append((match[2].strip(), "#" + match[2].strip()))
            lines.append(f"{match[1]}#{line[len(match[1]) :]}")
        else:
            lines.append(line)
    return dataclasses.replace(found, text="".join(lines), replaced=tuple(replaced))


def names_in(text: str) -> tuple[str, ...]:
    """Names that change, outside of comments, each once."""
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return tuple(dict.fromkeys(match[0] for line in lines for match in NAME.finditer(line)))


def kernel_names(text: str) -> tuple[str, ...]:
    """Names that change in the lines of a boot loader's file that start a kernel."""
    starts = re.compile(r"\s*(linux(16|efi)?|kernel|append|options|module2?)\s", re.IGNORECASE)
    return names_in("\n".join(line for line in text.splitlines() if starts.match(line)))


def _by_line(
    text: str,
    patterns: t.Sequence[re.Pattern[str]],
    stable: Stable,
    *,
    boots_without: t.Callable[[str], bool] | None = None,
) -> Rewritten:
    lines: list[str] = []
    replaced: list[tuple[str, str]] = []
    unknown: list[str] = []
    ignored: list[str] = []
    for line in text.splitlines(keepends=True):
        new = line
        if not line.lstrip().startswith("#"):
            for pattern in patterns:
                new = pattern.sub(lambda m: m[1] + _other(m[2], stable, replaced), new)
            if NAME.search(new):
                harmless = boots_without is not None and boots_without(line)
                (ignored if harmless else unknown).append(line.strip())
        lines.append(new)
    return Rewritten("".join(lines), tuple(replaced), tuple(unknown), tuple(ignored))


def _other(name: str, stable: Stable, replaced: list[tuple[str, str]]) -> str:
    other = stable(name, content=True)
    if not other:
        return name
    replaced.append((name, other))
    return other


def _boots_without(line: str) -> bool:
    fields = line.split()
    options = fields[3].split(",") if len(fields) > 3 else []
    return bool({"nofail", "noauto"} & {*options})


def _has_random_key(name: str, text: str) -> bool:
    for fields in (line.split() for line in text.splitlines()):
        if len(fields) > 1 and fields[1] == name:
            options = set(fields[3].split(",")) if len(fields) > 3 else set()
            key = fields[2] if len(fields) > 2 else ""
            return key in _RANDOM_KEYS or bool(options & {"swap", "tmp", "plain"})
    return False
