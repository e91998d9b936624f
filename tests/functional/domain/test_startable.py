# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""No guest is stopped that would not start again; virsh tells whether it runs."""

from __future__ import annotations

import subprocess

import pytest
from image_lab import qemu_io
from lab import Disk, GuestSpec
from support import assert_explains, run_module

MIB = 1 << 20
NAME = "s-start"


@pytest.fixture
def guest(lab):
    """A domain without a system, on ide, with a CD; it doesn't run."""
    iso = lab.state / "disks" / "s-start.iso"
    iso.write_bytes(bytes(MIB))
    disks = (
        Disk("hda", "ide", size_bytes=64 * MIB),
        Disk("hdc", "ide", path=iso, format="raw", device="cdrom", readonly=True),
    )
    guest = lab.create(GuestSpec(NAME, machine="pc", memory_mib=64, disks=disks))
    qemu_io(guest.disk("hda").path, "write -P 0 0 8M", "write -P 7 8M 1M")
    yield guest
    guest.destroy()
    iso.unlink(missing_ok=True)
    lab.virsh("undefine", NAME, "--managed-save")


def configure(lab, old, new):
    path = lab.state / "tmp" / "s-start.xml"
    text = lab.virsh("dumpxml", NAME, "--inactive")
    assert old in text
    path.write_text(text.replace(old, new))
    lab.virsh("define", str(path))


def run(lab, module, **arguments):
    return run_module(module, uri=lab.uri, domains=[NAME], **arguments)


CALLS = [
    pytest.param("domain_discard", {"apply": "save_restore"}, id="save_restore"),
    pytest.param("domain_discard", {"apply": "power_cycle"}, id="power_cycle"),
    pytest.param("domain_compact", {"power": "cycle", "min_free_bytes": 0}, id="compact"),
    pytest.param("domain_helper_disk", {"power": "cycle"}, id="helper_disk"),
    pytest.param("domain_disk_bus", {"power": "cycle", "bus": "scsi"}, id="disk_bus"),
]


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(("module", "arguments"), CALLS)
def test_a_cd_that_is_gone(lab, guest, module, arguments, check):
    lab.virsh("start", NAME)
    guest.disk("hdc").path.unlink()
    before = guest.xml(inactive=True)
    if module == "domain_disk_bus":
        arguments = {**arguments, "state_dir": str(lab.state / "tmp" / "state")}
    result = run(lab, module, check=check, **arguments)
    assert_explains(result, NAME, "s-start.iso, of disk hdc, is missing", "nothing was changed")
    assert (guest.state(), guest.xml(inactive=True)) == ("running", before)


def test_a_backing_file_that_is_gone(lab, guest, tmp_path):
    base, top = tmp_path / "base.qcow2", guest.disk("hda").path
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", base, "64M"], check=True)
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, top], check=True
    )
    tmp_path.chmod(0o755)
    lab.virsh("start", NAME)
    base.unlink()
    for apply in ("save_restore", "power_cycle"):
        result = run(lab, "domain_discard", apply=apply)
        assert_explains(result, "base.qcow2, of disk hda, is missing", "nothing was changed")
    assert guest.state() == "running"


CONFIGURED = [
    pytest.param("</devices>", "<interface type='bridge'><source bridge='br-none'/></interface>"
                 "</devices>", "bridge br-none is missing", id="bridge"),
    pytest.param("</devices>", "<interface type='network'><source network='none'/></interface>"
                 "</devices>", "network none is missing", id="network"),
    pytest.param("<memory unit='KiB'>65536</memory>", "<memory unit='TiB'>9</memory>",
                 "9,437,184 MiB of memory", id="memory"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "words"), CONFIGURED)
def test_what_was_configured_since_it_was_started(lab, guest, old, new, words):
    lab.virsh("start", NAME)
    configure(lab, old, new)
    result = run(lab, "domain_compact", power="cycle", min_free_bytes=0)
    assert_explains(result, words, "nothing was changed")
    assert guest.state() == "running"
