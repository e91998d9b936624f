# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What libvirt keeps of a domain besides its configuration; a part of ``connection``."""

from __future__ import annotations

import contextlib
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.blockjob import translated

with contextlib.suppress(ImportError):  # connection says so when it is asked to connect
    import libvirt


class RecordCalls:
    """Saved states, snapshots and checkpoints; a base class of ``connection.Guest``."""

    _domain: t.Any
    name: str

    def records(self) -> list[tuple[str, str]]:
        """Each with what it is, for people, and its XML.

        A driver that knows none of a kind has none.
        """
        found = []
        with translated(f"read the saved state of domain {self.name}"):
            if self._ask(self._domain.hasManagedSaveImage):
                found.append(("saved memory (managed save)", self._domain.managedSaveGetXMLDesc(0)))
        with translated(f"read the snapshots and checkpoints of domain {self.name}"):
            for what, ask in (
                ("snapshot", self._domain.listAllSnapshots),
                ("checkpoint", self._domain.listAllCheckpoints),
            ):
                for each in self._ask(ask) or ():
                    # One that is deleted at this moment names nothing any more.
                    with contextlib.suppress(libvirt.libvirtError):
                        found.append((f"{what} {each.getName()}", each.getXMLDesc(0)))
        return found

    @staticmethod
    def _ask(ask: t.Callable[[], t.Any]) -> t.Any:
        try:
            return ask()
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
                return None
            raise

    def was_saved(self) -> bool | None:
        """Whether it is off because its memory was saved, to wherever that was.

        libvirt knows that until its daemon is restarted.

        :returns: None while libvirt is still about to turn it off, and does not say why.
        """
        with translated(f"read the state of domain {self.name}"):
            state, reason = self._domain.state(0)
        if state not in (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_CRASHED):
            return None
        return (state, reason) == (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_SAVED)
