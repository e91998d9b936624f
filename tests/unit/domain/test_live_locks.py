# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nobody writes to an image while it is copied, and one that was written to keeps its name."""

from __future__ import annotations

import contextlib
import os

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact_policy import Request
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.files import open_image
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import (
    Identity,
    Live,
    Record,
    temp_name,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.locks import probe_locks
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.replace import (
    NewCopy,
    Stages,
    identity_at,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._live import live, move
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.checks import Bounds
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.files import Files
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.live import LiveCompaction
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.move import Move
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.extents import file_usage

DISK = xml.parse_domain(
    "<domain><name>d</name><uuid/><devices><disk type='file' device='disk'>"
    "<driver type='raw'/><source file='/x'/><target dev='vda' bus='virtio'/></disk></devices>"
    "</domain>"
).disk("vda")


class CopiedError(Exception):
    """The copy would be made now."""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.raw"
    path.write_bytes(bytes(4096))
    return path


def compaction(path):
    work = LiveCompaction.__new__(LiveCompaction)
    work.path, work.disk = str(path), DISK
    work.files = Files(str(path), str(path))
    work.request, work.bounds = Request(method="rewrite", image_format="raw"), Bounds()
    work.stages, work._tool, work._pointer, work._keep = Stages(), None, None, ""
    work._record = Record("live", "snapshot", 7, None, live=Live("u", "vda", "a.o", "", "raw"))
    return work


def is_locked(image, *_given, **_more):
    """In the place of ``copied``: as another program sees the image."""
    with open_image(image.path) as other:
        assert probe_locks(other.fd).unshared == {"write", "resize"}
    raise CopiedError


def test_of_a_running_domain(path, monkeypatch):
    monkeypatch.setattr(live, "copied", is_locked)
    with (
        open_image(str(path)) as image,
        contextlib.ExitStack() as stack,
        pytest.raises(CopiedError),
    ):
        compaction(path)._copied(None, None, image, stack)


def test_of_a_domain_that_is_off(path, tmp_path, monkeypatch):
    monkeypatch.setattr(move, "copied", is_locked)
    request = Request(method="rewrite", image_format="raw", dest_dir=str(tmp_path / "b"))
    work = Move(None, None, "vda", str(path), request=request, stages=Stages())
    work._record = compaction(path)._record
    with pytest.raises(CopiedError):
        work._to_new(None, None, None)


@pytest.mark.parametrize("written", [False, True])
def test_one_that_was_written_to_keeps_its_name(path, monkeypatch, written):
    monkeypatch.setattr(LiveCompaction, "_make_overlay", lambda *_given: None)
    temp = path.with_name(temp_name(str(path)))
    temp.write_bytes(bytes(4096))
    work = compaction(path)
    with open_image(str(path)) as image, temp.open("rb") as file:
        record = Record(
            "live",
            "copy",
            7,
            Identity.of(os.fstat(image.fd)),
            temp=temp.name,
            copy=identity_at(str(temp)),
            live=work._record.live,
        )
        inodes = path.stat().st_ino, temp.stat().st_ino
        if written:
            os.utime(path, ns=(7, 7))
        new = NewCopy(str(temp), file.fileno(), file_usage(file.fileno()))
        refused = pytest.raises(RefusedError, match="changed or exchanged by somebody else")
        with refused if written else contextlib.nullcontext():
            work._swap(NotedJournal(), image, new, record)
    assert path.stat().st_ino == inodes[not written]


class NotedJournal:
    """Takes what is written."""

    def write(self, record):
        assert record.stage == "swap"
