# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What libvirt tells of a domain's next start, and of its last end; a part of ``connection``."""

from __future__ import annotations

import contextlib
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.blockjob import translated

with contextlib.suppress(ImportError):  # connection says so when it is asked to connect
    import libvirt


class StartCalls:
    """A base class of ``connection.Guest``."""

    _domain: t.Any
    name: str

    def why_off(self) -> str:
        """Why it does not run, in libvirt's words; empty if it does, or libvirt does not know."""
        with translated(f"read the state of domain {self.name}"):
            state, reason = self._domain.state(0)
        known = {
            libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN: "shutdown",
            libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED: "destroyed",
            libvirt.VIR_DOMAIN_SHUTOFF_CRASHED: "crashed",
            libvirt.VIR_DOMAIN_SHUTOFF_FAILED: "failed",
        }
        return known.get(reason, "") if state == libvirt.VIR_DOMAIN_SHUTOFF else ""

    def lacks_network(self, name: str) -> bool:
        """Whether libvirt has no such network, or has not started it."""
        try:
            return not self._domain.connect().networkLookupByName(name).isActive()
        except libvirt.libvirtError as error:
            return bool(error.get_error_code() == libvirt.VIR_ERR_NO_NETWORK)

    def lacks_volume(self, pool: str, volume: str) -> bool:
        """Whether libvirt has no such storage pool, it is not started, or lacks the volume."""
        try:
            found = self._domain.connect().storagePoolLookupByName(pool)
            if not found.isActive():
                return True
            found.storageVolLookupByName(volume)
        except libvirt.libvirtError as error:
            missing = (libvirt.VIR_ERR_NO_STORAGE_POOL, libvirt.VIR_ERR_NO_STORAGE_VOL)
            return error.get_error_code() in missing
        return False

    def dry_start(self, text: str) -> str:
        """What libvirt complains of when it makes QEMU's command line; empty if of nothing.

        :param text: XML of the next start.
        """
        try:
            self._domain.connect().domainXMLToNative("qemu-argv", text, 0)
        except libvirt.libvirtError as error:
            silent = (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_ACCESS_DENIED)
            if error.get_error_code() not in (*silent, libvirt.VIR_ERR_OPERATION_DENIED):
                return str(error)
        return ""
