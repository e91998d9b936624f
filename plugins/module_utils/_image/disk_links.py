# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A domain's disk that is named by a symlink into another folder, followed as QEMU does."""

from __future__ import annotations

import os

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.header import read_image_header
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.trust import (
    refuse_exchangeable,
)


def followed(path: str, *, image_format: str) -> str:
    """The file that a disk's path means; the path as it is where it leads nowhere else.

    The administrator's own domain names it, so it may lie in any folder, but nobody else may be
    able to lead the link to another file.

    :param path: as the domain's configuration has it.
    :raises RefusedError: another user can exchange a name on the way, or QEMU would look for its
        backing or data file beside the link, and not beside the file.
    :raises ThinvirtError: the file can't be read.
    """
    if not os.path.isabs(path) or not os.path.islink(path) or not os.path.exists(path):
        return path
    real = os.path.realpath(path)
    if os.path.dirname(real) == os.path.realpath(os.path.dirname(path)):
        return path
    refuse_exchangeable(path)
    header = read_image_header(real, image_format=image_format).qcow2
    for name in (header.backing_file, header.data_file) if header else ():
        if name is not None and _beside(path, name) != _beside(real, name):
            raise RefusedError(
                f"{shown(path)} is a symlink to {shown(real)}, and names {shown(name)}, which lies "
                "beside one or the other; nothing was changed.",
                remedy="Record an absolute path in the image (qemu-img rebase -u, or amend -o "
                "data_file=), or have the domain name the file itself.",
            )
    return real


def _beside(path: str, name: str) -> str:
    return os.path.realpath(os.path.join(os.path.dirname(path), name))
