# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Old configurations are believed only as we wrote them."""

from __future__ import annotations

import os

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware.kept_xml import KeptXml


@pytest.mark.parametrize("mode", [0o620, 0o602])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_others_may_write_to_is_not_brought_back(tmp_path, kind, mode):
    store = KeptXml(str(tmp_path), "uuid", "machine")
    with store.locked():
        record = store.begin("<domain/>", name="web1", renamed={})
    assert store.old_xml(record) == "<domain/>"
    path = store.path(record)
    os.chmod(path if kind == "file" else os.path.dirname(path), mode)
    with pytest.raises(RefusedError, match="others may write to it"):
        _all_of(store, record)


def _all_of(store, record):
    store.read()
    store.old_xml(record)
