# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host's whole audit: its domains, what they say themselves, its storage, and what is to come."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._audit import (
    forecast,
    guest_side,
    pools,
    report,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.asking import (
    Asker,
    Question,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.collect import Auditor
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.model import (
    DomainAudit,
    Measured,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.obstacles import Kept
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import policy, xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import (
    Guest,
    Hypervisor,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.storage_pool import StoragePool
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.chain import refuse_relative
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.filesystem import file_system_of

#: Pools whose volumes are files in a folder; the folder of others is on a file system of devices.
_POOLS_OF_FILES = ("dir", "fs", "netfs", "vstorage")
#: Domains of QEMU; no others have block jobs, and agents that are asked through libvirt.
_WITH_JOBS = ("kvm", "qemu", "hvf")
_MAX_AGENT_TIMEOUT = 600
#: For the programs that look at one image.
_MEASURE_SECONDS = 120.0


@dataclasses.dataclass(frozen=True)
class Wish:
    """What is to be audited, and how.

    :param domains: names, globs or UUIDs.
    :param allowed_dirs: folders, besides an image's own, where backing files may lie.
    :param probe_storage: try out whether each file system frees a punched hole.
    :param measure: walk through the tables of images that nobody writes to.
    :param ask_agents: ask the guests what they use.
    :param agent_timeout: seconds for each agent.
    :param earlier: what was free before.
    """

    domains: t.Sequence[str]
    allowed_dirs: tuple[str, ...] = ()
    probe_storage: bool = True
    measure: bool = False
    ask_agents: bool = True
    agent_timeout: int = 5
    earlier: tuple[forecast.Report, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what can't be meant.

        :raises RefusedError: a folder is relative, or no agent could answer in that time.
        """
        refuse_relative(self.allowed_dirs)
        if not 1 <= self.agent_timeout <= _MAX_AGENT_TIMEOUT:
            raise RefusedError(
                f"agent_timeout is {self.agent_timeout}; nothing was looked at.",
                remedy=f"Allow between 1 and {_MAX_AGENT_TIMEOUT} seconds.",
            )


def survey(hypervisor: Hypervisor, wish: Wish) -> report.Survey:
    """Audit the domains that match; what goes wrong with one is in its entry.

    :raises ThinvirtError: a domain that was named does not exist, or libvirt fails.
    """
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    domains = _domains(hypervisor, wish)
    its_pools = [_pool(pool) for pool in hypervisor.active_pools()]
    pools.sum_up(its_pools, domains)
    return report.Survey(
        domains=domains,
        systems=report.sum_up(domains),
        pools=its_pools,
        history=forecast.History(now, wish.earlier),
    )


def _domains(hypervisor: Hypervisor, wish: Wish) -> list[DomainAudit]:
    kept = Kept(
        snapshots=hypervisor.with_snapshots(),
        checkpoints=hypervisor.with_checkpoints(),
        saved=hypervisor.with_managed_save(),
    )
    with Asker(agent_timeout=wish.agent_timeout) as asker:

        def ask(guest: Guest, live: xml.Domain, text: str) -> None:
            if live.kind in _WITH_JOBS:
                asker.ask(
                    Question(
                        guest=guest,
                        targets=tuple(d.target for d in live.disks if policy.is_written(d)),
                        agent=wish.ask_agents and live.agent_connected,
                        live_xml=text,
                    )
                )

        auditor = Auditor(
            hypervisor,
            allowed_dirs=wish.allowed_dirs,
            probe_storage=wish.probe_storage,
            measure=_measurer(wish.allowed_dirs) if wish.measure else None,
            on_running=ask,
        )
        domains = auditor.domains(wish.domains)
        answers = asker.answers()
    return [
        guest_side.completed(domain, kept=kept, answer=answers.get(domain.uuid))
        for domain in domains
    ]


def _measurer(allowed_dirs: tuple[str, ...]) -> t.Callable[[str, str], Measured | None]:
    # It starts programs, which is more than an audit needs that does not measure.
    from ansible_collections.thinvirt.kvm.plugins.module_utils._image.inspect import (  # noqa: PLC0415
        Options,
        inspect_image,
    )

    def measure(path: str, image_format: str) -> Measured | None:
        options = Options(image_format, allowed_dirs, timeout=_MEASURE_SECONDS)
        info = inspect_image(path, options)
        if info.locks.writer:
            return None
        return Measured(
            reclaimable_bytes=info.reclaimable_bytes,
            fragmented_clusters=info.check.fragmented_clusters if info.check else None,
        )

    return measure


def _pool(pool: StoragePool) -> pools.PoolSums:
    """A pool with the file system that it lies on, whose figures are those of this moment."""
    system = None
    if pool.kind in _POOLS_OF_FILES and pool.path:
        with contextlib.suppress(ThinvirtError):  # then libvirt's figures have to do
            system = file_system_of(pool.path)
    folders = {pool.path, os.path.realpath(pool.path)} if pool.path else set()
    return pools.PoolSums(pool, frozenset(folders), system)
