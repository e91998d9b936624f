# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests of backups share: what must not be left behind, seen with other tools than ours."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

from compact_lab import leftovers
from support import run_module


def backup(lab, folder, *names, **arguments):
    given = {"min_free_bytes": 0, "dest_dir": str(folder), **arguments}
    return run_module("domain_backup", uri=lab.uri, domains=list(names), **given)


def entry(result):
    """The only domain of a result that must not have failed."""
    assert not result["failed"], result["msg"]
    (found,) = result["domains"]
    return found


def versions(folder, name) -> list[str]:
    """Every name in a domain's folder, hidden ones too."""
    try:
        return sorted(os.listdir(Path(folder, name)))
    except FileNotFoundError:
        return []


def assert_nothing_left(lab, guest, folder):
    """No job, no scratch file, no socket, no half version, no lock."""
    if guest.state() != "shut off":
        assert "None" in lab.virsh("domjobinfo", guest.name)
    assert leftovers(lab.state / "disks") == []
    assert [name for name in versions(folder, guest.name) if name.startswith(".")] == []
    sockets = subprocess.run(["ss", "-xlH"], check=True, capture_output=True, text=True).stdout
    assert f"-{guest.name}/thinvirt-" not in sockets
    assert not list((lab.state / "lib").glob("qemu/domain-*/thinvirt-*"))


def assert_whole(version):
    """A version is what its manifest says; read with sha256 and qemu-img."""
    manifest = json.loads(Path(version, "manifest.json").read_text())
    names = {"manifest.json", *(file["name"] for file in manifest["files"])}
    assert set(os.listdir(version)) == names
    for file in manifest["files"]:
        data = Path(version, file["name"]).read_bytes()
        assert len(data) == file["size_bytes"]
        assert hashlib.sha256(data).hexdigest() == file["sha256"]
    for disk in manifest["disks"]:
        path = Path(version, disk["file"])
        subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", path], check=True)
    return manifest
