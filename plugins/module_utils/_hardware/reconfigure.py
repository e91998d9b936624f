# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Change what a guest's hardware is, with the old configuration kept, and bring that back."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import redefine, xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import (
    Guest,
    Hypervisor,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    HypervisorError,
    NotFoundError,
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware import compare
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware.kept_xml import (
    KeptXml,
    Record,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import signals_wait
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import typed

KILLED = "A run that was killed had changed the configuration; its old XML is kept."


def refuse_unfit(guest: Guest, doing: str, *, may_run: bool = False) -> None:
    """Refuse to change the hardware of a guest that runs, or whose memory or past refer to it.

    :param doing: what is not done, such as ``its disks cannot be moved to another bus``.
    :param may_run: it is shut down before.
    :raises RefusedError: nothing was changed.
    """
    name = guest.name
    reasons: tuple[tuple[t.Callable[[], bool], str, str], ...] = (
        (
            lambda: not guest.is_persistent(),
            "is transient and has no configuration that could be changed",
            f"Make it persistent first (virsh dumpxml {typed(name)}, then virsh define).",
        ),
        (
            lambda: not may_run and guest.is_active(),
            "is not shut off",
            "Shut it down and run the task again.",
        ),
        (
            guest.has_managed_save,
            "has its memory saved (managed save), which goes with the hardware that it has now",
            f"Start {name} and shut it down, or drop the memory with virsh managedsave-remove.",
        ),
        (
            lambda: guest.snapshot_count() > 0,
            "has snapshots, and a revert to one would bring the old hardware back",
            "Delete the snapshots (virsh snapshot-delete).",
        ),
        (
            lambda: guest.checkpoint_count() > 0,
            "has checkpoints of incremental backups, which go by the names of the disks",
            "Delete them (virsh checkpoint-delete), and make a full backup afterwards.",
        ),
    )
    for applies, reason, remedy in reasons:
        if applies():
            raise RefusedError(
                f"Refused: domain {name} {reason}, so {doing}; nothing was changed.", remedy=remedy
            )


@dataclasses.dataclass(frozen=True)
class Left:
    """What an earlier run has left for a domain.

    :param record: None if there is nothing to bring back.
    :param stale: the record of a change that has not happened, or was taken back by hand.
    :param killed: the change happened, and the run could not say so any more, or not whether the
        guest has come up with it.
    """

    record: Record | None = None
    stale: Record | None = None
    killed: bool = False


def look(store: KeptXml, now: str) -> Left:
    """What is kept of a domain, held against its configuration as it is now; changes nothing."""
    record = store.read()
    if record is None:
        return Left()
    try:
        old_xml = store.old_xml(record)
    except NotFoundError:  # removed by hand: only who wants it back has to know
        return Left(record=record, killed=record.stage != "done")
    if compare.fingerprint(old_xml) == compare.fingerprint(now):
        return Left(record=record.previous if record.stage != "done" else None, stale=record)
    return Left(record=record, killed=record.stage != "done")


def settle(store: KeptXml, left: Left, now: str) -> None:
    """Put the journal right after a run that was killed; the store is locked."""
    if left.stale is not None:
        if left.stale.stage != "done":
            store.undo(left.stale)
        else:
            store.remove(left.stale)
    elif left.killed and left.record is not None:
        store.finish(left.record, after=compare.fingerprint(now))


def change(
    hypervisor: Hypervisor,
    guest: Guest,
    store: KeptXml,
    *,
    before: str,
    after: str,
    renamed: t.Mapping[str, str],
    kept: str = "",
    trial_by: str = "",
) -> Record:
    """Give a domain a new configuration and keep the old one; the store is locked.

    :param before: the configured XML, secrets included, that the decision was made on.
    :param kept: what is kept of it, if that is not the same: it may have a note of ours by now.
    :param trial_by: the process that tries whether the guest comes up with it.
    :returns: the record of it.
    :raises ThinvirtError: the old configuration is in force.
    """
    refuse_unfit(guest, "its hardware cannot be changed")  # it may have been started meanwhile
    record = store.begin(kept or before, name=guest.name, renamed=renamed)
    with signals_wait():
        try:
            redefine.redefine(
                hypervisor,
                guest,
                before=before,
                after=after,
                is_as_wanted=lambda found: compare.is_kept(after, found),
            )
        except ThinvirtError as error:
            store.undo(record)
            if isinstance(error, HypervisorError):
                raise HypervisorError(
                    f"{error.message} Domain {guest.name} was left as it was.",
                    remedy=error.remedy or "Look at what libvirt says about the new configuration.",
                ) from error
            raise
        found = compare.fingerprint(guest.configured_xml(with_secrets=True))
        if trial_by:
            return store.begin_trial(record, after=found, process=trial_by)
        store.finish(record, after=found)
    return record


def refuse_changed_since(guest: Guest, store: KeptXml, record: Record, now: str) -> None:
    """Refuse to bring a configuration back over changes that came after ours."""
    if record.after and compare.fingerprint(now) != record.after:
        raise RefusedError(
            f"Refused: the configuration of domain {guest.name} was changed again since, and to "
            "bring the old one back would undo that too; nothing was changed.",
            remedy=f"Compare it with {store.path(record)}, and use force=true if it may go.",
        )


def restore(
    hypervisor: Hypervisor,
    guest: Guest,
    store: KeptXml,
    record: Record,
    *,
    now: str,
    note: str = "",
) -> bool:
    """Bring the old configuration back; the store is locked.

    :param now: the configured XML, secrets included, that the decision was made on.
    :param note: of the process that is to start the guest then; it stands in the configuration.
    :returns: whether libvirt prints it byte for byte as it did; if not, only in another order.
    :raises ThinvirtError: the configuration is as it was before this call.
    """
    refuse_unfit(guest, "its old configuration cannot be brought back")
    old = store.old_xml(record)
    with signals_wait():
        redefine.redefine(
            hypervisor,
            guest,
            before=now,
            after=xml.with_note(old, note) if note else old,
            is_as_wanted=lambda found: compare.fingerprint(found) == compare.fingerprint(old),
        )
        found = guest.configured_xml(with_secrets=True)
        store.undo(record)
    return found == old
