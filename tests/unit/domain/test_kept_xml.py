# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Old configurations are believed only as we wrote them."""

from __future__ import annotations

import os

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware.kept_xml import KeptXml

UUID = "0b8b4c1e-8f5c-4c0e-9d2c-4a3a5c9e7d10"
XML = f"<domain type='qemu'><name>web1</name><uuid>{UUID}</uuid><devices/></domain>"


@pytest.mark.parametrize("mode", [0o620, 0o602])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_others_may_write_to_is_not_brought_back(tmp_path, kind, mode):
    store = KeptXml(str(tmp_path), UUID, "machine")
    with store.locked():
        record = store.begin(XML, name="web1", renamed={})
    assert store.old_xml(record) == XML
    path = store.path(record)
    os.chmod(path if kind == "file" else os.path.dirname(path), mode)
    with pytest.raises(RefusedError, match="others may write to it"):
        _all_of(store, record)


def test_the_configuration_of_another_domain_is_not_brought_back(tmp_path):
    other = KeptXml(str(tmp_path), UUID[::-1], "machine")
    with other.locked():
        record = other.begin(XML, name="web1", renamed={})
    with pytest.raises(RefusedError, match="is not as it was written"):
        other.old_xml(record)


def _all_of(store, record):
    store.read()
    store.old_xml(record)
