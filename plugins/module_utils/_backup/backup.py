# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Back up the domains of a host."""

from __future__ import annotations

import contextlib
import os
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._backup import policy as backup_policy
from ansible_collections.thinvirt.kvm.plugins.module_utils._backup.job import (
    despite_restarts,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._backup.work import (
    DiskOutcome,
    Outcome,
    Settings,
    Work,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import (
    died,
    disk_safety,
    known_disk,
    running_qemu,
    xml,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import Hypervisor
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.one_run import only_run
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.policy import (
    refuse_unknown_disks,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.turns import side_by_side
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import archive
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.disk_links import followed
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure


def back_up(hypervisor: Hypervisor, patterns: t.Sequence[str], settings: Settings) -> list[Outcome]:
    """Back up the domains that match.

    :raises ThinvirtError: a domain or disk that was named does not exist.
    :raises StoppedError: a signal asked to end; what was unfinished was removed.
    """
    outcomes, domains = [], []
    for guest in hypervisor.guests(patterns):
        outcome = Outcome(guest)
        outcomes.append(outcome)
        with _noting(outcome, settings):
            domains.append(xml.parse_domain(guest.live_xml()))
    refuse_unknown_disks(domains, settings.disks)
    waiting = [outcome for outcome in outcomes if outcome.error is None]
    # Who has waited longest for a backup comes first: the night may be too short for all.
    waiting.sort(key=lambda outcome: _last_backup(outcome, settings))
    place = frozenset((os.stat(settings.folder).st_dev,))

    def work(outcome: Outcome) -> None:
        with _noting(outcome, settings):
            _back_up(hypervisor, outcome, settings)

    side_by_side(work, [(outcome, place) for outcome in waiting], each=settings.parallel)
    return outcomes


def _last_backup(outcome: Outcome, settings: Settings) -> str:
    """When the newest version was made; empty if there is none, or none that can be read."""
    guest = outcome.guest
    folder = os.path.join(settings.folder, archive.folder_name(guest.name))
    try:
        versions = archive.versions_of(folder, uuid=guest.uuid)
    except OSError:
        return ""  # backing it up will say so
    return versions[-1].manifest.created if versions else ""


@contextlib.contextmanager
def _noting(outcome: Outcome, settings: Settings) -> t.Iterator[None]:
    """What goes wrong with one domain does not stop the others."""
    try:
        yield
    except ThinvirtError as error:
        outcome.status, outcome.error = "failed", error
    except OSError as error:  # what nobody has thought of: a failing disk
        outcome.status, outcome.error = "failed", failure(settings.folder, "written", error)


def _back_up(hypervisor: Hypervisor, outcome: Outcome, settings: Settings) -> None:
    guest = outcome.guest
    # Hours may have passed with others, and libvirt been restarted.
    text = despite_restarts(guest, guest.live_xml)
    domain = xml.parse_domain(text)
    outcome.running = guest.is_active()
    chosen = backup_policy.choose_disks(domain, settings.disks)
    if not settings.disks:
        outcome.left_out = backup_policy.left_out(domain)
    if not chosen:
        outcome.status, outcome.reason = "skipped", "The domain has no disk to be backed up."
        return
    if outcome.running and not settings.online:
        outcome.status, outcome.reason = "skipped", "The domain is running."
        return
    folder = os.path.join(settings.folder, archive.folder_name(domain.name))
    paths = {disk.target: hypervisor.disk_path(disk) for disk in chosen}
    backup_policy.refuse_disks(domain, chosen, paths, running=outcome.running)
    if not outcome.running:  # QEMU itself reads the disks of a running guest
        for disk in chosen:
            path = paths[disk.target]
            paths[disk.target] = followed(path, image_format=disk.format or "raw")
    _refuse_unsafe(outcome, text, domain, chosen, settings)
    outcome.disks = [
        DiskOutcome(
            disk.target,
            paths[disk.target],
            plain_text=outcome.running and disk_safety.is_encrypted(text, disk.target),
        )
        for disk in chosen
    ]
    work = Work(settings, outcome, domain, chosen, folder)
    if settings.check_mode:
        outcome.recovered = archive.peek_folder(folder)
        work.predict()
        return
    with (
        only_run(guest),
        died.kept_alive(guest, ran=outcome.running),
        archive.domain_folder(folder) as removed,
    ):
        outcome.recovered = " ".join(filter(None, (removed, work.recover())))
        work.run()


def _refuse_unsafe(
    outcome: Outcome,
    text: str,
    domain: xml.Domain,
    chosen: t.Sequence[xml.Disk],
    settings: Settings,
) -> None:
    """Refuse what cannot be copied, and what could not be restored; see ``known_disk``.

    :param text: the domain's XML as it is now, and ``domain`` what it says.
    """
    guest = outcome.guest
    backup, restore = known_disk.BACKUP, known_disk.RESTORE
    if not outcome.running:
        backup, restore = known_disk.BACKUP_OFF, known_disk.RESTORE_IMAGE
    configured = despite_restarts(guest, lambda: guest.configured_xml(with_secrets=False))
    for each, operation in ((text, backup), (configured, restore)):
        disk_safety.refuse_disks(
            each,
            [disk.target for disk in chosen],
            operation,
            qemu=lambda: running_qemu.version_of(domain),
            plain_text=settings.accept_plain_text,
        )
    disk_safety.refuse_firmware(configured, restore)
