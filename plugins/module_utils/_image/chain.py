# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files that an image depends on: its backing chain and its external data file.

Their names stand in headers that a guest may have written.  Each is followed only to a plain
file in the image's own folder or in a folder that the administrator allowed; any other is
refused by name and never opened (CVE-2024-4467, CVE-2026-24708).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    ImageError,
    NotFoundError,
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.files import (
    OpenImage,
    is_below,
    open_image,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.header import (
    ImageHeader,
    read_open_header,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_argv import Storage
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.extents import (
    FileUsage,
    file_usage,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown

#: libvirt gives up a chain of more links too.
MAX_DEPTH = 200

_REMEDY = (
    "If the file is the right one, allow its folder with allowed_dirs; "
    "if this is a raw disk, whose guest wrote the header, say so with format=raw."
)


@dataclasses.dataclass(frozen=True)
class Places:
    """Where files that an image names may lie: as the folders are spelled, and resolved.

    :param own: the image's own folder, but not the folders in it.
    :param allowed: folders whose whole content is allowed.
    """

    own: frozenset[str]
    allowed: frozenset[str]

    @classmethod
    def of(cls, path: str, *, allowed_dirs: t.Iterable[str]) -> Places:
        """The places for the image at an absolute path."""
        return cls(
            own=_both_spellings((os.path.dirname(path),)), allowed=_both_spellings(allowed_dirs)
        )

    def locate(self, name: str, *, overlay: str, role: str) -> str:
        """The absolute path, without symlinks, behind a name in a header; nothing is opened.

        A name that is spelled as lying elsewhere is not even looked up: to ask for a path
        such as /net/HOST can be enough to mount something.

        :param overlay: the path of the image whose header it is.
        :param role: ``backing file`` or ``data file``, for messages.
        :raises RefusedError: the name is no plain file's, or the file lies elsewhere.
        """
        # As QEMU's path_has_protocol(): a colon before the first slash.
        if ":" in name.split("/", 1)[0]:
            raise _refused(overlay, role, name, "which is no plain file name")
        spelled = os.path.join(os.path.dirname(overlay), name)
        if self._holds(os.path.normpath(spelled)):
            path = os.path.realpath(spelled)
            if self._holds(path):
                return path
        raise _refused(overlay, role, name, "which lies in no allowed folder")

    def _holds(self, path: str) -> bool:
        return os.path.dirname(path) in self.own or any(is_below(path, a) for a in self.allowed)


def _both_spellings(folders: t.Iterable[str]) -> frozenset[str]:
    return frozenset(
        spelling
        for folder in folders
        for spelling in (os.path.normpath(folder), os.path.realpath(folder))
    )


def refuse_relative(allowed_dirs: t.Iterable[str]) -> None:
    """Refuse folders that mean something else in every place.

    :raises RefusedError: one is not an absolute path.
    """
    for folder in allowed_dirs:
        if not os.path.isabs(folder) or "\0" in folder:
            raise RefusedError(
                f"{shown(folder)} in allowed_dirs is not an absolute path.",
                remedy="Name it from / on.",
            )


@dataclasses.dataclass(frozen=True)
class BackingLink:
    """One image of a backing chain.

    :param name: as it stands in the overlay's header.
    :param declared_format: what the overlay's header says; None when QEMU would probe.
    :param header: None when the file is missing or unreadable.
    :param error: why it is, one sentence; empty otherwise.
    :param fd: of the file, where it is kept open; else -1.
    """

    path: str
    name: str
    declared_format: str | None
    header: ImageHeader | None
    error: str = ""
    fd: int = -1

    @property
    def storage(self) -> Storage:
        """Names the file to QEMU: the very one that was opened, where it is kept open."""
        block_device = self.header is not None and self.header.block_device
        return Storage(_name(self.path, self.fd), block_device)


@dataclasses.dataclass(frozen=True)
class DataFile:
    """The external data file, which holds the guest's data in the image's place."""

    storage: Storage
    usage: FileUsage


def _name(path: str, fd: int) -> str:
    return path if fd < 0 else f"/proc/self/fd/{fd}"


def backing_chain(
    image: OpenImage,
    header: ImageHeader,
    *,
    places: Places,
    keep: contextlib.ExitStack | None = None,
) -> list[BackingLink]:
    """Follow the backing files of an open image, header by header.

    A file that is missing or unreadable ends the chain and is reported in its last link.

    :param keep: keeps them open for their content, so that no name can come to mean another file.
    :raises RefusedError: a header names something that may not be followed, or wants its content
        read, and nobody but itself says that it is one.
    :raises ImageError: the chain loops, is too deep, or is of a format that can't be read.
    """
    chain: list[BackingLink] = []
    seen = {image.key}
    overlay, upper = image.path, header
    while upper.qcow2 is not None and upper.qcow2.backing_file is not None:
        name, declared = upper.qcow2.backing_file, upper.qcow2.backing_format
        path = places.locate(name, overlay=overlay, role="backing file")
        if keep is not None:
            _refuse_probed(upper, overlay, "backing file", name)
        if declared is not None and declared not in ("raw", "qcow2"):
            raise ImageError(
                f"{shown(overlay)} says that its backing file {shown(path)} has the format "
                f"{shown(declared)}, which is not read here."
            )
        if len(chain) == MAX_DEPTH:
            raise ImageError(f"{shown(image.path)} has more than {MAX_DEPTH} backing files.")
        try:
            with contextlib.ExitStack() as closed:
                backing = (keep or closed).enter_context(open_image(path))
                if backing.key in seen:
                    raise _LoopError(
                        f"The backing chain of {shown(image.path)} loops at {shown(path)}."
                    )
                seen.add(backing.key)
                lower = read_open_header(backing, path=path, image_format=declared or "auto")
                data_file_path(lower, places=places)
        except (_LoopError, RefusedError):
            raise
        except ThinvirtError as error:
            chain.append(BackingLink(path, name, declared, None, str(error)))
            return chain
        fd = backing.fd if keep is not None else -1
        chain.append(BackingLink(path, name, declared, lower, fd=fd))
        overlay, upper = path, lower
    return chain


class _LoopError(ImageError):
    """Told apart from a malformed header, which only ends the chain."""


def data_file_path(header: ImageHeader, *, places: Places) -> str | None:
    """Where the external data file that a header names lies; None without one.

    A name counts even when the feature bit that makes QEMU use it is not set: the next
    writer of the header may set it.

    :raises RefusedError: it may not be followed.
    """
    if header.qcow2 is None or header.qcow2.data_file is None:
        return None
    return places.locate(header.qcow2.data_file, overlay=header.path, role="data file")


def data_file_of(
    header: ImageHeader, *, places: Places, keep: contextlib.ExitStack | None = None
) -> DataFile | None:
    """The external data file of an image; it is opened, once its name is allowed, to measure it.

    :param keep: keeps it open, and QEMU is given that very file.
    :raises ThinvirtError: it may not be followed, is missing, or is no file.
    """
    path = data_file_path(header, places=places)
    if path is None:
        return None
    if keep is not None:
        _refuse_probed(header, header.path, "data file", path)
    try:
        with contextlib.ExitStack() as closed:
            image = (keep or closed).enter_context(open_image(path))
            name = _name(path, image.fd if keep is not None else -1)
            return DataFile(Storage(name, image.block_device), file_usage(image.fd))
    except NotFoundError as error:
        raise NotFoundError(f"{shown(header.path)}: its data file {error.message}") from error


def _refused(overlay: str, role: str, name: str, why: str) -> RefusedError:
    return RefusedError(
        f"{shown(overlay)} names {shown(name)} as its {role}, {why}; it was not opened.",
        remedy=_REMEDY,
    )


def _refuse_probed(header: ImageHeader, path: str, role: str, name: str) -> None:
    """Refuse to read the content of a file for a header that a guest may have written.

    :param path: of the image whose header it is.
    """
    if header.probed:
        raise RefusedError(
            f"{shown(path)} names {shown(name)} as its {role}, and nothing but its first bytes "
            "says that it is qcow2: the guest of a raw disk can write them. Nothing was changed.",
            remedy="If it is qcow2, say so with format=qcow2 (image_convert: src_format=qcow2; for "
            "a backing file: qemu-img rebase -u -F qcow2 of its overlay); if it is a raw disk, "
            "with raw in its place.",
        )
