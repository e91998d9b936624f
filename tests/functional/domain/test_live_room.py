# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether there is room for a live compaction, by what the guest has been writing."""

from __future__ import annotations

import contextlib

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact_policy import Request
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_img import QemuImg
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.checks import Bounds, refuse
from image_lab import create, qemu_io

MIB = 1 << 20
PIB = 1 << 50


@pytest.mark.parametrize(
    ("written_bytes", "bandwidth_bytes", "fits"),
    [
        (0, 0, True),
        (MIB, 0, True),
        (PIB, 0, False),
        # The slower it is copied, the longer the guest writes to its overlay.
        (MIB, 1, False),
    ],
)
def test_what_the_guest_may_write_meanwhile_needs_room(
    tmp_path, written_bytes, bandwidth_bytes, fits
):
    image = create(tmp_path / "x.qcow2", "1P", cluster_size="2M")
    qemu_io(image, "write -P 7 0 64M")
    bounds = Bounds(bandwidth_bytes, float(written_bytes))
    request = Request(method="rewrite", image_format="qcow2", min_free_bytes=0)
    refused = pytest.raises(RefusedError, match=r"bytes free|free;")
    with contextlib.nullcontext() if fits else refused:
        refuse(str(image), "qcow2", request, bounds, tool=QemuImg(timeout=60))
