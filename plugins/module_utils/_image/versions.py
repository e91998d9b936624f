# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies of many images in one folder, a new version when an image has changed, the last N kept."""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
import glob
import os
import time
import types
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.archive_manifest import age
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.convert import (
    Outcome,
    Request,
    convert,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.files import open_image
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import (
    open_journal,
    peek,
    places,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.locks import refuse_reader
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.manifest import (
    SUFFIX,
    Manifest,
    read_manifest,
    remove_orphan,
    remove_with_manifest,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.progress import progress_logger
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.recover import recover
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.replace import Stages
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import (
    encodable,
    shown,
)

Result = dict[str, t.Any]
_NO_NAMES: t.Mapping[str, str] = types.MappingProxyType({})
_EXTENSIONS = (".qcow2", ".raw", ".img")
_TIME = "%Y%m%dT%H%M%SZ"
#: A glob for such a time.
_TIME_GLOB = "[0-9]" * 8 + "T" + "[0-9]" * 6 + "Z"


@dataclasses.dataclass
class Copied:
    """One image: its copy, and the versions that were removed (in check mode, would be)."""

    src: str
    outcome: Outcome | None = None
    removed: tuple[str, ...] = ()
    error: ThinvirtError | None = None

    @property
    def changed(self) -> bool:
        copied = self.outcome is not None and self.outcome.changed
        return bool(self.removed) or copied


def copy_one(
    src: str, dest: str, request: Request, *, check_mode: bool, log: t.Callable[[str], None]
) -> Copied:
    """One image to one name; its error, if any, is in the answer."""
    copied = Copied(src)
    try:
        stages = Stages(report=progress_logger(src, log))
        copied.outcome = convert(src, dest, request, check_mode=check_mode, stages=stages)
    except ThinvirtError as error:
        copied.error = error
    return copied


def copy_versions(
    paths: t.Sequence[str],
    folder: str,
    request: Request,
    *,
    keep: int,
    check_mode: bool,
    log: t.Callable[[str], None],
    names: t.Mapping[str, str] = _NO_NAMES,
) -> list[Copied]:
    """Each image to a new version in a folder, if it has changed since the last one.

    :param keep: so many versions of each image stay; 0 for all.  Only versions of this image that
        this collection has made, and nobody has changed since, are ever removed.
    :param names: how the versions of an image are called, by its path; otherwise as its file.
    :raises RefusedError: two images would share their versions' names, or a name is none.
    """
    _refuse_names(paths, names)
    copies = []
    for src in paths:
        name = names.get(src) or _stem(src)
        try:
            recovered = _recover(name, folder, check_mode=check_mode)
        except ThinvirtError as error:
            copies.append(Copied(src, error=error))
            continue
        versions = _versions(src, folder, request, name=name)
        latest = _up_to_date(src, versions, request)
        dest = latest or _new_path(name, folder, request)
        copied = copy_one(src, dest, request, check_mode=check_mode, log=log)
        if copied.outcome is not None:
            copied.outcome.recovered = recovered or copied.outcome.recovered
        if copied.error is None and keep:
            fresh = 0 if latest else 1
            doomed = [path for path, _manifest in versions[: len(versions) + fresh - keep]]
            if len(versions) + fresh > keep:
                copied.removed, copied.error = _remove(doomed, check_mode=check_mode)
        copies.append(copied)
    return copies


def _refuse_names(paths: t.Sequence[str], names: t.Mapping[str, str]) -> None:
    for path in names.keys() - set(paths):
        raise RefusedError(
            f"names has {shown(path)}, which is none of the images; nothing was changed.",
            remedy="Name it in paths as well, with the same spelling.",
        )
    for name in names.values():
        if not name or "/" in name or "\0" in name or name.startswith("."):
            raise RefusedError(
                f"{shown(name)} cannot be the name of a copy; nothing was changed.",
                remedy="Name it without slashes, and with no dot in front.",
            )
    called = collections.Counter(names.get(path) or _stem(path) for path in paths)
    for name in (name for name, count in called.items() if count > 1):
        raise RefusedError(
            f"{called[name]} of the images would be called {shown(name)}; nothing was changed.",
            remedy="Give them names of their own (names), or copy them to different folders.",
        )


def _remove(
    paths: t.Iterable[str], *, check_mode: bool
) -> tuple[tuple[str, ...], ThinvirtError | None]:
    removed: list[str] = []
    for path in paths:
        try:
            with open_image(path) as image:
                refuse_reader(image.fd, path)
                if read_manifest(path) is None:
                    continue  # somebody has changed it since
                if not check_mode:
                    remove_with_manifest(path)
        except ThinvirtError as error:
            return tuple(removed), error
        removed.append(path)
    return tuple(removed), None


def _stem(path: str) -> str:
    name = os.path.basename(path)
    root, extension = os.path.splitext(name)
    return root if extension in _EXTENSIONS else name


def _new_path(stem: str, folder: str, request: Request) -> str:
    """A name that nothing has yet: two versions may fall into one second."""
    moment = int(time.time())
    while True:
        name = f"{stem}-{time.strftime(_TIME, time.gmtime(moment))}.{request.format}"
        path = os.path.join(folder, name)
        if not os.path.lexists(path):
            return path
        moment += 1


def _recover(stem: str, folder: str, *, check_mode: bool) -> str:
    """End or undo what killed runs have left of versions, whose names nobody will use again.

    :returns: what was (in check mode, would be) done; empty if there was nothing to do.
    :raises RefusedError: another run is making a version of this image.
    """
    pattern = os.path.join(
        glob.escape(os.path.realpath(folder)), f"{glob.escape(stem)}-{_TIME_GLOB}.*"
    )
    done = ""
    for path in fnmatch.filter((place.path for place in places()), pattern):
        if check_mode:
            left = peek(path)
            done = f"Process {left.pid} was killed." if left else done
            continue
        with open_journal(path) as held:
            done = recover(path, held) or done
        remove_orphan(path)
    return done


def _versions(src: str, folder: str, request: Request, *, name: str) -> list[tuple[str, Manifest]]:
    """Our copies of an image in a folder, the oldest first."""
    real = os.path.realpath(src)
    pattern = os.path.join(glob.escape(folder), glob.escape(name) + f"-*.{request.format}")
    versions = []
    for note in glob.glob(pattern + SUFFIX):
        path = note[: -len(SUFFIX)]
        manifest = read_manifest(path)
        if manifest is not None and manifest.src == real:
            versions.append((path, manifest))
    now = time.strftime(_TIME, time.gmtime())
    return sorted(versions, key=lambda v: age(v[1].number, v[1].created, v[0], now=now))


def _up_to_date(
    src: str, versions: t.Sequence[tuple[str, Manifest]], request: Request
) -> str | None:
    """The newest version, if a new one would be the same."""
    if not versions or request.force:
        return None
    path, _manifest = versions[-1]
    try:
        outcome = convert(src, path, request, check_mode=True, stages=Stages())
    except ThinvirtError:
        return None  # what is wrong comes to light when it is copied
    return None if outcome.changed else path


def result(copies: t.Sequence[Copied], *, check_mode: bool) -> Result:
    """The module's answer: ``changed``, ``diff``, ``summary`` and ``images``."""
    return {
        "changed": any(copied.changed for copied in copies),
        "summary": [_line(copied, check_mode=check_mode) for copied in copies],
        "images": [_entry(copied) for copied in copies],
        "diff": {
            "before": {"copies": sorted(encodable(p) for copied in copies for p in copied.removed)},
            "after": {
                "copies": sorted(
                    encodable(copied.outcome.dest)
                    for copied in copies
                    if copied.outcome is not None and copied.outcome.changed
                )
            },
        },
    }


def _entry(copied: Copied) -> Result:
    entry: Result = {"src": encodable(copied.src)}
    if copied.outcome is not None:
        outcome = copied.outcome
        entry.update(
            {
                "dest": encodable(outcome.dest),
                "changed": copied.changed,
                "reason": outcome.reason,
                "virtual_size_bytes": outcome.virtual_size_bytes,
                "source": dataclasses.asdict(outcome.source),
                "target": dataclasses.asdict(outcome.copy) if outcome.copy else None,
                "options": dict(outcome.manifest.options) if outcome.manifest else None,
                "compared": outcome.compared,
                "recovered": outcome.recovered,
                "removed": [encodable(path) for path in copied.removed],
                "seconds": {stage: round(took, 2) for stage, took in outcome.seconds.items()},
            }
        )
    if copied.error is not None:
        entry["error"] = copied.error.result()
    return entry


def _line(copied: Copied, *, check_mode: bool) -> str:
    name, outcome = shown(copied.src), copied.outcome
    if copied.error is not None or outcome is None:
        return f"{name}: failed. {copied.error}"
    if not outcome.changed:
        return f"{name}: {outcome.reason} It is {shown(outcome.dest)}."
    if check_mode or outcome.copy is None:
        return f"{name}: to be copied to {shown(outcome.dest)}. {outcome.reason}"
    size = (outcome.copy.allocated_bytes or 0) / 2**20
    return f"{name}: copied to {shown(outcome.dest)}, {size:.1f} MiB. {outcome.reason}"
