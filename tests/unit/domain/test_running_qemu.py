# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which QEMU a domain runs with, read from a /proc of files."""

from __future__ import annotations

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import running_qemu, xml

XML = "<domain><name>d</name><uuid>1-2</uuid><devices><emulator>{}</emulator></devices></domain>"


@pytest.fixture
def emulator(tmp_path):
    path = tmp_path / "qemu"
    path.write_text("#!/bin/sh\necho 'QEMU emulator version 7.2.19 (Debian 1:7.2+dfsg-7)'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def running(tmp_path, emulator):
    """The version of a domain whose processes have these executables."""

    def running(*executables, uuid="1-2"):
        proc = tmp_path / "proc"
        (proc / "self").mkdir(parents=True)
        for number, executable in enumerate(executables):
            entry = proc / str(number)
            entry.mkdir()
            (entry / "cmdline").write_bytes(f"qemu\0-uuid\0{uuid}\0".encode())
            (entry / "exe").symlink_to(executable)
        return running_qemu.version_of(xml.parse_domain(XML.format(emulator)), proc=str(proc))

    return running


def test_the_version_is_that_of_the_emulator(running, emulator):
    assert running(emulator) == (7, 2, 19)


def test_one_that_was_replaced_since_is_not_known(running, tmp_path):
    assert running(tmp_path / "qemu (deleted)") is None


def test_another_file_is_not_known(running, emulator):
    other = emulator.with_name("other")
    other.write_text("")
    assert running(emulator, other) is None


def test_a_domain_without_a_process_is_not_known(running, emulator):
    assert running(emulator, uuid="3") is None


@pytest.mark.parametrize(
    ("output", "version"),
    [
        (b"QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright", (10, 0, 2)),
        (b"QEMU emulator version 9.1.0", (9, 1, 0)),
        (b"another program 9.1.0", None),
        (b"", None),
    ],
)
def test_what_qemu_says(output, version):
    assert running_qemu.parsed(output) == version
