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
MAX_NUMBER = 1 << 53
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_VERIFIED = "qemu-img check; qemu-img compare with "
_OF_RUNNING = _VERIFIED + "the exported snapshot"
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
    :param number: higher than that of every version that was there when it was made: clocks may be
        wrong.  0 in manifests of releases that did not count.
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
    number: int = 0
    made_by: str = MADE_BY
    format: int = FORMAT

    @property
    def is_of_running(self) -> bool:
        """Whether the copies are of what a running guest saw, not of the images."""
        return self.verified == _OF_RUNNING

    def file(self, name: str) -> StoredFile:
        return next(file for file in self.files if file.name == name)


def verified(*, of_running: bool) -> str:
    """How the copies of a version were verified."""
    return _OF_RUNNING if of_running else _VERIFIED + "the images"


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
    if not isinstance(manifest.number, int) or not 0 <= manifest.number <= MAX_NUMBER:
        raise ValueError(f"the number {manifest.number!r}")
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


@dataclasses.dataclass(frozen=True)
class Version:
    """A whole version."""

    path: str
    manifest: Manifest


def in_order(versions: t.Iterable[Version], *, now: str) -> list[Version]:
    """Versions of a domain, the oldest first: the one order to keep and to restore by (pure).

    :param now: as :attr:`Manifest.created`.
    """

    def age_of(version: Version) -> tuple[int, bool, str, str]:
        made = version.manifest
        return age(made.number, made.created, version.path, now=now)

    return sorted(versions, key=age_of)


def age(number: int, created: str, path: str, *, now: str) -> tuple[int, bool, str, str]:
    """What versions are sorted by, those of disks and those of images alike (pure).

    By their numbers.  Of those that have none, one that was made before the clock was set back is
    no newer than those made since.
    """
    return number, created <= now, created, path


def doomed(
    versions: t.Sequence[Version],
    *,
    keep: int,
    fresh: int,
    disks: t.Sequence[StoredDisk] | None = None,
) -> list[Version]:
    """The versions that are too many: so many newer ones have each of their disks (pure).

    :param versions: the oldest first.
    :param keep: so many copies of each disk stay; 0 for all.
    :param fresh: so many were made besides, and stay.
    :param disks: of those; by default whatever disks there are.
    """
    if not keep:
        return []
    newer = [disks] * fresh
    gone = []
    for version in reversed(versions):
        made = version.manifest
        copies = [
            sum(each is None or any(_is_heir(new, disk, made) for new in each) for each in newer)
            for disk in made.disks
        ]
        if min(copies, default=len(newer)) >= keep:
            gone.append(version)
        else:
            newer.append(made.disks)
    return gone[::-1]


def _is_heir(new: StoredDisk, old: StoredDisk, made: Manifest) -> bool:
    """Whether a newer copy is of the same disk: it may have moved, or got another target."""
    if new.source and new.source == old.source:
        return True
    others = {disk.source for disk in made.disks if disk is not old}
    return new.target == old.target and not (new.source and new.source in others)
