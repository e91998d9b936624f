# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What forbids to compact a running domain's disk, and what is to be done from a state (pure).

While it lasts the disk is a chain: an overlay that the guest writes to, and below it the image, or
a copy of the image with the same content.  The image's name means the one or the other.
"""

from __future__ import annotations

import bisect
import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.policy import (
    Versions,
    is_written,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.xml import Disk
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    RefusedError,
    UnsupportedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.header import ImageHeader
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_output import MapEntry
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown, typed

#: What this collection is tested with: block jobs that survive a restart of libvirtd, copies onto
#: an overlay that is there already, and a copy's image opened only when the job is done.
NEEDED = {"libvirt": (7, 0, 0), "QEMU": (5, 2, 0)}

#: Stages of the journal, in their order; from ``merge`` on what the overlay holds may be in the
#: image already.
SNAPSHOT, SWAP, MIRROR, PIVOT, MERGE = "snapshot", "swap", "mirror", "pivot", "merge"


def refuse_live_wishes(params: t.Mapping[str, t.Any]) -> None:
    """Refuse what a module's parameters can't mean where a domain runs on."""
    if params["bandwidth_bytes"] < 0:
        raise RefusedError("bandwidth_bytes is negative.", remedy="Use 0 for no limit.")
    if params["power"] == "live" and params["method"] not in ("auto", "rewrite"):
        raise RefusedError(
            f"method={params['method']} works on images in place, which a running guest writes to; "
            "nothing was changed.",
            remedy="Use method=auto or rewrite with power=live, or power=cycle.",
        )


def refuse_host(versions: Versions) -> None:
    """Refuse a libvirt or a QEMU that is too old."""
    if versions.driver != "QEMU":
        raise UnsupportedError(
            f"Refused: disks of running domains of libvirt's {versions.driver} driver cannot be "
            "compacted; nothing was changed.",
            remedy="Use it on qemu:///system, or with power=keep.",
        )
    for product, present in (("libvirt", versions.libvirt), ("QEMU", versions.hypervisor)):
        if present < NEEDED[product]:
            needed = ".".join(map(str, NEEDED[product]))
            raise UnsupportedError(
                f"Refused: to compact disks of running domains needs {product} {needed}, and this "
                f"host has {'.'.join(map(str, present))}; nothing was changed.",
                remedy=f"Upgrade {product}, or use power=cycle.",
            )


def refuse_domain(name: str, *, persistent: bool, accept_transient: bool, busy: bool) -> None:
    """Refuse a domain of which no disk can be compacted while it runs."""
    if not persistent and not accept_transient:
        raise RefusedError(
            f"Refused: domain {name} is transient; if the host failed meanwhile, nobody would know "
            "that its last writes are in an overlay. Nothing was changed.",
            remedy="Consent with accept_transient=true, or make it persistent (virsh define).",
        )
    if busy:
        raise RefusedError(
            f"Refused: domain {name} is being saved, migrated or backed up; nothing was changed.",
            remedy="Wait for that to end, or end it with virsh domjobabort.",
        )


def refuse_disk(name: str, disk: Disk) -> None:
    """Refuse a disk for what the domain's XML says of it.

    :param disk: as it is in the running domain.
    """
    where = f"disk {disk.target} of domain {name}"
    if not is_written(disk) or disk.device != "disk":
        raise _refused(where, "is read-only, removable or passed through", "Leave it out of disks.")
    if disk.source_type not in ("file", "volume"):
        raise _refused(
            where,
            f"is of type {disk.source_type}, no image file on this host",
            "Have the guest trim it (thinvirt.kvm.domain_trim).",
        )
    if disk.format not in ("raw", "qcow2"):
        raise _refused(
            where, f"has the format {disk.format or 'unknown'}", "Convert it to qcow2 or raw."
        )
    if disk.shareable:
        raise _refused(where, "may be used by several domains at once (shareable)", _CYCLE)
    if disk.job:
        raise _refused(
            where,
            f"has a block job ({disk.job}) at work",
            f"Wait for it to end, or end it (virsh blockjob {typed(name)} {disk.target} --abort).",
        )
    if disk.details:
        raise _refused(
            where,
            f"has settings that would be lost ({', '.join(disk.details)})",
            _CYCLE,
        )


def refuse_moved(name: str, target: str) -> None:
    """Refuse a disk that is another file at the domain's next start."""
    raise _refused(
        f"disk {target} of domain {name}",
        "is another file at the domain's next start",
        "Shut the domain down and start it, or correct its configuration.",
    )


def refuse_image(path: str, header: ImageHeader) -> None:
    """Refuse an image for what it would lose; see ``compact_policy.refuse_rewrite`` as well."""
    if header.qcow2 is not None and header.qcow2.bitmap_count:
        raise RefusedError(
            f"{shown(path)} has {header.qcow2.bitmap_count} dirty bitmaps, which would miss what "
            "the guest writes meanwhile; nothing was changed.",
            remedy=_CYCLE,
        )


_CYCLE = "Use power=cycle, which shuts the guest down meanwhile."


def _refused(where: str, why: str, remedy: str) -> RefusedError:
    return RefusedError(f"Refused: {where} {why}; nothing was changed.", remedy=remedy)


@dataclasses.dataclass(frozen=True)
class Found:
    """A disk that a run has left in the middle of its work, or is giving up.

    :param stage: the last one in the journal.
    :param running: the domain runs.
    :param top: what the guest writes to, or would at its next start: ``base``, ``overlay``,
        ``second``, ``other``, or ``new`` for the copy of an image that is moved.
    :param exchanged: the image's name means the copy; of one that is moved, the copy has its name.
    :param holds_original: somebody has the original open, by whatever name.
    :param holds_copy: somebody has the copy open.
    :param overlay_written: something was written to the overlay on the file that the domain uses.
    :param overlay_whole: the first overlay is sure to lack nothing that is in the second; None if
        not asked.
    :param writers: those of the chain's files that a QEMU writes to, as its locks tell, or QEMU
        itself; empty also where none are to be seen.
    :param paths: of the chain's files, by what they are, for people.
    :param moves: the copy lies in another folder, and the image keeps its name until the end.
    :param foreign: what others have made of the disk, or need of it, so that nothing can be merged.
    :param squeezed: others had the guest write to a file of theirs just before we did to ours: it
        lies below our overlay now.
    """

    stage: str
    running: bool
    top: str
    exchanged: bool
    holds_original: bool = False
    holds_copy: bool = False
    overlay_written: bool = False
    overlay_whole: bool | None = None
    writers: frozenset[str] = frozenset()
    paths: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    moves: bool = False
    foreign: str = ""
    squeezed: bool = False


@dataclasses.dataclass(frozen=True)
class Settlement:
    """What is to be done.

    :param foreign: nothing is to be merged or removed, for this reason.

    :param take_back: give the original its name back first.
    :param commit: commit the top to what is below it.
    :param finished: the domain has its copy in the end, otherwise its original.
    """

    take_back: bool
    commit: bool
    finished: bool
    foreign: str = ""


def must_compare(found: Found) -> bool:
    """Whether only the contents can tell which overlay is the right one.

    The host failed between QEMU's change from one to the other and libvirt's note of it, or just
    before: the configuration still names the first.
    """
    return found.top == "overlay" and not found.running and found.stage == PIVOT


def is_behind(second: t.Sequence[MapEntry], overlay: t.Sequence[MapEntry]) -> bool:
    """Whether the second overlay was still behind the first one when QEMU ended (pure).

    QEMU writes all that is in the first to the second and flushes that, then has the guest go on
    with the second.  So if one cluster is missing there, the guest was not switched.  (That one is
    missing in the first says nothing: its tables need not have been written.)

    :param second: a map of it, its backing file included, in order; as of ``overlay``.
    """
    missing = [entry for entry in second if entry.depth > 0]
    starts = [entry.start for entry in missing]
    for entry in overlay:
        if entry.data and entry.depth == 0:
            # The last one that begins before the entry's end.
            last = bisect.bisect_left(starts, entry.start + entry.length) - 1
            if last >= 0 and missing[last].start + missing[last].length > entry.start:
                return True
    return False


def is_mistaken(found: Found) -> bool:
    """Whether libvirt says otherwise than QEMU's locks.

    A libvirtd that was killed while it switched a guest may take the guest for shut off, or for
    where it was before, or notices a moment later.
    """
    if not found.running:
        return bool(found.writers)
    return bool(found.writers) and found.top not in found.writers


def _mistaken(found: Found) -> RefusedError:
    written = shown(found.paths[min(found.writers)])
    if not found.running:
        return RefusedError(
            "libvirt takes the domain for shut off, but a process has its disk open and writes to "
            f"{written}: libvirtd was killed at a switch and has lost the domain's QEMU. Nothing "
            "was changed.",
            remedy="Shut the guest down from inside, or end that process (fuser -v shows it). Then "
            "run thinvirt.kvm.domain_compact with state=recovered.",
        )
    return RefusedError(
        f"libvirt says that the disk is on {shown(found.paths.get(found.top, 'another file'))}, "
        f"but QEMU writes to {written}: libvirtd was killed at a switch. Nothing was changed.",
        remedy=f"Shut the guest down, name {written} as the disk's source and take out its "
        "backingStore (virsh edit). Then run thinvirt.kvm.domain_compact with state=recovered.",
    )


def settle(found: Found) -> Settlement:
    """Decide how a chain becomes one file again, with all that the guest has written.

    :raises RefusedError: that can't be told; nothing is to be changed.
    """
    if is_mistaken(found):
        raise _mistaken(found)
    if found.foreign and found.top not in ("base", "new"):
        # Others may commit to the image, which QEMU opens anew by its name: that must be the name
        # of the file that QEMU has below the overlay.
        return Settlement(
            take_back=found.exchanged
            and not found.moves
            and found.holds_original
            and not found.holds_copy,
            commit=False,
            finished=False,
            foreign=found.foreign,
        )
    if found.squeezed:
        return Settlement(take_back=False, commit=True, finished=False)
    return _settle(found)


def _settle(found: Found) -> Settlement:
    if found.top in ("base", "new"):
        if found.stage != MERGE and found.overlay_written:
            raise _unclear("its domain does not use the overlay, and something was written to it")
        finished = found.top == "new" if found.moves else found.exchanged
        return Settlement(take_back=False, commit=False, finished=finished)
    if found.top == "second":
        if not found.exchanged:
            raise _unclear("its name does not mean the copy that the overlay lies on")
        return Settlement(take_back=False, commit=True, finished=True)
    if found.top != "overlay":
        raise _unclear("its domain uses a file that is none of this run's")
    if must_compare(found) and not found.overlay_whole:
        raise _differing(found)
    if found.moves:  # each overlay lies on a file that never has another name
        return Settlement(take_back=False, commit=True, finished=False)
    if not found.running or not found.exchanged:
        return Settlement(take_back=False, commit=True, finished=found.exchanged)
    # QEMU opens what it is going to write to by its name, with the tables of the file that it has
    # open now in mind: both must be the same file.  The original has lost its name, so who has it
    # open has had it since before: below the overlay.  A libvirtd that was killed may have made it
    # forget the copy, which QEMU then has open besides.
    if not found.holds_original and not found.holds_copy:
        raise _unclear("it cannot be told which of two files the guest has open")
    return Settlement(
        take_back=found.holds_original, commit=True, finished=not found.holds_original
    )


def _differing(found: Found) -> RefusedError:
    return _unclear(
        "the guest was being switched from one overlay to another when it ended, and they differ",
        remedy="To go on with the first, which is what libvirt does, start the domain; should it "
        "have been switched already, that lacks its writes of the last milliseconds. To go on with "
        f"the second, name {shown(found.paths['second'])} as the disk's source before that, and "
        "take out its backingStore (virsh edit). Then run thinvirt.kvm.domain_compact with "
        "state=recovered.",
    )


_KEEP_THE_LAST = (
    "Look at the files with its name, keep the one with the last writes below the domain's disk, "
    "and remove the others and the journal."
)


def _unclear(why: str, *, remedy: str = _KEEP_THE_LAST) -> RefusedError:
    return RefusedError(
        f"It is not clear what to do about an image that a run was at work on: {why}. "
        "Nothing was changed.",
        remedy=remedy,
    )


def top_of(path: str, names: t.Mapping[str, str]) -> str:
    """Which of a chain's files this is.

    :param names: paths by ``base``, ``new``, ``overlay`` and ``second``; empty for none.
    """
    return next((role for role, name in names.items() if name and name == path), "other")


def role_of(chain: t.Sequence[str], names: t.Mapping[str, str]) -> str:
    """Which of our files a disk is on.

    Others may have put a file of theirs on top.  That is none of our business where the first of
    ours below it is the image, as before or in the end; it is where that is an overlay.

    :param chain: paths from the top on; ``names`` as of :func:`top_of`.
    """
    roles = [top_of(path, names) for path in chain] or ["other"]
    first = next((role for role in roles if role != "other"), "other")
    return first if roles[0] == first or first in ("base", "new") else "other"


def is_squeezed(found: Found, chain: t.Sequence[str]) -> bool:
    """Whether others' file lies between our first overlay and the image, as QEMU has it.

    The overlay's header names the image, so what the guest has written has to go down at once.
    """
    roles = [top_of(path, found.paths) for path in chain]
    return (
        found.running
        and not found.exchanged
        and found.stage == SNAPSHOT
        and roles[:2] == ["overlay", "other"]
        and "base" in roles
    )
