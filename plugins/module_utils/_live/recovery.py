# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""End or undo what killed runs have left of a domain's disks that were compacted while it ran."""

from __future__ import annotations

import contextlib
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import (
    Guest,
    Hypervisor,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import HypervisorError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import (
    Record,
    has_journal,
    open_journal,
    overlaid,
    peek,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.progress import progress_logger
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.replace import Stages
from ansible_collections.thinvirt.kvm.plugins.module_utils._live import ours, policy
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.job import Switches
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.settle import Settling
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import signals_wait
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown


def left_of(hypervisor: Hypervisor, guest: Guest) -> dict[str, Record | None]:
    """What killed runs have left of live compactions of a domain's disks, by path of the image.

    An image that was on its way to another folder counts by where it was.

    :returns: None where nothing is left but an empty journal.
    :raises RefusedError: another run is at work on one of them.
    """
    texts = [guest.configured_xml(with_secrets=False)]
    if guest.is_active():
        texts.append(guest.live_xml())
    found: dict[str, Record | None] = {}
    for disk in (disk for text in texts for disk in xml.parse_domain(text).disks):
        try:
            path = hypervisor.disk_path(disk)
        except HypervisorError:
            continue  # a volume that is no more
        # Somebody may have put a file of his on top of an overlay of ours.
        below = ours.chain_off(path, disk.format or "raw") if path else []
        for image in filter(None, dict.fromkeys((*below[:1], *map(overlaid, below)))):
            record = peek(image)
            if record is not None or has_journal(image):
                home = record.live.base if record and record.live and record.live.base else image
                # A journal without a word is one whose run was killed before it had begun.
                if record is None or (record.live and record.live.domain == guest.uuid):
                    found.setdefault(home, record)
    return found


def recover(
    hypervisor: Hypervisor, guest: Guest, *, log: t.Callable[[str], None], check_mode: bool
) -> list[str]:
    """End or undo what killed runs have left of a domain's disks.

    :returns: a sentence for each that was (in check mode, would be) settled.
    :raises ThinvirtError: one can't be; the message says why.
    """
    done = []
    for path, left in left_of(hypervisor, guest).items():
        if check_mode:
            if left is not None:
                done.append(
                    f"A run that was killed (process {left.pid}, live compaction, {left.stage}) "
                    "is to be finished or undone."
                )
            continue
        with contextlib.ExitStack() as stack:
            journal = stack.enter_context(open_journal(path))
            record, beside = journal.left, None
            dest = left.live.dest if left is not None and left.live else ""
            if dest:
                beside = stack.enter_context(open_journal(dest))
                # Of the two, that of the image goes first when all is done.
                record = record or beside.left
            if record is None or record.live is None:
                continue  # an empty one goes when it is closed
            settling = Settling(
                hypervisor,
                guest,
                path,
                journal=journal,
                record=record,
                stages=Stages(report=progress_logger(path, log)),
                switches=Switches(),
                pointer=beside,
            )
            with signals_wait():
                settlement = settling.settle()
            done.append(f"{shown(path)}: {describe(record, settlement)}")
    return done


def describe(record: Record, settlement: policy.Settlement) -> str:
    """What was done about what a killed run had left, one sentence."""
    done = "finished" if settlement.finished else "undone"
    return (
        f"A run that was killed (process {record.pid}, live compaction, {record.stage}) was {done}."
    )
