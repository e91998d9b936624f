# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A verified copy of an image elsewhere, made only when the image has changed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
import time

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    ImageError,
    RefusedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.attributes import (
    copy_attributes,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.chain import (
    Places,
    backing_chain,
    data_file_of,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact_policy import (
    refuse_cluster_size,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.files import (
    OpenImage,
    open_image,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.header import (
    ImageHeader,
    read_open_header,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import (
    Identity,
    open_journal,
    peek,
    temp_name,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.locks import (
    refuse_other_writers,
    refuse_writer,
    writers_kept_out,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.manifest import (
    Manifest,
    highest_number,
    read_manifest,
    remove_orphan,
    write_manifest,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.process import Runner, run
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_argv import (
    Copy,
    Storage,
    image_spec,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_img import QemuImg
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.recover import (
    recover,
    refuse_part_of_chain,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.replace import (
    NewCopy,
    Source,
    Stages,
    fd_storage,
    swap_in,
    verified_copy,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.extents import (
    FileUsage,
    file_usage,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.filesystem import (
    file_system_of,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.trust import (
    refuse_exchangeable,
)

#: Of a compressed copy: big clusters compress better, and nobody writes to an archive.
ARCHIVE_CLUSTER_BYTES = 2 << 20


@dataclasses.dataclass(frozen=True)
class Request:
    """What the copy is to be like; None means the default for its format.

    :param compression: ``none``, ``zlib`` or ``zstd``.
    :param sparse: leave out zeros; otherwise they are written.
    :param force: copy even if the copy is up to date, and over a file that is not ours.
    :param min_free_bytes: what the copy must leave free on its file system.
    :param timeout: seconds for one image.
    """

    src_format: str = "auto"
    format: str = "qcow2"
    compression: str | None = None
    cluster_size_bytes: int | None = None
    preallocation: str = "off"
    sparse: bool = True
    force: bool = False
    min_free_bytes: int = 1 << 30
    allowed_dirs: tuple[str, ...] = ()
    timeout: float = 6 * 3600.0

    def __post_init__(self) -> None:
        """Refuse what can't be had together.

        :raises RefusedError: it can't.
        """
        refuse_cluster_size(self.cluster_size_bytes)
        compressed = self.compression not in (None, "none")
        if self.format == "raw" and (compressed or self.cluster_size_bytes is not None):
            raise RefusedError(
                "A raw copy knows neither clusters nor compression.",
                remedy="Leave out compression and cluster_size_bytes, or use format=qcow2.",
            )
        if compressed and self.preallocation != "off":
            raise RefusedError(
                "A copy cannot be both compressed and preallocated.",
                remedy="Leave out one of compression and preallocation.",
            )

    def copy(self, tool: QemuImg) -> Copy:
        """The copy that is meant; asks QEMU whether it knows zstd."""
        options: dict[str, str] = {}
        if self.preallocation != "off":
            options["preallocation"] = self.preallocation
        if self.format == "raw":
            return Copy("raw", options, sparse=self.sparse)
        compression = self.compression
        if compression is None:
            best = "zstd" if tool.knows_compression("zstd") else "zlib"
            compression = best if self.preallocation == "off" else "none"
        size = self.cluster_size_bytes
        if compression != "none":
            options["compression_type"] = compression
            size = size or ARCHIVE_CLUSTER_BYTES
        if size is not None:
            options["cluster_size"] = str(size)
        return Copy("qcow2", options, compressed=compression != "none", sparse=self.sparse)


@dataclasses.dataclass
class Outcome:
    """What became of one copy; in check mode, what would.

    :param dest: the copy's path.
    :param source: what the image takes, backing files not included.
    :param copy: what the copy takes; None if there is none (check mode).
    :param manifest: what is known of the copy; None if there is none (check mode).
    """

    src: str
    dest: str
    virtual_size_bytes: int
    source: FileUsage
    changed: bool = False
    reason: str = ""
    compared: bool = False
    copy: FileUsage | None = None
    manifest: Manifest | None = None
    recovered: str = ""
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)


def convert(
    src: str,
    dest: str,
    request: Request,
    *,
    check_mode: bool,
    stages: Stages,
    runner: Runner = run,
) -> Outcome:
    """Copy one image, unless the copy is up to date.

    :param src: absolute.
    :param dest: absolute; its folder exists.
    :raises RefusedError: it must not be done; nothing was changed.
    :raises ThinvirtError: it could not be done; nothing was changed.
    """
    dest = _checked_dest(dest)
    try:
        return _convert(src, dest, request, check_mode=check_mode, stages=stages, runner=runner)
    except OSError as error:  # what nobody has thought of: a failing disk, a foreign owner
        raise failure(dest, "written", error) from error


def sources_of(src: str, request: Request) -> tuple[Identity, ...] | None:
    """An image and the files that it depends on, to tell later whether one was written to.

    :returns: None for a block device, which does not tell.
    :raises ThinvirtError: it can't be read.
    """
    with open_image(src) as image, contextlib.ExitStack() as keep:
        header = read_open_header(image, path=src, image_format=request.src_format)
        work = _Conversion(image, header, "", request=request, stages=Stages(), keep=keep)
        return None if work.block_device else tuple(work.sources)


def _convert(
    src: str,
    dest: str,
    request: Request,
    *,
    check_mode: bool,
    stages: Stages,
    runner: Runner,
) -> Outcome:
    with open_image(src) as image, contextlib.ExitStack() as keep:
        if not image.block_device:
            refuse_part_of_chain(image.path)
        header = read_open_header(image, path=src, image_format=request.src_format)
        work = _Conversion(
            image, header, dest, request=request, stages=stages, runner=runner, keep=keep
        )
        work.refuse()
        outcome = work.outcome()
        if check_mode:
            left = peek(dest)
            outcome.recovered = f"Process {left.pid} was killed." if left else ""
            if outcome.changed:
                refuse_writer(image.fd, src)
                refuse_other_writers(image.fd, src)
            return outcome
        with open_journal(dest) as journal:
            outcome.recovered = recover(dest, journal)
            if not outcome.changed:
                return outcome
            with writers_kept_out(image.fd, src):
                refuse_other_writers(image.fd, src)
                work.refuse_damaged()
                work.refuse_too_little_space()
                with verified_copy(
                    Source(image.path, image.fd, work.spec),
                    dest,
                    copy=work.copy,
                    min_free_bytes=request.min_free_bytes,
                    journal=journal,
                    tool=work.tool,
                    stages=stages,
                ) as (new, record):
                    copy_attributes(image.fd, new.fd)
                    os.fsync(new.fd)
                    outcome.manifest = work.noted(new, record.source)
                    try:
                        swap_in(new, dest, journal=journal, record=record, stages=stages)
                    finally:
                        remove_orphan(dest)
                    outcome.copy = new.usage
            outcome.compared = True
    outcome.seconds = dict(stages.seconds)
    return outcome


class _Conversion:
    """One image, while it is held open.

    :param keep: holds open what it depends on.
    """

    def __init__(
        self,
        image: OpenImage,
        header: ImageHeader,
        dest: str,
        *,
        request: Request,
        stages: Stages,
        keep: contextlib.ExitStack,
        runner: Runner = run,
    ) -> None:
        self.keep = keep
        self.image = image
        self.header = header
        self.dest = dest
        self.request = request
        self.stages = stages
        self.tool = QemuImg(timeout=request.timeout, runner=runner)
        self.copy = request.copy(self.tool)
        #: Of the image and all that it depends on: the guest's data may be in none but a data file.
        self.sources = [Identity.of(os.fstat(image.fd))]
        self.block_device = image.block_device
        self.spec = self._spec()
        self.options = {"format": self.copy.format, **self.copy.options, "sparse": request.sparse}

    def outcome(self) -> Outcome:
        """What is to be done, and why."""
        outcome = Outcome(
            src=self.image.path,
            dest=self.dest,
            virtual_size_bytes=self.header.virtual_size_bytes,
            source=FileUsage(self.header.allocated_bytes, self.header.length_bytes),
        )
        manifest = read_manifest(self.dest)
        if not os.path.lexists(self.dest):
            outcome.changed, outcome.reason = True, "There was no copy."
        elif manifest is None:
            if not self.request.force:
                raise RefusedError(
                    f"{shown(self.dest)} exists and is no copy that this module made, or was "
                    "changed since; nothing was changed.",
                    remedy="Name another dest, or overwrite it with force=true.",
                )
            outcome.changed, outcome.reason = True, "force was asked for."
        elif self.request.force:
            outcome.changed, outcome.reason = True, "force was asked for."
        elif self.block_device:
            outcome.changed = True
            outcome.reason = "A block device does not tell whether it was written to."
        elif not manifest.is_of(self.image.path, self.sources, self.options):
            outcome.changed, outcome.reason = True, "The image or the options have changed."
        else:
            outcome.reason = "The copy is up to date."
            outcome.copy, outcome.manifest = file_usage(self.dest), manifest
        return outcome

    def refuse(self) -> None:
        """Refuse what can't be copied, or must not be overwritten."""
        try:
            status = os.lstat(self.dest)
        except FileNotFoundError:
            status = None
        except OSError as error:
            raise failure(self.dest, "examined", error) from error
        if status is not None and not stat.S_ISREG(status.st_mode):
            raise RefusedError(
                f"{shown(self.dest)} exists and is no regular file; nothing was changed.",
                remedy="Name another dest.",
            )
        if status is not None and (status.st_dev, status.st_ino) == self.image.key:
            raise RefusedError(
                f"{shown(self.dest)} is the image itself; nothing was changed.",
                remedy="Name another dest, or use thinvirt.kvm.image_compact.",
            )
        if self.header.qcow2 is not None and self.header.qcow2.encryption != "none":
            raise RefusedError(
                f"{shown(self.image.path)} is encrypted, and cannot be read without its key; "
                "nothing was changed.",
                remedy="Copy the file as it is, with its domain shut off.",
            )

    def _spec(self) -> str:
        """The image with all that it depends on: a copy has to be whole."""
        places = Places.of(self.image.path, allowed_dirs=self.request.allowed_dirs)
        backing = []
        for link in backing_chain(self.image, self.header, places=places, keep=self.keep):
            if link.header is None:
                raise ImageError(
                    f"The backing chain of {shown(self.image.path)} cannot be read: {link.error}"
                )
            backing.append((link.storage, link.header.format))
            self._depend(link.storage)
        data_file = data_file_of(self.header, places=places, keep=self.keep)
        if data_file is not None:
            self._depend(data_file.storage)
        return image_spec(
            dataclasses.replace(fd_storage(self.image.fd), block_device=self.image.block_device),
            self.header.format,
            data_file=data_file.storage if data_file else None,
            backing=backing,
        )

    def _depend(self, storage: Storage) -> None:
        self.block_device = self.block_device or storage.block_device
        self.sources.append(Identity.of(os.stat(storage.path)))

    def refuse_damaged(self) -> None:
        """Refuse an image whose tables are damaged: the copy would be, without a word."""
        if self.header.qcow2 is None:
            return
        with self.stages.stage("check source"):
            check = self.tool.check(self.spec, pass_fds=(self.image.fd,))
        if check.result == "corrupt" or check.check_errors:
            raise RefusedError(
                f"{shown(self.image.path)} is damaged: qemu-img check found "
                f"{check.corruptions + check.check_errors} errors; nothing was changed.",
                remedy="Repair it (qemu-img check -r all), or restore it from a backup.",
            )

    def refuse_too_little_space(self) -> None:
        """Refuse a copy for which there is no room; how far one compresses only time tells."""
        measured = self.tool.measure(
            self.spec,
            target_format=self.copy.format,
            options=self.copy.options,
            pass_fds=(self.image.fd,),
        )
        whole = self.request.preallocation in ("falloc", "full") or not self.request.sparse
        needed = measured.fully_allocated_bytes if whole else measured.required_bytes
        needed = 0 if self.copy.compressed else needed
        system = file_system_of(os.path.dirname(self.dest))
        if needed + self.request.min_free_bytes > system.free_bytes:
            raise RefusedError(
                f"The copy of {shown(self.image.path)} may need {needed} bytes, and "
                f"{self.request.min_free_bytes} are to be left free (min_free_bytes); "
                f"{shown(system.mount_point)} has {system.free_bytes} free. Nothing was changed.",
                remedy="Free space, choose another dest, or lower min_free_bytes.",
            )

    def noted(self, new: NewCopy, previous: Identity | None) -> Manifest:
        """Write down of what this is a copy, before it gets its name."""
        manifest = Manifest(
            src=self.image.path,
            sources=self.sources,
            options=self.options,
            copy=Identity.of(os.fstat(new.fd)),
            previous=previous,
            created=time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()),
            number=highest_number(os.path.dirname(self.dest)) + 1,
        )
        write_manifest(self.dest, manifest)
        return manifest


def _checked_dest(dest: str) -> str:
    if not os.path.basename(dest):
        raise RefusedError(
            f"dest={shown(dest)} is not the absolute path of a file.", remedy="Name it from / on."
        )
    folder = checked_folder(os.path.dirname(dest))
    dest = os.path.join(folder, os.path.basename(dest))
    # The longest name that is needed beside it.
    if len(os.fsencode(os.path.basename(temp_name(dest)))) > os.pathconf(folder, "PC_NAME_MAX"):
        raise RefusedError(
            f"{shown(dest)} is too long a name for a copy; nothing was changed.",
            remedy="Name a shorter one.",
        )
    return dest


def checked_folder(path: str) -> str:
    """The folder for copies, symlinks resolved.

    :raises RefusedError: it is not a folder, or another user could exchange names on its path.
    """
    try:
        os.fsencode(path)
        usable = os.path.isabs(path) and "\0" not in path
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise RefusedError(
            f"{shown(path)} is not the absolute path of a folder.", remedy="Name it from / on."
        )
    folder = os.path.realpath(path)
    if not os.path.isdir(folder):
        raise RefusedError(
            f"{shown(folder)} is no folder; nothing was changed.", remedy="Make it first."
        )
    refuse_exchangeable(path)
    return folder
