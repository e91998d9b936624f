# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make an image smaller that nobody uses, by the method that risks and moves least."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    RefusedError,
    ThinvirtError,
    UnsupportedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import compact_policy as policy
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact_outcome import (
    Outcome,
    sizes_of,
    sizes_with,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact_rewrite import Rewrite
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.files import (
    OpenImage,
    open_image,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.header import (
    ImageHeader,
    read_open_header,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import (
    Identity,
    Journal,
    Record,
    is_full,
    no_journal,
    open_journal,
    peek,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.locks import (
    refuse_other_writers,
    refuse_reader,
    refuse_writer,
    writers_kept_out,
    written_in_place,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.process import Runner, run
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_img import QemuImg
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.recover import (
    recover,
    refuse_part_of_chain,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.replace import Stages
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.sparsify import sparsify
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import signals_wait
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.extents import (
    Extent,
    allocated_extents,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.filesystem import free_now
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.lease import Lease
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.punch import can_punch_holes
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.trust import (
    refuse_exchangeable,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.zeros import (
    count_zeros,
    dig_holes,
)

__all__ = ["Obstacles", "Outcome", "compact", "facts_of"]


Obstacles = t.Callable[[OpenImage], t.Iterable[policy.Obstacle]]


def compact(
    path: str,
    request: policy.Request,
    *,
    obstacles: Obstacles,
    check_mode: bool,
    stages: Stages,
    runner: Runner = run,
) -> Outcome:
    """Compact one image, or in check mode say what would be done.

    :param path: absolute.
    :param obstacles: asks those who know the image's users, such as libvirt, what forbids it.
    :raises RefusedError: it must not be done; nothing was changed.
    :raises ThinvirtError: it could not be done; the image is as it was.
    """
    try:
        return _compact(
            path,
            request,
            obstacles=obstacles,
            check_mode=check_mode,
            stages=stages,
            runner=runner,
        )
    except OSError as error:  # what nobody has thought of: a failing disk, a foreign owner
        raise failure(path, "compacted", error) from error


def _compact(
    path: str,
    request: policy.Request,
    *,
    obstacles: Obstacles,
    check_mode: bool,
    stages: Stages,
    runner: Runner,
) -> Outcome:
    with open_image(path) as image:
        name, block_device = image.path, image.block_device
    if not block_device:
        refuse_exchangeable(name)
        refuse_part_of_chain(name)
    if check_mode or block_device:
        left = None if block_device else peek(name)
        with open_image(name) as image:
            work = _Compaction(
                image,
                request,
                obstacles=obstacles,
                journal=None,
                stages=stages,
                runner=runner,
            )
            refuse_writer(image.fd, name)
            refuse_other_writers(image.fd, name)
            outcome = work.done()
        if left is not None:
            outcome.recovered = f"Process {left.pid} was killed during {left.operation}."
        return outcome
    with _journal(name, request) as journal:
        recovered = recover(name, journal)
        free = free_now(os.path.dirname(name))
        with open_image(name) as image:
            work = _Compaction(
                image,
                request,
                obstacles=obstacles,
                journal=journal,
                stages=stages,
                runner=runner,
            )
            if request.method == "trim":
                # virt-sparsify takes the locks itself: it writes.
                refuse_writer(image.fd, name)
                refuse_other_writers(image.fd, name)
                outcome = work.done()
            else:
                with writers_kept_out(image.fd, name) as lease:
                    work.lease = lease
                    outcome = work.done()
                if lease.missing:
                    kept_out = f"Only who heeds QEMU's locks was kept out: {lease.missing}."
                    outcome.reason = f"{outcome.reason} {kept_out}".lstrip()
        outcome.witness(free, free_now(os.path.dirname(name)))
        outcome.recovered = recovered
        return outcome


@contextlib.contextmanager
def _journal(name: str, request: policy.Request) -> t.Iterator[Journal]:
    with contextlib.ExitStack() as stack:
        try:
            journal = stack.enter_context(open_journal(name))
        except ThinvirtError as error:
            # A full disk needs punching most.  Another run would notice what we do, and it us.
            if not is_full(error) or request.method not in ("auto", "punch"):
                raise
            journal = no_journal(error)
        yield journal


def facts_of(image: OpenImage, header: ImageHeader) -> policy.Facts:
    """What is to be known of an image to decide what to do.

    :raises ThinvirtError: the file can't be read.
    """
    extents: list[Extent] = []
    try:
        if not header.block_device:
            extents = list(allocated_extents(image.fd, flush=True))
    except OSError as error:
        raise failure(image.path, "read", error) from error
    return policy.Facts(
        header=header,
        data_bytes=sum(extent.length for extent in extents if not extent.unwritten),
        unwritten_bytes=sum(extent.length for extent in extents if extent.unwritten),
        links=os.fstat(image.fd).st_nlink,
        shared_bytes=sum(extent.length for extent in extents if extent.shared),
    )


class _Compaction:
    """One image, while it is held open.

    :param journal: None in check mode: nothing is changed then.
    """

    def __init__(
        self,
        image: OpenImage,
        request: policy.Request,
        *,
        obstacles: Obstacles,
        journal: Journal | None,
        stages: Stages,
        runner: Runner,
    ) -> None:
        self.image = image
        self.request = request
        self.obstacles = obstacles
        self.journal = journal
        self.stages = stages
        self.runner = runner
        self.tool = QemuImg(timeout=request.timeout, runner=runner)
        self.zeros: int | None = None
        #: What keeps writers out; None where nothing is changed, or others do so.
        self.lease: Lease | None = None

    def done(self) -> Outcome:
        """Decide, and carry it out unless it is check mode."""
        header = self._header()
        users = policy.obstacles_to(self.obstacles(self.image), header.format)
        policy.refuse_obstacles(self.image.path, users, punch=self.request.method != "trim")
        facts = facts_of(self.image, header)
        policy.refuse_any_change(self.image.path, facts, self.request)
        sizes = sizes_with(header, shared_bytes=facts.shared_bytes)
        outcome = Outcome(self.image.path, before=sizes, after=sizes)
        if self.request.method == "trim":
            self._trim(outcome, header)
        else:
            self._shrink(outcome, facts, users)
        outcome.reason += policy.about_data_file(header)
        outcome.seconds = dict(self.stages.seconds)
        outcome.moved_bytes = dict(self.stages.moved_bytes)
        return outcome

    def _header(self) -> ImageHeader:
        return read_open_header(
            self.image, path=self.image.path, image_format=self.request.image_format
        )

    def _shrink(
        self, outcome: Outcome, facts: policy.Facts, users: t.Sequence[policy.Obstacle]
    ) -> None:
        method = self.request.method
        # Zeros that are punched first would only leave the new form to the next run.
        if method == "punch" or (method == "auto" and not self.request.wishes_form(facts.header)):
            try:
                self._punch(outcome, facts)
            except UnsupportedError as error:
                if method == "punch":
                    raise
                outcome.reason = error.message
            if outcome.changed or method == "punch":
                return
        try:
            policy.refuse_obstacles(self.image.path, users, punch=False)
            with contextlib.ExitStack() as keep:
                Rewrite(
                    self.image,
                    facts,
                    self.request,
                    zeros=self._count_zeros,
                    journal=self.journal,
                    tool=self.tool,
                    stages=self.stages,
                    keep=keep,
                ).carry_out(outcome)
        except RefusedError as error:
            if method == "rewrite":
                raise
            outcome.reason = f"{outcome.reason} A rewrite was refused: {error}".lstrip()

    def _punch(self, outcome: Outcome, facts: policy.Facts) -> None:
        """Turn zeros into holes, in place: the content is the same at every instant."""
        enough = self.request.threshold(facts.allocated_bytes)
        if self.journal is None:
            found = self._count_zeros(shared=False)
            folder = os.path.dirname(self.image.path)
            if found >= enough and can_punch_holes(folder).works is False:
                raise self._cannot_punch()
        else:
            with self._noted("punch", self.journal), self.stages.stage("punch"):
                found = self._dig(enough)
                self.zeros = None if self.request.accept_unsharing else found
        outcome.reclaimable_bytes = found
        if found < enough:
            outcome.reason = f"{found} bytes are zeros, less than the {enough} worth it."
            if facts.shared_bytes:
                outcome.reason += (
                    f" It shares {facts.shared_bytes} bytes with other files, which do not count."
                )
            return
        outcome.reason = f"{found} bytes were zeros: no copy is needed to give them back."
        if self.journal is None:
            outcome.method = "punch"
            outcome.after = dataclasses.replace(
                outcome.before, allocated_bytes=max(0, outcome.before.allocated_bytes - found)
            )
            return
        outcome.after = sizes_of(self._header(), self.image.fd)
        if outcome.freed_bytes > 0:
            outcome.method = "punch"
        else:
            outcome.reason = f"{found} bytes are zeros, but the file system gave no block back."

    def _dig(self, enough: int) -> int:
        name = self.image.path
        fd = self.image.fd
        with written_in_place(fd, t.cast("Lease", self.lease)):
            try:
                found = dig_holes(fd, at_least=enough)
                os.fsync(fd)
            except OSError as error:
                if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
                    raise self._cannot_punch() from error
                raise failure(name, "punched", error) from error
        return found

    def _cannot_punch(self) -> UnsupportedError:
        return UnsupportedError(
            f"The file system of {shown(self.image.path)} cannot punch holes; nothing was changed.",
            remedy="Use method=rewrite, which needs none.",
        )

    def _count_zeros(self, enough: int | None = None, *, shared: bool | None = None) -> int:
        """Bytes of zeros in the image's data, of which no more than enough need be found.

        :param shared: also those that other files have; by default if the copy is to share nothing.
        """
        shared = self.request.accept_unsharing if shared is None else shared
        if self.zeros is not None:
            return self.zeros
        try:
            with self.stages.stage("scan"):
                found = count_zeros(self.image.fd, enough=enough, shared=shared)
        except OSError as error:
            raise failure(self.image.path, "read", error) from error
        if (enough is None or found < enough) and shared == self.request.accept_unsharing:
            self.zeros = found
        return found

    @contextlib.contextmanager
    def _noted(self, operation: str, journal: Journal) -> t.Iterator[None]:
        """Say in the journal what is being done, for people: there is nothing to undo."""
        source = Identity.of(os.fstat(self.image.fd))
        record = Record(operation=operation, stage=operation, pid=os.getpid(), source=source)
        try:
            try:
                journal.write(record)
            except ThinvirtError as error:
                # The journal's lock holds without a word in it.
                if not is_full(error):
                    raise
            yield
        finally:
            with signals_wait():
                journal.clear()

    def _trim(self, outcome: Outcome, header: ImageHeader) -> None:
        """Free blocks of the file systems inside, by libguestfs; there is no way back."""
        refuse_reader(self.image.fd, self.image.path)
        if header.qcow2 is not None:
            policy.refuse_damaged(self.image.path, header.qcow2)
        enough = self.request.threshold(outcome.before.allocated_bytes)
        if self.journal is None:
            outcome.reason = "Only virt-sparsify itself can tell what would come back."
            return
        with self._noted("trim", self.journal), self.stages.stage("trim"):
            fd = self.image.fd
            sparsify(self.image.path, header.format, self.request.timeout, self.runner, fd=fd)
        with open_image(self.image.path) as image:
            header = read_open_header(
                image, path=image.path, image_format=self.request.image_format
            )
            outcome.after = sizes_of(header, image.fd)
        outcome.reclaimable_bytes = outcome.freed_bytes
        if outcome.freed_bytes >= enough:
            outcome.method, outcome.reason = "trim", "The file systems inside were trimmed."
        else:
            outcome.reason = "The file systems inside were trimmed, and little was free."
