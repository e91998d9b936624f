# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How file names and the kernel's complaints about them are shown to people."""

from __future__ import annotations

import errno
import shlex

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    NotFoundError,
    ThinvirtError,
)


def shown(name: str) -> str:
    """A file name as it may stand in a message: on one line, and sure to be printable.

    Names come from hostile headers and foreign folders too; a newline or an escape
    sequence in one must not reach a log.  Everything harmless is left as it is.
    """
    if name.isprintable():
        return name
    return (
        name.encode("utf-8", "surrogateescape")
        .decode("utf-8", "backslashreplace")
        .encode("unicode_escape")
        .decode("ascii")
    )


def encodable(name: str) -> str:
    """A file name as it may stand in a result: bytes that are not UTF-8 become ``\\xff``.

    Ansible takes no module's answer that holds one.  All else, a newline too, is kept, so
    that the name can be used.
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def failure(path: str | int, action: str, error: OSError) -> ThinvirtError:
    """The :class:`OSError` of a system call as one sentence of ours.

    :param path: the file that it concerns.
    :param action: what could not be done, for example ``opened``.
    """
    name = shown(path) if isinstance(path, str) else f"The open file {path}"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFoundError(f"{name} does not exist.")
    remedy = ""
    if error.errno in (errno.EACCES, errno.EPERM):
        remedy = "Run this as root, or as a user who has the rights."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "Free space on its file system."
    return ThinvirtError(f"{name} cannot be {action}: {error.strerror}.", remedy=remedy)


def typed(word: str) -> str:
    """A name as it may stand in a command that somebody copies into a shell.

    A domain may be called ``a; reboot``.  What cannot be printed becomes an escape of the shell.
    """
    if word.isprintable():
        return shlex.quote(word)
    escaped = shown(word).replace("'", "\\'")
    return f"$'{escaped}'"
