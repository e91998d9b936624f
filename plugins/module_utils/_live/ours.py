# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a disk is still what a run has made of it, or others have been at work on it.

Others may take snapshots, save the guest, begin jobs, power it off or change its configuration at
any moment.  We take part in that: before each step that can't be taken back the chain that libvirt
and QEMU have must be the one that we made, and what others need of it stays.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import (
    Guest,
    Hypervisor,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    HypervisorError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.header import (
    read_image_header,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._live import chain as chains
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown

#: For libvirt to turn a guest off, once it counts as off.
_OFF_SECONDS = 30.0
#: No guest is saved faster.
_SAVE_SECONDS = 0.05


class Foreign(HypervisorError):  # noqa: N818 (others are not an error, but what they did ends us)
    """Somebody else has changed the disk, or is at work on it."""


class ShutOff(Foreign):
    """Somebody, or the guest, has powered it off."""


class SaveWatch:
    """Notices that libvirt saves a guest, for as long as it is entered.

    A call that waits for libvirt to be done with that has it say afterwards that the guest has
    crashed, and not that it was saved (seen with 9.0).
    """

    def __init__(self, guest: Guest) -> None:
        self.seen = False
        self._guest = guest
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> SaveWatch:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(_SAVE_SECONDS):
            with contextlib.suppress(HypervisorError):  # it is off, or libvirt restarted
                self.seen = self.seen or self._guest.job_name() == "save"


def chain_of(guest: Guest, target: str) -> chains.Chain:
    """The disk's chain as libvirt has it.

    :raises Foreign: the domain has no such disk any more.
    """
    found = chains.of_libvirt(guest.live_xml(), target, real=os.path.realpath)
    if found is None:
        raise Foreign(
            f"Domain {guest.name} has no disk {target} any more: it was detached meanwhile.",
            remedy="Attach it again, and run thinvirt.kvm.domain_compact with state=recovered.",
        )
    return found


def refuse_foreign(
    guest: Guest, target: str, expected: t.Sequence[str], *, job: str = "", ask_qemu: bool = True
) -> None:
    """Don't go on unless a running domain's disk is what we made of it.

    :param expected: the files of its chain from the top on, symlinks resolved.
    :param job: the file that a job of ours writes to; empty if there is to be no job.
    :param ask_qemu: not only libvirt.
    :raises ShutOff: it does not run any more.
    :raises Foreign: the disk is another.
    """
    try:
        why = problem(guest, target, expected, job=job, ask_qemu=ask_qemu)
    except Foreign:
        raise
    except HypervisorError as error:
        if guest.is_lost() or is_on(guest):
            raise
        raise ShutOff(f"Domain {guest.name} was shut off meanwhile.") from error
    if why:
        raise foreign_error(guest, target, why)


def is_on(guest: Guest) -> bool:
    """Whether a domain runs; a transient one is gone when it ends."""
    try:
        return guest.is_active()
    except HypervisorError:
        if guest.is_lost():
            raise
        return False


def foreign_error(guest: Guest, target: str, why: str, *, settling: bool = False) -> Foreign:
    """What is said of others.

    :param settling: our last word: everything stays as it was found.
    """
    kept = "; no file was removed" if settling else ""
    return Foreign(
        f"Another program was at work on disk {target} of domain {guest.name} meanwhile: "
        f"{why}{kept}.",
        remedy=_REMEDY,
    )


_REMEDY = (
    "Let it end, or undo what it did (end its job, start the saved guest, commit or delete its "
    "snapshot or checkpoint). Then run thinvirt.kvm.domain_compact with state=recovered."
)


def problem(
    guest: Guest, target: str, expected: t.Sequence[str], *, job: str = "", ask_qemu: bool = True
) -> str:
    """What is otherwise than :func:`refuse_foreign` asks; empty if nothing is."""
    chain = chain_of(guest, target)
    kind = foreign_job(guest, chain, job)
    if kind:
        return kind
    if ask_qemu:
        nodes = guest.ask_qemu("query-named-block-nodes")
        devices = guest.ask_qemu("query-block")
        qemu = chains.of_qemu(devices, chain.alias, real=os.path.realpath)
    else:
        qemu, nodes = chain.paths, None
    why = chains.difference(chain, qemu, expected)
    if not why and nodes is not None:
        missing = chains.missing_node(chain, nodes, real=os.path.realpath)
        why = f"QEMU does not have {shown(missing)} open as libvirt says" if missing else ""
    return why or needed_by_others(guest, expected[:-1])


def foreign_job(guest: Guest, chain: chains.Chain, job: str) -> str:
    """The job on a disk, or on its whole domain, if it is another than ours."""
    if chain.job and (not job or chain.mirror != job):
        return f"a block job ({chain.job} to {shown(chain.mirror)}) is at work"
    name = guest.job_name()
    if name:
        return f"the domain is busy ({name})"
    if not job and guest.block_job(chain.target) is not None:
        return f"a block job ({', '.join(job_types(guest, chain.target)) or 'unknown'}) is at work"
    return ""


def job_types(guest: Guest, target: str) -> list[str]:
    """What QEMU's jobs on a disk are: ``mirror``, ``commit``, ``stream``, ``backup``."""
    jobs = guest.ask_qemu("query-block-jobs")
    return [str(job.get("type")) for job in jobs if f"-{target}-" in str(job.get("device"))]


def needed_by_others(guest: Guest, overlays: t.Sequence[str]) -> str:
    """Why overlays must not be merged: somebody needs them as they are; empty if nobody does.

    :param overlays: of ours, symlinks resolved.
    """
    return named_in_records(guest, overlays) or holds_snapshots(overlays)


def named_in_records(guest: Guest, paths: t.Sequence[str]) -> str:
    """Which of libvirt's records of a domain names one of these files; empty if none does."""
    for what, text in guest.records():
        named = {os.path.realpath(path) for path in chains.paths_in(text)}
        for path in paths:
            if path in named:
                return f"the {what} names {shown(path)}"
    return ""


def holds_snapshots(paths: t.Iterable[str]) -> str:
    """Which of these files holds internal snapshots, which would go with it; empty if none does."""
    for path in paths:
        count = _internal_snapshots(path)
        if count:
            return f"{shown(path)} holds internal snapshots ({count})"
    return ""


def _internal_snapshots(path: str) -> int:
    try:
        header = read_image_header(path, image_format="qcow2").qcow2
    except ThinvirtError:
        return 0  # gone, or not yet filled
    return header.snapshot_count if header is not None else 0


def problem_off(guest: Guest, overlays: t.Sequence[str]) -> str:
    """Why the overlays of a domain that is off must not be merged; empty if they may be."""
    deadline = time.monotonic() + _OFF_SECONDS
    try:
        saved = guest.was_saved()
        while saved is None and time.monotonic() < deadline:
            time.sleep(0.05)
            saved = guest.was_saved()
    except HypervisorError:
        if guest.is_lost():
            raise
        return ""  # a transient domain is gone when it ends
    if saved is None:
        return "the guest was turned off and on"
    why = needed_by_others(guest, overlays)
    if saved and not why:
        why = "the guest's memory was saved while it was on them (virsh save)"
    return why


def chain_off(path: str, image_format: str) -> list[str]:
    """The files below a disk of a domain that is off, as the images' headers name them."""
    paths = [os.path.realpath(path)]
    while image_format == "qcow2":
        try:
            header = read_image_header(paths[-1], image_format="qcow2").qcow2
        except ThinvirtError:
            break
        if header is None or not header.backing_file or ":" in header.backing_file:
            break
        below = os.path.join(os.path.dirname(paths[-1]), header.backing_file)
        below = os.path.realpath(below)
        if below in paths:
            break
        paths.append(below)
        image_format = header.backing_format or "raw"
    return paths


def named_by(hypervisor: Hypervisor, paths: t.Collection[str]) -> str:
    """Who still needs one of these files by its name, for people; empty if nobody does.

    Definitions, running domains, saved states, snapshots and checkpoints of all domains.
    """
    for guest in hypervisor.all_guests() if paths else ():
        try:
            texts = [("configuration", guest.configured_xml(with_secrets=False)), *guest.records()]
            if guest.is_active():
                texts.append(("running guest", guest.live_xml()))
        except HypervisorError:
            if guest.is_lost():
                raise
            continue  # a transient domain that has ended
        for what, text in texts:
            for path in map(os.path.realpath, chains.paths_in(text)):
                if path in paths:
                    return f"{shown(path)} is named by the {what} of domain {guest.name}"
    return ""
