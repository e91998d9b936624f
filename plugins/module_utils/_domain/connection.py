# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file that talks to libvirt, with its parts ``blockjob`` and ``*_calls``.

A module opens one :class:`Hypervisor`, works on as many :class:`Guest` objects as
it likes, and closes it.  Every libvirt error becomes a :class:`HypervisorError` or an
:class:`AgentError` that names what was tried and on which domain.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import save_folder
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.backup_calls import (
    BackupCalls,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.blockjob import (
    DiskJobs,
    translated,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.host_calls import HostCalls
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.policy import (
    Version,
    Versions,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.record_calls import (
    RecordCalls,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.select import (
    is_glob,
    is_remote,
    refuse_duplicates,
    select,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.start_calls import StartCalls
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.xml import (
    NOTE_NAMESPACE,
    Disk,
    note_element,
    parse_domain,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    AgentError,
    AgentTimeoutError,
    HypervisorError,
    NotFoundError,
    RefusedError,
    RequirementError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown, typed

#: Longest text that is quoted of an error which a guest may have worded.
MAX_SAID = 1_000

try:
    import libvirt
    import libvirt_qemu
except ImportError:
    HAS_LIBVIRT = False
else:
    HAS_LIBVIRT = True
    # libvirt-python prints every error to stderr besides raising it
    libvirt.registerErrorHandler(lambda _context, _error: None, None)


def _version(number: int) -> Version:
    return number // 1_000_000, number // 1_000 % 1_000, number % 1_000


def _paused_on_purpose() -> tuple[tuple[int, int], ...]:
    """States and reasons of a guest that somebody has paused, and nothing else is the matter."""
    return tuple(
        (libvirt.VIR_DOMAIN_PAUSED, reason)
        for reason in (
            libvirt.VIR_DOMAIN_PAUSED_UNKNOWN,
            libvirt.VIR_DOMAIN_PAUSED_USER,
            libvirt.VIR_DOMAIN_PAUSED_FROM_SNAPSHOT,
            # of one that was paused when it was saved, once it is restored (seen with 9.0)
            libvirt.VIR_DOMAIN_PAUSED_MIGRATION,
        )
    )


@dataclasses.dataclass(frozen=True)
class State:
    """What a domain does.

    :param running: its CPUs run.
    :param paused_on_purpose: they do not, because somebody wanted it so.
    """

    active: bool
    running: bool
    paused_on_purpose: bool


class Guest(DiskJobs, BackupCalls, RecordCalls, StartCalls):
    """One domain on an open connection.  Safe to use from several threads."""

    def __init__(self, domain: t.Any, uri: str) -> None:
        self._domain = domain
        self.name: str = domain.name()
        self.uuid: str = domain.UUIDString()
        #: Whether it ran when it was looked up; unlike :meth:`is_active`, not asked anew.
        self.was_active: bool = domain.ID() >= 0
        self.uri = uri

    def is_active(self) -> bool:
        with translated(f"read the state of domain {self.name}"):
            return bool(self._domain.isActive())

    def is_persistent(self) -> bool:
        with translated(f"read the state of domain {self.name}"):
            return bool(self._domain.isPersistent())

    def has_managed_save(self) -> bool:
        with translated(f"read the state of domain {self.name}"):
            return bool(self._domain.hasManagedSaveImage(0))

    def snapshot_count(self) -> int:
        with translated(f"count the snapshots of domain {self.name}"):
            return self._count(self._domain.snapshotNum)

    def checkpoint_count(self) -> int:
        with translated(f"list the checkpoints of domain {self.name}"):
            return self._count(lambda: len(self._domain.listAllCheckpoints()))

    @staticmethod
    def _count(ask: t.Callable[[], int]) -> int:
        """A driver that knows none has none."""
        try:
            return ask()
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
                return 0
            raise

    def live_xml(self, *, with_secrets: bool = False) -> str:
        """XML of the running domain, or of the configured one if it is off.

        :param with_secrets: passwords included: never to be shown.
        """
        flags = libvirt.VIR_DOMAIN_XML_SECURE if with_secrets else 0
        with translated(f"read the XML of domain {self.name}"):
            return t.cast(str, self._domain.XMLDesc(flags))

    def capacity_bytes(self, target: str) -> int:
        """Size of a disk as the guest sees it."""
        with translated(f"read the size of disk {target} of domain {self.name}"):
            return t.cast(int, self._domain.blockInfo(target)[0])

    def configured_xml(self, *, with_secrets: bool) -> str:
        """XML of the next start.

        :param with_secrets: passwords included: fit to be defined again, never to be shown.
        """
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE
        if with_secrets:
            flags |= libvirt.VIR_DOMAIN_XML_SECURE
        with translated(f"read the configuration of domain {self.name}"):
            return t.cast(str, self._domain.XMLDesc(flags))

    def write_note(self, text: str, *, saved: str = "") -> None:
        """Leave a note in the domain's configuration, in an element of our own.

        Waits for whatever libvirt is doing with the domain, such as saving it, to end.

        :param saved: see :attr:`.xml.Domain.saved_note`.
        :raises BusyError: that takes longer than libvirt is ready to wait (30 s).
        """
        started = save_folder.log_of(self.uri, self.name).started
        self._set_note(note_element(text, saved=saved, since=int(time.time()), started=started))

    def remove_note(self) -> None:
        self._set_note(None)

    def _set_note(self, element: str | None) -> None:
        with translated(f"change the metadata of domain {self.name}"):
            self._domain.setMetadata(
                libvirt.VIR_DOMAIN_METADATA_ELEMENT,
                element,
                "thinvirt",
                NOTE_NAMESPACE,
                libvirt.VIR_DOMAIN_AFFECT_CONFIG,
            )

    def state(self) -> State:
        """What its CPUs do, and why."""
        with translated(f"read the state of domain {self.name}"):
            state, reason = self._domain.state(0)
            return State(
                active=bool(self._domain.isActive()),
                running=state in (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED),
                paused_on_purpose=(state, reason) in _paused_on_purpose(),
            )

    def memory_bytes(self) -> int:
        """The most memory that the guest may have as it is."""
        with translated(f"read the memory of domain {self.name}"):
            return int(self._domain.maxMemory()) * 1024

    def managed_save(self) -> None:
        """Write the guest's memory to libvirt's own folder and turn it off.

        Every start of the domain, whoever asks for it, resumes it from there.
        """
        with translated(f"save domain {self.name}"):
            self._domain.managedSave(0)

    def managed_save_xml(self) -> str:
        """The XML, secrets included, with which the saved guest would be resumed."""
        with translated(f"read the saved state of domain {self.name}"):
            flags = libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE
            return t.cast(str, self._domain.managedSaveGetXMLDesc(flags))

    def define_managed_save_xml(self, text: str) -> None:
        """Have the saved guest resumed with this XML, running or paused as it was."""
        with translated(f"change the saved state of domain {self.name}"):
            self._domain.managedSaveDefineXML(text, 0)

    def remove_managed_save(self) -> None:
        with translated(f"remove the saved state of domain {self.name}"):
            self._domain.managedSaveRemove(0)

    def shutdown(self) -> None:
        """Ask the guest to power off; returns at once.

        libvirt tries the agent first and ACPI when there is no agent.
        """
        with translated(f"shut down domain {self.name}"):
            self._domain.shutdown()

    def reconnect(self) -> None:
        """Connect anew, as when libvirtd was restarted.

        :raises HypervisorError: it does not answer yet.
        """
        with translated(f"be reached again for domain {self.name}"):
            self._domain = libvirt.open(self.uri).lookupByUUIDString(self.uuid)

    def is_lost(self) -> bool:
        """Whether the connection to libvirt is lost."""
        try:
            return not self._domain.connect().isAlive()
        except libvirt.libvirtError:
            return True

    def start(self) -> None:
        with translated(f"start domain {self.name}"):
            self._domain.create()

    def destroy(self) -> None:
        """Turn it off at once, as pulling the plug does; QEMU still writes its caches."""
        with translated(f"turn off domain {self.name}"):
            self._domain.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL)

    def undefine(self) -> None:
        """Remove the configuration; files of its firmware and its TPM stay."""
        with translated(f"remove domain {self.name}"):
            self._domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)

    def agent(self, command: str, arguments: t.Mapping[str, t.Any], *, timeout: int) -> t.Any:
        """Ask the guest agent; its ``return`` member.

        :param timeout: seconds until libvirt gives up; the guest may go on working.
        libvirt synchronises with the agent before each command (guest-sync), so an answer that
        comes after its time was over is dropped and not taken for the next command's.

        :raises AgentError: no agent, no answer in time, an error, or nonsense.
        """
        request: dict[str, t.Any] = {"execute": command}
        if arguments:
            request["arguments"] = dict(arguments)
        try:
            text = libvirt_qemu.qemuAgentCommand(self._domain, json.dumps(request), timeout, 0)
        except libvirt.libvirtError as error:
            raise _agent_error(self.name, command, timeout, error) from error
        except (SystemError, UnicodeDecodeError) as error:
            # libvirt's complaint quotes the guest, and its bindings stumble over what is no UTF-8
            raise _nonsense(self.name, command) from error
        try:
            return json.loads(text)["return"]
        except (TypeError, ValueError, KeyError, RecursionError) as error:
            raise _nonsense(self.name, command) from error


def _nonsense(name: str, command: str) -> AgentError:
    return AgentError(
        f"The guest agent of domain {name} answered {command} with something that is not a reply "
        "of its protocol.",
        remedy="Update or restart qemu-guest-agent in the guest.",
    )


def _agent_error(name: str, command: str, timeout: int, error: t.Any) -> AgentError:
    code = error.get_error_code()
    # libvirt quotes what the guest wrote: on one line, printable, and not at any length
    said = shown(" ".join(str(error).split()))[:MAX_SAID]
    # Newer releases (11.3 does) tell an agent that is too slow from one that is not there.
    timeouts = ("VIR_ERR_AGENT_UNRESPONSIVE", "VIR_ERR_AGENT_COMMAND_TIMEOUT")
    if code in [getattr(libvirt, name, None) for name in timeouts]:
        return AgentTimeoutError(
            f"The guest agent of domain {name} did not answer {command} within its time limit "
            f"of {timeout} s, or is not running: {said}.",
            remedy="Start qemu-guest-agent in the guest, or raise timeout if the guest is busy.",
        )
    if code == libvirt.VIR_ERR_OPERATION_INVALID:
        return AgentError(
            f"Domain {name} is paused or about to stop, so its guest agent cannot answer "
            f"{command}: {said}.",
            remedy=f"Let it run on with virsh resume {typed(name)}.",
        )
    if code in (libvirt.VIR_ERR_OPERATION_UNSUPPORTED, libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED):
        return AgentError(
            f"Domain {name} has no guest agent channel.",
            remedy="Add a virtio channel named org.qemu.guest_agent.0 to the domain and install "
            "qemu-guest-agent in the guest.",
        )
    return AgentError(
        f"The guest agent of domain {name} could not carry out {command}: {said}.",
        remedy="Look at qemu-guest-agent's log in the guest.",
    )


def _refuse_remote(uri: str) -> None:
    if is_remote(uri):
        raise RefusedError(
            f"{uri} leads to another machine, whose disks cannot be measured from here; "
            "nothing was changed.",
            remedy="Run the task on the hypervisor itself, with a local uri such as "
            "qemu:///system.",
        )


class Hypervisor(HostCalls):
    """An open connection.

    :param local_only: refuse another machine, whose disks cannot be measured from here.
    :raises RefusedError: the URI leads to one; it was not asked.
    :raises RequirementError: libvirt's Python bindings are missing.
    :raises HypervisorError: nobody answers at the URI, or it is no libvirt URI.
    """

    def __init__(self, uri: str, *, local_only: bool = False) -> None:
        if local_only:
            _refuse_remote(uri)
        if not HAS_LIBVIRT:
            raise RequirementError(
                "The Python bindings of libvirt are missing on this host.",
                remedy="Install python3-libvirt for the Python that Ansible uses there.",
            )
        self.uri = uri
        try:
            self._connection = libvirt.open(uri)
        except libvirt.libvirtError as error:
            raise HypervisorError(
                f"Cannot connect to libvirt at {uri}: {error}.",
                remedy="Check that the daemon runs, that uri is right, and that the user may use "
                "its socket (become: true, or membership in the group libvirt).",
            ) from error
        if local_only:
            self.local_uri()

    def __enter__(self) -> Hypervisor:
        return self

    def __exit__(self, *_exception: object) -> None:
        with contextlib.suppress(libvirt.libvirtError):
            self._connection.close()

    def local_uri(self) -> str:
        """The URI that the connection really has.

        :raises RefusedError: it leads to another machine.
        """
        # an empty uri means libvirt's default, and libvirt.conf may give names to URIs
        with translated("tell its URI"):
            uri = t.cast(str, self._connection.getURI())
        _refuse_remote(uri)
        return uri

    def reconnect(self) -> None:
        """Connect anew if the connection is lost, as when libvirtd was restarted.

        :raises HypervisorError: it does not answer yet.
        """
        with translated("be reached again"):
            if not self._connection.isAlive():
                self._connection = libvirt.open(self.uri)

    def versions(self) -> Versions:
        with translated("tell its version"):
            return Versions(
                libvirt=_version(self._connection.getLibVersion()),
                hypervisor=_version(self._connection.getVersion()),
                driver=self._connection.getType(),
            )

    def guests(self, patterns: t.Sequence[str]) -> list[Guest]:
        """The domains that match, in the order of their names, each once.

        :param patterns: names, globs or UUIDs.
        :raises NotFoundError: a name or UUID (not a glob) matches nothing.
        :raises RefusedError: a name stands twice in the list, or means two things.
        """
        refuse_duplicates("domains", patterns)
        known = {guest.name: guest for guest in self.all_guests()}
        uuids = {guest.uuid: name for name, guest in known.items()}
        chosen = select(patterns, sorted(known), aliases=uuids)
        missing = [p for p, names in chosen.items() if not names and not is_glob(p)]
        if missing:
            raise NotFoundError(
                f"There is no domain {', '.join(missing)} at {self.uri}; nothing was changed.",
                remedy="Compare with virsh list --all, or use a glob.",
            )
        names = sorted(set().union(*chosen.values()))
        return [known[name] for name in names]

    def all_guests(self) -> list[Guest]:
        """Every domain, in the order of their names, whatever they are called."""
        with translated("list the domains"):
            domains = self._connection.listAllDomains()
        return sorted((Guest(each, self.uri) for each in domains), key=lambda guest: guest.name)

    def define(self, xml: str) -> Guest:
        """Make this the domain's configuration for its next start."""
        with translated("define the domain"):
            return Guest(self._connection.defineXML(xml), self.uri)

    def capabilities(self) -> str:
        """XML: what the host's emulators offer."""
        with translated("tell its capabilities"):
            return t.cast(str, self._connection.getCapabilities())

    def domain_capabilities(self, *, emulator: str, arch: str, machine: str, kind: str) -> str:
        """XML: what one emulator offers for one machine type.

        :param emulator: path; empty for the host's own.
        :raises HypervisorError: it does not know the type, or there is no such emulator.
        """
        with translated(f"tell what machine type {machine} offers"):
            return t.cast(
                str,
                self._connection.getDomainCapabilities(emulator or None, arch, machine, kind, 0),
            )

    def refusal(self, xml: str) -> str:
        """Why libvirt could not start such a domain, as far as it tells without starting it.

        :returns: its complaint; empty if it has none.
        """
        try:
            self._connection.domainXMLToNative("qemu-argv", xml, 0)
        except libvirt.libvirtError as error:
            return str(error)
        return ""

    def define_new(self, xml: str) -> Guest:
        """Define a domain that does not exist yet.

        :raises HypervisorError: libvirt refuses, or it does: then nothing was changed.
        """
        name = parse_domain(xml).name
        if any(guest.name == name for guest in self.all_guests()):
            raise HypervisorError(f"There is a domain {name} already.")
        return self.define(xml)

    def refresh_pools(self, paths: t.Iterable[str]) -> None:
        """Have each storage pool that one of these files is a volume of look at it anew.

        What is no volume has no pool.  A pool that can't be refreshed now does so at its next
        start; nothing depends on it.
        """
        pools: dict[str, t.Any] = {}
        for path in paths:
            with contextlib.suppress(libvirt.libvirtError):
                volume = self._connection.storageVolLookupByPath(path)
                pool = volume.storagePoolLookupByVolume()
                pools[pool.name()] = pool
        for pool in pools.values():
            with contextlib.suppress(libvirt.libvirtError):
                pool.refresh(0)

    def disk_path(self, disk: Disk) -> str:
        """Where the data of a disk lies on this host; empty if it is elsewhere or nowhere."""
        if disk.source_type != "volume":
            return disk.path
        with translated(f"look up volume {disk.volume} in storage pool {disk.pool}"):
            pool = self._connection.storagePoolLookupByName(disk.pool)
            path = t.cast(str, pool.storageVolLookupByName(disk.volume).path())
        # what pools of other machines call a path (rbd: POOL/IMAGE) is none of this host
        return path if path.startswith("/") else ""
