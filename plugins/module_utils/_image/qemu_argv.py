# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How ``qemu-img`` is called: argument lists and the names of images (pure).

Images are named by ``json:`` specifications made here, never by bare names, and always with
their format: so no name is misparsed, nothing is probed, no backing file is opened.
"""

from __future__ import annotations

import dataclasses
import json
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown


@dataclasses.dataclass(frozen=True)
class Storage:
    """Where QEMU finds bytes: an absolute path, and whether a file or a block device is there.

    QEMU wants to be told: its driver ``file`` refuses devices.
    """

    path: str
    block_device: bool = False

    def node(self) -> dict[str, str]:
        return {"driver": "host_device" if self.block_device else "file", "filename": self.path}


def image_spec(
    storage: Storage,
    image_format: str,
    *,
    data_file: Storage | None = None,
    backing: t.Sequence[tuple[Storage, str]] = (),
) -> str:
    """Name an image to QEMU so that it opens the files named here and nothing else.

    :param image_format: ``qcow2`` or ``raw``; never probed.
    :param data_file: the external data file, checked before; whatever the header names is
        overridden.
    :param backing: the files below it and their formats, from its own backing file downwards,
        checked before; without them it is opened alone.
    :raises RefusedError: the name is not UTF-8, which JSON can't express.
    """
    node: dict[str, t.Any] | None = None
    for below, below_format in reversed(backing):
        node = {
            "driver": below_format,
            "file": below.node(),
            **({"backing": node} if below_format == "qcow2" else {}),
        }
    node = {
        "driver": image_format,
        "file": storage.node(),
        **({"backing": node} if image_format == "qcow2" else {}),
    }
    if data_file is not None:
        node["data-file"] = data_file.node()
    try:
        json.dumps(node, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise RefusedError(
            f"The name {shown(storage.path)} is not valid UTF-8; QEMU cannot be given it safely.",
            remedy="Rename the file.",
        ) from error
    return f"json:{json.dumps(node)}"


def nbd_spec(socket: str, export: str) -> str:
    """Name what a QEMU exports over NBD; read as raw, whatever the guest wrote into it."""
    server = {"type": "unix", "path": socket}
    node = {"driver": "raw", "file": {"driver": "nbd", "server": server, "export": export}}
    return f"json:{json.dumps(node)}"


def info_argv(program: str, spec: str, *, force_share: bool) -> list[str]:
    """``qemu-img info``; with ``force_share`` also of an image that a guest writes to."""
    return [program, "info", "--output=json", *(["-U"] if force_share else []), spec]


def map_argv(program: str, spec: str) -> list[str]:
    """``qemu-img map`` of an image that nobody writes to."""
    return [program, "map", "--output=json", spec]


def check_argv(program: str, spec: str) -> list[str]:
    """``qemu-img check`` without repair, of an image that nobody writes to."""
    return [program, "check", "--output=json", spec]


def measure_argv(
    program: str,
    *source: str,
    target_format: str,
    options: t.Mapping[str, str],
    force_share: bool = False,
) -> list[str]:
    """``qemu-img measure``: the size of a copy in another format or with other options.

    :param source: the image's specification, or ``--size`` and a number for an empty disk.
    """
    listed = ",".join(f"{name}={value}" for name, value in sorted(options.items()))
    return [
        *(program, "measure", "--output=json"),
        *(("-U",) if force_share else ()),
        *("-O", target_format),
        *(("-o", listed) if listed else ()),
        *source,
    ]


@dataclasses.dataclass(frozen=True)
class Copy:
    """What a new image is to be like.

    :param format: ``qcow2`` or ``raw``.
    :param options: creation options as in ``qemu-img create -o``, such as ``cluster_size``.
    :param compressed: compress the clusters.
    :param bitmaps: take the persistent bitmaps along.
    :param sparse: leave out zeros; otherwise they are written.
    :param bandwidth_bytes: read no more than so many a second; 0 for as many as can be.
    """

    format: str
    options: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    compressed: bool = False
    bitmaps: bool = False
    sparse: bool = True
    bandwidth_bytes: int = 0


def convert_argv(program: str, spec: str, target: str, *, copy: Copy) -> list[str]:
    """``qemu-img convert``: a sparse copy, flushed, that prints its progress.

    The default cache mode, unsafe, flushes nothing in the end.

    :param target: an absolute path.
    """
    listed = ",".join(f"{name}={value}" for name, value in sorted(copy.options.items()))
    return [
        *(program, "convert", "-p"),
        *("-t", "writeback"),
        *("-O", copy.format),
        *(("-o", listed) if listed else ()),
        *(("-c",) if copy.compressed else ()),
        *(("--bitmaps",) if copy.bitmaps else ()),
        *(() if copy.sparse else ("-S", "0")),
        *(("-r", str(copy.bandwidth_bytes)) if copy.bandwidth_bytes else ()),
        *(spec, target),
    ]


def compare_argv(program: str, spec: str, other: str) -> list[str]:
    """``qemu-img compare``: whether a guest would read the same from both."""
    return [program, "compare", "-p", spec, other]


def overlay_argv(
    program: str, path: str, *, size_bytes: int, backing: str, backing_format: str
) -> list[str]:
    """``qemu-img create`` of an empty qcow2 overlay; what lies below is not opened.

    :param backing: an absolute path, which goes into the header.
    """
    return [
        *(program, "create", "-q", "-u"),
        *("-f", "qcow2"),
        *("-b", backing, "-F", backing_format),
        *(path, str(size_bytes)),
    ]


def commit_argv(program: str, spec: str) -> list[str]:
    """``qemu-img commit``: what is in an overlay goes into the image below, and stays in it too.

    Flushed, as the default cache mode is.
    """
    return [program, "commit", "-q", "-d", "-t", "writeback", spec]
