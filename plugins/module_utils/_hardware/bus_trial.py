# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Move the disks of a running guest: shut it down, change it, start it, wait for it to come up.

If its agent does not answer in time, the old configuration is brought back and the guest started
with that.  All of it happens on the hypervisor, so a controller that is gone stops nothing.  How
far it has come stands in the journal (``kept_xml``) and, while the guest is off, in a note in the
domain (``restart``): whoever comes next brings the guest back if this process is killed.

======================  =======================================================================
killed                  the next run
======================  =======================================================================
before the change       starts the guest on its old bus, if it is off
guest off, changed      brings the old configuration back and starts the guest on its old bus
guest boots             waits for its agent; if that does not answer, as below
while rolling back      brings the old configuration back and starts the guest on its old bus
======================  =======================================================================
"""

from __future__ import annotations

import dataclasses
import re
import time
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import (
    agent,
    power,
    restart,
    startable,
    xml,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import (
    Guest,
    Hypervisor,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    AgentError,
    HypervisorError,
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware import compare, reconfigure
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware.kept_xml import (
    KeptXml,
    Record,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import (
    StoppedError,
    signals_wait,
    stop_if_asked,
)

_POLL_SECONDS = 0.5
#: A guest that is up, and only its agent is not, powers off in order in this time at most.
_GRACE_SECONDS = 30
#: Other runs hold the folder of old configurations for a second or two.
_PATIENCE_SECONDS = 60
_DEVICE_NAME = re.compile(r"/dev/(?:x?vd|sd|hd)[a-z]")


def refuse(guest: Guest, configured_xml: str, live_xml: str) -> None:
    """Refuse a guest that would not come back, or of which nobody could tell whether it has.

    :raises RefusedError: nothing was changed.
    """
    restart.refuse_no_return(guest, xml.parse_domain(configured_xml), xml.parse_domain(live_xml))
    found = _DEVICE_NAME.search(xml.parse_tree(configured_xml).findtext("os/cmdline") or "")
    if found:
        raise RefusedError(
            f"Refused: the kernel command line in the configuration of domain {guest.name} names "
            f"{found[0]}…, and its disk will have another name; nothing was changed.",
            remedy="Name the file system by UUID there (root=UUID=…).",
        )
    startable.refuse(guest, configured_xml)
    try:
        agent.ping(guest)
    except AgentError as error:
        raise RefusedError(
            f"Refused: the guest agent of domain {guest.name} does not answer, so nobody could "
            f"tell whether the guest comes up on its new bus; nothing was changed. {error.message}",
            remedy="Install and start qemu-guest-agent in the guest, or shut it down yourself and "
            "use power=keep.",
        ) from error


def refuse_other_run(guest: Guest, record: Record | None) -> None:
    """Refuse a guest that another run is trying on its new bus.

    :raises RefusedError: it is still at work; nothing was changed.
    """
    if record is not None and record.stage == "trial" and restart.is_alive(record.process):
        raise RefusedError(
            f"Another run (process {record.process.split()[0]}) waits for domain {guest.name} to "
            "come up on its new bus; nothing was changed.",
            remedy="Wait for it to end.",
        )


def is_unfinished(left: reconfigure.Left, *, forgotten: bool) -> bool:
    """Whether a killed run has left something that only :meth:`Trial.recover` ends.

    :param forgotten: see ``restart.is_forgotten``.
    """
    return forgotten or (left.killed and left.record is not None and left.record.stage == "trial")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One guest that is to come up with another configuration.

    :param shutdown_timeout: seconds for it to power off.
    :param boot_timeout: seconds for its agent to answer after the start.
    :param done: is told each step: ``shut_down``, ``changed``, ``restored``, ``started``,
        ``turned_off``; and the time without service.
    """

    hypervisor: Hypervisor
    guest: Guest
    store: KeptXml
    shutdown_timeout: int
    boot_timeout: int
    done: restart.Done

    def move(
        self,
        *,
        now: str,
        left: reconfigure.Left,
        make: t.Callable[[str], str],
        renamed: t.Mapping[str, str],
    ) -> Record:
        """Give the guest another configuration, or its old one back if it does not come up.

        :param now: the configured XML, secrets included, that the decision was made on.
        :param make: gives the new configuration to the one that it is given.
        :raises HypervisorError: it did not come up, and was rolled back.
        :raises ThinvirtError: nothing was changed; a guest that was shut down was started again.
        """
        record: Record | None = None
        begin = time.monotonic()
        startable.refuse(self.guest, now)
        try:
            with restart.shut_down_meanwhile(
                self.guest, timeout=self.shutdown_timeout, expect_agent=False
            ):
                self.done.actions.append("shut_down")
                with self.store.locked(patience=_PATIENCE_SECONDS):
                    noted = self._unchanged_since(now)
                    reconfigure.settle(self.store, left, noted)
                    record = reconfigure.change(
                        self.hypervisor,
                        self.guest,
                        self.store,
                        before=noted,
                        after=make(noted),
                        renamed=renamed,
                        kept=now,
                        trial_by=restart.me(),
                    )
                self.done.actions.append("changed")
            self.done.actions.append("started")
            self._wait()
        except StoppedError as error:
            raise (self._left_open(error) if self._is_open() else error) from error
        except ThinvirtError as error:
            if record is None:
                if "shut_down" in self.done.actions and self.guest.is_active():
                    self.done.actions.append("started")
                raise
            self._roll_back(record, error)
        finally:
            if self.done.actions:
                self.done.downtime_seconds = time.monotonic() - begin
        return self._finish(record)

    def restore(self, *, now: str, record: Record) -> bool:
        """Bring the old configuration back and see whether the guest comes up with it.

        :returns: whether libvirt prints it byte for byte as it did.
        :raises AgentError: the guest was started, and its agent does not answer.
        :raises ThinvirtError: the configuration is as it was; the guest was started again.
        """
        old = self.store.old_xml(record)
        startable.refuse(self.guest, old)
        begin = time.monotonic()
        try:
            with restart.shut_down_meanwhile(
                self.guest, timeout=self.shutdown_timeout, expect_agent=False
            ):
                self.done.actions.append("shut_down")
                self._old_configuration(record, self._unchanged_since(now))
            self.done.actions.append("started")
            self._wait()
        finally:
            if self.done.actions:
                self.done.downtime_seconds = time.monotonic() - begin
        return self.guest.configured_xml(with_secrets=True) == old

    def recover(self, left: reconfigure.Left) -> str:
        """Bring a guest back that a killed run has left, and say on which bus; see above.

        :returns: what was found and done, in a sentence.
        :raises ThinvirtError: it does not come back.
        """
        record = left.record if left.killed else None
        noted = xml.parse_domain(self.guest.configured_xml(with_secrets=False))
        self.guest.write_note(restart.me())  # libvirt may still be at work for the killed run
        active = self.guest.is_active()
        if not active and (why := restart.why_left_off(self.guest, noted)):
            if record is not None:
                with signals_wait():
                    self._old_configuration(record, self.guest.configured_xml(with_secrets=True))
            self.guest.remove_note()
            return f"{restart.left_alone(why)} It is on its old bus."
        if record is None:
            if not active:
                self._start()
                self._wait()
                return (
                    "A run that was killed had shut the guest down; it was started again, on its "
                    "old bus, and nothing was moved."
                )
            self.guest.remove_note()
            return "A run that was killed had left a note; the guest runs, and nothing was moved."
        if active:
            try:
                self._wait()
            except AgentError as error:
                self._roll_back(record, error)
            self._finish(record)
            self.guest.remove_note()
            return (
                "A run that was killed had moved the disks and started the guest; it came up and "
                "runs on its new bus."
            )
        self._back(record)
        self._wait()
        return (
            "A run that was killed had moved the disks, and the guest was off; it was started "
            "again on its old bus, and its configuration is as it was."
        )

    def _unchanged_since(self, now: str) -> str:
        """The configuration as it is, with our note in it.

        :raises RefusedError: somebody has changed it.
        """
        noted = self.guest.configured_xml(with_secrets=True)
        if compare.fingerprint(noted) != compare.fingerprint(now):
            raise RefusedError(
                f"The configuration of domain {self.guest.name} was changed by somebody else while "
                "it was shut down; it was left as it is, and the guest was started again.",
                remedy="Run the task again.",
            )
        return noted

    def _finish(self, record: Record) -> Record:
        """The guest has come up."""
        with signals_wait(), self.store.locked(patience=_PATIENCE_SECONDS):
            after = compare.fingerprint(self.guest.configured_xml(with_secrets=True))
            self.store.finish(record, after=after)
        return record

    def _roll_back(self, record: Record, reason: ThinvirtError) -> t.NoReturn:
        """Turn the guest off, bring its old configuration back, start it, and say so.

        :raises HypervisorError: always.
        """
        name = self.guest.name
        try:
            self._power_off()
            self._back(record)
        except ThinvirtError as error:
            raise HypervisorError(
                f"Domain {name} did not come up on its new bus ({reason.message}), and could not "
                f"be brought back to its old one: {error.message} No image was changed.",
                remedy=error.remedy or "Run the task again, or bring it back with state=restored.",
            ) from error
        try:
            self._wait()
            came_back = "It runs on its old bus again"
        except AgentError as error:
            came_back = f"It was started on its old bus, but {error.message}"
        raise HypervisorError(
            f"Domain {name} did not come up on its new bus and was rolled back: {reason.message} "
            f"{came_back}, and its configuration is as it was. No image was changed, but by the "
            "guest itself.",
            remedy="Look at the guest's console while it boots. Its initramfs needs the driver of "
            "the new bus, and fstab, crypttab and boot loader have to name disks by UUID.",
        ) from reason

    def _power_off(self) -> None:
        """In order if it can, by force if it cannot: it did not come up.

        A guest without an agent may be up all the same, and obeys ACPI then.
        """
        timeout = min(self.shutdown_timeout, _GRACE_SECONDS)
        restart.patiently(self.guest, lambda: self.guest.write_note(restart.asking(timeout)))
        try:
            power.shut_down(self.guest, timeout)
        except RefusedError:
            with signals_wait():
                self.guest.destroy()
            self.done.actions.append("turned_off")

    def _back(self, record: Record) -> None:
        """Bring the old configuration of a guest that is off back, and start it."""
        with signals_wait():
            self.hypervisor.reconnect()
            self._old_configuration(record, self.guest.configured_xml(with_secrets=True))
            self._start()

    def _old_configuration(self, record: Record, now: str) -> None:
        with self.store.locked(patience=_PATIENCE_SECONDS):
            reconfigure.restore(
                self.hypervisor, self.guest, self.store, record, now=now, note=restart.me()
            )
        self.done.actions.append("restored")

    def _start(self) -> None:
        restart.bring_back(self.guest)
        self.done.actions.append("started")

    def _wait(self) -> None:
        """Wait for the guest's agent.

        :raises AgentError: it does not answer in time, or the guest has powered off.
        """
        deadline = time.monotonic() + self.boot_timeout
        while True:
            try:
                return agent.ping(self.guest)
            except AgentError as error:
                stop_if_asked()
                if not restart.patiently(self.guest, self.guest.is_active):
                    raise AgentError("The guest powered off while it booted.") from error
                if time.monotonic() > deadline:
                    raise AgentError(
                        f"its guest agent did not answer within {self.boot_timeout} s."
                    ) from error
            time.sleep(_POLL_SECONDS)

    def _is_open(self) -> bool:
        record = self.store.read()
        return record is not None and record.stage == "trial"

    def _left_open(self, error: StoppedError) -> StoppedError:
        return StoppedError(
            f"{error.message.split(' before')[0]} while domain {self.guest.name} was starting on "
            "its new bus; it was left so.",
            remedy="Run the task again: it waits for the guest, and rolls it back if it does not "
            "come up.",
        )
