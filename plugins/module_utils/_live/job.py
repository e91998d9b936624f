# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A block job of ours, from its beginning to its pivot."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import Guest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import HypervisorError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.progress import Report
from ansible_collections.thinvirt.kvm.plugins.module_utils._live import ours
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import stop_if_asked

#: A job that has not come on for so long is given up; the chain stays, and is whole.
_STALLED_SECONDS = 300.0
_POLL_SECONDS = (0.01, 0.5)


@dataclasses.dataclass
class Switches:
    """How long the calls took that have a guest go on with another file.

    While QEMU exchanges the file below a disk the guest's requests wait.  How long exactly it does
    not tell; no longer than the call.
    """

    longest_seconds: float = 0.0

    @contextlib.contextmanager
    def timed(self) -> t.Iterator[None]:
        begin = time.monotonic()
        try:
            yield
        finally:
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - begin)


def flush_ahead(*paths: str) -> None:
    """Have what QEMU is going to flush at a switch on the disk before, while the guest goes on.

    It flushes the file that the guest leaves and the one that it goes on with, while the guest's
    requests wait.  What is not on the disk by then may be all that was written to the host's cache
    in half a minute.
    """
    for path in paths:
        with contextlib.suppress(OSError):  # it only makes the wait shorter
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


def patience(overlay: str, bandwidth_bytes: int) -> float | None:
    """Seconds in which what is in an overlay can be copied twice over; None without a limit."""
    if not bandwidth_bytes:
        return None
    return 10 + 2 * os.stat(overlay).st_blocks * 512 / bandwidth_bytes


class Job:
    """A block job of ours on a disk, from its beginning to its pivot.

    :param expected: the chain that the disk has all the while, see ``ours``.
    :param mirror: the file that the job writes to, symlinks resolved.
    :param watch: called all the time; what it raises ends the waiting, not the job.
    :param limited_seconds: a limit of the bandwidth is lifted after so long: a guest may write
        faster than a job may copy, which then would never end.
    """

    def __init__(
        self,
        guest: Guest,
        target: str,
        *,
        switches: Switches,
        expected: t.Sequence[str],
        mirror: str,
        watch: t.Callable[[], None] = lambda: None,
        limited_seconds: float | None = None,
    ) -> None:
        self._limited_seconds = limited_seconds
        self._expected = expected
        self._mirror = mirror
        self._guest = guest
        self._target = target
        self._switches = switches
        self._watch = watch

    def wait_until_ready(self, report: Report) -> None:
        """Return when the job could be ended by a pivot.

        :param report: takes how far it has come; QEMU tells these jobs' lengths in bytes.
        :raises HypervisorError: it is gone, for example because the guest is, or it stands still.
        """
        pause, longest = _POLL_SECONDS
        begin = time.monotonic()
        before, moved = -1, begin
        while True:
            chain = ours.chain_of(self._guest, self._target)
            foreign = ours.foreign_job(self._guest, chain, self._mirror)
            if foreign:
                raise ours.foreign_error(self._guest, self._target, foreign)
            job = self._guest.block_job(self._target) if chain.job else None
            if chain.ready:
                if job is not None:
                    report(100, job.done)
                return
            if job is None:
                raise HypervisorError(
                    f"The block job on disk {self._target} of domain {self._guest.name} ended "
                    "before it was done: the guest was shut down, or somebody gave it up.",
                    remedy=f"Look at /var/log/libvirt/qemu/{self._guest.name}.log.",
                )
            if job.done != before:
                before, moved = job.done, time.monotonic()
            if time.monotonic() - moved > _STALLED_SECONDS:
                raise HypervisorError(
                    f"The block job on disk {self._target} of domain {self._guest.name} has not "
                    f"come on for {_STALLED_SECONDS:.0f} s.",
                    remedy="Look at the host's storage.",
                )
            if self._limited_seconds is not None and (
                time.monotonic() - begin > self._limited_seconds
            ):
                self._limited_seconds = None
                self._guest.lift_limit(self._target)
            report(job.percent, job.done)
            self._watch()
            stop_if_asked()
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def pivot(self) -> None:
        """End it: the guest goes on with another file; see also :func:`flush_ahead`.

        :raises Foreign: it is not our job any more, or others need the chain as it is.
        """
        ours.refuse_foreign(self._guest, self._target, self._expected, job=self._mirror)
        with self._switches.timed():
            self._guest.pivot(self._target)
