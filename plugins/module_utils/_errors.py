# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong, as one small tree of exceptions.

The core raises these and nothing else on purpose; a module's ``main()`` turns
them into one ``fail_json``.  A message is one sentence for somebody at 3 a.m.:
what happened, and to which domain, disk or file.  The remedy says what to do.
"""

from __future__ import annotations

import typing as t

#: stderr is quoted up to this many characters: enough for QEMU's longest
#: complaint, too little for a hostile program to flood a log.
MAX_QUOTED = 4000


class ReportedError(Exception):
    """Whatever ends a module with a message: its ``main()`` catches this, and nothing else does.

    :param message: one sentence, with the domain, disk or file that it concerns.
    :param remedy: what the administrator can do about it, one sentence.
    """

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return " ".join(part for part in (self.message, self.remedy) if part)

    def result(self) -> dict[str, t.Any]:
        """Keys for ``fail_json`` or for a ``error`` entry of one domain or image."""
        return {"msg": str(self)}


class ThinvirtError(ReportedError):
    """Base of all errors of this collection."""


class RefusedError(ThinvirtError):
    """The wish is understood and is not carried out; nothing was changed."""


class NotFoundError(ThinvirtError):
    """A domain, disk or file that was named does not exist."""


class GaveWayError(ThinvirtError):
    """Somebody else wanted a file that was worked on, and was let in; its content is as it was."""


class UnsupportedError(RefusedError):
    """This libvirt, QEMU or kernel is too old; the message names the version needed."""


class RequirementError(ThinvirtError):
    """A program or a Python library that the managed host needs is missing."""


class ImageError(ThinvirtError):
    """A file is no image that can be read safely: malformed, truncated or hostile."""


class HypervisorError(ThinvirtError):
    """libvirt refused or failed; the message quotes what it said."""


class BusyError(HypervisorError):
    """libvirt is at work on this domain and did not get to what it was asked for."""


class AgentError(ThinvirtError):
    """The guest agent is missing, dead, hung, or answered nonsense."""


class AgentTimeoutError(AgentError):
    """The guest agent is missing or hung, or what it was asked for takes longer than allowed."""


class CommandError(ThinvirtError):
    """A program ended with an error, too late, or with too much output.

    :param argv: the command as it was started, never through a shell.
    :param rc: its exit status, or None when it had to be ended.
    :param stderr: what it complained, quoted up to :data:`MAX_QUOTED` characters.
    """

    def __init__(
        self, message: str, *, argv: t.Sequence[str], rc: int | None, stderr: str, remedy: str = ""
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.argv = list(argv)
        self.rc = rc
        self.stderr = stderr[:MAX_QUOTED]

    def result(self) -> dict[str, t.Any]:
        return {"msg": str(self), "cmd": self.argv, "rc": self.rc, "stderr": self.stderr}
