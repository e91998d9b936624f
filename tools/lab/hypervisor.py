# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A hypervisor of another release of Debian, in namespaces of its own on this machine.

It has its own processes, its own mounts, no network, and the release's libvirt, QEMU, Python and
sshd (see :mod:`lab.debian_root`).  Its images lie in a folder of this machine, to be measured from
outside.  When the process that started it ends, so does all that runs in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from .accel import kvm_works
from .cache import CACHE
from .daemon import LIBVIRTD_CONF, QEMU_CONF, QEMU_CONF_ROOT
from .debian_root import debian_root
from .domain import Boot, Disk, GuestSpec, domain_xml
from .errors import LabError, call
from .guest import Guest
from .image import GuestImage, guest_image

#: Where the hypervisor has its images.
IMAGES = Path("/var/lib/libvirt/images")


class Hypervisor:
    """A libvirtd of a release of Debian, and its guests; only root can start one.

    :param suite: one of :data:`lab.debian_root.SUITES`.
    :param state: the folder for all that it writes; clean() removes it.
    """

    def __init__(
        self,
        suite: str,
        state: Path,
        *,
        cache: Path = CACHE,
        say: Callable[[str], None] = print,
    ) -> None:
        self.suite = suite
        self.state = state.resolve()
        self.cache = cache
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._init = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.clean()

    @property
    def images(self) -> Path:
        """The folder :data:`IMAGES` of the hypervisor, as this machine has it."""
        return self.state / "lib" / "images"

    @property
    def mnt(self) -> Path:
        """The folder ``/mnt`` of the hypervisor, as this machine has it."""
        return self.state / "mnt"

    def start(self) -> None:
        """Start it; returns when its libvirt answers. It ends with the thread that called this.

        :raises LabError: it does not; the message ends with the daemon's own last lines.
        """
        root = debian_root(self.cache, self.suite, self._say)
        image = self._image()
        for name in ("etc", "lib/images", "lib/boot", "log", "mnt"):
            (self.state / name).mkdir(parents=True, exist_ok=True)
        (self.state / "empty").touch()
        # What libvirt found out about its QEMU (7 s), checked by it, is for the next one as well.
        found_out = self.cache / f"libvirt-{self.suite}"
        found_out.mkdir(parents=True, exist_ok=True)
        if not (self.state / "cache").is_symlink():
            (self.state / "cache").symlink_to(found_out.resolve())
        (self.state / "etc" / "qemu.conf").write_text(QEMU_CONF + QEMU_CONF_ROOT)
        (self.state / "etc" / "libvirtd.conf").write_text(LIBVIRTD_CONF)
        for file in (image.kernel, image.initrd):
            shutil.copyfile(file, self.state / "lib" / "boot" / file.name)
        self._start(root, "kvm" if kvm_works(image.kernel, self.cache, self._say) else "tcg")

    def _start(self, root: Path, accel: str) -> None:
        script = Path(__file__).with_name("hypervisor.sh")
        with (self.state / "namespace.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig=KILL"),
                    *("unshare", "--mount", "--net", "--pid", "--uts", "--fork", "--kill-child"),
                    *("--propagation", "slave"),
                    *map(str, (script, self.suite, root, self.state, accel)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the program that uses it
            )
        deadline = time.monotonic() + 60
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                lines = self._last_lines()
                self.stop()
                raise LabError(f"the libvirtd of {self.suite} did not start: {' / '.join(lines)}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End it and every guest, the hard way; when it returns they are gone."""
        if self._process is None:
            return
        if not self._find_init():
            self._process.kill()
        with contextlib.suppress(ProcessLookupError):
            if self._init:
                os.kill(self._init, signal.SIGKILL)  # the first there: the kernel ends the others
        self._process.wait(timeout=60)
        self._process, self._init = None, 0

    def clean(self) -> None:
        """stop() and remove the folder with all definitions and disks."""
        self.stop()
        shutil.rmtree(self.state, ignore_errors=True)

    def inside(self, *argv: str | Path) -> list[str]:
        """The command that runs a program in the hypervisor, as root."""
        if not self._find_init():
            raise LabError(f"the hypervisor {self.suite} does not run")
        return [
            *("nsenter", f"--target={self._init}", "--mount", "--net", "--pid", "--uts"),
            *("--root", "--wd", "--", *map(str, argv)),
        ]

    def run(self, *argv: str | Path, timeout: float = 60) -> str:
        """Run a program in the hypervisor and return what it printed.

        :raises LabError: it failed or took too long.
        """
        path = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
        return call(self.inside(*argv), timeout=timeout, env=path)

    def virsh(self, *argv: str, timeout: float = 60) -> str:
        """Run the release's virsh and return what it printed."""
        return self.run("virsh", "--quiet", "-c", "qemu:///system", *argv, timeout=timeout)

    def create(self, spec: GuestSpec) -> Guest:
        """Make the disks of a guest and define it; does not start it."""
        image = self._image()
        spec = dataclasses.replace(
            spec, disks=tuple(self._make_disk(spec.name, disk, image) for disk in spec.disks)
        )
        boot = Boot(
            kernel=Path("/var/lib/libvirt/boot", image.kernel.name),
            initrd=Path("/var/lib/libvirt/boot", image.initrd.name),
            serial_log=Path(f"/var/log/{spec.name}-serial.log"),
            kvm=kvm_works(image.kernel, self.cache, self._say),
            cpu_mode="",  # libvirt 7.0 does not know "maximum", which came with 7.1
        )
        definition = self.mnt / f"{spec.name}.xml"
        definition.write_text(domain_xml(spec, boot), encoding="utf-8")
        self.virsh("define", f"/mnt/{definition.name}")
        return Guest(spec, self.virsh)

    def outside(self, path: str | Path) -> Path:
        """The file of this machine that an image of the hypervisor is.

        :raises ValueError: it does not lie in :data:`IMAGES`.
        """
        return self.images / Path(path).relative_to(IMAGES)

    def _make_disk(self, guest: str, disk: Disk, image: GuestImage) -> Disk:
        path = IMAGES / f"{guest}-{disk.target}.{disk.format}"
        if disk.root:
            argv: list[str | Path] = ["cp", "--reflink=auto", "--sparse=always", image.disk]
            call([*argv, self.outside(path)], timeout=120)
        else:
            argv = ["qemu-img", "create", "-q", "-f", disk.format, self.outside(path)]
            call([*argv, str(disk.size_bytes)], timeout=60)
        return dataclasses.replace(disk, path=path)

    def _image(self) -> GuestImage:
        return guest_image(self.cache, self._say)

    def _find_init(self) -> bool:
        """Whether the first process of the namespaces is known; it is the one that we started."""
        if not self._init and self._process is not None:
            pid = self._process.pid
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                self._init = int(children[0]) if children else 0
        return bool(self._init)

    def _answers(self) -> bool:
        try:
            # Until it has its own root, this machine's libvirt would answer.
            if not self._find_init() or not self.mnt.samefile(f"/proc/{self._init}/root/mnt"):
                return False
            self.virsh("version", timeout=20)
        except (LabError, OSError):
            return False
        return True

    def _last_lines(self) -> list[str]:
        lines: list[str] = []
        for name in ("namespace.log", "log/libvirtd.log"):
            with contextlib.suppress(OSError):
                lines += (self.state / name).read_text(errors="replace").splitlines()[-3:]
        return lines
