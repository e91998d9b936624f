# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names in messages are harmless, names in results can be used."""

from __future__ import annotations

import errno
import json
import subprocess

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    NotFoundError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage import paths


@pytest.mark.parametrize(
    ("name", "shown", "encodable"),
    [
        ("/plain", "/plain", "/plain"),
        ("/größe ü", "/größe ü", "/größe ü"),
        ("/a\nb", r"/a\nb", "/a\nb"),
        ("/\x1b[2J", r"/\x1b[2J", "/\x1b[2J"),
        ("/\udcff", r"/\\xff", r"/\xff"),
    ],
)
def test_names(name, shown, encodable):
    assert paths.shown(name) == shown
    assert paths.encodable(name) == encodable
    json.dumps(encodable).encode("utf-8")


@pytest.mark.parametrize("name", ["web1", "a b", "a; reboot", "it's", "$(x)", "a\nb", "\x1b[2J'"])
def test_a_shell_reads_what_is_typed_as_one_word(name):
    script = f"printf %s {paths.typed(name)}"
    printed = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert printed.stdout == name
    assert paths.typed(name).isprintable()


def test_failures():
    gone = paths.failure("/a", "opened", FileNotFoundError(errno.ENOENT, "No such file"))
    assert isinstance(gone, NotFoundError)
    assert str(gone) == "/a does not exist."
    denied = paths.failure("/a", "opened", PermissionError(errno.EACCES, "Permission denied"))
    assert isinstance(denied, ThinvirtError)
    assert str(denied).startswith("/a cannot be opened: Permission denied. Run this as root")
    assert "open file 5 cannot be read" in str(paths.failure(5, "read", OSError(5, "I/O error")))
