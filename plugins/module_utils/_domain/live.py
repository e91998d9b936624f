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

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import live_policy as policy
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import (
    Guest,
    Hypervisor,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.live_checks import Bounds, refuse
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.live_job import (
    Job,
    Switches,
    patience,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.live_settle import (
    Settling,
    give_up,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    HypervisorError,
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.attributes import (
    copy_attributes,
    new_file_like,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact_outcome import (
    Outcome,
    sizes_of,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact_policy import (
    Request,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact_rewrite import Rewrite
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
    Part,
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
    Source,
    Stages,
    identity_at,
    refuse_taken_name,
    verified_copy,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import signals_wait
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.durable import sync_folder
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown


@dataclasses.dataclass
class LiveOutcome:
    """What is known of a compaction besides that of the image.

    :param stall_seconds: an upper limit for how long the guest's writes waited.
    :param overlay_bytes: what the guest wrote meanwhile.
    """

    stall_seconds: float = 0.0
    overlay_bytes: int = 0


class _Dropped(Exception):  # noqa: N818 (no error: the image is not worth it after all)
    pass


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
        self.folder = os.path.dirname(path)
        self._deadline = time.monotonic() + request.timeout
        self._tool = QemuImg(timeout=request.timeout)
        self._keep = f"{os.path.basename(path)}.thinvirt-original" if request.keep_original else ""

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
            self.live.stall_seconds = self.switches.longest_seconds

    def _with_journal(self, journal: Journal, outcome: Outcome) -> None:
        live = Live(
            domain=self.guest.uuid,
            target=self.disk.target,
            overlay=overlay_name(self.path),
            source=self.source,
            image_format=self.disk.format,
        )
        self._record = Record("live", policy.SNAPSHOT, os.getpid(), None, live=live)
        longest = max(map(len, map(os.fsencode, (live.overlay, temp_name(self.path)))))
        if longest > os.pathconf(self.folder, "PC_NAME_MAX"):
            raise RefusedError(
                f"{shown(self.path)} has too long a name for an overlay beside it; nothing was "
                "changed.",
                remedy="Use power=cycle after giving it a shorter one.",
            )
        journal.write(self._record)
        try:
            self._to_new_base(journal, outcome)
        except _Dropped:
            with signals_wait():
                self._settling(journal, bandwidth_bytes=0).settle()
            return
        except (ThinvirtError, OSError) as problem:
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
        )

    def _note_after(self, outcome: Outcome, *, finished: bool) -> None:
        if not finished:
            return
        outcome.method = "live"
        outcome.kept = os.path.join(self.folder, self._keep) if self._keep else ""
        with open_image(self.path) as image:
            header = read_open_header(image, path=image.path, image_format=self.disk.format)
            outcome.after = sizes_of(header)

    def refuse(self) -> None:
        """Refuse what can be seen before anything is changed.

        :raises RefusedError: it must not be done; nothing was changed.
        """
        refuse(self.path, self.disk.format, self.request, self.bounds, tool=self._tool)
        refuse_taken_name(self.path, self._keep)

    def _to_new_base(self, journal: Journal, outcome: Outcome) -> None:
        """From the image alone to an overlay on its copy."""
        self._write_to_overlay()
        with contextlib.ExitStack() as stack:
            image = stack.enter_context(open_image(self.path))
            new, record = self._copied(journal, outcome, image, stack)
            self._swap(journal, image, new, record)
        self._mirror(journal)

    def _write_to_overlay(self) -> None:
        live = self._live()
        with self.stages.stage(policy.SNAPSHOT):
            self._make_overlay(live.overlay)
            others = [
                disk.target
                for disk in xml.parse_domain(self.guest.live_xml()).disks
                if disk.target != self.disk.target
            ]
            with self.switches.timed():
                self.guest.write_to_overlay(
                    self.disk.target, os.path.join(self.folder, live.overlay), others=others
                )

    def _live(self) -> Live:
        if self._record.live is None:
            raise AssertionError("every record of ours has it")
        return self._record.live

    def _make_overlay(self, name: str) -> None:
        path = os.path.join(self.folder, name)
        with open_image(self.path) as image:
            header = read_open_header(image, path=image.path, image_format=self.disk.format)
            fd = new_file_like(image.fd, path)
            try:
                self._tool.create_overlay(
                    fd,
                    size_bytes=header.virtual_size_bytes,
                    backing=self.path,
                    backing_format=self.disk.format,
                )
                copy_attributes(image.fd, fd)
                os.fsync(fd)
            finally:
                os.close(fd)
        sync_folder(self.folder)

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
        rewrite = Rewrite(
            image,
            facts_in_use(image, header),
            self.request,
            zeros=lambda: 0,
            journal=journal,
            tool=self._tool,
            stages=self.stages,
        )
        plan = rewrite.plan()
        rewrite.refuse_too_little_space(plan.needed_bytes)
        sparse = "preallocation" not in plan.copy.options
        new, record = stack.enter_context(
            verified_copy(
                Source(self.path, image.fd, plan.spec),
                self.path,
                copy=dataclasses.replace(plan.copy, bandwidth_bytes=self.bounds.bandwidth_bytes),
                min_free_bytes=self.request.min_free_bytes,
                journal=Part(journal, self._record),
                tool=self._tool,
                stages=self.stages,
                finish=rewrite.thin if sparse else None,
            )
        )
        outcome.compared = True
        allocated = os.fstat(image.fd).st_blocks * 512
        saved = allocated - (new.usage.allocated_bytes or 0)
        enough = self.request.threshold(allocated)
        if (plan.keeps_form or plan.denser) and saved < enough:
            outcome.reclaimable_bytes = saved
            outcome.reason = (
                f"The copy was {saved} bytes smaller, less than the {enough} worth it; it was "
                "dropped."
            )
            raise _Dropped
        copy_attributes(image.fd, new.fd)
        os.fsync(new.fd)
        return new, record

    def _swap(self, journal: Journal, image: OpenImage, new: NewCopy, record: Record) -> None:
        """Give the copy the image's name; the original keeps another one."""
        live = dataclasses.replace(self._live(), second=overlay_name(self.path))
        with self.stages.stage(policy.SWAP), signals_wait():
            self._record = dataclasses.replace(
                self._record,
                stage=policy.SWAP,
                source=record.source,
                temp=record.temp,
                kept=self._keep or temp_name(self.path),
                keep_original=bool(self._keep),
                copy=Identity.of(os.fstat(new.fd)),
                live=live,
            )
            journal.write(self._record)
            # From here on what is to be removed is told by what is found.
            new.swapping = True
            self._make_overlay(live.second)
            kept = os.path.join(self.folder, self._record.kept)
            os.link(self.path, kept, follow_symlinks=False)
            if (
                identity_at(kept) != self._record.source
                or Identity.of(os.fstat(image.fd)) != self._record.source
            ):
                raise RefusedError(
                    f"{shown(self.path)} was changed or exchanged by somebody else.",
                    remedy="Find out who does so without QEMU's locks.",
                )
            sync_folder(self.folder)
            if identity_at(new.name) != self._record.copy:
                raise RefusedError(f"{shown(new.name)} was changed or exchanged by somebody else.")
            os.rename(new.name, self.path)
            sync_folder(self.folder)

    def _mirror(self, journal: Journal) -> None:
        """Have the guest write to an overlay on the copy, and QEMU leave the original."""
        live = self._live()
        self._advance(journal, policy.MIRROR)
        job = Job(
            self.guest,
            self.disk.target,
            switches=self.switches,
            watch=self._watch,
            limited_seconds=patience(
                os.path.join(self.folder, live.overlay), self.bounds.bandwidth_bytes
            ),
        )
        with self.stages.stage(policy.MIRROR) as report:
            self.guest.begin_copy(
                self.disk.target,
                os.path.join(self.folder, live.second),
                bandwidth_bytes=self.bounds.bandwidth_bytes,
            )
            job.wait_until_ready(report)
        self._advance(journal, policy.PIVOT)
        with self.stages.stage(policy.PIVOT), signals_wait():
            job.pivot()
            written = os.stat(os.path.join(self.folder, live.overlay)).st_blocks * 512
            self.live.overlay_bytes = written
        self._refuse_disagreement(live.second)

    def _advance(self, journal: Journal, stage: str) -> None:
        self._record = dataclasses.replace(self._record, stage=stage)
        journal.write(self._record)

    def _refuse_disagreement(self, name: str) -> None:
        """Live and configured, the disk is on the second overlay now."""
        path = os.path.join(self.folder, name)
        texts = [self.guest.live_xml()]
        if self.guest.is_persistent():
            texts.append(self.guest.configured_xml(with_secrets=False))
        for text in texts:
            disk = xml.parse_domain(text).disk(self.disk.target)
            if disk is None or os.path.realpath(disk.path) != os.path.realpath(path):
                raise HypervisorError(
                    f"libvirt did not switch disk {self.disk.target} of domain {self.guest.name} "
                    "as it said."
                )

    def _watch(self) -> None:
        """Give up in time: full storage pauses running guests."""
        figures = os.statvfs(self.folder)
        free = figures.f_bavail * figures.f_frsize
        if free < self.request.min_free_bytes:
            raise RefusedError(
                f"While the disk of domain {self.guest.name} was compacted its file system came "
                f"down to {free} bytes free, less than min_free_bytes="
                f"{self.request.min_free_bytes}.",
                remedy="Free space, or lower min_free_bytes.",
            )
        if time.monotonic() > self._deadline:
            raise RefusedError(
                f"Disk {self.disk.target} of domain {self.guest.name} was not compacted within "
                f"{self.request.timeout:.0f} s.",
                remedy="Raise timeout, or bandwidth_bytes.",
            )
