# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make one file again of a chain that the compaction of a running domain's disk has made.

This ends every such run: one that came to its end, one that gave up, and one that was killed.  What
is to be done is decided from what is found (``live_policy.settle``), not from what was planned:
libvirt, QEMU and the host may have gone on without us, or not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import (
    Guest,
    Hypervisor,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.redefine import redefine
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    HypervisorError,
    NotFoundError,
    RefusedError,
    ReportedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.files import open_image
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import (
    Journal,
    Live,
    Record,
    naming,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.locks import (
    LockState,
    probe_locks,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_argv import (
    image_spec,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_img import QemuImg
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.recover import wait_until_free
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.replace import (
    Stages,
    fd_storage,
    identity_at,
    remove_name,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._live import ours, policy
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.chain import Chain, described
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.files import (
    Files,
    live_of,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.job import (
    Job,
    Switches,
    flush_ahead,
    patience,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import (
    StoppedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown

#: For a job of a run that was killed to end.
_PATIENCE_SECONDS = 60.0
#: For a libvirtd that was restarted to notice what QEMU did meanwhile, and for QEMU to end.
_NOTICE_SECONDS = 10.0
#: An upgrade of libvirt restarts its daemon, which takes some seconds.
_RECONNECT_SECONDS = 60.0
_RECONNECT_PAUSE_SECONDS = 1.0
#: For qemu-img, where the domain is off by now; longer than any overlay needs.
_OFFLINE_SECONDS = 6 * 3600.0


class Settling:
    """One image that has a journal of a live compaction, held by us.

    :param path: of the image; where it is moved from, if it is.
    :param record: the journal's last one.
    :param pointer: the journal beside the copy of an image that is moved.
    :param bandwidth_bytes: for what is left to copy, a second; 0 for as much as there is.
    """

    def __init__(
        self,
        hypervisor: Hypervisor,
        guest: Guest,
        path: str,
        *,
        journal: Journal,
        record: Record,
        stages: Stages,
        switches: Switches,
        bandwidth_bytes: int = 0,
        pointer: Journal | None = None,
        saves: ours.SaveWatch | None = None,
    ) -> None:
        self._saves = saves
        self.hypervisor = hypervisor
        self.guest = guest
        self.path = path
        self.journal = journal
        self.record = record
        self.live: Live = live_of(record, path)
        self.files = Files.of(path, record)
        self.pointer = pointer
        self.stages = stages
        self.switches = switches
        self.bandwidth_bytes = bandwidth_bytes
        self._running: bool | None = None
        self.files.refuse_foreign_names(record)

    def settle(self) -> policy.Settlement:
        """Have the domain on one file again; libvirtd may be restarted meanwhile.

        :raises RefusedError: it is not clear how; nothing was changed.
        :raises ThinvirtError: it did not work; the chain is whole, and the journal stays.
        """
        deadline = time.monotonic() + _RECONNECT_SECONDS
        while True:
            try:
                with naming(self.journal):
                    return self._settle()
            except StoppedError:
                continue  # each thread is told once, and the main one ends us when this is done
            except HypervisorError:
                late = time.monotonic() > deadline
                if late or not (self.guest.is_lost() or self._was_switched()):
                    raise
            time.sleep(_RECONNECT_PAUSE_SECONDS)
            with contextlib.suppress(HypervisorError):
                self.hypervisor.reconnect()
                self.guest.reconnect()

    def _settle(self) -> policy.Settlement:
        self._refuse_other_source()
        self._end_job()
        found = self._found()
        deadline = time.monotonic() + _NOTICE_SECONDS
        while policy.is_mistaken(found) and time.monotonic() < deadline:
            time.sleep(0.1)
            self._end_job()
            found = self._found()
        todo = policy.settle(found)
        if todo.take_back:
            with self.stages.stage("take back"):
                # The copy loses its name; nobody has it open.
                os.rename(self.files.kept, self.path)
                self.files.sync_folders()
        if todo.foreign:
            raise ours.foreign_error(self.guest, self.live.target, todo.foreign, settling=True)
        if todo.commit:
            self._commit(found)
        end = self.files.new if todo.finished else self.files.base
        # QEMU has flushed it, when it was ready; what a guest has not asked to be flushed too.
        _flush(end)
        with self.stages.stage("clean"):
            self._restore_configuration(end)
            certain = found.running and (todo.commit or _has_writer(end))
            self._clean(end, finished=todo.finished, certain=certain)
        return todo

    def _refuse_other_source(self) -> None:
        """What the journal would have the domain defined with names the image, and nothing else.

        :raises RefusedError: it does not; nothing was changed.
        """
        if not self.guest.is_persistent():
            return
        text = self.guest.configured_xml(with_secrets=False)
        try:
            text = xml.with_source(text, self.live.target, self.live.source)
            disk = xml.parse_domain(text).disk(self.live.target)
            path = self.hypervisor.disk_path(disk) if disk is not None else ""
        except ValueError:  # no XML
            path = ""
        if os.path.realpath(path or "/") != os.path.realpath(self.files.base):
            raise RefusedError(
                f"The journal of {shown(self.path)} says that disk {self.live.target} of domain "
                f"{self.guest.name} was on {shown(path) or 'no file'}; nothing was changed.",
                remedy=f"Look at {shown(self.journal.path)} and the files that it names.",
            )

    def _was_switched(self) -> bool:
        """Whether somebody has turned the guest on or off since it was last looked at."""
        return self._running is not None and self._running != ours.is_on(self.guest)

    def _domain_now(self) -> tuple[bool, xml.Disk]:
        """Whether the domain runs, and the disk as QEMU has it, or would have it."""
        running = self.guest.is_active()
        if not running and self.guest.is_elsewhere():
            # Its QEMU there may have no lock on the files yet, or none that is seen here.
            raise RefusedError(
                f"Domain {self.guest.name} was migrated to another host, and writes to its overlay "
                "there; no file was touched.",
                remedy="Migrate it back, and run thinvirt.kvm.domain_compact with state=recovered "
                "on this host, which knows what was begun.",
            )
        text = self.guest.live_xml() if running else self.guest.configured_xml(with_secrets=False)
        disk = xml.parse_domain(text).disk(self.live.target)
        if disk is None:
            raise RefusedError(
                f"Domain {self.guest.name} has no disk {self.live.target} any more, on which a run "
                f"was at work that was killed; {shown(self.path)} and its overlay were left as "
                "they are.",
                remedy=f"Look at {shown(self.journal.path)} and the files that it names.",
            )
        return running, disk

    def _end_job(self) -> None:
        """Give up the copy or the commit that a run of ours has left, and no job of others.

        The guest stays where it is.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self._has_job():
            with self.stages.stage("end job"):
                with contextlib.suppress(HypervisorError):  # it may end by itself at this moment
                    self.guest.abort_job(self.live.target)
                if time.monotonic() > deadline:
                    raise HypervisorError(
                        f"A block job on disk {self.live.target} of domain {self.guest.name} does "
                        "not end.",
                        remedy="Look at QEMU's log, and at the host's storage.",
                    )
                time.sleep(0.1)

    def _has_job(self) -> bool:
        """Whether a job of ours is at work: the copy that we begin, or the commit."""
        running, _disk = self._domain_now()
        if not running:
            return False
        chain = ours.chain_of(self.guest, self.live.target)
        files, stage = self.files, self.record.stage
        targets = {
            os.path.realpath(path)
            for path in ((files.base, files.new) if stage == policy.MERGE else (files.second,))
            if path
        }
        if chain.job:
            return chain.mirror in targets
        if self.guest.block_job(self.live.target) is None or self.guest.job_name():
            return False
        # A libvirtd that was restarted may know of a job and not what it is for.
        kinds = {policy.MIRROR: "mirror", policy.PIVOT: "mirror", policy.MERGE: "commit"}
        return ours.job_types(self.guest, self.live.target) == [kinds.get(stage)] and any(
            _has_writer(path) for path in targets
        )

    def _found(self) -> policy.Found:
        running, disk = self._domain_now()
        files = self.files
        chain = self._chain(running, disk)
        top = policy.role_of(chain, files.by_role())
        end = identity_at(files.new if top == "new" else files.base)
        if end is None:
            raise RefusedError(
                f"{shown(self.path)} is gone, and its journal is of a run that was killed; nothing "
                "was changed.",
                remedy="Look at the files with its name, and give the right one its name.",
            )
        copy, now = self.record.copy, identity_at(files.new)
        exchanged = copy is not None and now is not None and now.ino == copy.ino
        self._running = running
        found = policy.Found(
            stage=self.record.stage,
            running=running,
            top=top,
            exchanged=exchanged,
            holds_original=running and _is_used(files.kept),
            holds_copy=running and exchanged and _is_used(files.new),
            writers=self._writers(running=running),
            paths=files.by_role(),
            moves=files.moves,
        )
        if policy.is_mistaken(found):
            return found
        squeezed = policy.is_squeezed(found, chain)
        found = dataclasses.replace(
            found,
            squeezed=squeezed,
            foreign="" if squeezed else self._foreign(running, top, chain),
        )
        if found.foreign:
            return found
        if top in ("base", "new") and found.stage != policy.MERGE:
            overlay = files.second if top == "new" else files.overlay
            found = dataclasses.replace(found, overlay_written=_is_written(overlay))
        if policy.must_compare(found):
            found = dataclasses.replace(found, overlay_whole=self._overlay_is_whole())
        return found

    def _chain(self, running: bool, disk: xml.Disk) -> list[str]:
        """The disk's files from the top on, symlinks resolved."""
        path = os.path.realpath(self.hypervisor.disk_path(disk) or "/")
        if running:
            below = ours.chain_of(self.guest, self.live.target).paths[1:]
            return [path, *below]
        return ours.chain_off(path, disk.format or "raw")

    def _foreign(self, running: bool, top: str, chain: t.Sequence[str]) -> str:
        """What others have made of the disk, or need of it; empty if it is as we left it."""
        files = self.files.by_role()
        if top in ("base", "new"):
            return ""
        if top == "other":
            return f"it is on {described(chain)}"
        below = files["base"] if top == "overlay" else files.get("new", files["base"])
        if files["base"] in chain[1:2]:  # of one that moves the original holds the same
            below = files["base"]
        if running:
            return ours.problem(self.guest, self.live.target, [files[top], below])
        if chain[1:2] != [below]:
            return f"it is on {described(chain)}"
        if self._saves is not None and self._saves.seen and not self.live.saved:
            self.live = dataclasses.replace(self.live, saved=True)
            self.record = dataclasses.replace(self.record, live=self.live)
            self.journal.write(self.record)
        if self.live.saved:
            needed = ours.needed_by_others(self.guest, [files[top]])
            return needed or "the guest's memory was saved while it was on them (virsh save)"
        return ours.problem_off(self.guest, [files[top]])

    def _writers(self, *, running: bool) -> frozenset[str]:
        """Those of our files that the guest writes to, or QEMU without the guest."""
        roles = self.files.by_role()
        writers = frozenset(role for role, path in roles.items() if _has_writer(path))
        if not running or len(writers) < 2:
            return writers
        # QEMU has a file open for writing that is not the guest's, as a libvirtd that was killed at
        # a switch leaves it.  Which is the guest's only QEMU knows then.
        media = {os.path.realpath(path) for path in self.guest.media()}
        return frozenset(role for role in writers if roles[role] in media) or writers - {"overlay"}

    def _spec(self, overlay: str, keep: contextlib.ExitStack) -> str:
        """An overlay on what it lies on, whatever its header says; both are held open."""
        top, below = (
            fd_storage(keep.enter_context(open_image(path)).fd)
            for path in (overlay, self.files.below(overlay))
        )
        return image_spec(top, "qcow2", backing=[(below, self.live.image_format)])

    def _overlay_is_whole(self) -> bool:
        """Whether the first overlay is sure to lack nothing that is in the second."""
        tool = QemuImg(timeout=_OFFLINE_SECONDS)
        with contextlib.ExitStack() as keep:
            overlay, second = (
                self._spec(path, keep) for path in (self.files.overlay, self.files.second)
            )
            if policy.is_behind(tool.map(second), tool.map(overlay)):
                return True
            with self.stages.stage("compare") as report:
                return tool.compare(overlay, second, pass_fds=(), report=report)

    def _commit(self, found: policy.Found) -> None:
        """Move what the guest has written to the top into the file below it."""
        self.record = dataclasses.replace(self.record, stage=policy.MERGE)
        self.journal.write(self.record)
        top = self.files.overlay if found.top == "overlay" else self.files.second
        with self.stages.stage("commit") as report:
            if not found.running:
                with contextlib.ExitStack() as keep:
                    QemuImg(timeout=_OFFLINE_SECONDS).commit(self._spec(top, keep))
                return
            chain = ours.chain_of(self.guest, self.live.target)
            below = chain.paths[1]
            self._begin_commit(chain)
            expected = [os.path.realpath(top), below]
            job = Job(
                self.guest,
                self.live.target,
                switches=self.switches,
                expected=expected,
                mirror=below,
                limited_seconds=patience(top, self.bandwidth_bytes),
            )
            job.wait_until_ready(report)
            flush_ahead(top, below)
        with self.stages.stage("switch"):
            job.pivot()

    def _begin_commit(self, chain: Chain) -> None:
        """Begin to commit, to the node; a job that libvirtd has yet to forget is given its time.

        :raises RefusedError: others are at work on the disk.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                self.guest.begin_commit(
                    self.live.target,
                    bandwidth_bytes=self.bandwidth_bytes,
                    top=chain.node(0),
                    base=chain.node(1),
                )
                return
            except HypervisorError:
                gone = self.guest.is_lost() or not self.guest.is_active()
                if gone or time.monotonic() > deadline:
                    raise
            self._end_job()
            ours.refuse_foreign(self.guest, self.live.target, chain.paths[:2])
            time.sleep(0.5)

    def _restore_configuration(self, end: str) -> None:
        """The next start has the disk where it had it before, in the same words, or at its copy.

        Where somebody has given it another file meanwhile, or taken it out, that stays.
        """
        if not self.guest.is_persistent():
            return
        configured = xml.parse_domain(self.guest.configured_xml(with_secrets=False))
        disk = configured.disk(self.live.target)
        path = os.path.realpath(self.hypervisor.disk_path(disk) or "/") if disk else ""
        if path not in self.files.by_role().values():
            return
        source = self.live.source
        if end != self.files.base:
            source = xml.moved_source(source, end)
        image_format = self.live.image_format
        put_at(self.hypervisor, self.guest, self.live.target, source, image_format=image_format)

    def _clean(self, end: str, *, finished: bool, certain: bool) -> None:
        """Remove what nobody needs any more, and nothing that somebody has open.

        :param end: the file that the disk is on.
        :param certain: QEMU has the disk on it.  What else it has open then it only has
            because a libvirtd that was killed has forgotten it; that space comes back when the
            guest is powered off.
        """
        running, disk = self._domain_now()
        now = self._chain(running, disk)
        if os.path.realpath(end) not in now:
            raise HypervisorError(
                f"Disk {self.live.target} of domain {self.guest.name} is not on {shown(end)} "
                "again, though it should be; no file was removed.",
                remedy="Run it again with state=recovered.",
            )
        files = self.files
        chain = [path for path in (files.overlay, files.second) if path]
        chain += self._doomed_image(finished=finished)
        self._refuse_needed(chain, now)
        copies = [files.temp] if files.temp else []
        for path in copies if certain else (*copies, *chain):
            wait_until_free(path)
        try:
            files.sync_folders()
            for path in (*copies, *chain):
                remove_name(path)
            files.sync_folders()
        except OSError as error:
            raise failure(self.path, "cleaned up after", error) from error
        journals = [self.journal, *([self.pointer] if self.pointer else [])]
        for journal in journals if finished else reversed(journals):
            # One that is left if we are killed is where the domain is, and so is found again.
            journal.clear()
            journal.remove()

    def _refuse_needed(self, chain: t.Sequence[str], now: t.Sequence[str]) -> None:
        """Refuse to remove what others have come to need.

        :raises Foreign: QEMU, a definition, a saved state, a snapshot or a checkpoint names it, or
            it holds internal snapshots.
        """
        there = [os.path.realpath(path) for path in chain if identity_at(path) is not None]
        used = [f"the guest uses {shown(path)}" for path in there if path in now]
        why = "".join(used[:1]) or ours.named_by(self.hypervisor, there)
        overlays = {os.path.realpath(each) for each in (self.files.overlay, self.files.second)}
        why = why or ours.holds_snapshots(path for path in there if path in overlays)
        if why:
            raise ours.foreign_error(self.guest, self.live.target, why, settling=True)

    def _doomed_image(self, *, finished: bool) -> list[str]:
        """An original that is not to be kept, or a copy that was not needed, by its name.

        Not while it may be the only one with its content; and nothing that somebody else has put
        in its place.
        """
        files, record = self.files, self.record
        if files.moves and not finished:
            now = identity_at(files.new)
            ours = record.copy is not None and now is not None and now.ino == record.copy.ino
            return [files.new] if ours else []
        if files.moves:
            same = record.source is not None and record.source.is_still(identity_at(files.base))
            return [files.base] if same and not record.keep_original else []
        if not files.kept:
            return []
        kept, now = identity_at(files.kept), identity_at(self.path)
        if kept is not None and now is not None and kept.ino == now.ino:
            return [files.kept]  # just a second name
        return [files.kept] if finished and not record.keep_original else []


def put_at(
    hypervisor: Hypervisor, guest: Guest, target: str, source: str, *, image_format: str = ""
) -> None:
    """Have the next start of a domain find a disk where ``xml.source_of`` has said."""
    before = guest.configured_xml(with_secrets=True)
    after = xml.with_source(before, target, source, image_format=image_format)
    wanted = xml.canonical(after)
    if xml.canonical(before) != wanted:
        redefine(
            hypervisor,
            guest,
            before=before,
            after=after,
            is_as_wanted=lambda text: xml.canonical(text) == wanted,
        )


def _flush(path: str) -> None:
    try:
        with open_image(path) as image:
            os.fsync(image.fd)
    except OSError as error:
        raise failure(path, "flushed", error) from error


def _has_writer(path: str) -> bool:
    """Whether QEMU, not only libvirt, has this file open for writing.

    That is the top of a chain, what a job writes to, or what a libvirtd that was killed has left.
    """
    locks = _locks(path)
    return locks is not None and locks.writer


def _is_used(path: str) -> bool:
    locks = _locks(path)
    return locks is not None and bool(locks.used)


def _locks(path: str) -> LockState | None:
    """QEMU's locks on a file; None if there is none, or no path."""
    if not path:
        return None
    try:
        with open_image(path) as image:
            return probe_locks(image.fd)
    except NotFoundError:
        return None


def _is_written(path: str) -> bool:
    if not path or identity_at(path) is None:
        return False
    if os.path.getsize(path) == 0:  # made, and not yet filled
        return False
    tool = QemuImg(timeout=_OFFLINE_SECONDS)
    with open_image(path) as image:
        spec = image_spec(fd_storage(image.fd), "qcow2")
        return any(entry.data for entry in tool.map(spec))


def give_up(settling: Settling, error: ReportedError) -> policy.Settlement | None:
    """Settle after an error, and say in the error itself what has become of the disk.

    :returns: None if that did not work either.
    """
    try:
        settlement = settling.settle()
    except ThinvirtError as worse:
        if isinstance(worse, ours.Foreign) and isinstance(error, ours.Foreign):
            error.message = (
                f"{error.message} It was left to that program as it is, and no file was removed."
            )
            error.remedy = worse.remedy
            return None
        error.message = (
            f"{error.message} The disk could not be brought back on one file: {worse.message} Its "
            "overlay and its image together are whole; remove neither: domain_compact makes one "
            "file of them with state=recovered."
        )
        error.remedy = worse.remedy
        return None
    said = "The compaction was finished nevertheless."
    error.message = f"{error.message} {said if settlement.finished else 'The disk is as it was.'}"
    return settlement
