# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest whose QEMU ends by itself during our work is noticed, named, and started again."""

from __future__ import annotations

import contextlib
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import restart, save_folder
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import Guest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    HypervisorError,
    ReportedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import signals_wait
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import typed

#: A guest that has shut down, or that somebody has turned off, is off on purpose.
_DEATHS = ("crashed", "failed")


@contextlib.contextmanager
def kept_alive(
    guest: Guest, *, ran: bool, settle: t.Callable[[], object] = lambda: None
) -> t.Iterator[None]:
    """Start a guest again that has died meanwhile, and say so.

    :param ran: it ran before; of others nothing is asked.
    :param settle: brings its disks in order first; if it fails, the guest is left off.
    :raises HypervisorError: it died, and nothing else went wrong; otherwise that error says it too.
    """
    try:
        yield
    except ReportedError as error:
        said = _revive(guest, settle) if ran else ""
        if said:
            error.message = f"{error.message} {said}"
        raise
    if ran and (said := _revive(guest, settle)):
        raise HypervisorError(said, remedy=f"Look at the log of its QEMU ({guest.name}.log).")


def _revive(guest: Guest, settle: t.Callable[[], object]) -> str:
    """What has become of a guest that has died, for people; empty if it has not."""
    try:
        if restart.patiently(guest, guest.is_active):
            return ""
        reason = guest.why_off() or save_folder.log_of(guest.uri, guest.name).reason
    except HypervisorError:
        return ""  # a transient domain is gone when it ends; or libvirt is, which others say
    if reason not in _DEATHS:
        return ""
    died = f"Domain {guest.name} died meanwhile: its QEMU ended by itself"
    try:
        if guest.has_managed_save():  # its disks have moved on since
            return f"{died}. It is off, as libvirt holds an older saved state of it."
        with signals_wait():
            settle()
            restart.bring_back(guest)
    except ThinvirtError as error:
        # Where its disks could not be brought in order, the remedy may well be another one.
        then = error.remedy or f"Run virsh start {typed(guest.name)} then."
        return f"{died}. It is off: {error.message} {then}"
    return f"{died}. It was started again."
