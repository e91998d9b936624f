# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which images names and globs mean."""

from __future__ import annotations

import os
import socket

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    ImageError,
    RefusedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.inspect import Options
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.report import expand_paths


@pytest.fixture
def pool(tmp_path):
    for name in ("b.qcow2", "a.qcow2", "[x].qcow2", "c.raw"):
        (tmp_path / name).touch()
    (tmp_path / "dir.qcow2").mkdir()
    (tmp_path / "link.qcow2").symlink_to("a.qcow2")
    os.mkfifo(tmp_path / "fifo.qcow2")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{tmp_path}/socket.qcow2")
    return str(tmp_path)


def test_globs_mean_files_and_links_in_order_and_once(pool):
    paths, unmatched = expand_paths([f"{pool}/b.*", f"{pool}/*.qcow2", f"{pool}/*.vmdk"])
    names = ["b.qcow2", "[x].qcow2", "a.qcow2", "link.qcow2"]
    assert paths == [f"{pool}/{name}" for name in names]
    assert unmatched == [f"{pool}/*.vmdk"]


def test_names_are_taken_as_they_are(pool):
    given = [f"{pool}/[x].qcow2", f"{pool}/missing", f"{pool}/dir.qcow2", "relative", "a\0b*"]
    assert expand_paths(given) == (given, [])


@pytest.mark.parametrize("other", ["/a/b", "/a//b", "/a/./b", "/a/x/../b"])
def test_a_path_named_twice(other):
    with pytest.raises(RefusedError, match="/a/b is named twice"):
        expand_paths(["/a/b", other])


def test_relative_globs():
    with pytest.raises(ImageError, match=r"glob \*\.qcow2 is relative"):
        expand_paths(["*.qcow2"])


@pytest.mark.parametrize(
    "wrong", [{"timeout": 0}, {"timeout": -1}, {"allowed_dirs": ("a",)}, {"allowed_dirs": ("/\0",)}]
)
def test_options_that_cannot_be_meant(wrong):
    with pytest.raises(RefusedError):
        Options(**wrong)
