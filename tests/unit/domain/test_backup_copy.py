# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A copy is proved before it is part of a version, and only its owner may read it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._backup import copy
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ImageError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.replace import Stages


@pytest.mark.parametrize(
    ("result", "same", "says"),
    [
        ("clean", True, ""),
        ("leaks", True, "is leaks; it was removed"),
        ("corrupt", True, "is corrupt; it was removed"),
        ("clean", False, "has another content than the disk; it was removed"),
    ],
)
def test_it_is_whole_and_like_the_disk(result, same, says):
    tool = SimpleNamespace(
        check=lambda *_given, **_more: SimpleNamespace(result=result),
        compare=lambda *_given, **_more: same,
    )
    room = copy.Room([], 0)

    def prove():
        copy._prove("nbd", 7, "/b/vda.qcow2", tool=tool, room=room, stages=Stages())

    if not says:
        prove()
        return
    with pytest.raises(ImageError, match=says):
        prove()


def test_a_disk_that_all_may_read_has_versions_for_their_owner_alone(tmp_path, monkeypatch):
    def convert(_src, path, *_given, **_more):
        for name in (path, path + copy.SUFFIX):
            Path(name).touch()
            os.chmod(name, 0o644)

    monkeypatch.setattr(copy, "convert", convert)
    path = tmp_path / "vda.qcow2"
    copy.copy_image("/x", str(path), None, stages=Stages())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["vda.qcow2"]
