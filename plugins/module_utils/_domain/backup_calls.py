# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt's calls for the backup job of a running domain; a part of ``connection``."""

from __future__ import annotations

import contextlib
import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.blockjob import translated
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.xml import (
    Domain,
    offers_backup,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    HypervisorError,
    UnsupportedError,
)

with contextlib.suppress(ImportError):  # connection says so when it is asked to connect
    import libvirt


@dataclasses.dataclass(frozen=True)
class DiskSize:
    """What the guest sees of a disk, and what it takes on the host; in bytes."""

    capacity_bytes: int
    allocation_bytes: int


def _dotted(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1_000 % 1_000}.{number % 1_000}"


class BackupCalls:
    """What a backup asks of a domain; a base class of ``connection.Guest``."""

    _domain: t.Any
    name: str

    def size_of(self, target: str) -> DiskSize:
        with translated(f"measure disk {target} of domain {self.name}"):
            capacity, allocation, _physical = self._domain.blockInfo(target)
            return DiskSize(capacity, allocation)

    def backup_job(self) -> str:
        """XML of the domain's backup job, whoever began it; empty without one."""
        try:
            return t.cast(str, self._domain.backupGetXMLDesc(0))
        except libvirt.libvirtError as error:
            code = error.get_error_code()
            none = (libvirt.VIR_ERR_NO_DOMAIN_BACKUP, libvirt.VIR_ERR_OPERATION_INVALID)
            if code in (*none, libvirt.VIR_ERR_NO_SUPPORT):
                return ""
            raise HypervisorError(
                f"libvirt could not tell the backup job of domain {self.name}: {error}."
            ) from error

    def begin_backup(self, xml: str) -> None:
        """Begin a backup job; its disks are all those of one instant.

        :raises UnsupportedError: this libvirt or this QEMU can't.
        :raises HypervisorError: it did not begin; nothing was changed.
        """
        try:
            self._domain.backupBegin(xml, None, 0)
        except libvirt.libvirtError as error:
            code = error.get_error_code()
            if code in (libvirt.VIR_ERR_OPERATION_UNSUPPORTED, libvirt.VIR_ERR_NO_SUPPORT):
                raise self._unsupported(str(error)) from error
            raise HypervisorError(
                f"libvirt could not begin the backup of domain {self.name}: {error}."
            ) from error

    def abort_backup(self) -> None:
        """Ask for the end of the domain's job; returns before it has ended."""
        with translated(f"end the job of domain {self.name}"):
            self._domain.abortJob()

    def refuse_no_backup(self, domain: Domain) -> None:
        """Refuse a running domain if its host says that it has no backup jobs.

        A release that does not say is tried.

        :raises UnsupportedError: it says so.
        """
        with translated(f"tell what domain {self.name} can do"):
            text = self._domain.connect().getDomainCapabilities(
                domain.emulator or None, domain.arch or None, domain.machine or None, domain.kind
            )
        if offers_backup(text) is False:
            raise self._unsupported("")

    def _unsupported(self, why: str) -> UnsupportedError:
        connection = self._domain.connect()
        libvirt_version = _dotted(connection.getLibVersion())
        return UnsupportedError(
            f"Domain {self.name} cannot be backed up while it runs: libvirt {libvirt_version} "
            f"with QEMU {_dotted(connection.getVersion())} offers no backup job"
            f"{f' ({why})' if why else ''}; nothing was changed.",
            remedy="libvirt 7.6 with QEMU 6.1, or newer, does. Or shut the domain off first.",
        )
