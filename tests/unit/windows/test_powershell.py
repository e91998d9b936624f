# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles' PowerShell is parsed by a real grammar.  **Nothing here runs it.**"""

from __future__ import annotations

import pytest
import tree_sitter
import tree_sitter_pwsh
from windows_machine import ROLE

ROLES = (ROLE, ROLE.parent / "virtio_scsi")
FILES = sorted(path for role in ROLES for path in (role / "files").glob("*.ps1"))
PARSER = tree_sitter.Parser(tree_sitter.Language(tree_sitter_pwsh.language()))
#: What the roles may start or call: all that changes nothing, and the four things that they change.
ALLOWED = {
    "state.ps1": {
        "ConvertTo-Json",
        "ForEach-Object",
        "Get-CimInstance",
        "Get-Date",
        "Get-Disk",
        "Get-Item",
        "Get-ItemProperty",
        "Get-PhysicalDisk",
        "Get-ScheduledTask",
        "Get-Service",
        "Get-Setting",
        "Get-Volume",
        "Get-WinEvent",
        "Select-Object",
        "Test-Path",
        "Where-Object",
        "fsutil.exe",
    },
    "delete_notify.ps1": {"fsutil.exe"},
    "boot_disk.ps1": {
        "ConvertTo-Json",
        "ForEach-Object",
        "Get-CimInstance",
        "Get-Disk",
        "Get-Volume",
        "Select-Object",
        "Sort-Object",
        "Where-Object",
    },
    "driver.ps1": {
        "ConvertTo-Json",
        "ForEach-Object",
        "Get-Bound",
        "Get-CimInstance",
        "Get-DriverFolder",
        "Get-ItemProperty",
        "Get-Volume",
        "Test-Bound",
        "Test-Path",
        "Where-Object",
        "pnputil.exe",
    },
    "retrim.ps1": {"ConvertTo-Json", "Get-Volume", "Optimize-Volume", "Where-Object"},
}


def nodes(source):
    """All nodes of the syntax tree."""
    waiting = [PARSER.parse(source.encode()).root_node]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += node.children


def complaints(source):
    """Where the grammar finds an error, as line and text."""
    return [
        (node.start_point[0] + 1, node.text.decode()[:60])
        for node in nodes(source)
        if node.is_error or node.is_missing
    ]


def commands(source):
    return {node.text.decode() for node in nodes(source) if node.type == "command_name"}


def test_there_are_scripts():
    assert {path.name for path in FILES} == set(ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_is_powershell(path):
    assert complaints(path.read_text()) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_calls_nothing_else(path):
    assert commands(path.read_text()) == ALLOWED[path.name]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
@pytest.mark.parametrize("broken", ["cut", "brace", "quote", "paren"])
def test_the_grammar_sees_a_broken_script(path, broken):
    """Else the tests above could not fail."""
    source = path.read_text()
    brace = source.rindex("}" if "}" in source else ")")
    paren = source.rindex("(")
    assert complaints(
        {
            "cut": source[:brace],
            "brace": f"{source[:brace]}{source[brace + 1 :]}",
            "quote": source.replace("'", "", 1) if "'" in source else source.replace('"', "", 1),
            "paren": f"{source[:paren]}{source[paren + 1 :]}",
        }[broken]
    )


def test_state_reads_of_fsutil_only():
    (path,) = (path for path in FILES if path.name == "state.ps1")
    calls = [n.text.decode() for n in nodes(path.read_text()) if n.type == "command"]
    (fsutil,) = (call for call in calls if call.startswith("fsutil.exe"))
    assert fsutil == "fsutil.exe behavior query DisableDeleteNotify"


def test_the_driver_is_added_and_nothing_else():
    (path,) = (path for path in FILES if path.name == "driver.ps1")
    calls = [n.text.decode() for n in nodes(path.read_text()) if n.type == "command"]
    (pnputil,) = (call for call in calls if call.startswith("pnputil.exe"))
    assert pnputil == "pnputil.exe /add-driver $inf /install"
