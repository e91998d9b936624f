# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real sshd on a free port of this machine, with keys of its own, to cut connections of."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

SSHD = "/usr/sbin/sshd"
#: sshd refuses to run as root without a folder that packages make at boot; ours is in a namespace.
#: There, other programs may stand in the place of the system's.
IN_NAMESPACE = (
    *("unshare", "--mount", "sh", "-ec"),
    """mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd
    if [ "$1" ]; then mount --bind "$1" /usr/bin/qemu-img; fi
    shift; exec "$@" """,
    "sh",
)


class Sshd:
    """Serves the user who runs the tests, and nobody else, by a key.

    :param qemu_img: what whoever comes by it finds as qemu-img, if root runs the tests.
    """

    def __init__(self, folder: Path, *, qemu_img: Path | None = None) -> None:
        self.folder = folder
        self._qemu_img = "" if qemu_img is None else str(qemu_img)
        self.port = _free_port()
        self._process: subprocess.Popen | None = None
        # The name of a socket has at most 107 bytes, and folders of tests have long names.
        self._masters = tempfile.mkdtemp(prefix="cp-")
        for name in ("host", "user"):
            argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name]
            subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
        (folder / "config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\n"
            f"AuthorizedKeysFile {folder}/user.pub\nAllowUsers {getpass.getuser()}\n"
            "PermitRootLogin prohibit-password\nPasswordAuthentication no\nUsePAM no\n"
            "StrictModes no\nSubsystem sftp internal-sftp\n"
        )
        key = " ".join((folder / "host.pub").read_text().split()[:2])
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {key}\n")

    def __enter__(self) -> Sshd:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()
        shutil.rmtree(self._masters, ignore_errors=True)

    def start(self) -> None:
        argv = [SSHD, "-D", "-e", "-f", str(self.folder / "config")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*((*IN_NAMESPACE, self._qemu_img) if os.geteuid() == 0 else ()), *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 60
        while not self.listens():
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, "sshd does not listen"
            time.sleep(0.05)

    def stop(self) -> None:
        """Cut every connection at once, and take no new ones."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)  # that it begins no session meanwhile
        for pid in (*self.sessions(), self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(timeout=30)

    def sessions(self) -> list[int]:
        """The processes of sshd's that serve connections; not those that run in them."""
        assert self._process is not None
        found, look_at = [], [self._process.pid]
        while look_at:
            pid = look_at.pop()
            with contextlib.suppress(OSError):
                for name in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                    if Path(f"/proc/{name}/comm").read_text().startswith("sshd"):
                        found.append(int(name))
                        look_at.append(int(name))
        return found

    def listens(self) -> bool:
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", self.port)) == 0

    def variables(self) -> dict[str, object]:
        """How Ansible reaches a host by it: as it always does, master connection included."""
        known = f"-F /dev/null -o UserKnownHostsFile={self.folder}/known_hosts"
        return {
            "ansible_connection": "ssh",
            "ansible_host": "127.0.0.1",
            "ansible_port": self.port,
            "ansible_user": getpass.getuser(),
            "ansible_ssh_private_key_file": str(self.folder / "user"),
            "ansible_ssh_common_args": known,
            "ansible_control_path_dir": self._masters,
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_remote_tmp": str(self.folder / "tmp"),
            "ansible_async_dir": str(self.folder / "async"),
        }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
