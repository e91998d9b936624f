# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What compacting an image would give back that a running guest writes to.

Nothing is locked and the guest is not disturbed; what it writes meanwhile makes the figure a little
wrong.  It only tells whether shutting the guest down is worth it.
"""

from __future__ import annotations

import dataclasses

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact import (
    Obstacles,
    Outcome,
    facts_of,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact_outcome import (
    sizes_with,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact_policy import (
    Facts,
    Obstacle,
    Request,
    about_data_file,
    header_options,
    obstacles_to,
    refuse_any_change,
    refuse_obstacles,
    refuse_rewrite,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.files import (
    OpenImage,
    open_image,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.header import (
    ImageHeader,
    read_open_header,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.process import Runner, run
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_argv import image_spec
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_img import QemuImg
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.replace import (
    Stages,
    fd_storage,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.table_size import (
    spare_table_bytes,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.zeros import count_zeros


def estimate(
    path: str,
    request: Request,
    *,
    obstacles: Obstacles,
    stages: Stages,
    runner: Runner = run,
) -> Outcome:
    """What :func:`compact.compact` would probably do if the image were not in use.

    :param obstacles: what would forbid it even then.
    :raises RefusedError: it would be refused even then.
    :raises ThinvirtError: the image can't be read.
    """
    with open_image(path) as image:
        header = read_open_header(image, path=image.path, image_format=request.image_format)
        users = obstacles_to(obstacles(image), header.format)
        refuse_obstacles(image.path, users, punch=request.method != "trim")
        facts = facts_in_use(image, header)
        refuse_any_change(image.path, facts, request)
        sizes = sizes_with(header, shared_bytes=facts.shared_bytes)
        outcome = Outcome(image.path, before=sizes, after=sizes)
        with stages.stage("estimate"):
            try:
                zeros = count_zeros(image.fd)
            except OSError as error:
                raise failure(image.path, "read", error) from error
            dead = 0
            if request.method in ("auto", "rewrite") and header.qcow2 is not None:
                dead = _dead_bytes(
                    image.fd, header, QemuImg(timeout=request.timeout, runner=runner)
                )
        found = min(sizes.own_bytes, zeros + dead)
        enough = request.threshold(sizes.allocated_bytes)
        outcome.reclaimable_bytes = found
        if request.method == "trim":
            outcome.method = "trim"
            outcome.reason = "Only virt-sparsify itself can tell what would come back."
        elif found < enough and not _wants_another_form(header, request):
            outcome.reason = f"{found} bytes could come back, less than the {enough} worth it."
        else:
            auto = request.method == "auto" and not request.moves(image.path) and not request.force
            punch = request.method == "punch" or (auto and zeros >= enough)
            refusal = "" if punch else _refusal(image.path, facts, request, users)
            if not refusal:
                outcome.method = "punch" if punch else "rewrite"
                outcome.after = dataclasses.replace(
                    sizes, allocated_bytes=max(0, sizes.allocated_bytes - found)
                )
            forced = "force was asked for." if request.force and found < enough else ""
            outcome.reason = (
                refusal or forced or f"At least {found} bytes are zeros, or clusters of no use."
            )
        outcome.reason += about_data_file(header)
        outcome.seconds = dict(stages.seconds)
        return outcome


def facts_in_use(image: OpenImage, header: ImageHeader) -> Facts:
    """What is known of an image in use; a guest that runs may well have left it marked as dirty."""
    if header.qcow2 is not None:
        qcow2 = dataclasses.replace(header.qcow2, features=header.qcow2.features - {"dirty"})
        header = dataclasses.replace(header, qcow2=qcow2)
    return facts_of(image, header)


def _refusal(path: str, facts: Facts, request: Request, users: list[Obstacle]) -> str:
    """Why a rewrite would be refused, where it need not be the method; empty if it would not."""
    try:
        refuse_obstacles(path, users, punch=False)
        refuse_rewrite(path, facts, request)
    except RefusedError as error:
        if request.method == "rewrite":
            raise
        return f"A rewrite was refused: {error}"
    return ""


def _wants_another_form(header: ImageHeader, request: Request) -> bool:
    """As far as the header tells; whether clusters are compressed it does not."""
    if request.moves(header.path) or request.force:
        return True
    if header.qcow2 is None or request.method not in ("auto", "rewrite"):
        return False
    zstd = request.compression == "zstd" and header.qcow2.compression_type != "zstd"
    return zstd or request.cluster_size_bytes not in (None, header.qcow2.cluster_size_bytes)


def _dead_bytes(fd: int, header: ImageHeader, tool: QemuImg) -> int:
    """Clusters that nothing refers to; none where a copy would not tell."""
    if header.qcow2 is None or header.qcow2.snapshot_count or header.qcow2.encryption != "none":
        return 0
    options = header_options(header.qcow2)
    measured = tool.measure(
        image_spec(fd_storage(fd), header.format),
        target_format="qcow2",
        options=options,
        pass_fds=(fd,),
        force_share=True,
    )
    spare = spare_table_bytes(fd, header, tool, options)
    return max(0, (header.allocated_bytes or 0) - measured.required_bytes + spare)
