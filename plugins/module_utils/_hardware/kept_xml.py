# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration that a domain had before we changed it, kept so that it can come back.

In a folder of the hypervisor, for root alone, as libvirt's own files are, since passwords are in
it: the XML, byte for byte as ``virsh dumpxml --inactive --security-info`` prints it, and a journal
that says how far the change has come.  One change of each kind is kept for each domain: the last.

    STATE_DIR/domains/UUID-disk_bus-1a2b3c4d.xml
    STATE_DIR/domains/UUID-disk_bus.json
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import secrets
import stat
import threading
import time
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    RefusedError,
    ReportedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage import state
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.durable import (
    sync_folder,
    write_whole,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import failure, shown

_MAX_BYTES = 16 << 20
_DOMAINS = "domains"
_POLL_SECONDS = 0.2
#: The lock of the folder is another one for each thread that opens it.
_THREADS = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Record:
    """One change of a domain's configuration.

    :param stage: ``begun``: libvirt may or may not have the new configuration; ``trial``: it has,
        and the guest has not come up with it yet; ``done``: it has.
    :param file: name of the old XML in the folder.
    :param sha256: of the old XML.
    :param renamed: new target of each disk that was moved, by its old one.
    :param after: fingerprint of what libvirt made of the new configuration; empty until ``done``.
    :param previous: the record before, valid again if this change never happened.
    :param process: who tries whether the guest comes up; see ``restart.me``.
    """

    stage: str
    name: str
    file: str
    sha256: str
    renamed: t.Mapping[str, str]
    after: str = ""
    previous: Record | None = None
    process: str = ""


class KeptXml:
    """What is kept of one domain for one kind of change.

    :param state_dir: absolute; made when something is to be kept.
    :param operation: ``disk_bus`` or ``machine``.
    :raises RefusedError: it is no absolute path.
    """

    def __init__(self, state_dir: str, uuid: str, operation: str) -> None:
        if not os.path.isabs(state_dir) or "\0" in state_dir:
            raise RefusedError(
                f"state_dir={shown(state_dir)} is not the absolute path of a folder; nothing was "
                "changed.",
                remedy="Name it from / on.",
            )
        # The default is root's; any other user has his own.
        self._state_dir = state.state_dir() if state_dir == state.SYSTEM else state_dir
        self._uuid = uuid
        self._folder = os.path.join(self._state_dir, _DOMAINS)
        self._stem = os.path.join(self._folder, f"{uuid}-{operation}")

    @contextlib.contextmanager
    def locked(self, *, patience: float = 0) -> t.Iterator[None]:
        """Keep other runs, and our other threads, out of the folder; it is made if need be.

        :param patience: seconds to wait for another run, which holds it for a second or two.
        :raises ThinvirtError: it can't be made, is not ours, or another run holds it.
        """
        folder = state.own_folder(_DOMAINS, parent=self._state_dir)
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise failure(folder, "opened", error) from error
        try:
            with _THREADS:
                self._lock(fd, patience)
                yield
        finally:
            os.close(fd)

    def _lock(self, fd: int, patience: float) -> None:
        deadline = time.monotonic() + patience
        while True:
            try:
                return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise RefusedError(
                        f"Another run is changing a domain and holds {shown(self._folder)}; "
                        "nothing was changed.",
                        remedy="Wait for it to end.",
                    ) from error
            time.sleep(_POLL_SECONDS)

    def path(self, record: Record) -> str:
        """Where the old XML lies."""
        return os.path.join(self._folder, record.file)

    def read(self) -> Record | None:
        """What is kept; None if nothing is.

        :raises ThinvirtError: it can't be read or is not ours.
        """
        if not os.path.lexists(self._folder):
            return None
        state.own_folder(_DOMAINS, parent=self._state_dir)
        try:
            text = _read(self._stem + ".json")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise failure(self._stem + ".json", "read", error) from error
        try:
            return _record(json.loads(text))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise _damaged(self._stem + ".json") from error

    def old_xml(self, record: Record) -> str:
        """The old XML.

        :raises ThinvirtError: it is gone, or not as it was written.
        """
        path = self.path(record)
        try:
            text = _read(path)
        except OSError as error:
            raise failure(path, "read", error) from error
        if hashlib.sha256(text.encode()).hexdigest() != record.sha256:
            raise _damaged(path)
        if xml.parse_domain(text).uuid != self._uuid:
            raise _damaged(path)
        return text

    def begin(self, old_xml: str, *, name: str, renamed: t.Mapping[str, str]) -> Record:
        """Keep the old XML: on the disk before anything is changed.

        :raises ThinvirtError: there is no room, say; nothing was changed.
        """
        record = Record(
            stage="begun",
            name=name,
            file=f"{os.path.basename(self._stem)}-{secrets.token_hex(4)}.xml",
            sha256=hashlib.sha256(old_xml.encode()).hexdigest(),
            renamed=dict(renamed),
            previous=self.read(),
        )
        write_whole(self.path(record), old_xml)
        try:
            self._note(record)
        except ReportedError:
            self._unlink(record)
            raise
        return record

    def finish(self, record: Record, *, after: str) -> None:
        """The change has happened: the XML of the one before is not needed any more."""
        self._note(
            dataclasses.replace(record, stage="done", after=after, previous=None, process="")
        )
        if record.previous is not None:
            self._unlink(record.previous)

    def begin_trial(self, record: Record, *, after: str, process: str) -> Record:
        """The change has happened, and the guest has to show that it comes up with it."""
        record = dataclasses.replace(record, stage="trial", after=after, process=process)
        self._note(record)
        return record

    def undo(self, record: Record) -> None:
        """The change has not happened."""
        if record.previous is not None:
            self._note(record.previous)
            self._unlink(record)
        else:
            self.remove(record)

    def remove(self, record: Record) -> None:
        """Nothing is to be brought back any more; the journal goes first."""
        path = self._stem + ".json"
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            sync_folder(self._folder)
        except OSError as error:
            raise failure(path, "removed", error) from error
        self._unlink(record)

    def _unlink(self, record: Record) -> None:
        with contextlib.suppress(OSError):  # a file too many harms nobody
            os.unlink(self.path(record))

    def _note(self, record: Record) -> None:
        write_whole(self._stem + ".json", json.dumps(dataclasses.asdict(record), indent=2) + "\n")


def _record(fields: t.Any) -> Record:
    previous = fields.pop("previous", None)
    record = Record(**fields, previous=_record(previous) if previous else None)
    texts = (
        *(record.stage, record.name, record.file),
        *(record.sha256, record.after, record.process),
    )
    if not all(isinstance(text, str) for text in texts) or "/" in record.file:
        raise TypeError("It was changed by hand.")
    if not all(isinstance(name, str) for pair in record.renamed.items() for name in pair):
        raise TypeError("It was changed by hand.")
    return record


def _read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, encoding="utf-8", newline="") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise _foreign(path)
        _refuse_foreign(status, path)
        return file.read(_MAX_BYTES)


def _refuse_foreign(status: os.stat_result, path: str) -> None:
    """What it says becomes a domain's configuration: nobody else may have written it."""
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _foreign(path)


def _foreign(path: str) -> RefusedError:
    return RefusedError(
        f"{shown(path)} is not of this user, or others may write to it; nothing was changed.",
        remedy="Find out where it comes from, and remove it or name another state_dir.",
    )


def _damaged(path: str) -> RefusedError:
    return RefusedError(
        f"{shown(path)} is not as it was written; nothing was changed.",
        remedy="Look at it: what is good in it can be brought back with virsh define. Then remove "
        "it and the .json file beside it.",
    )
