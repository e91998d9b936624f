# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Versions of a domain's disks: ``FOLDER/DOMAIN/TIME/``, each whole, with a manifest of its files.

A version is made as ``.TIME.partial`` and renamed when all of it is on the disk; what is called so
while nobody holds the domain's lock is what a killed run has left.  A version that is to be removed
gets such a name first, so that no half of one is ever taken for a whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import stat
import time
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    ImageError,
    NotFoundError,
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.archive_manifest import (
    Manifest,
    StoredFile,
    Version,
    in_order,
    parse_manifest,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import (
    lock_beside,
    refuse_locked,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.locks import probe_locks
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import (
    signals_wait,
    stop_if_asked,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.durable import sync_folder
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.folders import (
    make_private,
    refuse_foreign,
    remove_flat,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.holders import find_holders
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.trust import (
    could_write,
    refuse_exchangeable,
)

MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 16 << 20
_TIME = "%Y%m%dT%H%M%SZ"
_VERSION = re.compile(r"[0-9]{8}T[0-9]{6}Z")
_PARTIAL = re.compile(r"\.[0-9]{8}T[0-9]{6}Z\.partial")
_MAX_NAME_BYTES = 255


def folder_name(domain: str) -> str:
    """The folder of a domain; two domains never have the same one (pure).

    A name may hold anything but a slash, and may begin with a dot; what is not printable, ``%`` and
    a leading dot become ``%XX``.

    :raises RefusedError: it is longer than a file's name may be.
    """
    safe = "".join(
        character
        if character.isprintable() and character not in "/%"
        else "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogateescape"))
        for character in domain
    )
    if safe.startswith("."):
        safe = f"%2E{safe[1:]}"
    if not safe or len(os.fsencode(safe)) > _MAX_NAME_BYTES:
        raise RefusedError(
            f"{shown(domain[:100])} is too long a name for a folder; nothing was changed.",
            remedy="Give the domain a shorter one (virsh domrename).",
        )
    return safe


def read_manifest(folder: str) -> Manifest:
    """The manifest of a version.

    :raises ThinvirtError: there is none, or none that can be understood.
    """
    path = os.path.join(folder, MANIFEST)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ImageError(f"{shown(path)} is no regular file.")
            text = file.read(_MAX_MANIFEST_BYTES)
    except OSError as error:
        raise failure(path, "read", error) from error
    try:
        return parse_manifest(text)
    except ImageError as error:
        raise ImageError(f"{shown(path)} cannot be used. {error.message}") from error


def refuse_writable(folder: str) -> None:
    """Refuse a version that another user could have written: its XML becomes a domain.

    :raises RefusedError: one could.
    :raises ThinvirtError: it can't be examined.
    """
    refuse_exchangeable(folder)
    try:
        for name in (".", *os.listdir(folder)):
            path = os.path.normpath(os.path.join(folder, name))
            status = os.lstat(path)
            if could_write(status) or stat.S_ISLNK(status.st_mode):
                raise RefusedError(
                    f"{shown(path)} may have been written by another user than root (owner "
                    f"{status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}), and would become "
                    "part of a domain; nothing was changed.",
                    remedy="Restore a version that nobody else could write to; or, if it is sure "
                    "to be as it was made, give it to root (chown -R root, chmod -R go-w), or name "
                    "its owner in trusted_owners.",
                )
    except OSError as error:
        raise failure(folder, "examined", error) from error


def versions_of(folder: str, *, uuid: str) -> list[Version]:
    """A domain's versions that we have made and nobody has changed, the oldest first."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            if not is_version_name(name) or os.path.islink(path):
                continue
            try:
                manifest = read_manifest(path)
            except ThinvirtError:
                continue  # not ours, or broken: nothing of it is touched
            if manifest.uuid == uuid and is_untouched(path, manifest):
                found.append(Version(path, manifest))
    return in_order(found, now=time.strftime(_TIME, time.gmtime()))


def newest(folder: str) -> Version:
    """A domain's newest version; whether it is as it was made remains to be seen.

    :raises NotFoundError: the domain has no versions there.
    :raises ImageError: one cannot be read that has the name of a newer one.
    """
    try:
        names = sorted(filter(is_version_name, os.listdir(folder)))
    except OSError as error:
        raise failure(folder, "read", error) from error
    found, broken = [], {}
    for name in names:
        path = os.path.join(folder, name)
        try:
            found.append(Version(path, read_manifest(path)))
        except ThinvirtError as error:
            broken[name] = error
    latest = in_order(found, now=time.strftime(_TIME, time.gmtime()))[-1:]
    for name, problem in broken.items():
        if not latest or name > os.path.basename(latest[0].path):
            raise ImageError(
                f"The newest version in {shown(folder)} cannot be told: {problem.message}",
                remedy="Name the folder of the version that is meant.",
            ) from problem
    if not latest:
        raise NotFoundError(
            f"There is no version of a domain in {shown(folder)}.",
            remedy="Name a folder DEST_DIR/DOMAIN/TIME that domain_backup has made.",
        )
    return latest[0]


def is_untouched(path: str, manifest: Manifest) -> bool:
    """Whether a version holds its files as they were left, and nothing else."""
    try:
        if sorted(os.listdir(path)) != sorted([MANIFEST, *(f.name for f in manifest.files)]):
            return False
        for file in manifest.files:
            status = os.lstat(os.path.join(path, file.name))
            as_left = (file.size_bytes, file.mtime_ns) == (status.st_size, status.st_mtime_ns)
            if not stat.S_ISREG(status.st_mode) or not as_left:
                return False
    except OSError:
        return False
    return True


def is_version_name(name: str) -> bool:
    return bool(_VERSION.fullmatch(name))


def leftovers(folder: str) -> list[str]:
    """Versions in the making: of another run, or of one that was killed."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return [os.path.join(folder, name) for name in sorted(names) if _PARTIAL.fullmatch(name)]


@contextlib.contextmanager
def domain_folder(folder: str) -> t.Iterator[str]:
    """Have a domain's folder to oneself, made if it isn't there; remove what killed runs have left.

    :yields: what was removed, for people; empty if nothing was.
    :raises RefusedError: another run makes a version of this domain.
    :raises ThinvirtError: it can't be made.
    """
    if not os.path.isdir(folder) or os.path.islink(folder):
        make_private(folder)
        _sync(os.path.dirname(folder))
    refuse_foreign(folder)
    try:
        with lock_beside(os.path.join(folder, "version")):
            left = leftovers(folder)
            for path in left:
                remove_flat(path)
            yield "A version that was never finished was removed." if left else ""
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(folder)  # if there is nothing in it


def peek_folder(folder: str) -> str:
    """What :func:`domain_folder` would yield; nothing is changed.

    :raises RefusedError: another run makes a version of this domain.
    """
    if not os.path.isdir(folder):
        return ""
    refuse_locked(os.path.join(folder, "version"))
    return "A version that was never finished would be removed." if leftovers(folder) else ""


@dataclasses.dataclass
class Partial:
    """A version in the making.

    :param path: its folder for now.
    :param final: the folder's path when it is whole; dated later than it was made, if another
        version has its second.
    :param created: when it was begun.
    :param number: see :class:`.archive_manifest.Manifest`.
    """

    path: str
    final: str
    created: str
    number: int

    def finish(self, manifest: Manifest) -> Version:
        """Give it its name; from now on it is a version.

        :raises ThinvirtError: it can't be; it is none.
        """
        path = os.path.join(self.path, MANIFEST)
        manifest = dataclasses.replace(manifest, number=self.number)
        text = json.dumps(dataclasses.asdict(manifest), indent=2) + "\n"
        parse_manifest(text)  # what we could not read ourselves is of no use
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(path, flags, 0o600), "w", encoding="ascii") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            sync_folder(self.path)
            os.rename(self.path, self.final)
            sync_folder(os.path.dirname(self.final))
        except OSError as error:
            raise failure(self.final, "finished", error) from error
        return Version(self.final, manifest)


@contextlib.contextmanager
def new_version(folder: str) -> t.Iterator[Partial]:
    """Make a version; removed unless it is finished.  The folder's lock is held.

    :raises ThinvirtError: it can't be made.
    """
    begin = moment = int(time.time())
    while True:  # two versions may fall into one second
        final = os.path.join(folder, time.strftime(_TIME, time.gmtime(moment)))
        if not os.path.lexists(final):
            break
        moment += 1
    path = os.path.join(folder, f".{os.path.basename(final)}.partial")
    created = time.strftime(_TIME, time.gmtime(begin))
    partial = Partial(path, final, created, _highest_number(folder) + 1)
    make_private(partial.path)
    try:
        yield partial
    finally:
        with signals_wait():
            remove_flat(partial.path)


def _highest_number(folder: str) -> int:
    numbers = [0]
    for name in filter(is_version_name, os.listdir(folder)):
        with contextlib.suppress(ThinvirtError):  # not ours, or broken
            numbers.append(read_manifest(os.path.join(folder, name)).number)
    return max(numbers)


def stored_file(path: str, *, report: t.Callable[[float], None]) -> StoredFile:
    """A file with its checksum, on the disk by now.

    :param report: takes the per cent that were read.
    :raises ThinvirtError: it can't be read, or the disk fails.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(fd, "rb", buffering=0) as file:
            os.fsync(fd)
            checksum = sha256_of(file, report=report)
            status = os.fstat(fd)
    except OSError as error:
        raise failure(path, "read", error) from error
    return StoredFile(os.path.basename(path), status.st_size, status.st_mtime_ns, checksum)


def sha256_of(file: t.BinaryIO | t.Any, *, report: t.Callable[[float], None]) -> str:
    """The checksum of an open file, from its beginning.

    :raises OSError: it can't be read.
    """
    digest = hashlib.sha256()
    size = os.fstat(file.fileno()).st_size
    done = 0
    while piece := file.read(1 << 20):
        digest.update(piece)
        done += len(piece)
        stop_if_asked()
        report(100.0 * done / size if size else 100.0)
    return digest.hexdigest()


@contextlib.contextmanager
def being_read(path: str) -> t.Iterator[None]:
    """Keep a version from being removed while it is read.

    :raises ThinvirtError: it can't be opened.
    """
    manifest = os.path.join(path, MANIFEST)
    try:
        fd = os.open(manifest, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise failure(manifest, "opened", error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        yield
    finally:
        os.close(fd)


def remove_version(version: Version, *, check_mode: bool) -> None:
    """Remove a version of ours that nobody reads.

    :raises RefusedError: somebody reads it; it is left as it is.
    :raises ThinvirtError: it can't be removed.
    """
    manifest = os.path.join(version.path, MANIFEST)
    partial = os.path.join(
        os.path.dirname(version.path), f".{os.path.basename(version.path)}.partial"
    )
    try:
        fd = os.open(manifest, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _refuse_readers(version, fd)
            if not check_mode:
                os.rename(version.path, partial)
                sync_folder(os.path.dirname(version.path))
        finally:
            os.close(fd)
    except OSError as error:
        raise failure(version.path, "removed", error) from error
    if not check_mode:
        remove_flat(partial)


def _refuse_readers(version: Version, manifest_fd: int) -> None:
    try:
        fcntl.flock(manifest_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _read_now(version.path, "a restore") from error
    keys = {}
    for disk in version.manifest.disks:
        path = os.path.join(version.path, disk.file)
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            keys[status.st_dev, status.st_ino] = path
            if probe_locks(fd).used:
                raise _read_now(path, "a program of QEMU's")
        finally:
            os.close(fd)
    for key, holders in find_holders(list(keys)).items():
        for holder in holders:
            raise _read_now(keys[key], f"{holder.command} ({holder.pid})")


def _read_now(path: str, reader: str) -> RefusedError:
    return RefusedError(
        f"{shown(path)} is read by {reader}, and so was not removed.",
        remedy="The next run removes it.",
    )


def _sync(folder: str) -> None:
    try:
        sync_folder(folder)
    except OSError as error:
        raise failure(folder, "flushed", error) from error
