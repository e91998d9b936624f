# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The QEMU of a running domain, as the kernel shows it: its user, and the folder that is its own.

libvirt gives each QEMU a folder, ``/var/lib/libvirt/qemu/domain-ID-NAME``, mode 0750, that is
removed when the domain ends.  It is where a socket belongs: AppArmor's profile of the domain and
SELinux's label of the folder let QEMU make one there and hardly anywhere else (virt-aa-helper.c and
qemu_process.c of libvirt; in a folder of ours it fails on hosts with AppArmor:
https://github.com/abbbi/virtnbdbackup/issues/103).  Its path is on QEMU's command line, as that of
the master key.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    HypervisorError,
    RefusedError,
)

_MASTER_KEY = "master-key.aes"
#: A kernel's limit for the name of a UNIX socket (man 7 unix), the final NUL not counted.
MAX_SOCKET_BYTES = 107


@dataclasses.dataclass(frozen=True)
class QemuProcess:
    """A running QEMU.

    :param folder: its own folder, as QEMU names it.
    """

    pid: int
    uid: int
    gid: int
    folder: str

    def seen_from_here(self, path: str) -> str:
        """The name of something in its folder for other programs.

        A libvirt that runs in a mount namespace of its own names it otherwise.
        """
        inside = f"/proc/{self.pid}/root{self.folder}"
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(self.folder), os.stat(inside)):
                return path
        return f"/proc/{self.pid}/root{path}"


def own_folder(argv: t.Sequence[str]) -> str:
    """The folder that libvirt made for a QEMU with this command line; empty if none (pure)."""
    for option, value in zip(argv, argv[1:]):
        if option != "-object" or _MASTER_KEY not in value:
            continue
        path = ""
        with contextlib.suppress(ValueError, TypeError, KeyError):
            # JSON from QEMU 6.0 on; before, a list in which a comma in a name is doubled.
            path = str(json.loads(value)["file"])
        if not path:
            fields = value.replace(",,", "\0").split(",")
            named = [field[5:] for field in fields if field.startswith("file=")]
            path = named[0].replace("\0", ",") if named else ""
        if os.path.isabs(path) and os.path.basename(path) == _MASTER_KEY:
            return os.path.dirname(path)
    return ""


def qemu_of(uuid: str, name: str, *, proc: str = "/proc") -> QemuProcess:
    """The process of a running domain.

    :raises HypervisorError: it can't be found.
    :raises RefusedError: two look like it: one is somebody else's, who wants to be taken for it.
    """
    found = []
    for entry in os.listdir(proc):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError, KeyError):
            with open(f"{proc}/{entry}/cmdline", "rb") as file:
                argv = os.fsdecode(file.read()).split("\0")
            folder = own_folder(argv)
            if folder and ("-uuid", uuid) in zip(argv, argv[1:]):
                found.append(QemuProcess(int(entry), *_user(f"{proc}/{entry}"), folder))
    if not found:
        raise HypervisorError(
            f"The QEMU process of domain {name} cannot be seen on this host.",
            remedy="Run this on the hypervisor itself, as root.",
        )
    if len(found) > 1:
        pids = ", ".join(str(process.pid) for process in found)
        raise RefusedError(
            f"Several processes ({pids}) look like the QEMU of domain {name}; nothing was changed.",
            remedy="Find out which of them libvirt did not start.",
        )
    return found[0]


def _user(process: str) -> tuple[int, int]:
    """Effective user and group; /proc/PID itself belongs to root if QEMU gave up its rights."""
    with open(f"{process}/status", encoding="ascii", errors="replace") as file:
        fields = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    return int(fields["Uid"].split()[1]), int(fields["Gid"].split()[1])
