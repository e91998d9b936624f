# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hypervisors of several releases of Debian as hosts of an inventory, and hosts that are none.

Ansible reaches them by ssh as it does any host; only that there is no network between: the sshd of
the release serves each connection on its own, over the pipe of a ``ProxyCommand``.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import socket
import subprocess
import tempfile
import typing as t
from pathlib import Path

from lab.hypervisor import Hypervisor

CONFIG = """\
HostKey /mnt/host
AuthorizedKeysFile /mnt/user.pub
AllowUsers root
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
PidFile none
Subsystem sftp internal-sftp
"""

Variables = dict[str, t.Any]


class Ssh:
    """Keys for hypervisors, and how Ansible gets into each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._keygen(folder / "user")
        # The name of a socket has at most 107 bytes, and folders of tests have long names.
        self._masters = tempfile.mkdtemp(prefix="cp-")

    def close(self) -> None:
        shutil.rmtree(self._masters, ignore_errors=True)

    def host(self, hypervisor: Hypervisor) -> Variables:
        """Have a hypervisor let us in; its variables in the inventory."""
        mnt = hypervisor.mnt
        self._keygen(mnt / "host")
        shutil.copyfile(self.folder / "user.pub", mnt / "user.pub")
        (mnt / "sshd_config").write_text(CONFIG)
        for path in (mnt, mnt / "user.pub"):
            path.chmod(0o755)
        key = " ".join((mnt / "host.pub").read_text().split()[:2])
        with (self.folder / "known_hosts").open("a") as known:
            known.write(f"{hypervisor.suite} {key}\n")
        argv = hypervisor.inside("/usr/sbin/sshd", "-i", "-f", "/mnt/sshd_config")
        return self._variables(f"-o ProxyCommand='{shlex.join(argv)}'") | {
            "ansible_host": hypervisor.suite
        }

    @contextlib.contextmanager
    def down(self) -> t.Iterator[Variables]:
        """A host that nothing answers on, though its network card does; its variables."""
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            yield self._variables("") | {
                "ansible_host": "127.0.0.1",
                "ansible_port": deaf.getsockname()[1],
                "ansible_ssh_timeout": 3,
            }

    def _variables(self, more: str) -> Variables:
        known = f"-F /dev/null -o UserKnownHostsFile={self.folder}/known_hosts"
        return {
            "ansible_connection": "ssh",
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.folder / "user"),
            "ansible_ssh_common_args": f"{known} {more}",
            "ansible_control_path_dir": self._masters,
            "ansible_python_interpreter": "/usr/bin/python3",
        }

    @staticmethod
    def _keygen(path: Path) -> None:
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path]
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
