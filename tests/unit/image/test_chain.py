# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which names in a header may be followed at all."""

from __future__ import annotations

import os

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.chain import Places

OWN = "/srv/pool/disk.qcow2"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("base.qcow2", "/srv/pool/base.qcow2"),
        ("./base.qcow2", "/srv/pool/base.qcow2"),
        ("../pool/base.qcow2", "/srv/pool/base.qcow2"),
        ("/srv/pool/base.qcow2", "/srv/pool/base.qcow2"),
        ("./a:b.qcow2", "/srv/pool/a:b.qcow2"),
        ("/srv/pool/json:{}", "/srv/pool/json:{}"),
        ("/srv/golden/debian/12.qcow2", "/srv/golden/debian/12.qcow2"),
        ("../golden/12.qcow2", "/srv/golden/12.qcow2"),
    ],
)
def test_names_that_are_followed(name, path):
    places = Places.of(OWN, allowed_dirs=["/srv/golden"])
    assert places.locate(name, overlay=OWN, role="backing file") == path


@pytest.mark.parametrize(
    "name",
    [
        "json:{}",
        'json:{"driver": "nbd"}',
        "nbd:localhost:10809",
        "nbd+unix:///x?socket=/run/s",
        "http://host/x",
        "file:/srv/pool/base.qcow2",
        "fat:rw:/etc",
        "a:b.qcow2",
        ":",
    ],
)
def test_protocols_are_not_followed(name):
    places = Places.of(OWN, allowed_dirs=["/"])
    with pytest.raises(RefusedError, match="no plain file name; it was not opened"):
        places.locate(name, overlay=OWN, role="backing file")


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../../etc/passwd",
        "../disk.qcow2",
        "sub/base.qcow2",
        "/srv/goldenrod/x",
        "/srv/pool",
        "..",
        "/proc/self/mem",
        "/net/evil.example/x",
    ],
)
def test_files_elsewhere_are_not_followed_nor_looked_up(name, monkeypatch):
    places = Places.of(OWN, allowed_dirs=["/srv/golden"])
    monkeypatch.setattr(os.path, "realpath", None)  # no system call may be needed to refuse
    with pytest.raises(RefusedError, match="lies in no allowed folder; it was not opened") as error:
        places.locate(name, overlay=OWN, role="data file")
    assert f"names {name} as its data file" in error.value.message


def test_the_folder_may_be_spelled_through_a_symlink(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to("real")
    overlay = f"{tmp_path}/alias/disk.qcow2"
    places = Places.of(overlay, allowed_dirs=[])
    for name in ("b", f"{tmp_path}/alias/b", f"{tmp_path}/real/b"):
        assert places.locate(name, overlay=overlay, role="x") == f"{tmp_path}/real/b"


def test_a_symlink_in_the_folder_leads_nowhere_else(tmp_path):
    (tmp_path / "link").symlink_to("/etc/passwd")
    places = Places.of(f"{tmp_path}/disk", allowed_dirs=[])
    with pytest.raises(RefusedError, match="no allowed folder"):
        places.locate("link", overlay=f"{tmp_path}/disk", role="x")


def test_an_image_in_the_root_folder_allows_only_that_folder():
    with pytest.raises(RefusedError):
        Places.of("/disk", allowed_dirs=[]).locate("/etc/passwd", overlay="/disk", role="x")
