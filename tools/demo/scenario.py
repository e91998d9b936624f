# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The story of the demo. All figures are measured here by stat, none comes from the collection."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lab import Disk, Guest, GuestSpec, Lab, LabError
from lab.errors import call
from lab.processes import marker

MIB = 1 << 20
WASTED_BYTES = 500 * MIB
REQUIRED_BYTES = 450 * MIB
SPEC = GuestSpec("demo", machine="q35", disks=(Disk("sda", "scsi", root=True),))

# What the playbooks are told beside the URI. The lab is no host to administer: no packages and
# services of this machine are touched.
EXTRA_VARS: dict[str, object] = {
    "kvm_domains_apply": "save_restore",
    "kvm_host_manage_packages": False,
    "kvm_host_manage_services": False,
    "kvm_host_manage_trim": False,
}
# One random block again and again: random enough for a disk, and emulated guests are slow at more.
WASTE = f"""
import os
block = os.urandom(1 << 20)
with open("/waste", "wb") as file:
    for _ in range({WASTED_BYTES // MIB}):
        file.write(block)
    os.fsync(file.fileno())
"""
BOOT_ID = "/proc/sys/kernel/random/boot_id"
# A beat on the serial console, whose log on the host tells when the guest stood still.
BEAT = "while :; do printf . >/dev/ttyS0; sleep 0.1; done"


@dataclass(frozen=True)
class Row:
    """What one disk promised and took before and after, in bytes on the host."""

    domain: str
    target: str
    promised_bytes: int
    allocated_before_bytes: int
    allocated_after_bytes: int

    @property
    def freed_bytes(self) -> int:
        """What the host got back."""
        return self.allocated_before_bytes - self.allocated_after_bytes


def run(state: Path, results: Path) -> bool:
    """Play it and write ``result.json``; True if at least 450 MiB were really freed.

    :raises LabError: a step failed.
    """
    started = time.monotonic()
    (results / "result.json").unlink(missing_ok=True)
    with Lab(state / "lab") as lab:
        _say("Starting a guest on a disk without discard (10 s; 20 s without KVM)")
        guest = lab.create(SPEC)
        guest.start()
        guest.wait_for_agent()
        paths = {disk.target: _path(disk) for disk in guest.spec.disks}

        _say("The guest writes 500 MiB and deletes them (10 s)")
        _waste(guest)
        before = {target: allocated(path) for target, path in paths.items()}

        _say("thinvirt.kvm.audit: which link of the chain is broken? (5 s)")
        inventory = _inventory(lab, state)
        _playbook(lab, inventory, "audit")
        _say("thinvirt.kvm.configure: sets discard, without a reboot of the guest (10 s)")
        boot = guest.run("cat", BOOT_ID).stdout
        with Pulse(lab, guest) as pulse:
            _playbook(lab, inventory, "configure")
        if guest.run("cat", BOOT_ID).stdout != boot:
            raise LabError("the guest was rebooted")
        _say("thinvirt.kvm.reclaim: trims through the guest agent (5 s)")
        _playbook(lab, inventory, "reclaim")

        _say("Measuring on the host")
        rows = [
            Row(guest.name, target, promised(path), before[target], allocated(path))
            for target, path in paths.items()
        ]
        guest.run("sha256sum", "--check", "--quiet", "/keep.sum")
    ok = sum(row.freed_bytes for row in rows) >= REQUIRED_BYTES
    seconds = time.monotonic() - started
    _write(results, rows, ok=ok, seconds=seconds, pause_seconds=pulse.longest_seconds)
    print(f"\n{table(rows)}\n")
    print(f"The guest was not rebooted. It stood still for {pulse.longest_seconds:.1f} s.")
    print("Before and after are allocated blocks on the host. The guest's own file is intact.")
    if not ok:
        print(f"FAILED: less than {REQUIRED_BYTES // MIB} MiB were freed; see the tasks above.")
    return ok


class Pulse(threading.Thread):
    """How long the guest stood still at most, seen from the host while it beats."""

    def __init__(self, lab: Lab, guest: Guest) -> None:
        super().__init__(daemon=True)
        self._guest = guest
        self._log = lab.state / "log" / f"{guest.name}-serial.log"
        self._end = threading.Event()
        self.longest_seconds = 0.0

    def run(self) -> None:
        size, since = -1, time.monotonic()
        while not self._end.wait(0.02):
            now = self._log.stat().st_size
            if now != size:
                size, since = now, time.monotonic()
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - since)

    def __enter__(self) -> Pulse:
        self._guest.run("systemd-run", "--quiet", "--unit=beat", "sh", "-c", BEAT)
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._end.set()
        self.join()
        self._guest.run("systemctl", "stop", "beat")


def allocated(path: Path) -> int:
    """Bytes that *path* takes on the host; flushed first, some file systems count late."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_blocks * 512


def promised(path: Path) -> int:
    """The size in bytes that the guest sees."""
    info = call(["qemu-img", "info", "-U", "-f", "qcow2", "--output=json", path], timeout=30)
    return int(json.loads(info)["virtual-size"])


def table(rows: Sequence[Row]) -> str:
    """The result for people, in MiB."""
    lines = [["disk", "promised", "before", "after", "freed"]]
    for row in rows:
        sizes = (
            row.promised_bytes,
            row.allocated_before_bytes,
            row.allocated_after_bytes,
            row.freed_bytes,
        )
        lines.append([f"{row.domain}/{row.target}", *(f"{size / MIB:,.0f} MiB" for size in sizes)])
    return "\n".join(
        f"{name:<12}" + "".join(f"{cell:>14}" for cell in cells) for name, *cells in lines
    )


def _say(step: str) -> None:
    print(f"\n==> {step}", flush=True)


def _path(disk: Disk) -> Path:
    if disk.path is None:
        raise LabError(f"the lab made no image for disk {disk.target}")
    return disk.path


def _waste(guest: Guest) -> None:
    guest.run("sh", "-c", "head -c 16M /dev/urandom >/keep; sha256sum /keep >/keep.sum")
    guest.run("python3", "-c", WASTE, timeout=300)
    guest.run("sh", "-c", "rm /waste; sync")


def _inventory(lab: Lab, state: Path) -> Path:
    """An inventory as a user would write it, whose one hypervisor is this machine."""
    host = {
        "ansible_connection": "local",
        # A managed host's Python: Debian's, with python3-libvirt and python3-lxml.
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_remote_tmp": str(state / "ansible-tmp"),
        "ansible_async_dir": str(state / "ansible-async"),
        "thinvirt_uri": lab.uri,
    }
    path = state / "inventory.json"
    inventory = {"kvm_hosts": {"hosts": {"localhost": host}}}
    path.write_text(json.dumps(inventory, indent=2) + "\n", encoding="utf-8")
    return path


def _playbook(lab: Lab, inventory: Path, name: str) -> None:
    argv = ["ansible-playbook", "-i", str(inventory), "-e", json.dumps(EXTRA_VARS)]
    env = os.environ | marker(lab.state)  # so that demo-clean finds it if this process is killed
    try:
        done = subprocess.run(
            [*argv, f"thinvirt.kvm.{name}"],
            check=False,
            stdin=subprocess.DEVNULL,
            env=env,
            timeout=600,
        )
    except subprocess.TimeoutExpired as exc:
        raise LabError(f"the playbook thinvirt.kvm.{name} took more than 10 minutes") from exc
    if done.returncode != 0:
        raise LabError(f"the playbook thinvirt.kvm.{name} failed; its last task tells why")


def _write(
    results: Path, rows: Sequence[Row], *, ok: bool, seconds: float, pause_seconds: float
) -> None:
    results.mkdir(parents=True, exist_ok=True)
    result = {
        "ok": ok,
        "required_bytes": REQUIRED_BYTES,
        "freed_bytes": sum(row.freed_bytes for row in rows),
        "disks": [asdict(row) | {"freed_bytes": row.freed_bytes} for row in rows],
        "pause_seconds": round(pause_seconds, 1),
        "seconds": round(seconds, 1),
    }
    text = json.dumps(result, indent=2) + "\n"
    (results / "result.json").write_text(text, encoding="utf-8")
