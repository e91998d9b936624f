# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a running guest can be saved and restored with other discard settings (pure).

libvirt and QEMU have the last word and refuse before the guest is stopped; what can be seen in
the XML is said here, in check mode too, and with a remedy.  What can't be migrated can't be
saved either: both are the same stream of QEMU's.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import policy
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.xml import (
    Disk,
    DiskSettings,
    Domain,
    parse_tree,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import typed

#: Beyond the guest's memory: video memory, device state, and some room for others on that
#: file system.
MARGIN_BYTES = 256 << 20

#: XPath below <domain>, and what it is to people.  Sources: qemuMigrationSrcIsAllowed* in
#: src/qemu/qemu_migration.c of libvirt; migrate_add_blocker and .unmigratable in QEMU's hw/.
_BLOCKERS = (
    ("devices/hostdev", "a host device (hostdev)"),
    ("devices/interface[@type='hostdev']", "a network card of the host (interface hostdev)"),
    ("devices/interface[@type='vhostuser']", "a vhost-user network interface"),
    ("devices/interface[@type='vdpa']", "a vDPA network interface"),
    ("devices/disk[@type='vhostuser']", "a vhost-user disk"),
    ("devices/disk[@type='vhostvdpa']", "a vDPA disk"),
    ("devices/disk[@type='nvme']", "an NVMe disk of the host"),
    ("devices/disk[@type='dir']", "a folder as a disk (vvfat)"),
    ("devices/filesystem", "a shared folder (filesystem: virtiofs or 9p)"),
    ("devices/shmem/model[@type='ivshmem-plain']", "shared memory (ivshmem)"),
    ("devices/shmem/model[@type='ivshmem']", "shared memory (ivshmem)"),
    ("devices/tpm/backend[@type='passthrough']", "the host's TPM"),
    ("devices/smartcard[@mode='host']", "the host's smart card reader"),
    ("devices/video/driver[@name='vhostuser']", "a vhost-user graphics card"),
    ("devices/video/model/acceleration[@accel3d='yes']", "3D acceleration (virgl)"),
    ("devices/input[@type='passthrough']", "an input device of the host"),
    ("devices/memory[@model='sgx-epc']", "SGX memory"),
    ("launchSecurity", "encrypted memory (launchSecurity)"),
)
#: QEMU's own choices too: the guest has read them when it found the disk, and does not again.
_SEEN_BY_GUEST = ("discard_granularity_bytes", "rotation_rate")


def blockers(live_xml: str) -> list[str]:
    """What in a running domain cannot be saved, in the words of people."""
    tree = parse_tree(live_xml)
    found = [words for path, words in _BLOCKERS if tree.find(path) is not None]
    cpu = tree.find("cpu")
    if cpu is not None and cpu.get("migratable") == "off":
        found.append("a CPU that is not migratable (cpu migratable='off')")
    if _has_invariant_tsc(tree):
        found.append("an invariant TSC of no set frequency (cpu feature invtsc)")
    return list(dict.fromkeys(found))


def _has_invariant_tsc(tree: t.Any) -> bool:
    """QEMU can save one only if its frequency was given (target/i386/kvm/kvm.c)."""
    required = any(
        feature.get("name") == "invtsc" and feature.get("policy") in ("require", "force", None)
        for feature in tree.findall("cpu/feature")
    )
    timed = any(
        timer.get("name") == "tsc" and timer.get("frequency")
        for timer in tree.findall("clock/timer")
    )
    return required and not timed


@dataclasses.dataclass(frozen=True)
class Facts:
    """What decides whether one running guest is saved, besides its disks.

    :param persistent: it has a configuration that outlives it.
    :param running: its CPUs run.
    :param paused_on_purpose: they do not, because somebody wanted it so.
    :param has_managed_save: libvirt holds an older saved state of it.
    :param jobs: what libvirt is doing with it, in words.
    :param blockers: see :func:`blockers`.
    :param needed_bytes: what its saved state takes at most.
    :param free_bytes: free space where libvirt saves.
    :param folder: where that is, for people.
    """

    persistent: bool
    running: bool
    paused_on_purpose: bool
    has_managed_save: bool
    jobs: t.Sequence[str]
    blockers: t.Sequence[str]
    needed_bytes: int
    free_bytes: int
    folder: str


def refuse_unsavable(name: str, facts: Facts) -> None:
    """Raise unless the guest can be saved and restored.

    :raises RefusedError: with the reason; nothing was changed.
    """
    for applies, reason, remedy in (
        (
            not facts.persistent,
            "it is transient, so that libvirt would forget it once it is saved",
            f"Make it persistent first (virsh dumpxml {typed(name)}, then virsh define).",
        ),
        (
            not facts.running and not facts.paused_on_purpose,
            "it neither runs nor was it paused on purpose",
            f"See virsh domstate --reason {typed(name)}, and bring it back first.",
        ),
        (
            facts.has_managed_save,
            "libvirt holds an older saved state of it, and its next start would resume that",
            f"Remove that with virsh managedsave-remove {typed(name)}.",
        ),
        (
            bool(facts.blockers),
            f"it has {' and '.join(facts.blockers)}",
            "Use apply=power_cycle, or detach it first.",
        ),
        (
            bool(facts.jobs),
            f"libvirt is at work on it ({', '.join(facts.jobs)})",
            f"Wait for the job to end (see virsh domjobinfo {typed(name)}).",
        ),
        (
            facts.free_bytes < facts.needed_bytes,
            _too_little_space(facts),
            "Free space there, or use apply=power_cycle.",
        ),
    ):
        if applies:
            raise RefusedError(
                f"Refused: domain {name} cannot be saved and restored: {reason}; "
                "nothing was changed.",
                remedy=remedy,
            )


def settings_to_apply(plan: policy.DomainPlan, live: Domain) -> dict[str, DiskSettings]:
    """The settings of each running disk that are to change, by target.

    Taken from the running disks, not the configured ones: other changes that wait for the next
    start go on waiting.

    :raises RefusedError: a setting cannot change under a running guest; nothing was changed.
    """
    wanted: dict[str, DiskSettings] = {}
    for disk_plan in plan.disks:
        running = live.disk(disk_plan.disk.target)
        after = disk_plan.wanted_live
        if running is None or after is None or after == running.settings:
            continue
        if _identity(running) != _identity(disk_plan.disk):
            raise RefusedError(
                f"Refused: disk {running.target} of domain {plan.name} is another one in the "
                "running guest than in its configuration; nothing was changed.",
                remedy="Power the guest off and on, or use apply=power_cycle.",
            )
        for name in _SEEN_BY_GUEST:
            if getattr(after, name) != getattr(running.settings, name):
                raise RefusedError(
                    f"Refused: {name} of disk {running.target} of domain {plan.name} is read by "
                    "the guest when it starts, and not again when it is restored; nothing was "
                    "changed.",
                    remedy="Use apply=power_cycle, or leave it out.",
                )
        wanted[running.target] = after
    return wanted


def _identity(disk: Disk) -> tuple[str, ...]:
    return (disk.device, disk.bus, disk.source_type, disk.path, disk.pool, disk.volume)


def _too_little_space(facts: Facts) -> str:
    return (
        f"its memory and a margin take up to {_mib(facts.needed_bytes)}, and {facts.folder}, where "
        f"libvirt saves guests, has {_mib(facts.free_bytes)} free"
    )


def _mib(number: int) -> str:
    return f"{number / (1 << 20):,.0f} MiB"
