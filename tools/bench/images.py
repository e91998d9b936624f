# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The images that are measured on, and how each run gets one anew."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lab import guest_image
from lab.cache import CACHE
from lab.errors import call

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".cache" / "bench"
MIB = 1 << 20
#: The image that a command is run on, and where it puts a copy.
IMAGE = WORK / "work.qcow2"
COPY = WORK / "out.qcow2"


def allocated(path: Path) -> int:
    """Bytes of blocks on the host; flushed first, some file systems count late."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_blocks * 512


def fresh(pristine: Path) -> str:
    """A shell command: IMAGE is as pristine again, not in memory, and there is no copy."""
    # Only the image leaves the page cache: programs stay, as on a host that runs them often.
    cold = f"sync; dd if={IMAGE} iflag=nocache count=0 status=none"
    return f"rm -f {COPY}* {WORK}/.*.thinvirt-*; cp --sparse=never {pristine} {IMAGE}; {cold}"


def convert(*options: str) -> list[str]:
    """Bare qemu-img convert of IMAGE to COPY."""
    return ["qemu-img", "convert", *options, "-f", "qcow2", "-O", "qcow2", str(IMAGE), str(COPY)]


def half_zero(path: Path) -> None:
    """1.5 GiB of random data and as much of zeros that a guest wrote, MiB by MiB."""
    block = os.urandom(MIB)
    raw = path.with_suffix(".raw")
    with raw.open("wb") as file:
        for number in range(3072):
            file.write(block if number % 2 else bytes(MIB))
    argv = ["qemu-img", "convert", "-S", "0", "-f", "raw", "-O", "qcow2", str(raw), str(path)]
    call(argv, timeout=600)
    raw.unlink()


def zero_filled_guest(path: Path) -> None:
    """The lab's guest, 1 GiB of data more, and 1 GiB of zeros where files were deleted."""
    shutil.copyfile(guest_image(CACHE).disk, path)
    noise = path.with_suffix(".noise")
    noise.write_bytes(os.urandom(1024 * MIB))
    write = f"write -s {noise} 4G 1G"
    call(["qemu-io", "-f", "qcow2", "-c", write, str(path)], timeout=300)
    call(["qemu-io", "-f", "qcow2", "-c", "write -P 0 6G 1G", str(path)], timeout=120)
    noise.unlink()
