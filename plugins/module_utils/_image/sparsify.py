# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``virt-sparsify --in-place``: trims the file systems in an image that is not in use."""

from __future__ import annotations

import os

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import CommandError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.process import (
    Runner,
    find_program,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown

#: Its appliance is a virtual machine: more address space than any other program here.
_MEMORY_BYTES = 16 * 1024**3
#: What libguestfs and supermin, which makes its appliance, read.
_PASSED_ON = ("LIBGUESTFS_", "SUPERMIN_")

_COMPLAINT = "virt-sparsify: error: "
#: It ends with how to report a bug, whatever the reason was.
_BOILERPLATE = "If reporting bugs,"


def sparsify_argv(program: str, path: str, image_format: str) -> list[str]:
    """The command; ``path`` is absolute, so that no name is taken for an option or a URI."""
    return [program, "--in-place", "--quiet", "--format", image_format, path]


def sparsify(path: str, image_format: str, timeout: float, runner: Runner, *, fd: int) -> None:
    """Trim an image's file systems in place.

    It is named as an open file of this process, which outlives the program: QEMU, which libguestfs
    starts, gets none of ours, and no name may come to mean another file.

    :param path: for messages.
    :param fd: the image, open.

    libguestfs is told how to work by its own variables, such as LIBGUESTFS_BACKEND=direct.

    :raises CommandError: it failed; what it had trimmed until then is trimmed.
    :raises RequirementError: it is not installed.
    """
    program = find_program("virt-sparsify", package="guestfs-tools")
    argv = sparsify_argv(program, f"/proc/{os.getpid()}/fd/{fd}", image_format)
    env = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
    completed = runner(argv, timeout=timeout, env=env, max_memory_bytes=_MEMORY_BYTES)
    if completed.rc != 0:
        raise CommandError(
            f"virt-sparsify failed on {shown(path)} with status {completed.rc}: "
            f"{_reason(completed.stderr)}. What it had trimmed until then is trimmed, and nothing "
            "else has changed.",
            argv=argv,
            rc=completed.rc,
            stderr=completed.stderr,
            remedy="Try libguestfs-test-tool on this host.",
        )


def _reason(stderr: str) -> str:
    """What it complains of: its own line, or the last one before it asks for a report."""
    said = stderr.split(_BOILERPLATE, maxsplit=1)[0]
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    own = [line for line in lines if line.startswith(_COMPLAINT)]
    return shown((own or lines or ["it printed nothing"])[-1].rstrip("."))
