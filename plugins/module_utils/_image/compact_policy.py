# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether an image is made smaller, how, and what forbids it (pure)."""

from __future__ import annotations

import dataclasses
import os
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.header import ImageHeader
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.inspect import Options
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qcow2 import Qcow2Header
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_argv import Copy
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_output import Bitmap
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown

METHODS = ("auto", "punch", "rewrite", "trim")
COMPRESSIONS = ("none", "zlib", "zstd")
PREALLOCATIONS = ("off", "metadata", "falloc", "full")

#: Room beyond what ``measure`` asks for: metadata of the file system, and of other writers.
SPACE_MARGIN_BYTES = 64 << 20
#: An image that has blocks for so much of its disk, so much of which were never written, was
#: preallocated on purpose.  Without the first every guest's image would be: QEMU allocates a whole
#: cluster for a small write.
_PREALLOCATED_SHARE = 0.9
_UNWRITTEN_SHARE = 0.1
#: Features of the header that a copy can be made with.
_KNOWN_FEATURES = {"lazy_refcounts", "extended_l2", "compression_type", "bitmaps"}


@dataclasses.dataclass(frozen=True)
class Request:
    """What the user asks for; sizes in bytes, None keeps what the image has.

    :param min_reclaim_bytes: worth it from so much on, or
    :param min_reclaim_percent: from this share of the allocated bytes on.
    :param min_free_bytes: what a copy must leave free on the file system.
    :param keep_original: leave the original beside the new image.
    :param force: rewrite it even if that gives nothing back, as to have it in one piece.
    :param accept_no_rollback: consent to a method that has no way back.
    :param accept_unsharing: consent to rewrite an image that shares blocks with other files.
    :param timeout: seconds for one image.
    :param dest_dir: the folder for the rewritten image, symlinks resolved; empty to leave it where
        it is.
    """

    method: str = "auto"
    image_format: str = "auto"
    min_reclaim_bytes: int = 1 << 30
    min_reclaim_percent: int = 10
    min_free_bytes: int = 1 << 30
    cluster_size_bytes: int | None = None
    compression: str | None = None
    preallocation: str | None = None
    flatten: bool = False
    keep_original: bool = False
    force: bool = False
    accept_no_rollback: bool = False
    accept_unsharing: bool = False
    allowed_dirs: tuple[str, ...] = ()
    timeout: float = 6 * 3600.0
    dest_dir: str = ""

    def moves(self, path: str) -> bool:
        """Whether an image, symlinks resolved, is to lie in another folder."""
        return self.dest_dir not in ("", os.path.dirname(path))

    def threshold(self, allocated_bytes: int) -> int:
        """How many bytes must come back to be worth it; never nothing."""
        percent = -(-allocated_bytes * self.min_reclaim_percent // 100)
        return max(1, min(self.min_reclaim_bytes, percent))

    def wishes_form(self, header: ImageHeader) -> bool:
        """Whether only a new image will do: one of another form, or one that is asked for."""
        overlay = header.qcow2 is not None and header.qcow2.backing_file is not None
        return (
            self.force
            or self.cluster_size_bytes is not None
            or self.compression is not None
            or self.preallocation not in (None, "off")
            or (self.flatten and overlay)
        )

    def __post_init__(self) -> None:
        """Refuse what can't be meant.

        :raises RefusedError: a size is negative, or a wish does not go with the method.
        """
        for name in ("min_reclaim_bytes", "min_reclaim_percent", "min_free_bytes"):
            if getattr(self, name) < 0:
                raise RefusedError(f"{name} is negative.", remedy="Use 0 or more.")
        refuse_cluster_size(self.cluster_size_bytes)
        form = {
            "cluster_size_bytes": self.cluster_size_bytes is not None,
            "compression": self.compression is not None,
            "preallocation": self.preallocation not in (None, "off"),
            "flatten": self.flatten,
            "keep_original": self.keep_original,
            "force": self.force,
            "dest_dir": bool(self.dest_dir),
        }
        for name, wished in form.items():
            if wished and self.method in ("punch", "trim"):
                raise RefusedError(
                    f"{name} needs a new image, and method={self.method} makes none.",
                    remedy=f"Use method=rewrite, or leave {name} out.",
                )
        if self.method == "trim" and not self.accept_no_rollback:
            raise RefusedError(
                "method=trim changes the image's file systems in place and has no way back.",
                remedy="Consent with accept_no_rollback=true, and have a backup.",
            )


def request_of(params: t.Mapping[str, t.Any], *, image_format: str) -> Request:
    """The request that a module's parameters mean (``compact_spec()`` of ``_spec.py``).

    :raises RefusedError: they make no sense.
    """
    # The same folders, checked in the same way, as when an image is only inspected.
    options = Options(
        image_format=image_format,
        allowed_dirs=tuple(params["allowed_dirs"]),
        timeout=params["timeout"],
    )
    names = {field.name for field in dataclasses.fields(Request)} - {"image_format", "dest_dir"}
    return Request(
        image_format=image_format,
        **{name: params[name] for name in names - {"allowed_dirs"}},
        allowed_dirs=options.allowed_dirs,
    )


@dataclasses.dataclass(frozen=True)
class Obstacle:
    """Why an image must be left alone, as somebody who knows its users says.

    :param forbids_punch: also what leaves the content as it is, byte by byte.
    :param unless_format: it is none if the image is taken to be of this format.
    """

    reason: str
    remedy: str
    forbids_punch: bool = False
    unless_format: str = ""


@dataclasses.dataclass(frozen=True)
class Facts:
    """What was found out about an image, for deciding.

    :param data_bytes: allocated, and written.
    :param unwritten_bytes: allocated, and never written.
    :param links: names that the file has.
    :param bitmaps: persistent bitmaps, with their flags.
    :param shared_bytes: of what is allocated, what other files have too.
    """

    header: ImageHeader
    data_bytes: int
    unwritten_bytes: int
    links: int
    bitmaps: tuple[Bitmap, ...] = ()
    shared_bytes: int = 0

    @property
    def allocated_bytes(self) -> int:
        return self.header.allocated_bytes or 0


def refuse_cluster_size(size: int | None) -> None:
    """Refuse a cluster size that qcow2 does not know."""
    if size is not None and not (512 <= size <= 2 << 20 and size & (size - 1) == 0):
        raise RefusedError(
            f"cluster_size_bytes is {size}.",
            remedy="Use a power of two between 512 and 2097152.",
        )


def obstacles_to(obstacles: t.Iterable[Obstacle], image_format: str) -> list[Obstacle]:
    """Those that there are for an image that is taken to be of this format."""
    return [obstacle for obstacle in obstacles if obstacle.unless_format != image_format]


def refuse_obstacles(path: str, obstacles: t.Iterable[Obstacle], *, punch: bool) -> None:
    """Refuse what its users forbid."""
    for obstacle in obstacles:
        if obstacle.forbids_punch or not punch:
            raise _refused(path, obstacle.reason, obstacle.remedy)


def refuse_any_change(path: str, facts: Facts, request: Request) -> None:
    """Refuse what must not be touched by any method."""
    header = facts.header
    if header.block_device:
        raise _refused(
            path,
            "is a block device, whose blocks are not this file system's",
            "Have the guest trim it (thinvirt.kvm.domain_trim).",
        )
    unwritten = facts.unwritten_bytes
    on_purpose = (
        facts.allocated_bytes > header.virtual_size_bytes * _PREALLOCATED_SHARE
        and unwritten > facts.allocated_bytes * _UNWRITTEN_SHARE
    )
    if request.preallocation is None and on_purpose:
        raise _refused(
            path,
            f"was preallocated on purpose: {unwritten} of its {facts.allocated_bytes} allocated "
            "bytes were never written",
            "If it may become thin, say so with preallocation=off.",
        )


def refuse_damaged(path: str, header: Qcow2Header) -> None:
    """Refuse what has to be repaired first."""
    for feature, why, remedy in (
        ("corrupt", "is marked as corrupt", "Repair it (qemu-img check -r all), or restore it."),
        (
            "dirty",
            "was not closed properly",
            "Start and stop its domain, or run qemu-img check -r all.",
        ),
    ):
        if feature in header.features:
            raise _refused(path, why, remedy)


def refuse_rewrite(path: str, facts: Facts, request: Request) -> None:
    """Refuse what a copy would lose, or must not be copied."""
    header = facts.header.qcow2
    if facts.links > 1:
        raise _refused(
            path,
            f"has {facts.links} names (hard links); the others would keep the old image",
            "Remove the other names, or use method=punch.",
        )
    if facts.shared_bytes and not request.accept_unsharing:
        own = max(0, facts.allocated_bytes - facts.shared_bytes)
        raise _refused(
            path,
            f"shares {facts.shared_bytes} bytes with other files (reflinks or snapshots), which "
            f"would not come back; a copy may take up to {facts.data_bytes} bytes, and gives back "
            f"no more than {own}",
            "Consent with accept_unsharing=true, or use method=punch, which leaves them shared.",
        )
    if header is None:
        return
    refuse_damaged(path, header)
    if "external_data_file" in header.features:
        raise _refused(path, "keeps its data in an external file", "Convert it by hand.")
    unknown = sorted(header.features - _KNOWN_FEATURES - {"data_file_raw"})
    if unknown:
        raise _refused(
            path,
            f"has features that a copy would lose: {', '.join(unknown)}",
            "Use method=punch, which leaves everything as it is.",
        )
    if header.encryption != "none":
        raise _refused(
            path,
            "is encrypted, and cannot be copied without its key",
            "Have the guest trim it (thinvirt.kvm.domain_trim).",
        )
    if header.snapshot_count:
        raise _refused(
            path,
            f"has {header.snapshot_count} internal snapshots, which a copy would lose",
            "Delete them, or use method=punch, which keeps them.",
        )
    if header.backing_file is not None and not request.flatten:
        raise _refused(
            path,
            f"has a backing file, {shown(header.backing_file)}, which a copy would take in",
            "Allow that with flatten=true, or use method=punch, which keeps the chain.",
        )
    broken = [bitmap.name for bitmap in facts.bitmaps if "in-use" in bitmap.flags]
    if broken:
        raise _refused(
            path,
            f"has bitmaps that were not saved properly: {', '.join(map(shown, broken))}",
            "Remove them (qemu-img bitmap --remove), or use method=punch.",
        )


def about_data_file(header: ImageHeader) -> str:
    """What is said of an image whose data lies elsewhere; empty of any other."""
    if header.qcow2 is None or "external_data_file" not in header.qcow2.features:
        return ""
    name = shown(header.qcow2.data_file or "")
    return (
        f" Only its tables were looked at: the guest's data lies in the data file {name}, which "
        "was left as it is. Have the guest trim it (thinvirt.kvm.domain_trim)."
    )


def refuse_too_little_space(
    path: str, *, needed_bytes: int, free_bytes: int, min_free_bytes: int, mount_point: str
) -> None:
    """Refuse a copy that could fill the file system."""
    if needed_bytes + SPACE_MARGIN_BYTES + min_free_bytes <= free_bytes:
        return
    raise _refused(
        path,
        f"may need {needed_bytes} bytes for its copy, with a margin of {SPACE_MARGIN_BYTES} and "
        f"{min_free_bytes} to be left free (min_free_bytes); {shown(mount_point)} has "
        f"{free_bytes} free",
        "Free space, lower min_free_bytes, or use method=punch, which needs none.",
    )


def copy_of(header: ImageHeader, request: Request, *, compressed: bool) -> Copy:
    """What the rewritten image is to be like: as it was, but for what was asked for.

    :param compressed: the image's data is compressed now.
    """
    preallocation = request.preallocation or "off"
    options = {} if preallocation == "off" else {"preallocation": preallocation}
    if header.qcow2 is None:
        if request.compression not in (None, "none") or request.cluster_size_bytes is not None:
            raise RefusedError(
                f"{shown(header.path)} is raw, which knows neither clusters nor compression; "
                "nothing was changed.",
                remedy="Use thinvirt.kvm.image_convert for another format.",
            )
        if preallocation == "metadata":
            raise RefusedError(
                f"{shown(header.path)} is raw, which has no metadata to preallocate; nothing was "
                "changed.",
                remedy="Use preallocation=falloc or full.",
            )
        return Copy("raw", options)
    options.update(header_options(header.qcow2))
    if request.cluster_size_bytes is not None:
        options["cluster_size"] = str(request.cluster_size_bytes)
    if request.compression not in (None, "none", header.qcow2.compression_type):
        options["compression_type"] = request.compression
        if header.qcow2.version == 2 and request.compression == "zstd":
            options["compat"] = "1.1"  # 0.10 knows zlib alone
    wanted = compressed if request.compression is None else request.compression != "none"
    if wanted and preallocation != "off":
        raise RefusedError(
            f"{shown(header.path)} cannot be both compressed and preallocated; nothing was "
            "changed.",
            remedy="Leave out one of compression and preallocation.",
        )
    return Copy("qcow2", options, compressed=wanted, bitmaps=header.qcow2.bitmap_count > 0)


def has_preallocation(facts: Facts, wished: str | None, *, all_mapped: bool) -> bool:
    """Whether an image is preallocated already in the way that is wished.

    :param all_mapped: each cluster of the guest's disk has its place in the file.
    """
    if wished in (None, "off") or not all_mapped:
        return False
    if wished == "metadata":
        return True
    filled = facts.data_bytes if wished == "full" else facts.allocated_bytes
    return filled >= facts.header.virtual_size_bytes


def header_options(header: Qcow2Header) -> dict[str, str]:
    """The creation options that make an image with the same features."""
    options = {"cluster_size": str(header.cluster_size_bytes), "compat": header.compat}
    if header.version == 2:
        return options
    options["refcount_bits"] = str(header.refcount_bits)
    if "lazy_refcounts" in header.features:
        options["lazy_refcounts"] = "on"
    if "extended_l2" in header.features:
        options["extended_l2"] = "on"
    if header.compression_type != "zlib":
        options["compression_type"] = header.compression_type
    return options


def _refused(path: str, why: str, remedy: str) -> RefusedError:
    return RefusedError(f"{shown(path)} {why}; nothing was changed.", remedy=remedy)
