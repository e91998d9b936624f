# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where libvirt's QEMU driver writes the memory of guests that it saves, and the space there.

No call of libvirt's tells.  The folder is fixed (``virQEMUDriverConfigNew`` in
src/qemu/qemu_conf.c): below /var/lib/libvirt for the system's daemon, below the configuration
folder of its user for a session's.
"""

from __future__ import annotations

import os
import socket
import struct
import typing as t
import urllib.parse

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import left_off
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.filesystem import (
    FileSystem,
    file_system_of,
)

_SYSTEM = "/var/lib/libvirt"
_LOGS = "/var/log/libvirt/qemu"
_MAX_LOG_BYTES = 4 << 20
_UCRED = struct.Struct("3i")  # pid, uid, gid: man 7 unix, SO_PEERCRED


def save_folder(*, uid: int, environment: t.Mapping[str, str]) -> str:
    """Where a daemon of this user saves, as it sees the file system (pure).

    :param environment: of the daemon; heeded for a session's only.
    :raises RefusedError: it cannot be told.
    """
    if uid == 0:
        return f"{_SYSTEM}/qemu/save"
    home = environment.get("HOME", "")
    config = environment.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else "")
    if not config.startswith("/"):
        raise _unknown("its user has no home folder")
    return f"{config}/libvirt/qemu/save"


def locate(uri: str) -> tuple[str, str]:
    """The folder as this process can open it, and as the daemon calls it.

    A daemon that is reached through a socket of its own may live in a mount namespace of its own
    too, so its folder is looked up through the process behind the socket.  Under systemd's socket
    activation that is systemd, which sees the same files.

    :param uri: a local one, as the connection has it.
    :raises RefusedError: it cannot be told.
    """
    parts = urllib.parse.urlsplit(uri)
    (path,) = urllib.parse.parse_qs(parts.query).get("socket", [""])[:1]
    uid = 0 if parts.path == "/system" else os.geteuid()
    if not path:
        folder = save_folder(uid=uid, environment=os.environ)
        return folder, folder
    pid, uid = _peer(path)
    folder = save_folder(uid=uid, environment=_environment(pid) if uid else {})
    return f"/proc/{pid}/root{folder}", folder


def nvram_file(uri: str, name: str, named: str) -> str:
    """The file with the variables of a domain's firmware, also where libvirt has chosen it itself.

    libvirt 9 says its choice in the running domain's configuration only, libvirt 11 in both.

    :param named: the file that the configuration names, as the daemon calls it; empty if none.
    :returns: the file as this process can open it; empty if there is none, or it cannot be told.
    """
    try:
        saved, folder = locate(uri)
    except RefusedError:
        return named if os.path.isfile(named) else ""
    chosen, its_name = (f"{os.path.dirname(each)}/nvram/{name}_VARS.fd" for each in (saved, folder))
    path = chosen if named in ("", its_name) else named
    return path if os.path.isfile(path) else ""


def log_of(uri: str, name: str) -> left_off.Log:
    """What libvirt's log of a domain's QEMU has last; nothing if it can't be read.

    Only of the system's daemon, and mostly only for root.
    """
    try:
        path, folder = locate(uri)
        if not folder.startswith(_SYSTEM):
            return left_off.Log()
        with open(f"{path[: -len(folder)]}{_LOGS}/{name}.log", "rb") as file:
            file.seek(-min(_MAX_LOG_BYTES, os.fstat(file.fileno()).st_size), os.SEEK_END)
            return left_off.parse_log(file.read(_MAX_LOG_BYTES).decode(errors="replace"))
    except (RefusedError, OSError):
        return left_off.Log()


def file_system(uri: str) -> tuple[FileSystem, str]:
    """The file system that libvirt saves on, and the folder for people.

    :raises RefusedError: it cannot be told, or not be read.
    """
    path, folder = locate(uri)
    try:
        return file_system_of(path), folder
    except ThinvirtError as error:
        raise RefusedError(
            f"Refused: the free space of {folder}, where libvirt saves guests, cannot be read: "
            f"{error.message} Nothing was changed.",
            remedy="Run the task on the hypervisor as the user that libvirt runs as "
            "(become: true).",
        ) from error


def settle(uri: str) -> None:
    """Have the disk know which saved states are gone.

    After a power cut a state that was resumed and removed just before would be there again, and
    resuming it once more, on disks that have moved on, would destroy them.
    """
    fd = os.open(locate(uri)[0], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _peer(path: str) -> tuple[int, int]:
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(path)
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    except OSError as error:
        raise _unknown(f"{path}: {error.strerror}") from error
    pid, uid, _gid = _UCRED.unpack(credentials)
    if pid <= 0:
        raise _unknown("its process is not among those of this host")
    return pid, uid


def _environment(pid: int) -> dict[str, str]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            entries = os.fsdecode(file.read()).split("\0")
    except OSError as error:
        raise _unknown(f"the environment of process {pid}: {error.strerror}") from error
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def _unknown(reason: str) -> RefusedError:
    return RefusedError(
        f"Refused: where this libvirt saves guests cannot be told ({reason}), nor whether there is "
        "space; nothing was changed.",
        remedy="Run the task on the hypervisor itself, or use apply=power_cycle.",
    )
