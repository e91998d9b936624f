# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What libguestfs needs: it boots an appliance, and not every machine has a kernel of its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from .accel import kvm_works
from .image import guest_image

MODULES = Path("/lib/modules")


@contextlib.contextmanager
def appliance(cache: Path) -> Iterator[dict[str, str]]:
    """The variables that programs such as virt-sparsify need; they hold until the block's end.

    :raises LabError: there is no guest image, and it could not be built.
    """
    image = guest_image(cache)
    env = {
        "LIBGUESTFS_BACKEND": "direct",
        "SUPERMIN_KERNEL": str(image.kernel),
        "SUPERMIN_KERNEL_VERSION": image.release,
        "SUPERMIN_MODULES": str(image.modules),
    }
    if not kvm_works(image.kernel, cache):
        env["LIBGUESTFS_BACKEND_SETTINGS"] = "force_tcg"
    # supermin looks for this folder even so; a machine without a kernel of its own has none.
    missing = not MODULES.is_dir()
    if missing:
        os.mkdir(MODULES)
    try:
        yield env
    finally:
        if missing:
            with contextlib.suppress(OSError):  # somebody has put a kernel's modules there
                os.rmdir(MODULES)
