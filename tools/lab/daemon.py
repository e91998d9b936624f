# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A private libvirtd, for root and for anybody else, and the guests that it runs."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from . import processes, warm
from .accel import kvm_works
from .cache import CACHE
from .domain import Boot, Disk, GuestSpec, domain_xml
from .errors import LabError, call
from .guest import Guest
from .image import SUITE, GuestImage, guest_image

HOST_FOLDERS = (
    *("/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt"),
    *("/var/lib/swtpm-localca", "/var/log/swtpm"),  # of emulated TPMs
)
# The kernel takes 107 bytes of socket path. The longest that libvirt makes below the state folder
# of an unprivileged user is that of the guest agent's channel, 86 bytes; for root it is its own.
MAX_STATE_BYTES = {"root": 107 - 30, "user": 107 - 86}
QEMU_CONF = """
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""
QEMU_CONF_ROOT = """
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
swtpm_user = "root"
swtpm_group = "root"
"""
LIBVIRTD_CONF = """
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_ro_perms = "0700"
unix_sock_rw_perms = "0700"
log_outputs = "3:stderr"
"""
ACCOUNTS = {
    "passwd": ("libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin",),
    "group": ("libvirt-qemu:x:64055:", "kvm:x:64056:"),
}


class Lab:
    """A libvirtd of our own, with all its state below one folder.

    start() and stop() may be repeated and pick up what a killed process left; one process at a
    time may use a folder. Definitions and disks survive stop(); clean() removes the folder.
    """

    def __init__(
        self, state: Path, *, cache: Path = CACHE, say: Callable[[str], None] = print
    ) -> None:
        self.state = state.resolve()
        self.cache = cache
        self.root = os.geteuid() == 0
        self._say = say
        self._daemon: subprocess.Popen[bytes] | None = None
        if self.state.is_relative_to("/run"):
            raise LabError(f"{self.state}: a lab can't lie below /run, choose another folder")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def uri(self) -> str:
        """What libvirt clients connect to."""
        if self.root:
            return f"qemu+unix:///system?socket={self._short()}/run/libvirt-sock"
        return f"qemu+unix:///session?socket={self._short()}/run/libvirt/libvirt-sock"

    def start(self) -> None:
        """Start the daemon, unless it runs; returns when it answers.

        :raises LabError: it does not; the message ends with the daemon's own last lines.
        """
        if self._is_up():
            return
        self.stop()
        for name in (
            "etc/libvirt",
            "lib",
            "log",
            "run",
            "tmp",
            "disks",
            "lib/swtpm-localca",
            "log/swtpm",
        ):
            (self.state / name).mkdir(parents=True, exist_ok=True)
        # What libvirt found out about each QEMU (7 s), checked by it, is shared by all labs.
        (self.cache / "libvirt").mkdir(parents=True, exist_ok=True)
        if not (self.state / "cache").is_symlink():
            (self.state / "cache").symlink_to(self.cache.resolve() / "libvirt")
        self.state.chmod(0o755 if self.root else 0o700)
        with _mount_points(fcntl.LOCK_SH):
            last = self.launch()
        if last:
            self.stop()
            raise LabError(f"the lab's libvirtd did not start: {' / '.join(last)}")

    def launch(self) -> list[str]:
        """Start the daemon, whatever guests run; its last lines if it ends or does not answer."""
        argv, env = self._prepare_root() if self.root else self._prepare_user()
        with (self.state / "log" / "libvirtd.log").open("wb") as log:
            self._daemon = subprocess.Popen(
                argv,
                env=env | processes.marker(self.state),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the program that uses the lab
            )
        deadline = time.monotonic() + 30
        while not self._is_up():
            if self._daemon.poll() is not None or time.monotonic() > deadline:
                return (self.state / "log" / "libvirtd.log").read_text().splitlines()[-3:] or ["?"]
            time.sleep(0.1)
        return []

    def stop(self) -> int:
        """End the daemon and every guest, the hard way; returns how many processes that were."""
        ended = processes.end_all(self.state)
        if self._daemon is not None:
            self._daemon.wait(timeout=10)
            self._daemon = None
        shutil.rmtree(self.state / "run", ignore_errors=True)
        self._remove_short()
        self._remove_mount_points()
        return ended

    def clean(self) -> int:
        """stop() and remove the folder with all definitions and disks."""
        ended = self.stop()
        if self.state.exists():
            shutil.rmtree(self.state)
        return ended

    def virsh(self, *argv: str, timeout: float = 60) -> str:
        """Run virsh on this lab and return what it printed."""
        env = os.environ | {"LC_ALL": "C"}
        return call(["virsh", "--quiet", "--connect", self.uri, *argv], timeout=timeout, env=env)

    def create(self, spec: GuestSpec) -> Guest:
        """Make the disks of a guest and define it (anew, if it exists); does not start it."""
        self.forget(spec.name)
        spec = dataclasses.replace(
            spec, disks=tuple(self.make_disk(spec, disk) for disk in spec.disks)
        )
        self.define(spec.name, domain_xml(spec, self.boot(spec)))
        return Guest(spec, self.virsh)

    def warm(self, spec: GuestSpec) -> Guest:
        """A guest that runs and whose agent answers, restored instead of booted.

        What it may be, and what it has of its own: see :mod:`lab.warm`. A start is a cold boot.

        :raises LabError: the guest can't be had so, or a step failed; then nothing is left of it.
        """
        return warm.guest(self, spec, self._say)

    def prepare_warm(self, spec: GuestSpec) -> None:
        """Make what :meth:`warm` restores for such a guest, unless it is there already."""
        warm.save(self, spec, self._say)

    def guest(self, name: str) -> Guest:
        """A guest that was created earlier, perhaps by another process; knows no disks."""
        return Guest(GuestSpec(name, disks=()), self.virsh)

    def define(self, name: str, xml: str) -> None:
        """Have libvirt know a domain."""
        definition = self.state / "tmp" / f"{name}.xml"
        definition.write_text(xml, encoding="utf-8")
        self.virsh("define", str(definition))

    def forget(self, name: str) -> None:
        """Pull the plug of a guest and undefine it, if there is one of that name."""
        if name not in self.virsh("list", "--all", "--name").splitlines():
            return
        self.guest(name).destroy()
        leftovers = ("--managed-save", "--snapshots-metadata", "--checkpoints-metadata")
        if name in self.virsh("list", "--all", "--name").splitlines():  # it was not transient
            self.virsh("undefine", name, *leftovers)

    def boot(self, spec: GuestSpec) -> Boot:
        """How a guest boots here."""
        image = self.image(spec.suite)
        return Boot(
            kernel=image.kernel,
            initrd=image.initrd,
            serial_log=self.state / "log" / f"{spec.name}-serial.log",
            kvm=self._kvm(),
        )

    def make_disk(self, spec: GuestSpec, disk: Disk, *, root: Path | None = None) -> Disk:
        """Make a disk of a guest, unless it is there already; returns it with its path.

        :param root: what a root disk is a copy of, if not of the guest image.
        """
        if disk.path is not None:
            return disk
        path = self.state / "disks" / f"{spec.name}-{disk.target}.{disk.format}"
        path.unlink(missing_ok=True)
        argv: list[str | Path] = ["qemu-img", "create", "-q", "-f", disk.format, path]
        if disk.root:
            source = root or self.image(spec.suite).disk
            argv = ["cp", "--reflink=auto", "--sparse=always", source, path]
            if disk.format != "qcow2":
                argv = ["qemu-img", "convert", "-O", disk.format, source, path]
        else:
            argv.append(str(disk.size_bytes))
        call(argv, timeout=120)
        return dataclasses.replace(disk, path=path)

    def image(self, suite: str = SUITE) -> GuestImage:
        """The guest image, built if it isn't there yet."""
        return guest_image(self.cache, self._say, suite=suite)

    def _kvm(self) -> bool:
        return kvm_works(self.image().kernel, self.cache, self._say)

    def _is_up(self) -> bool:
        if not processes.owned_pids(self.state):
            return False
        try:
            self.virsh("version", timeout=10)
        except LabError:
            return False
        return True

    def _prepare_root(self) -> tuple[list[str], dict[str, str]]:
        etc = self.state / "etc"
        (etc / "qemu.conf").write_text(QEMU_CONF + QEMU_CONF_ROOT)
        (etc / "libvirtd.conf").write_text(LIBVIRTD_CONF)
        for name, lines in ACCOUNTS.items():
            text = Path("/etc", name).read_text(encoding="utf-8")
            known = {line.partition(":")[0] for line in text.splitlines()}
            added = [line + "\n" for line in lines if line.partition(":")[0] not in known]
            (self.state / name).write_text(text + "".join(added), encoding="utf-8")
        with (self.state / "mount-points").open("a") as made:
            for folder in HOST_FOLDERS:
                if not os.path.isdir(folder):
                    made.write(f"{folder}\n")
                    os.makedirs(folder)
        script = Path(__file__).with_name("namespace.sh")
        argv = ["unshare", "--mount", "--propagation", "slave", str(script), str(self.state)]
        return [*argv, "kvm" if self._kvm() else "tcg"], dict(os.environ)

    def _prepare_user(self) -> tuple[list[str], dict[str, str]]:
        short = self._short()
        conf = self.state / "etc" / "libvirt"
        (conf / "qemu.conf").write_text(QEMU_CONF)
        (conf / "libvirtd.conf").write_text(LIBVIRTD_CONF)
        (self.state / "run").chmod(0o700)
        env = os.environ | {
            "HOME": str(self.state),
            "XDG_RUNTIME_DIR": f"{short}/run",
            "XDG_CONFIG_HOME": f"{short}/etc",
            "XDG_CACHE_HOME": f"{short}/cache",
            "XDG_DATA_HOME": f"{short}/lib",
            # Often missing in a user's path on Debian: libvirtd is in /usr/sbin.
            "PATH": os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin",
        }
        return ["/usr/sbin/libvirtd", "-f", f"{short}/etc/libvirt/libvirtd.conf"], env

    def _short(self) -> Path:
        """The state folder by a name that is short enough for sockets.

        Where the checkout lies too deep this is a link in a private folder below /tmp, made on
        first use and removed by stop().
        """
        limit = MAX_STATE_BYTES["root" if self.root else "user"]
        if len(os.fsencode(self.state)) <= limit:
            return self.state
        note = self.state / "short-name"
        if note.exists():
            return Path(note.read_text())
        self.state.mkdir(parents=True, exist_ok=True)
        short = Path(tempfile.mkdtemp(prefix="tv-", dir="/tmp")) / "s"
        note.write_text(str(short))
        short.symlink_to(self.state)
        self._say(f"    The checkout lies deep: sockets are reached through {short}")
        return short

    def _remove_short(self) -> None:
        note = self.state / "short-name"
        with contextlib.suppress(FileNotFoundError):
            short = Path(note.read_text())
            if short.is_symlink() and short.readlink() == self.state:
                short.unlink()
                short.parent.rmdir()
            note.unlink()

    def _remove_mount_points(self) -> None:
        """Remove the host folders that start() had to make, unless another lab uses them now."""
        note = self.state / "mount-points"
        if not note.exists():
            return
        with _mount_points(fcntl.LOCK_EX):
            pids = [pid for pid in os.listdir("/proc") if pid.isdigit()]
            if not any("thinvirt-lab" in _mounts(pid) for pid in pids):
                for folder in note.read_text().split():
                    with contextlib.suppress(OSError):  # somebody else's files are in it: it stays
                        os.rmdir(folder)
                note.unlink()


@contextlib.contextmanager
def _mount_points(operation: int) -> Iterator[None]:
    """Labs that start share the lock, one that removes has it alone: they lie side by side."""
    fd = os.open("/var/lib", os.O_RDONLY)
    try:
        fcntl.flock(fd, operation)
        yield
    finally:
        os.close(fd)


def _mounts(pid: str) -> str:
    try:
        return Path("/proc", pid, "mountinfo").read_text(errors="replace")
    except OSError:
        return ""
