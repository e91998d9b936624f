# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt's jobs on a running domain and its disks.

A part of ``connection``: besides that file, this one alone talks to libvirt.  What the jobs do to
the configuration too was seen with libvirt 9.0: a snapshot without metadata, a copy's pivot and a
commit's pivot each change the file that the next start uses.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import typing as t
from xml.sax.saxutils import quoteattr

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    BusyError,
    HypervisorError,
)

with contextlib.suppress(ImportError):  # connection says so when it is asked to connect
    import libvirt
    import libvirt_qemu


#: virDomainJobOperation, as people call it.
_OPERATIONS = (
    *("unknown job", "start", "save", "restore", "incoming migration", "outgoing migration"),
    *("snapshot", "snapshot revert", "dump", "backup", "snapshot delete"),
)


@contextlib.contextmanager
def translated(doing: str) -> t.Iterator[None]:
    """Say what was tried when libvirt raises."""
    try:
        yield
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_TIMEOUT:
            raise BusyError(f"libvirt could not {doing}: {error}.") from error
        raise HypervisorError(f"libvirt could not {doing}: {error}.") from error


@dataclasses.dataclass(frozen=True)
class BlockJob:
    """How far a block job has come, in a unit of QEMU's own."""

    done: int
    end: int

    @property
    def percent(self) -> float:
        return 100.0 * self.done / self.end if self.end else 0.0


class DiskJobs:
    """Block jobs of a domain; a base class of ``connection.Guest``."""

    _domain: t.Any
    name: str

    def block_job(self, target: str) -> BlockJob | None:
        """The job on a disk, of whatever kind and whoever began it."""
        with translated(f"read the block job of disk {target} of domain {self.name}"):
            # A list instead of a dictionary, or nothing in it, means that there is none.
            info = self._domain.blockJobInfo(target, 0)
            return BlockJob(info["cur"], info["end"]) if info else None

    def job_name(self) -> str:
        """What the domain as a whole is busy with, such as ``backup``; empty if it is not."""
        with translated(f"ask for the job of domain {self.name}"):
            try:
                statistics = self._domain.jobStats()
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
                    return ""
                raise
        if statistics.get("type", libvirt.VIR_DOMAIN_JOB_NONE) == libvirt.VIR_DOMAIN_JOB_NONE:
            return ""
        number = statistics.get("operation", 0)
        return _OPERATIONS[number] if number < len(_OPERATIONS) else _OPERATIONS[0]

    def is_elsewhere(self) -> bool:
        """Whether it does not run here because it was migrated to another host.

        libvirt knows that until its daemon is restarted.
        """
        with translated(f"read the state of domain {self.name}"):
            state, reason = self._domain.state(0)
        return (state, reason) == (
            libvirt.VIR_DOMAIN_SHUTOFF,
            libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED,
        )

    def stopped_by_io_error(self) -> bool:
        """Whether QEMU has paused it since one of its disks failed, or its storage is full."""
        with translated(f"read the state of domain {self.name}"):
            return tuple(self._domain.state(0)) == (
                libvirt.VIR_DOMAIN_PAUSED,
                libvirt.VIR_DOMAIN_PAUSED_IOERROR,
            )

    def io_errors(self) -> dict[str, str]:
        """Targets of the disks that have failed, as QEMU remembers, and how."""
        words = {libvirt.VIR_DOMAIN_DISK_ERROR_NO_SPACE: "no space left on its storage"}
        with translated(f"read the errors of the disks of domain {self.name}"):
            errors = self._domain.diskErrors(0)
        return {target: words.get(kind, "an I/O error") for target, kind in errors.items()}

    def jobs(self, targets: t.Iterable[str]) -> list[str]:
        """What libvirt is working on in this domain: block jobs by disk, and what it is all at."""
        found = [f"block job on {disk}" for disk in targets if self.block_job(disk) is not None]
        name = self.job_name()
        return [*found, name] if name else found

    def written_bytes(self, target: str) -> int:
        """What the guest has written to a disk since it was started."""
        with translated(f"read the counters of disk {target} of domain {self.name}"):
            return int(self._domain.blockStats(target)[3])

    def write_to_overlay(self, target: str, path: str, *, others: t.Iterable[str]) -> None:
        """Have a disk written to an empty overlay that is there already, at one instant.

        :param others: the domain's other disks, which stay as they are.
        """
        rest = "".join(f"<disk name={quoteattr(other)} snapshot='no'/>" for other in others)
        snapshot = (
            "<domainsnapshot><disks>"
            f"<disk name={quoteattr(target)} snapshot='external' type='file'>"
            f"<driver type='qcow2'/><source file={quoteattr(path)}/></disk>"
            f"{rest}</disks></domainsnapshot>"
        )
        with translated(f"have disk {target} of domain {self.name} written to an overlay"):
            self._domain.snapshotCreateXML(
                snapshot,
                libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
                | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
                | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
                | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT,
            )

    def begin_copy(self, target: str, path: str, *, bandwidth_bytes: int) -> None:
        """Begin to copy a disk's overlay, without what is below it, to one that is there already.

        Not with VIR_DOMAIN_BLOCK_COPY_SYNCHRONOUS_WRITES: a write to a part of a cluster that the
        overlay does not have yet fills the rest of it, in the copy, from a backing file that
        libvirt attaches only in the end.  The guest lost data with libvirt 9.0 and QEMU 7.2.

        :param bandwidth_bytes: a second; 0 for as much as there is.
        """
        destination = (
            "<disk type='file'><driver name='qemu' type='qcow2'/>"
            f"<source file={quoteattr(path)}/></disk>"
        )
        flags = (
            libvirt.VIR_DOMAIN_BLOCK_COPY_SHALLOW
            | libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT
            | libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
        )
        limit = {libvirt.VIR_DOMAIN_BLOCK_COPY_BANDWIDTH: bandwidth_bytes}
        with translated(f"copy the overlay of disk {target} of domain {self.name}"):
            self._domain.blockCopy(target, destination, limit if bandwidth_bytes else {}, flags)

    def begin_commit(
        self, target: str, *, bandwidth_bytes: int, top: str | None = None, base: str | None = None
    ) -> None:
        """Begin to move what is in a disk's overlay into the image below it.

        :param top: the overlay as libvirt names nodes, such as ``sda[3]``: libvirt refuses if the
            guest writes to another one by now.
        :param base: what it lies on.
        """
        with translated(f"commit the overlay of disk {target} of domain {self.name}"):
            self._domain.blockCommit(
                target,
                base,
                top,
                bandwidth_bytes,
                libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE
                | libvirt.VIR_DOMAIN_BLOCK_COMMIT_SHALLOW
                | libvirt.VIR_DOMAIN_BLOCK_COMMIT_BANDWIDTH_BYTES,
            )

    def lift_limit(self, target: str) -> None:
        """Let a job have all the bandwidth there is."""
        with translated(f"speed up the block job on disk {target} of domain {self.name}"):
            self._domain.blockJobSetSpeed(
                target, 0, libvirt.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES
            )

    def pivot(self, target: str) -> None:
        """End a job that is ready: from now on the guest writes to where it went."""
        with translated(f"switch disk {target} of domain {self.name} over"):
            self._domain.blockJobAbort(target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)

    def media(self) -> list[str]:
        """The files that the domain's disks are on, in QEMU's own words.

        For where libvirt's may be wrong: to ask is noted in the domain's log (``custom-monitor``).
        """
        try:
            devices = self.ask_qemu("query-block")
            return [str(device["inserted"]["file"]) for device in devices if "inserted" in device]
        except (KeyError, TypeError) as error:
            raise HypervisorError(
                f"QEMU does not say which files domain {self.name} is on: {error!r}."
            ) from error

    def ask_qemu(self, command: str) -> t.Any:
        """What QEMU's monitor answers to a question without arguments; noted in the domain's log.

        :raises HypervisorError: it does not answer, or something else than it should.
        """
        with translated(f"ask QEMU about domain {self.name} ({command})"):
            text = libvirt_qemu.qemuMonitorCommand(
                self._domain, json.dumps({"execute": command}), 0
            )
        try:
            return json.loads(text)["return"]
        except (ValueError, KeyError, TypeError) as error:
            raise HypervisorError(
                f"QEMU's answer to {command} about domain {self.name} makes no sense: {error!r}."
            ) from error

    def abort_job(self, target: str) -> None:
        """Give a job up: the guest goes on with the file that it writes to now."""
        with translated(f"give up the block job on disk {target} of domain {self.name}"):
            self._domain.blockJobAbort(target, 0)
