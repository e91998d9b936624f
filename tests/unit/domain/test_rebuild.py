# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A rebuilt domain is another one, on copies that are whole; no file of others is written over."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware import rebuild, rebuild_xml

OLD = """<domain><name>old</name><uuid>u1</uuid>
<sysinfo type='smbios'><system><entry name='uuid'>u1</entry></system></sysinfo>
<os><type machine='pc-q35-2.4'>hvm</type></os>
<devices><disk type='file' device='disk'><source file='/p/old.qcow2'/>
<backingStore type='file'><source file='/p/base.qcow2'/></backingStore>
<target dev='vda' bus='virtio'/></disk></devices></domain>"""


def test_it_has_its_own_uuid_and_no_chain():
    identity = rebuild_xml.Identity("new", "u2", "g2", (), {"vda": "/p/new.qcow2"}, "")
    tree = xml.parse_tree(rebuild_xml.rebuilt(OLD, identity, machine="pc-q35-7.2"))
    assert [tree.findtext("uuid"), tree.findtext("sysinfo/system/entry")] == ["u2", "u2"]
    assert tree.find("devices/disk/source").get("file") == "/p/new.qcow2"
    assert tree.find("devices/disk/backingStore") is None


def test_variables_that_somebody_has_made_meanwhile_stay(tmp_path):
    (tmp_path / "old").write_text("old")
    (tmp_path / "new").write_text("of somebody")
    work = SimpleNamespace(nvram=(str(tmp_path / "old"), str(tmp_path / "new")), nvram_made=False)
    with pytest.raises(RefusedError, match="exists already"):
        rebuild._copy_nvram(work)
    assert (tmp_path / "new").read_text() == "of somebody"
    assert not work.nvram_made
