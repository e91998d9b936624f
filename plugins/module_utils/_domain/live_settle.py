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

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import live_policy as policy
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import (
    Guest,
    Hypervisor,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.live_job import (
    Job,
    Switches,
    patience,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.redefine import redefine
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    HypervisorError,
    NotFoundError,
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.files import open_image
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import (
    Journal,
    Live,
    Record,
    is_temp_name,
    overlaid,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.locks import probe_locks
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_argv import (
    Storage,
    image_spec,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_img import QemuImg
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.recover import wait_until_free
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.replace import (
    Stages,
    identity_at,
    remove_name,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import (
    StoppedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.durable import sync_folder
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown

#: For a job of a run that was killed to end.
_PATIENCE_SECONDS = 60.0
#: An upgrade of libvirt restarts its daemon, which takes some seconds.
_RECONNECT_SECONDS = 60.0
_RECONNECT_PAUSE_SECONDS = 1.0
#: For qemu-img, where the domain is off by now; longer than any overlay needs.
_OFFLINE_SECONDS = 6 * 3600.0


class Settling:
    """One image that has a journal of a live compaction, held by us.

    :param path: of the image.
    :param record: the journal's last one.
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
    ) -> None:
        if record.live is None:
            raise RefusedError(f"The journal of {shown(path)} is none of a live compaction.")
        self.hypervisor = hypervisor
        self.guest = guest
        self.path = path
        self.journal = journal
        self.record = record
        self.live: Live = record.live
        self.stages = stages
        self.switches = switches
        self.bandwidth_bytes = bandwidth_bytes
        self.folder = os.path.dirname(path)
        self._refuse_foreign_names()

    def settle(self) -> policy.Settlement:
        """Have the domain on one file again; libvirtd may be restarted meanwhile.

        :raises RefusedError: it is not clear how; nothing was changed.
        :raises ThinvirtError: it did not work; the chain is whole, and the journal stays.
        """
        deadline = time.monotonic() + _RECONNECT_SECONDS
        while True:
            try:
                return self._settle()
            except StoppedError:
                continue  # each thread is told once, and the main one ends us when this is done
            except HypervisorError:
                if not self.guest.is_lost() or time.monotonic() > deadline:
                    raise
            time.sleep(_RECONNECT_PAUSE_SECONDS)
            with contextlib.suppress(HypervisorError):
                self.hypervisor.reconnect()
                self.guest.reconnect()

    def _settle(self) -> policy.Settlement:
        self._end_job()
        found = self._found()
        todo = policy.settle(found)
        if todo.take_back:
            with self.stages.stage("take back"):
                # The copy loses its name; nobody has it open.
                os.rename(self._beside(self.record.kept), self.path)
                sync_folder(self.folder)
        if todo.commit:
            self._commit(found)
        # QEMU has flushed it, when it was ready; what a guest has not asked to be flushed too.
        self._flush()
        with self.stages.stage("clean"):
            self._restore_configuration()
            self._clean(finished=todo.finished, certain=found.running and self._is_on_base(todo))
        return todo

    def _is_on_base(self, todo: policy.Settlement) -> bool:
        """Whether QEMU, not only libvirt, is sure to have the disk on its one file.

        It was just switched there; or it writes there, and to nothing but the top of a chain does
        it without a job.
        """
        if todo.commit:
            return True
        with open_image(self.path) as image:
            return probe_locks(image.fd).writer

    def _beside(self, name: str) -> str:
        return os.path.join(self.folder, name) if name else ""

    def _refuse_foreign_names(self) -> None:
        """The journal's names are removed in the end: only such as a run makes may be."""
        overlays = [name for name in (self.live.overlay, self.live.second) if name]
        temps = [name for name in (self.record.temp,) if name]
        if self.record.kept and not self.record.keep_original:
            temps.append(self.record.kept)
        if all(overlaid(self._beside(name)) == self.path for name in overlays) and all(
            is_temp_name(name, self.path) for name in temps
        ):
            return
        raise RefusedError(
            f"The journal of {shown(self.path)} names files that are none of its own; nothing was "
            "changed.",
            remedy="Look at the files beside it, and remove the journal.",
        )

    def _domain_now(self) -> tuple[bool, xml.Disk]:
        """Whether the domain runs, and the disk as QEMU has it, or would have it."""
        running = self.guest.is_active()
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
        """Give up the copy or the commit that a run has left: the guest stays where it is."""
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
        running, disk = self._domain_now()
        # A libvirtd that was restarted may know of a job and not what it is for.
        return running and bool(disk.job or self.guest.block_job(self.live.target))

    def _names(self) -> dict[str, str]:
        return {
            "base": os.path.realpath(self.path),
            "overlay": os.path.realpath(self._beside(self.live.overlay)),
            "second": os.path.realpath(self._beside(self.live.second)) if self.live.second else "",
        }

    def _found(self) -> policy.Found:
        running, disk = self._domain_now()
        now = identity_at(self.path)
        if now is None:
            raise RefusedError(
                f"{shown(self.path)} is gone, and its journal is of a run that was killed; nothing "
                "was changed.",
                remedy="Look at the files with its name, and give the right one its name.",
            )
        copy = self.record.copy
        top = policy.top_of(os.path.realpath(self.hypervisor.disk_path(disk) or "/"), self._names())
        exchanged = copy is not None and now.ino == copy.ino
        found = policy.Found(
            stage=self.record.stage,
            running=running,
            top=top,
            exchanged=exchanged,
            holds_original=running and self._is_used(self._beside(self.record.kept)),
            holds_copy=running and exchanged and self._is_used(self.path),
        )
        if top == "base" and found.stage != policy.MERGE:
            found = dataclasses.replace(found, overlay_written=self._is_written(self.live.overlay))
        if policy.must_compare(found):
            found = dataclasses.replace(found, tops_equal=self._are_equal())
        return found

    @staticmethod
    def _is_used(path: str) -> bool:
        if not path:
            return False
        try:
            with open_image(path) as image:
                return bool(probe_locks(image.fd).used)
        except NotFoundError:
            return False

    def _is_written(self, name: str) -> bool:
        path = self._beside(name)
        if identity_at(path) is None:
            return False
        if os.path.getsize(path) == 0:  # made, and not yet filled
            return False
        tool = QemuImg(timeout=_OFFLINE_SECONDS)
        return any(entry.data for entry in tool.map(image_spec(Storage(path), "qcow2")))

    def _spec(self, overlay: str) -> str:
        below = [(Storage(self.path), self.live.image_format)]
        return image_spec(Storage(self._beside(overlay)), "qcow2", backing=below)

    def _are_equal(self) -> bool:
        tool = QemuImg(timeout=_OFFLINE_SECONDS)
        with self.stages.stage("compare") as report:
            return tool.compare(
                self._spec(self.live.overlay),
                self._spec(self.live.second),
                pass_fds=(),
                report=report,
            )

    def _commit(self, found: policy.Found) -> None:
        """Move what the guest has written to the top into the file below it."""
        self.record = dataclasses.replace(self.record, stage=policy.MERGE)
        self.journal.write(self.record)
        with self.stages.stage("commit") as report:
            if not found.running:
                name = self.live.overlay if found.top == "overlay" else self.live.second
                QemuImg(timeout=_OFFLINE_SECONDS).commit(self._spec(name))
                return
            self._begin_commit()
            job = Job(
                self.guest,
                self.live.target,
                switches=self.switches,
                limited_seconds=patience(
                    self._beside(self.live.second or self.live.overlay), self.bandwidth_bytes
                ),
            )
            job.wait_until_ready(report)
        with self.stages.stage("switch"):
            job.pivot()

    def _begin_commit(self) -> None:
        """Begin to commit; a job that libvirtd has yet to forget is given its time."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                self.guest.begin_commit(self.live.target, bandwidth_bytes=self.bandwidth_bytes)
                return
            except HypervisorError:
                gone = self.guest.is_lost() or not self.guest.is_active()
                if gone or time.monotonic() > deadline:
                    raise
            with contextlib.suppress(HypervisorError):
                self.guest.abort_job(self.live.target)
            time.sleep(0.5)

    def _flush(self) -> None:
        try:
            with open_image(self.path) as image:
                os.fsync(image.fd)
        except OSError as error:
            raise failure(self.path, "flushed", error) from error

    def _restore_configuration(self) -> None:
        """The next start has the disk where it had it before, in the same words."""
        if not self.guest.is_persistent():
            return
        before = self.guest.configured_xml(with_secrets=True)
        after = xml.with_source(before, self.live.target, self.live.source)
        wanted = xml.canonical(after)
        if xml.canonical(before) != wanted:
            redefine(
                self.hypervisor,
                self.guest,
                before=before,
                after=after,
                is_as_wanted=lambda text: xml.canonical(text) == wanted,
            )

    def _clean(self, *, finished: bool, certain: bool) -> None:
        """Remove what nobody needs any more, and nothing that somebody has open.

        :param certain: QEMU has the disk on its one file.  What else it has open then it only has
            because a libvirtd that was killed has forgotten it; that space comes back when the
            guest is powered off.
        """
        _running, disk = self._domain_now()
        if self._names()["base"] != os.path.realpath(self.hypervisor.disk_path(disk) or "/"):
            raise HypervisorError(
                f"Disk {self.live.target} of domain {self.guest.name} is not on "
                f"{shown(self.path)} again, though it should be; no file was removed.",
                remedy="Run it again with state=recovered.",
            )
        names = [self.live.overlay, self.live.second]
        if self._may_drop_original(finished=finished):
            names.append(self.record.kept)
        chain = [self._beside(name) for name in names if name]
        copies = [self._beside(name) for name in (self.record.temp,) if name]
        for path in copies if certain else (*copies, *chain):
            wait_until_free(path)
        paths = (*copies, *chain)
        try:
            sync_folder(self.folder)
            for path in paths:
                remove_name(path)
            sync_folder(self.folder)
        except OSError as error:
            raise failure(self.path, "cleaned up after", error) from error
        self.journal.clear()

    def _may_drop_original(self, *, finished: bool) -> bool:
        """Not while it may be the only one with its content, nor if it is to be kept."""
        if not self.record.kept:
            return False
        kept, now = identity_at(self._beside(self.record.kept)), identity_at(self.path)
        if kept is not None and now is not None and kept.ino == now.ino:
            return True  # just a second name
        return finished and not self.record.keep_original


def give_up(settling: Settling, error: ThinvirtError) -> policy.Settlement | None:
    """Settle after an error, and say in the error itself what has become of the disk.

    :returns: None if that did not work either.
    """
    try:
        settlement = settling.settle()
    except ThinvirtError as worse:
        error.message = (
            f"{error.message} The disk could not be brought back on one file: {worse.message} Its "
            "overlay and its image together are whole; remove neither."
        )
        error.remedy = "Run thinvirt.kvm.domain_compact with state=recovered."
        return None
    said = "The compaction was finished nevertheless."
    error.message = f"{error.message} {said if settlement.finished else 'The disk is as it was.'}"
    return settlement
