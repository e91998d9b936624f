# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A new image in the place of an old one, where that saves enough or another form is asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    ImageError,
    RefusedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import compact_policy as policy
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.attributes import (
    copy_attributes,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.chain import (
    Places,
    backing_chain,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact_outcome import (
    Outcome,
    sizes_of,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.files import (
    OpenImage,
    open_image,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.header import (
    ImageHeader,
    read_open_header,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import Journal
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.locks import refuse_reader
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_argv import (
    Copy,
    Storage,
    image_spec,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_img import QemuImg
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_output import CheckResult
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.replace import (
    Source,
    Stages,
    fd_storage,
    refuse_taken_name,
    swap_in,
    verified_copy,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.table_size import (
    Tables,
    tables_of,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.filesystem import (
    file_system_of,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.zeros import dig_holes


@dataclasses.dataclass(frozen=True)
class Plan:
    """The copy that is to be made.

    :param keeps_form: it is like the image, but for what is of no use in it.
    :param denser: it differs in nothing but that its data is compressed.
    :param preallocated: it would be, and the image is already, as asked for.
    :param needed_bytes: what it may need.
    :param least_bytes: what a sparse one takes if no cluster is zeros.
    :param tables: what is known of its tables, if anything is.
    """

    copy: Copy
    spec: str
    compressed: bool
    keeps_form: bool
    denser: bool
    preallocated: bool
    needed_bytes: int
    least_bytes: int
    tables: Tables | None


class Rewrite:
    """The rewriting of one image, while it is held open and nobody writes to it.

    :param zeros: bytes of zeros in its data; asked only when that matters, and for no more than
        are enough, or all of them (None).
    :param journal: None in check mode: nothing is changed then.
    :param keep: holds its backing files open.
    """

    def __init__(
        self,
        image: OpenImage,
        facts: policy.Facts,
        request: policy.Request,
        *,
        zeros: t.Callable[[int | None], int],
        journal: Journal | None,
        tool: QemuImg,
        stages: Stages,
        keep: contextlib.ExitStack,
    ) -> None:
        self.keep = keep
        self.image = image
        self.facts = facts
        self.request = request
        self.zeros = zeros
        self.journal = journal
        self.tool = tool
        self.stages = stages

    def carry_out(self, outcome: Outcome) -> None:
        """Decide, and do it unless it is check mode.

        :raises RefusedError: it must not be done; nothing was changed.
        """
        refuse_reader(self.image.fd, self.image.path)
        plan = self.plan()
        enough = self.request.threshold(self.facts.allocated_bytes)
        smaller = 0
        if plan.keeps_form and plan.preallocated and not self.request.force:
            outcome.reason = "It has the form that was asked for, and is preallocated."
            return
        if plan.keeps_form:
            smaller = 0 if plan.preallocated else self._estimate(plan, enough)
            outcome.reclaimable_bytes = self._gained(smaller)
            if smaller < enough and not self.request.force:
                outcome.reason = (
                    f"A rewrite would save {smaller} bytes at most, less than the {enough} worth "
                    "it."
                )
                return
        keep = f"{os.path.basename(self.image.path)}.thinvirt-original"
        keep = keep if self.request.keep_original else ""
        refuse_taken_name(self.image.path, keep)
        self.refuse_too_little_space(plan.needed_bytes)
        if self.journal is not None and not self._copied(outcome, plan, self.journal, keep=keep):
            return
        outcome.method = "rewrite"
        outcome.reason = "The image has another form than asked for."
        if plan.keeps_form:
            outcome.reason = (
                "force was asked for."
                if smaller < enough and self.request.force
                else f"{enough} bytes or more of it are zeros, or clusters of no use."
            )
        outcome.kept = os.path.join(os.path.dirname(self.image.path), keep) if keep else ""
        if self.journal is None:
            allocated = self._predicted(smaller, plan)
            outcome.after = dataclasses.replace(
                outcome.before, allocated_bytes=allocated, shared_bytes=0
            )
            return
        with open_image(self.image.path) as image:
            header = read_open_header(image, path=image.path, image_format=self.facts.header.format)
            outcome.after = sizes_of(header, image.fd)

    def _gained(self, smaller: int) -> int:
        """What the host has back of an image that is so much smaller, and shares nothing then."""
        return max(0, smaller - self.facts.shared_bytes)

    def plan(self) -> Plan:
        """Decide what the copy is to be like.

        :raises RefusedError: it must not be made; nothing was changed.
        """
        path, header, request = self.image.path, self.facts.header, self.request
        policy.refuse_rewrite(path, self.facts, request)  # before QEMU opens what a header names
        spec = self._source_spec(header)
        alone = image_spec(fd_storage(self.image.fd), header.format)
        check = self._checked(header, alone)
        if header.qcow2 is not None and header.qcow2.bitmap_count:
            info = self.tool.info(alone, force_share=False, pass_fds=(self.image.fd,))
            facts = dataclasses.replace(self.facts, bitmaps=info.bitmaps)
            policy.refuse_rewrite(path, facts, request)
        compressed = check is not None and 2 * check.compressed_clusters > check.allocated_clusters
        copy = policy.copy_of(header, request, compressed=compressed)
        preallocated = policy.has_preallocation(
            self.facts,
            request.preallocation,
            all_mapped=check is None or check.allocated_clusters == check.total_clusters,
        )
        same = dataclasses.replace(
            request,
            cluster_size_bytes=None,
            compression=None,
            preallocation=request.preallocation if preallocated else None,
        )
        overlay = header.qcow2 is not None and header.qcow2.backing_file is not None
        like = policy.copy_of(header, same, compressed=compressed)
        tables = None
        if copy.format == "qcow2":
            tables = tables_of(self.image.fd, header, self.tool, copy.options)
        needed, least = self._measured(spec, copy, tables)
        return Plan(
            copy=copy,
            spec=spec,
            compressed=compressed,
            keeps_form=not overlay and copy == like,
            denser=not overlay and copy == dataclasses.replace(like, compressed=True) != like,
            preallocated=preallocated,
            needed_bytes=needed,
            least_bytes=least,
            tables=tables,
        )

    def _copied(self, outcome: Outcome, plan: Plan, journal: Journal, *, keep: str) -> bool:
        """Make the copy and give it the name; false if it was not worth it and was dropped."""
        path, allocated = self.image.path, self.facts.allocated_bytes
        enough = self.request.threshold(allocated)
        sparse = "preallocation" not in plan.copy.options
        with verified_copy(
            Source(path, self.image.fd, plan.spec),
            path,
            copy=plan.copy,
            min_free_bytes=self.request.min_free_bytes,
            journal=journal,
            tool=self.tool,
            stages=self.stages,
            finish=self.thin if sparse else None,
        ) as (new, record):
            outcome.compared = True
            saved = allocated - (new.usage.allocated_bytes or 0)
            if plan.keeps_form or plan.denser:
                outcome.reclaimable_bytes = self._gained(saved)
            # Data that can't be compressed is the same in the new form.
            if (plan.keeps_form or plan.denser) and saved < enough and not self.request.force:
                outcome.reason = (
                    f"The copy was {saved} bytes smaller, less than the {enough} worth it; it was "
                    "dropped."
                )
                return False
            copy_attributes(self.image.fd, new.fd)
            os.fsync(new.fd)
            swap_in(new, path, journal=journal, record=record, stages=self.stages, keep=keep)
        return True

    def thin(self, fd: int) -> None:
        """Free the zeros that QEMU has written into a copy, or the next run would find them."""
        allocated = os.fstat(fd).st_blocks * 512
        try:
            dig_holes(fd, at_least=self.request.threshold(allocated))
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise failure(self.image.path, "copied", error) from error

    def _source_spec(self, header: ImageHeader) -> str:
        storage = fd_storage(self.image.fd)
        backing: list[tuple[Storage, str]] = []
        if self.request.flatten:
            places = Places.of(self.image.path, allowed_dirs=self.request.allowed_dirs)
            # flatten says that it has a backing file, and libvirt was asked about its format.
            meant = dataclasses.replace(header, probed=False)
            for link in backing_chain(self.image, meant, places=places, keep=self.keep):
                if link.header is None:
                    raise ImageError(
                        f"The backing chain of {shown(self.image.path)} cannot be read: "
                        f"{link.error}"
                    )
                backing.append((link.storage, link.header.format))
        return image_spec(storage, header.format, backing=backing)

    def _checked(self, header: ImageHeader, spec: str) -> CheckResult | None:
        if header.qcow2 is None or header.qcow2.encryption != "none":
            return None
        with self.stages.stage("check source"):
            result = self.tool.check(spec, pass_fds=(self.image.fd,))
        if result.result == "corrupt" or result.check_errors:
            raise RefusedError(
                f"{shown(self.image.path)} is damaged: qemu-img check found "
                f"{result.corruptions + result.check_errors} errors; nothing was changed.",
                remedy="Repair it (qemu-img check -r all), or restore it from a backup.",
            )
        return result

    def _measured(self, spec: str, copy: Copy, tables: Tables | None) -> tuple[int, int]:
        """Bytes that the copy may need, and that a sparse one takes if no cluster is zeros."""
        measured = self.tool.measure(
            spec, target_format=copy.format, options=copy.options, pass_fds=(self.image.fd,)
        )
        required = measured.required_bytes + measured.bitmaps_bytes
        required -= tables.spare_bytes if tables else 0
        if copy.format == "raw":  # of which QEMU tells the length alone
            required = self.facts.data_bytes
        whole = copy.options.get("preallocation") in ("falloc", "full")
        return (measured.fully_allocated_bytes if whole else required), required

    def _estimate(self, plan: Plan, enough: int) -> int:
        """What a copy in the same form would save: clusters of no use, and zeros in the others.

        If it is going to be made, no more than shows that it is worth it.
        """
        facts, dead, tables = self.facts, 0, 0
        if facts.header.qcow2 is not None:
            dead = max(0, facts.allocated_bytes - plan.least_bytes)
            # Tables are mostly zeros, and the copy has them too.
            tables = self._table_bytes(plan)
        if self.journal is None:
            zeros = self.zeros(None)
        elif dead < enough:
            zeros = self.zeros(enough - dead + tables)
        else:
            return dead
        return min(facts.allocated_bytes, dead + max(0, zeros - tables))

    def _table_bytes(self, plan: Plan) -> int:
        if plan.tables is not None:
            return min(plan.tables.counted_bytes, plan.tables.used_bytes)
        size, copy = self.facts.header.virtual_size_bytes, plan.copy
        empty = self.tool.measure_empty(size, target_format=copy.format, options=copy.options)
        return empty.required_bytes

    def _predicted(self, smaller: int, plan: Plan) -> int:
        """What the copy will take, as far as that can be told."""
        if plan.keeps_form:
            return max(0, self.facts.allocated_bytes - smaller)
        if plan.copy.options.get("preallocation") in ("falloc", "full"):
            return plan.needed_bytes
        needed = max(0, plan.needed_bytes - self.zeros(None))
        # How far data can be compressed only time tells.
        return min(self.facts.allocated_bytes, needed) if plan.copy.compressed else needed

    def refuse_too_little_space(self, needed: int, *, folder: str = "") -> None:
        """Refuse a copy of so many bytes that could fill the file system.

        :param folder: where it goes, if not beside the image.
        """
        system = file_system_of(folder or self.image.fd)
        policy.refuse_too_little_space(
            self.image.path,
            needed_bytes=needed,
            free_bytes=system.free_bytes,
            min_free_bytes=self.request.min_free_bytes,
            mount_point=system.mount_point,
        )
