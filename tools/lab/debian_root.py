# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Root file systems of releases of Debian, each with its libvirt, its QEMU and its Python.

A managed host as the collection asks for it: what the role ``kvm_host`` installs, libvirt, and an
sshd.  Built once by mmdebstrap for each release, cached under a checksum of this file, and used by
:mod:`lab.hypervisor`, which writes nothing to it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from .cache import note_use, remove_unused
from .errors import LabError, call

#: libvirt 7.0, QEMU 5.2, Python 3.9; 9.0, 7.2, 3.11; 11.3, 10.0, 3.13.
SUITES = ("bullseye", "bookworm", "trixie")
PACKAGES = (
    "libvirt-daemon,libvirt-daemon-driver-qemu,libvirt-clients,qemu-system-x86,qemu-utils,"
    "python3,python3-libvirt,python3-lxml,openssh-server"
)
PACKAGES_OF_SUITE = {"trixie": "libvirt-daemon-driver-storage"}
# The QEMU driver does not start without this user, whom libvirt-daemon-system makes.
FINISH = """
for name in libvirt-qemu kvm; do
    chroot "$1" getent group $name >/dev/null || chroot "$1" groupadd --system $name
done
chroot "$1" getent passwd libvirt-qemu >/dev/null ||
    chroot "$1" useradd --system --gid libvirt-qemu --groups kvm --no-create-home libvirt-qemu
rm -f "$1"/etc/ssh/ssh_host_* "$1"/var/cache/apt/*.bin
mkdir -p "$1/etc/libvirt" "$1/var/lib/libvirt" "$1/var/cache/libvirt"
"""


def _key() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]


def debian_root(cache: Path, suite: str, say: Callable[[str], None] = print) -> Path:
    """The root of a release below *cache*, built if it isn't there yet.

    Atomic and safe to call from many processes at once: the others wait for the first.

    :param suite: one of :data:`SUITES`.
    :raises LabError: the build failed, or this user may not; the log that it names tells why.
    """
    if suite not in SUITES:
        raise LabError(f"no root is known for {suite}, only {', '.join(SUITES)}")
    if os.geteuid() != 0:
        raise LabError("roots of other releases have files of many users: only root makes them")
    folder = cache / f"root-{suite}-{_key()}"
    if folder.is_dir():
        note_use(folder)
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"root-{suite}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            say(f"==> Building a root of {suite} with libvirt and QEMU (about 40 s, once)")
            _build(cache, folder, suite)
    return folder


def _build(cache: Path, folder: Path, suite: str) -> None:
    log, work = cache / f"root-{suite}.log", cache / f"new-root-{suite}"
    log.unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)  # of a killed build; the lock says that none is running
    packages = ",".join(filter(None, (PACKAGES, PACKAGES_OF_SUITE.get(suite))))
    excluded = ("doc", "man", "info", "locale", "i18n")
    argv = [
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        f"--include={packages}",
        '--aptopt=Acquire::Languages "none"',
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in excluded),
        f"--customize-hook={FINISH}",
        suite,
        str(work),
    ]
    try:
        call(argv, timeout=900, log=log)
    except LabError as exc:
        shutil.rmtree(work, ignore_errors=True)
        raise LabError(f"the root of {suite} could not be built: {exc}") from exc
    os.rename(work, folder)
    remove_unused(cache, f"root-{suite}-*")
