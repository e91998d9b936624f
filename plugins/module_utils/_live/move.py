# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compact the disk of a domain that is shut off into another folder.

The verified copy gets its name there, then the domain's configuration names it, and only then the
original goes.  ``live_settle`` ends it, as it does for domains that run: killed anywhere, the next
run finds which of the two the domain has.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import (
    Guest,
    Hypervisor,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    RefusedError,
    ReportedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact_outcome import (
    Outcome,
    sizes_of,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact_policy import Request
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.estimate import facts_in_use
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.files import open_image
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.header import read_open_header
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import (
    Journal,
    Live,
    Record,
    open_journal,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.locks import (
    refuse_other_writers,
    writers_kept_out,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_img import QemuImg
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.replace import Stages
from ansible_collections.thinvirt.kvm.plugins.module_utils._live import policy
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.copy import (
    copied,
    name_elsewhere,
    pointer,
    refuse_taken_place,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.files import Files
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.job import Switches
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.settle import (
    Settling,
    give_up,
    put_at,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import signals_wait
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.trust import (
    refuse_exchangeable,
)


class Move:
    """One disk of a domain that is shut off.

    :param path: its image, symlinks resolved.
    :param request: asks for a rewrite in another folder; its format is that of the disk.
    """

    def __init__(
        self,
        hypervisor: Hypervisor,
        guest: Guest,
        target: str,
        path: str,
        *,
        request: Request,
        stages: Stages,
    ) -> None:
        self.hypervisor = hypervisor
        self.guest = guest
        self.target = target
        self.path = path
        self.request = request
        self.stages = stages
        self.files = Files(path, os.path.join(request.dest_dir, os.path.basename(path)))
        self._tool = QemuImg(timeout=request.timeout)

    def refuse(self) -> None:
        """Refuse what can be seen before anything is changed; who uses the image is known already.

        :raises RefusedError: it must not be done; nothing was changed.
        """
        refuse_exchangeable(self.path)
        refuse_taken_place(self.files)

    def carry_out(self, outcome: Outcome) -> None:
        """Do it, and say in ``outcome`` what has become of the image.

        :raises ThinvirtError: it was not done; the message says where the disk is now.
        """
        try:
            with open_journal(self.path) as journal:
                if journal.left is not None:
                    raise RefusedError(
                        f"{shown(self.path)} has the journal of a killed run ({journal.left.stage})"
                        "; nothing was changed.",
                        remedy="Run thinvirt.kvm.image_compact on it first.",
                    )
                self.refuse()
                record = Record("live", policy.SNAPSHOT, os.getpid(), None, live=self._live())
                journal.write(record)
                with pointer(self.files, journal) as beside:
                    self._in_order(journal, beside, record, outcome)
        except OSError as error:
            raise failure(self.path, "compacted", error) from error
        finally:
            outcome.seconds = dict(self.stages.seconds)
            outcome.moved_bytes = dict(self.stages.moved_bytes)

    def _live(self) -> Live:
        """What recovery has to know; there are no overlays."""
        configured = self.guest.configured_xml(with_secrets=False)
        return Live(
            domain=self.guest.uuid,
            target=self.target,
            overlay="",
            source=xml.source_of(configured, self.target, with_backing=not self.request.flatten),
            image_format=self.request.image_format,
            base=self.path,
            dest=self.files.new,
        )

    def _in_order(
        self, journal: Journal, beside: Journal | None, record: Record, outcome: Outcome
    ) -> None:
        self._record = record
        try:
            self._to_new(journal, beside, outcome)
        except (ReportedError, OSError) as problem:
            error = problem
            if isinstance(error, OSError):
                error = failure(self.path, "compacted", error)
            with signals_wait():
                give_up(self._settling(journal, beside), error)
            raise error from problem
        with signals_wait():
            self._settling(journal, beside).settle()
        outcome.method, outcome.moved_to = "rewrite", self.files.new
        outcome.reason = "The image has another folder than asked for."
        outcome.kept = self.path if os.path.lexists(self.path) else ""
        with open_image(self.files.new) as image:
            header = read_open_header(
                image, path=image.path, image_format=self.request.image_format
            )
            outcome.after = sizes_of(header, image.fd)

    def _settling(self, journal: Journal, beside: Journal | None) -> Settling:
        return Settling(
            self.hypervisor,
            self.guest,
            self.path,
            journal=journal,
            record=self._record,
            stages=self.stages,
            switches=Switches(),
            pointer=beside,
        )

    def _to_new(self, journal: Journal, beside: Journal | None, outcome: Outcome) -> None:
        """From the image to its copy, while nobody can start the domain."""
        with contextlib.ExitStack() as stack:
            image = stack.enter_context(open_image(self.path))
            stack.enter_context(writers_kept_out(image.fd, self.path))
            refuse_other_writers(image.fd, self.path)
            header = read_open_header(
                image, path=image.path, image_format=self.request.image_format
            )
            facts = dataclasses.replace(facts_in_use(image, header), header=header)
            new, record = copied(
                image,
                facts,
                stack,
                new=self.files.new,
                request=self.request,
                bandwidth_bytes=0,
                journal=journal,
                record=self._record,
                tool=self._tool,
                stages=self.stages,
                outcome=outcome,
            )
            with self.stages.stage(policy.SWAP), signals_wait():
                keep = self.request.keep_original
                record = dataclasses.replace(record, stage=policy.SWAP, keep_original=keep)
                self._record = record
                self.files = Files.of(self.path, record)
                journal.write(record)
                if beside is not None:
                    beside.write(record)
                new.swapping = True
                name_elsewhere(self.files, new)
                source = xml.moved_source(self._live().source, self.files.new)
                put_at(self.hypervisor, self.guest, self.target, source)
