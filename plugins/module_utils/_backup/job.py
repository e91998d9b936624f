# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Have QEMU export the disks of a running domain as they are at one instant.

While libvirt's backup job runs in pull mode, QEMU saves what the guest overwrites to a scratch file
per disk, and serves the disks as they were over NBD.  A job outlives its client, so what is begun
is written down first: the journal is of ``thinvirt-backup-UUID`` beside the scratch files' folder,
``.thinvirt-backup-UUID``.  It is locked as long as the client lives; the next run ends the
job, and no other, whose scratch files lie in that folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import time
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._backup import freeze
from ansible_collections.thinvirt.kvm.plugins.module_utils._backup import xml as backup_xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._backup.qemu_process import (
    MAX_SOCKET_BYTES,
    QemuProcess,
    qemu_of,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import Guest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    HypervisorError,
    RefusedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import (
    Journal,
    Record,
    has_journal,
    open_journal,
    peek,
    places,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_argv import nbd_spec
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import signals_wait
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.folders import (
    make_private,
    remove_flat,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown, typed

Answer = t.TypeVar("Answer")

#: An upgrade of libvirt restarts its daemon, which takes some seconds.
_RECONNECT_SECONDS = 60.0
#: QEMU closes the scratch files when it ends a job; that takes no longer than a flush.
_END_SECONDS = 60.0
_ASK_AGAIN_SECONDS = 5.0
_PAUSE_SECONDS = 0.1
_FROZEN, _BEGUN = "freeze", "backup"


@dataclasses.dataclass(frozen=True)
class Workplace:
    """Where the scratch files of a domain lie, and what is known of them.

    :param parent: a folder that QEMU can get to.
    """

    parent: str
    uuid: str

    @property
    def folder(self) -> str:
        return os.path.join(self.parent, f".thinvirt-backup-{self.uuid}")

    @property
    def journal(self) -> str:
        """What the journal is of."""
        return os.path.join(self.parent, f"thinvirt-backup-{self.uuid}")


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The disks of a domain as they were at one instant.

    :param specs: names each to QEMU's tools, by target.
    :param freeze: whether its file systems were at rest.
    """

    specs: t.Mapping[str, str]
    freeze: freeze.Freeze


@contextlib.contextmanager
def snapshot(
    guest: Guest, live: xml.Domain, disks: t.Sequence[xml.Disk], *, parent: str, quiesce: str
) -> t.Iterator[Snapshot]:
    """Have the disks exported as they are now.

    :param parent: the folder for the scratch files' folder.
    :raises RefusedError: somebody else is at work on the domain; nothing was changed.
    :raises ThinvirtError: the job can't be begun, or not be ended.
    """
    place = Workplace(parent, guest.uuid)
    with open_journal(place.journal) as journal:
        if journal.left is not None:
            _end(guest, place, journal)
        refuse_busy(guest, disks)
        process = qemu_of(guest.uuid, guest.name)
        socket = _socket(guest, process)
        chosen = {disk.target: os.path.join(place.folder, disk.target) for disk in disks}
        job = backup_xml.backup_xml(
            socket=socket,
            scratch=chosen,
            others=[disk.target for disk in live.disks if disk.target not in chosen],
        )
        _note(journal, _BEGUN)
        thawed = True
        try:
            make_private(place.folder, uid=process.uid, gid=process.gid)
            state = _begin(guest, live, job, quiesce=quiesce, journal=journal)
            path = process.seen_from_here(socket)
            yield Snapshot({target: nbd_spec(path, target) for target in chosen}, state)
            refuse_ended(guest, place)
        except freeze.ThawError:
            thawed = False  # the next run tries again
            raise
        finally:
            with signals_wait():
                _end(guest, place, journal, forget=thawed)


def _begin(
    guest: Guest, live: xml.Domain, job: str, *, quiesce: str, journal: Journal
) -> freeze.Freeze:
    """Begin the job while the guest's file systems are at rest, if they can be."""
    with freeze.frozen(
        guest,
        quiesce=quiesce,
        connected=live.agent_connected,
        note=lambda: _note(journal, _FROZEN),
    ) as state:
        guest.begin_backup(job)
    if state.state != "off":
        _note(journal, _BEGUN)
    return state


def recover(guest: Guest, parent: str, *, check_mode: bool) -> str:
    """End the job, and only that, which a killed run of ours has left; remove its files.

    :param parent: where this run's scratch files would lie; journals, and a job itself, tell where
        others do.
    :returns: what was (in check mode, would be) done; empty if there was nothing to do.
    :raises RefusedError: that run still lives.
    """
    name = os.path.basename(Workplace(parent, guest.uuid).journal)
    left_in = [os.path.split(place.path) for place in places()]
    parents = [parent, *(folder for folder, base in left_in if base == name)]
    text = guest.backup_job() if guest.is_active() else ""
    if text:
        files = backup_xml.parse_job(text).files
        folders = {os.path.dirname(file) for file in files}
        named = [f for f in folders if f == Workplace(os.path.dirname(f), guest.uuid).folder]
        parents += [os.path.dirname(folder) for folder in named]
    done = ""
    for each in dict.fromkeys(parents):
        place = Workplace(each, guest.uuid)
        if check_mode:
            left = peek(place.journal)
        elif not has_journal(place.journal):
            continue
        else:
            with open_journal(place.journal) as journal:
                left = journal.left
                if left is not None:
                    _end(guest, place, journal)
        if left is not None:
            verb = "would be" if check_mode else "were"
            done = f"The backup job and scratch files of process {left.pid}, which was killed, "
            done += f"{verb} removed."
    return done


def refuse_busy(guest: Guest, disks: t.Sequence[xml.Disk]) -> None:
    """Refuse a domain that somebody else is at work on.

    :raises RefusedError: somebody is; nothing was changed.
    """
    text = guest.backup_job()
    if text:
        job = backup_xml.parse_job(text)
        files = ", ".join(map(shown, job.files[:3]))
        socket = f", exported by {shown(job.socket)}" if job.socket else ""
        raise RefusedError(
            f"Another program is backing up domain {guest.name} ({job.mode} mode, files {files}"
            f"{socket}); nothing was changed.",
            remedy=f"Wait for it to end; if nobody is at work any more, virsh domjobabort "
            f"{guest.name}.",
        )
    name = guest.job_name()
    if name:
        raise RefusedError(
            f"Domain {guest.name} is busy: {name}; nothing was changed.",
            remedy=f"Wait for it to end (virsh domjobinfo {typed(guest.name)}).",
        )
    for disk in disks:
        if guest.block_job(disk.target) is not None:
            raise RefusedError(
                f"There is a block job on disk {disk.target} of domain {guest.name}; nothing was "
                "changed.",
                remedy=f"Wait for it to end (virsh blockjob {typed(guest.name)} {disk.target}).",
            )


def refuse_ended(guest: Guest, place: Workplace) -> None:
    """Refuse to believe a snapshot whose job has ended meanwhile.

    :raises HypervisorError: it has.
    """
    text = despite_restarts(guest, guest.backup_job)
    if not text or not backup_xml.parse_job(text).lies_in(place.folder):
        raise HypervisorError(
            f"The backup job of domain {guest.name} ended before its disks were copied; the copies "
            "were removed.",
            remedy="Look whether the guest was stopped, or a disk was full, and run it again.",
        )


def _note(journal: Journal, stage: str) -> None:
    journal.write(Record(operation="backup", stage=stage, pid=os.getpid(), source=None))


def _socket(guest: Guest, process: QemuProcess) -> str:
    """A new name for a socket in QEMU's own folder."""
    socket = os.path.join(process.folder, f"thinvirt-{secrets.token_hex(4)}.sock")
    if len(os.fsencode(process.seen_from_here(socket))) > MAX_SOCKET_BYTES:
        raise RefusedError(
            f"The folder of domain {guest.name}, {shown(process.folder)}, has too long a name for "
            "a socket in it; nothing was changed.",
            remedy="Back it up while it is shut off, or with qemu:///system.",
        )
    return socket


def _end(guest: Guest, place: Workplace, journal: Journal, *, forget: bool = True) -> None:
    """Thaw what a killed run has frozen, end our job if it runs, and remove the scratch files.

    :param forget: all is well then, and the journal is cleared.
    :raises ThinvirtError: it could not be done; it is for the next run.
    """
    left = journal.left

    def end() -> None:
        if _is_active(guest):
            if left is not None and left.stage == _FROZEN:
                freeze.thaw(guest)
            _end_job(guest, place)

    despite_restarts(guest, end)
    remove_flat(place.folder)
    if forget:
        journal.clear()


def _is_active(guest: Guest) -> bool:
    try:
        return guest.is_active()
    except HypervisorError:
        if guest.is_lost():
            raise
        return False  # a transient domain is gone when it ends


def _end_job(guest: Guest, place: Workplace) -> None:
    deadline = time.monotonic() + _END_SECONDS
    ask_at = time.monotonic()
    while True:
        text = guest.backup_job()
        if not text or not backup_xml.parse_job(text).lies_in(place.folder):
            return
        if time.monotonic() >= ask_at:
            # Again, for somebody else may have asked at the same instant and libvirt lost count.
            ask_at = time.monotonic() + _ASK_AGAIN_SECONDS
            # It may end by itself, or with its guest, at this instant.
            with contextlib.suppress(HypervisorError):
                guest.abort_backup()
        if time.monotonic() > deadline:
            raise HypervisorError(
                f"The backup job of domain {guest.name} did not end within {_END_SECONDS:g} s; its "
                f"scratch files in {shown(place.folder)} were left.",
                remedy=f"Look at virsh domjobinfo {typed(guest.name)}. The next run tries it "
                "again.",
            )
        time.sleep(_PAUSE_SECONDS)


def despite_restarts(guest: Guest, ask: t.Callable[[], Answer]) -> Answer:
    """Ask libvirt, and ask again if its daemon was restarted meanwhile.

    :raises HypervisorError: it does not come back; what was begun is for the next run.
    """
    while True:
        _reconnect(guest)
        try:
            return ask()
        except HypervisorError:
            if not guest.is_lost():
                raise


def _reconnect(guest: Guest) -> None:
    """Be connected, though libvirtd was restarted meanwhile.

    :raises HypervisorError: it does not come back; what was begun is for the next run.
    """
    deadline = time.monotonic() + _RECONNECT_SECONDS
    while guest.is_lost():
        try:
            guest.reconnect()
        except HypervisorError as error:
            if time.monotonic() > deadline:
                raise HypervisorError(
                    f"libvirt went away while domain {guest.name} was backed up, and did not come "
                    f"back: {error.message}",
                    remedy="Start it. The next run ends the backup job and removes its files.",
                ) from error
            time.sleep(1.0)
