# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the files of a live compaction are, and which of them may be removed."""

from __future__ import annotations

import dataclasses

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import Live, Record
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.files import Files

BASE, DEST = "/pool/a.qcow2", "/fast/a.qcow2"
MARK = "thinvirt-0123456789abcdef"
LIVE = Live(
    domain="uuid",
    target="vda",
    overlay=f"a.qcow2.{MARK}.overlay",
    source="<disk type='file'/>",
    image_format="qcow2",
    second=f"a.qcow2.{MARK}.overlay",
)
RECORD = Record("live", "swap", 1, None, temp=f".a.qcow2.{MARK}.tmp", live=LIVE)
MOVING = dataclasses.replace(RECORD, live=dataclasses.replace(LIVE, base=BASE, dest=DEST))


def test_in_place_all_lie_in_one_folder():
    kept = f".a.qcow2.{MARK}.tmp"
    files = Files.of(BASE, dataclasses.replace(RECORD, kept=kept))
    assert not files.moves
    assert files.folders == ["/pool"]
    assert (files.new, files.kept) == (BASE, f"/pool/{kept}")
    assert "new" not in files.by_role()


def test_what_lies_on_the_copy_lies_beside_it():
    files = Files.of(BASE, MOVING)
    assert files.moves
    assert files.folders == ["/pool", "/fast"]
    assert files.by_role() == {
        "base": BASE,
        "new": DEST,
        "overlay": f"/pool/{LIVE.overlay}",
        "second": f"/fast/{LIVE.second}",
    }
    assert files.temp == f"/fast/.a.qcow2.{MARK}.tmp"
    assert files.below(files.overlay) == BASE
    assert files.below(files.second) == DEST
    files.refuse_foreign_names(MOVING)


@pytest.mark.parametrize(
    "change",
    [
        {"temp": "b.qcow2"},
        {"temp": f"../pool/.a.qcow2.{MARK}.tmp"},
        {"temp": f".b.qcow2.{MARK}.tmp"},
        {"kept": "a.qcow2"},
        {"live": dataclasses.replace(LIVE, overlay="b.qcow2")},
        {"live": dataclasses.replace(LIVE, overlay=f"../fast/a.qcow2.{MARK}.overlay")},
        {"live": dataclasses.replace(LIVE, second="/etc/passwd")},
        {"live": dataclasses.replace(MOVING.live, second=f"../pool/a.qcow2.{MARK}.overlay")},
    ],
)
def test_a_journal_that_names_what_is_none_of_the_runs(change):
    record = dataclasses.replace(RECORD, **change)
    with pytest.raises(RefusedError, match="none of its own"):
        Files.of(BASE, record).refuse_foreign_names(record)


def test_a_journal_of_another_kind():
    with pytest.raises(RefusedError, match="none of a live compaction"):
        Files.of(BASE, dataclasses.replace(RECORD, live=None))
