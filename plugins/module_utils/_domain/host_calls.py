# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt's calls that concern many domains, or none; a part of ``connection``."""

from __future__ import annotations

import contextlib
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.blockjob import translated
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.storage_pool import (
    StoragePool,
    parse_pool,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import HypervisorError

with contextlib.suppress(ImportError):  # connection says so when it is asked to connect
    import libvirt


class HostCalls:
    """What an audit asks of the host as a whole; a base class of ``connection.Hypervisor``."""

    _connection: t.Any

    def with_snapshots(self) -> frozenset[str]:
        """UUIDs of the domains of which libvirt keeps snapshots; one call for all domains."""
        return self._uuids("snapshots", libvirt.VIR_CONNECT_LIST_DOMAINS_HAS_SNAPSHOT)

    def with_checkpoints(self) -> frozenset[str]:
        """UUIDs of the domains that have checkpoints of incremental backups."""
        return self._uuids("checkpoints", libvirt.VIR_CONNECT_LIST_DOMAINS_HAS_CHECKPOINT)

    def with_managed_save(self) -> frozenset[str]:
        """UUIDs of the domains whose memory libvirt has saved."""
        return self._uuids("saved memory", libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE)

    def _uuids(self, what: str, flag: int) -> frozenset[str]:
        with translated(f"list the domains that have {what}"):
            return frozenset(each.UUIDString() for each in self._connection.listAllDomains(flag))

    def active_pools(self) -> list[StoragePool]:
        """The active storage pools, in the order of their names.

        A libvirt without a storage driver, or whose virtstoraged is not there, has none; one that
        goes away meanwhile is left out.
        """
        try:
            pools = self._connection.listAllStoragePools(
                libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE
            )
        except libvirt.libvirtError as error:
            if error.get_error_code() in (
                libvirt.VIR_ERR_NO_SUPPORT,
                libvirt.VIR_ERR_NO_CONNECT,
                libvirt.VIR_ERR_SYSTEM_ERROR,  # no such socket
            ):
                return []
            raise HypervisorError(f"libvirt could not list the storage pools: {error}.") from error
        found = []
        for pool in pools:
            with contextlib.suppress(libvirt.libvirtError):
                _state, total, allocated, free = pool.info()
                text = pool.XMLDesc(0)
                found.append(parse_pool(text, total=total, allocated=allocated, free=free))
        return sorted(found, key=lambda pool: pool.name)
