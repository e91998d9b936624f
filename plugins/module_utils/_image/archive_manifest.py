# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``manifest.json`` of a backup: all that a restore needs to know besides its files (pure)."""

from __future__ import annotations

import dataclasses
import json
import re
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ImageError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import Identity

MADE_BY = "thinvirt.kvm.domain_backup"
#: Of the manifest; a later one may mean something else.
FORMAT = 1
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True)
class StoredFile:
    """A file of a version, as it was left.

    :param mtime_ns: with the size it tells that nobody has changed it; nanoseconds.
    """

    name: str
    size_bytes: int
    mtime_ns: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class StoredDisk:
    """A disk of a version.

    :param options: what it was made with, as for ``qemu-img create -o``.
    :param sources: the images that it was copied from, with the domain shut off; the same while
        nobody has written to them.
    """

    target: str
    file: str
    format: str
    virtual_size_bytes: int
    source: str
    options: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    sources: t.Sequence[Identity] = ()


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a restore needs to know.

    :param created: UTC, such as ``20261124T204455Z``; the version's name.
    :param consistency: ``off``: the domain was shut off; ``frozen``: its file systems were at rest;
        ``crash``: as after a power failure.
    :param freeze: what the guest agent did about it.
    :param xml: the domain's configuration.
    :param with_secrets: it holds passwords.
    :param verified: how the copies were.
    :param versions: of libvirt and QEMU.
    :param nvram: file with the variables of the firmware; empty if there is none.
    """

    created: str
    domain: str
    uuid: str
    consistency: str
    freeze: t.Mapping[str, t.Any]
    xml: str
    with_secrets: bool
    verified: str
    versions: t.Mapping[str, str]
    disks: t.Sequence[StoredDisk]
    files: t.Sequence[StoredFile]
    nvram: str = ""
    made_by: str = MADE_BY
    format: int = FORMAT

    def file(self, name: str) -> StoredFile:
        return next(file for file in self.files if file.name == name)


def parse_manifest(text: str | bytes) -> Manifest:
    """Read a manifest, whoever wrote it (pure).

    :raises ImageError: it is none that this release understands.
    """
    try:
        fields = json.loads(text)
        disks = [
            StoredDisk(**{**disk, "sources": tuple(Identity(**s) for s in disk["sources"])})
            for disk in fields["disks"]
        ]
        files = [StoredFile(**file) for file in fields["files"]]
        manifest = Manifest(**{**fields, "disks": tuple(disks), "files": tuple(files)})
        _check(manifest)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ImageError(f"It is no manifest of {MADE_BY}: {error}.") from error
    return manifest


def _check(manifest: Manifest) -> None:
    """Names lead nowhere else, and types are what they are said to be.

    :raises ValueError: not so.
    """
    if manifest.made_by != MADE_BY or manifest.format != FORMAT:
        raise ValueError(f"made by {manifest.made_by!r}, format {manifest.format!r}")
    texts = (manifest.created, manifest.domain, manifest.uuid, manifest.xml, manifest.nvram)
    if not all(isinstance(text, str) for text in (*texts, manifest.consistency)):
        raise ValueError("a text is none")
    names = [file.name for file in manifest.files]
    wanted = [disk.file for disk in manifest.disks] + ([manifest.nvram] if manifest.nvram else [])
    if sorted(names) != sorted(wanted) or len(set(names)) != len(names):
        raise ValueError("the files are not those of the disks")
    for file in manifest.files:
        if not _FILE.fullmatch(file.name) or not _SHA256.fullmatch(file.sha256):
            raise ValueError(f"{file.name!r} or its checksum is none")
        if not isinstance(file.size_bytes, int) or not isinstance(file.mtime_ns, int):
            raise ValueError(f"the size of {file.name!r} is none")
    for disk in manifest.disks:
        if disk.format != "qcow2" or not re.fullmatch("[A-Za-z0-9]{1,32}", disk.target):
            raise ValueError(f"disk {disk.target!r} of format {disk.format!r}")
