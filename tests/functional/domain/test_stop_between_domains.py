# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stop ends a module between two domains: nobody's error, and no further domain is changed."""

from __future__ import annotations

import json
import subprocess
import sys
import types
import typing as t
from pathlib import Path

import pytest
from image_lab import qemu_io
from lab import Disk, GuestSpec
from support import assert_explains

MIB = 1 << 20
MODULES = Path(__file__).parents[3] / "plugins" / "modules"

#: Runs a module that gets a signal right after the first call of one of its functions.
_RUN = """
import importlib, json, os, pkgutil, signal, sys
from ansible.module_utils.testing import patch_module_args
plugins = "ansible_collections.thinvirt.kvm.plugins."
module = importlib.import_module(plugins + "modules." + sys.argv[1])
place, *owners, name = sys.argv[2].replace(":", " ").split()
owner = pkgutil.resolve_name(plugins + "module_utils." + ":".join([place, *owners]))
real = getattr(owner, name)

def stopped_after(*arguments, **named):
    setattr(owner, name, real)
    answer = real(*arguments, **named)
    os.kill(os.getpid(), signal.SIGTERM)
    return answer

setattr(owner, name, stopped_after)
with patch_module_args(json.load(sys.stdin)):
    module.main()
"""


class Case(t.NamedTuple):
    """A module, a function that ends its work on the first domain, and arguments.

    :param folder: the option that names a folder for what it writes.
    """

    module: str
    after: str
    folder: str = ""
    arguments: t.Mapping[str, t.Any] = types.MappingProxyType({})


_DEFINED = "_domain.connection:Hypervisor:define"
#: Ends the reading of the first domain.
_READ = "_domain.xml:parse_domain"
CASES = [
    Case("domain_discard", _DEFINED),
    Case("domain_machine", _DEFINED, "state_dir", {"state": "current"}),
    Case("domain_disk_bus", _DEFINED, "state_dir", {"bus": "scsi"}),
    Case("domain_helper_disk", _DEFINED),
    Case("domain_compact", "_image.compact:compact", arguments={"min_free_bytes": 0}),
    Case("domain_backup", "_image.archive:Partial:finish", "dest_dir", {"min_free_bytes": 0}),
]
#: They change nothing that would have to be undone: a signal just ends them.
WITHOUT_HANDLER = {"domain_trim", "thin_watch"}


@pytest.fixture
def domains(lab):
    """Two domains that are off, on ide, each with 8 MiB of zeros in its disk."""
    guests = []
    for name in ("s-1", "s-2"):
        disk = Disk("hda", "ide", size_bytes=64 * MIB)
        guests.append(
            lab.create(GuestSpec(name, machine="pc-i440fx-3.1", memory_mib=64, disks=(disk,)))
        )
        qemu_io(guests[-1].disk("hda").path, "write -P 0 0 8M", "write -P 7 8M 1M")
    yield guests
    for guest in guests:
        guest.destroy()
        lab.virsh("undefine", guest.name, "--managed-save", "--checkpoints-metadata")


def state(guest, folder):
    """What a module may change of a domain: configuration, image, its backups, helper disk."""
    status = guest.disk("hda").path.stat()
    return (
        guest.xml(inactive=True),
        (status.st_ino, status.st_blocks, status.st_mtime_ns),
        sorted(str(path) for path in folder.rglob(f"*{guest.name}*/*")),
    )


@pytest.mark.parametrize("at_work", [True, False], ids=["at_work", "reading"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.module)
def test_stopped_between_two_domains(lab, domains, tmp_path, case, at_work):
    first, second = domains
    before = state(first, tmp_path), state(second, tmp_path)
    given = {
        "uri": lab.uri,
        "domains": [first.name, second.name],
        **case.arguments,
        **({case.folder: str(tmp_path)} if case.folder else {}),
    }
    done = subprocess.run(
        [sys.executable, "-c", _RUN, case.module, case.after if at_work else _READ],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == "", done.stderr
    result = json.loads(done.stdout)
    assert_explains(result, "Stopped by SIGTERM")
    assert "failed" not in result["msg"]
    assert [entry for entry in result.get("domains", []) if "error" in entry] == []
    assert (state(first, tmp_path) != before[0]) is at_work, "the signal came at another time"
    assert state(second, tmp_path) == before[1]


def test_every_module_that_works_on_several_domains_is_stopped_here():
    several = {
        path.stem
        for path in MODULES.glob("*.py")
        if "libvirt_spec(domains_required=True)" in path.read_text()
    }
    assert several - {case.module for case in CASES} == WITHOUT_HANDLER
