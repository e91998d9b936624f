# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compact the disk of a domain while it runs.

The guest is switched to an overlay, so that its image does not change any more and can be copied
and compared like one that nobody uses.  The copy gets the image's name; the overlay is copied onto
it, which has QEMU leave the original; and what the guest has written meanwhile goes into the copy.
At every instant the disk is a whole chain, by its names on the disk and in QEMU; the journal says
what each file is.  ``live_settle`` ends it, however it went.

Between QEMU's switch and libvirt's note of it in the domain's configuration lie some milliseconds,
as with every block job of libvirt.  A host that fails just then starts the guest from before them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import (
    Guest,
    Hypervisor,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    HypervisorError,
    RefusedError,
    ReportedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact_outcome import (
    Outcome,
    sizes_of,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact_policy import (
    Request,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.estimate import facts_in_use
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.files import (
    OpenImage,
    open_image,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.header import read_open_header
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import (
    Identity,
    Journal,
    Live,
    Record,
    open_journal,
    overlay_name,
    temp_name,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.locks import (
    refuse_other_writers,
    writers_kept_out,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_img import QemuImg
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.recover import refuse_live
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.replace import (
    NewCopy,
    Stages,
    identity_at,
    refuse_taken_name,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._live import ours, policy
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.checks import (
    Bounds,
    refuse,
    refuse_disagreement,
    refuse_full,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.copy import (
    Dropped,
    copied,
    make_overlay,
    name_elsewhere,
    pointer,
    refuse_taken_place,
)
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
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.settle import (
    Settling,
    give_up,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import signals_wait
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.trust import (
    refuse_exchangeable,
)

#: So often it is looked whether others have changed the disk while it is copied.
_LOOK_AGAIN_SECONDS = 1.0


@dataclasses.dataclass
class LiveOutcome:
    """What is known of a compaction besides that of the image.

    :param stall_seconds: an upper limit for how long the guest's writes waited.
    :param overlay_bytes: what the guest wrote meanwhile.
    """

    stall_seconds: float = 0.0
    overlay_bytes: int = 0


class LiveCompaction:
    """The compaction of one disk of a running domain.

    :param disk: as QEMU has it.
    :param source: where the domain's configuration has it (``xml.source_of``).
    :param path: its image, symlinks resolved.
    :param request: asks for a rewrite.
    """

    def __init__(
        self,
        hypervisor: Hypervisor,
        guest: Guest,
        disk: xml.Disk,
        path: str,
        *,
        source: str,
        request: Request,
        bounds: Bounds,
        stages: Stages,
    ) -> None:
        self.hypervisor = hypervisor
        self.guest = guest
        self.disk = disk
        self.path = path
        self.source = source
        self.request = request
        self.bounds = bounds
        self.stages = stages
        self.switches = Switches()
        self.live = LiveOutcome()
        self._pointer: Journal | None = None
        self._saves: ours.SaveWatch | None = None
        self._on_overlay = False
        #: What a job of ours writes to.
        self._job = ""
        self._look_at = 0.0
        self._deadline = time.monotonic() + request.timeout
        # All the while: what the guest writes meanwhile takes space as well.
        self._tool = QemuImg(timeout=request.timeout, watch=self._watch)
        name = os.path.basename(path)
        # One that moves keeps its original where it is.
        self._keep = f"{name}.thinvirt-original" if request.keep_original else ""
        self.files = Files(path, os.path.join(request.dest_dir, name) if self.moves else path)

    def carry_out(self, outcome: Outcome) -> None:
        """Do it, and say in ``outcome`` what has become of the image.

        :raises ThinvirtError: it was not done; the message says what the disk is on now.
        """
        try:
            with open_journal(self.path) as journal:
                refuse_live(self.path, journal.left)
                if journal.left is not None:
                    raise RefusedError(
                        f"{shown(self.path)} has the journal of a killed run ({journal.left.stage})"
                        ", though a domain uses it; nothing was changed.",
                        remedy="Shut the domain down, and run thinvirt.kvm.image_compact.",
                    )
                self.refuse()
                self._with_journal(journal, outcome)
        except OSError as error:
            raise failure(self.path, "compacted", error) from error
        finally:
            outcome.seconds = dict(self.stages.seconds)
            outcome.moved_bytes = dict(self.stages.moved_bytes)
            self.live.stall_seconds = self.switches.longest_seconds

    @property
    def moves(self) -> bool:
        """The image is to lie in another folder."""
        return self.request.moves(self.path)

    def _with_journal(self, journal: Journal, outcome: Outcome) -> None:
        live = Live(
            domain=self.guest.uuid,
            target=self.disk.target,
            overlay=overlay_name(self.path),
            source=self.source,
            image_format=self.disk.format,
            base=self.path if self.moves else "",
            dest=self.files.new if self.moves else "",
        )
        self._record = Record("live", policy.SNAPSHOT, os.getpid(), None, live=live)
        self.files = Files.of(self.path, self._record)
        longest = max(map(len, map(os.fsencode, (live.overlay, temp_name(self.path)))))
        if longest > min(os.pathconf(folder, "PC_NAME_MAX") for folder in self.files.folders):
            raise RefusedError(
                f"{shown(self.path)} has too long a name for an overlay beside it; nothing was "
                "changed.",
                remedy="Use power=cycle after giving it a shorter one.",
            )
        journal.write(self._record)
        with (
            pointer(self.files, journal) as self._pointer,
            ours.SaveWatch(self.guest) as self._saves,
        ):
            self._in_order(journal, outcome)

    def _in_order(self, journal: Journal, outcome: Outcome) -> None:
        """Do it, and settle it however it went."""
        try:
            self._to_new_base(journal, outcome)
        except Dropped:
            with signals_wait():
                self._settling(journal, bandwidth_bytes=0).settle()
            return
        except (ReportedError, OSError) as problem:
            error = problem
            if isinstance(error, OSError):
                error = failure(self.path, "compacted", error)
            with signals_wait():
                # What is given up is over soon.
                settlement = give_up(self._settling(journal, bandwidth_bytes=0), error)
            finished = settlement is not None and settlement.finished
            self._note_after(outcome, finished=finished)
            if finished and isinstance(error, HypervisorError):
                outcome.reason = error.message  # the guest was shut down, or libvirtd restarted
                return
            raise error from problem
        with signals_wait():
            limit = self.bounds.bandwidth_bytes
            settlement = self._settling(journal, bandwidth_bytes=limit).settle()
        self._note_after(outcome, finished=settlement.finished)

    def _settling(self, journal: Journal, *, bandwidth_bytes: int) -> Settling:
        return Settling(
            self.hypervisor,
            self.guest,
            self.path,
            journal=journal,
            record=self._record,
            stages=self.stages,
            switches=self.switches,
            bandwidth_bytes=bandwidth_bytes,
            pointer=self._pointer,
            saves=self._saves,
        )

    def _note_after(self, outcome: Outcome, *, finished: bool) -> None:
        if not finished:
            return
        outcome.method = "live"
        if self.moves:
            outcome.moved_to = self.files.new
            outcome.kept = self.path if os.path.lexists(self.path) else ""
        elif self._keep:
            outcome.kept = os.path.join(os.path.dirname(self.path), self._keep)
        with open_image(self.files.new) as image:
            header = read_open_header(image, path=image.path, image_format=self.disk.format)
            outcome.after = sizes_of(header, image.fd)

    def refuse(self) -> None:
        """Refuse what can be seen before anything is changed.

        :raises RefusedError: it must not be done; nothing was changed.
        """
        # QEMU opens it again by the name that the domain has for it.
        for path in filter(None, (self.path, self.disk.path)):
            refuse_exchangeable(path)
        refuse(self.path, self.disk.format, self.request, self.bounds, tool=self._tool)
        if self.moves:
            refuse_taken_place(self.files)
        else:
            refuse_taken_name(self.path, self._keep)

    def _to_new_base(self, journal: Journal, outcome: Outcome) -> None:
        """From the image alone to an overlay on its copy."""
        self._write_to_overlay()
        with contextlib.ExitStack() as stack:
            image = stack.enter_context(open_image(self.path))
            new, record = self._copied(journal, outcome, image, stack)
            # Until our next job keeps others out nobody may commit to either file: QEMU would open
            # the name anew, with the tables of the other one in mind.
            stack.enter_context(writers_kept_out(new.fd, new.name))
            self._refuse_foreign()
            self._swap(journal, image, new, record)
            job = self._begin_mirror(journal)
        self._mirror(journal, job)

    def _write_to_overlay(self) -> None:
        with self.stages.stage(policy.SNAPSHOT):
            self._make_overlay(self.files.overlay)
            others = [
                disk.target
                for disk in xml.parse_domain(self.guest.live_xml()).disks
                if disk.target != self.disk.target
            ]
            flush_ahead(self.path)
            ours.refuse_foreign(self.guest, self.disk.target, [self.path])
            why = ours.named_in_records(self.guest, [self.path])
            if why:
                raise ours.foreign_error(self.guest, self.disk.target, why)
            with self.switches.timed():
                self.guest.write_to_overlay(self.disk.target, self.files.overlay, others=others)
            self._refuse_foreign()
            self._on_overlay = True

    def _make_overlay(self, overlay: str) -> None:
        size_bytes = 0
        if overlay == self.files.second:  # somebody may have made the disk larger meanwhile
            with open_image(self.files.overlay) as first:
                header = read_open_header(first, path=first.path, image_format="qcow2")
            size_bytes = header.virtual_size_bytes
        make_overlay(
            self._tool,
            overlay,
            like=self.path,
            below=self.files.below(overlay),
            image_format=self.disk.format,
            size_bytes=size_bytes,
        )

    def _expected(self) -> list[str]:
        """The chain from the first overlay on, symlinks resolved."""
        files = self.files.by_role()
        return [files["overlay"], files["base"]]

    def _refuse_foreign(self, *, job: str = "", ask_qemu: bool = True) -> None:
        """Don't go on unless the disk is on our overlay, and nobody else at work on it.

        Of a guest that was powered off the copy is as good; it is settled when it has been made.

        :raises Foreign: it is not.
        """
        guest, target, expected = self.guest, self.disk.target, self._expected()
        try:
            ours.refuse_foreign(guest, target, expected, job=job, ask_qemu=ask_qemu)
        except ours.ShutOff:
            why = ours.problem_off(guest, expected[:1])
            if why:
                raise ours.foreign_error(guest, target, why) from None

    def _copied(
        self,
        journal: Journal,
        outcome: Outcome,
        image: OpenImage,
        stack: contextlib.ExitStack,
    ) -> tuple[NewCopy, Record]:
        """A verified copy of the image, which nobody writes to now."""
        stack.enter_context(writers_kept_out(image.fd, self.path))
        refuse_other_writers(image.fd, self.path)
        header = read_open_header(image, path=image.path, image_format=self.disk.format)
        return copied(
            image,
            facts_in_use(image, header),
            stack,
            new=self.files.new,
            request=self.request,
            bandwidth_bytes=self.bounds.bandwidth_bytes,
            journal=journal,
            record=self._record,
            tool=self._tool,
            stages=self.stages,
            outcome=outcome,
        )

    def _swap(self, journal: Journal, image: OpenImage, new: NewCopy, record: Record) -> None:
        """Give the copy its name; an original that loses its own by that keeps another one."""
        live = dataclasses.replace(
            live_of(self._record, self.path), second=overlay_name(self.files.new)
        )
        with self.stages.stage(policy.SWAP), signals_wait():
            record = dataclasses.replace(
                record, stage=policy.SWAP, keep_original=bool(self._keep), live=live
            )
            if not self.files.moves:
                kept = self._keep or temp_name(self.path)
                record = dataclasses.replace(record, kept=kept)
            self._record = record
            self.files = Files.of(self.path, record)
            journal.write(record)
            if self._pointer is not None:
                self._pointer.write(record)
            # From here on what is to be removed is told by what is found.
            new.swapping = True
            self._make_overlay(self.files.second)
            if self.files.moves:
                self._refuse_exchanged(image, self.path)
                name_elsewhere(self.files, new)
                return
            os.link(self.path, self.files.kept, follow_symlinks=False)
            self._refuse_exchanged(image, self.files.kept)
            self.files.sync_folders()
            if identity_at(new.name) != record.copy:
                raise RefusedError(
                    f"{shown(new.name)} was changed or exchanged by somebody else.",
                    remedy="Find out who does so, and run it again.",
                )
            os.rename(new.name, self.path)
            self.files.sync_folders()

    def _refuse_exchanged(self, image: OpenImage, name: str) -> None:
        source = self._record.source
        if identity_at(name) != source or Identity.of(os.fstat(image.fd)) != source:
            raise RefusedError(
                f"{shown(self.path)} was changed or exchanged by somebody else.",
                remedy="Find out who does so without QEMU's locks.",
            )

    def _begin_mirror(self, journal: Journal) -> Job:
        """Begin to copy the overlay onto the one on the copy, which keeps others out."""
        self._advance(journal, policy.MIRROR)
        second = self.files.by_role()["second"]
        with self.stages.stage(policy.MIRROR):
            self.guest.begin_copy(
                self.disk.target,
                self.files.second,
                bandwidth_bytes=self.bounds.bandwidth_bytes,
            )
            self._job = second
            self._refuse_foreign(job=second)
        return Job(
            self.guest,
            self.disk.target,
            switches=self.switches,
            expected=self._expected(),
            mirror=second,
            watch=self._watch,
            limited_seconds=patience(self.files.overlay, self.bounds.bandwidth_bytes),
        )

    def _mirror(self, journal: Journal, job: Job) -> None:
        """Have the guest write to an overlay on the copy, and QEMU leave the original."""
        with self.stages.stage(policy.MIRROR) as report:
            job.wait_until_ready(report)
            # May take seconds, in which nobody has to ask yet which overlay is the right one.
            flush_ahead(self.files.overlay, self.files.second)
        self._advance(journal, policy.PIVOT)
        with self.stages.stage(policy.PIVOT), signals_wait():
            job.pivot()
            self.live.overlay_bytes = os.stat(self.files.overlay).st_blocks * 512
        refuse_disagreement(self.guest, self.disk.target, self.files.second)

    def _advance(self, journal: Journal, stage: str) -> None:
        self._record = dataclasses.replace(self._record, stage=stage)
        journal.write(self._record)

    def _watch(self) -> None:
        """Give up in time: full storage pauses running guests."""
        refuse_full(self.files.folders, self.guest.name, self.request.min_free_bytes)
        self._notice()
        if time.monotonic() > self._deadline:
            raise RefusedError(
                f"Disk {self.disk.target} of domain {self.guest.name} was not compacted within "
                f"{self.request.timeout:.0f} s.",
                remedy="Raise timeout, or bandwidth_bytes.",
            )

    def _notice(self) -> None:
        """Give up soon after others have changed the disk; what counts is looked at again later."""
        if not self._on_overlay or time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _LOOK_AGAIN_SECONDS
        try:
            self._refuse_foreign(job=self._job, ask_qemu=False)
        except HypervisorError:
            if not self.guest.is_lost():  # libvirt's daemon may be restarted
                raise
