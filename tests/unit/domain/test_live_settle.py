# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The end of a live compaction: flushed before it counts, and nothing goes that is in use."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import Live, Record
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.replace import Stages
from ansible_collections.thinvirt.kvm.plugins.module_utils._live import policy, settle
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.files import Files
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.settle import Settling


@pytest.fixture
def settling(tmp_path):
    """Of a domain that is shut off, with an overlay on its image."""
    base, overlay = tmp_path / "a.qcow2", tmp_path / "a.overlay"
    base.touch()
    overlay.touch()
    settling = Settling.__new__(Settling)
    settling.path = str(base)
    settling.files = Files(str(base), str(base), overlay=str(overlay))
    live = Live("uuid", "vda", overlay.name, "", "qcow2")
    settling.record = Record("live", policy.MERGE, 7, None, live=live)
    settling.stages = Stages()
    settling.pointer = None
    settling.journal = SimpleNamespace(path="", clear=lambda: None, remove=lambda: None)
    settling.hypervisor = SimpleNamespace(all_guests=list)
    settling._chain = lambda _running, _disk: [str(base)]
    return settling


def test_the_last_file_is_on_the_disk_before_the_others_go(settling, monkeypatch):
    done = []
    found = policy.Found(stage=policy.SNAPSHOT, running=False, top="overlay", exchanged=False)
    for name, answer in (
        ("_refuse_other_source", None),
        ("_end_job", None),
        ("_found", found),
        ("_commit", None),
        ("_restore_configuration", None),
        ("_clean", None),
    ):

        def note(_self, *_given, _name=name, _answer=answer, **_more):
            done.append(_name)
            return _answer

        monkeypatch.setattr(Settling, name, note)
    monkeypatch.setattr(settle, "_flush", done.append)
    settling.settle()
    base = settling.files.base
    assert done[:3] == ["_refuse_other_source", "_end_job", "_found"]
    assert done[3:] == ["_commit", base, "_restore_configuration", "_clean"]


@pytest.mark.parametrize("certain", [False, True])
def test_what_somebody_has_open_stays_unless_qemu_is_sure_to_be_elsewhere(
    settling, monkeypatch, tmp_path, certain
):
    def in_use(path):
        raise RefusedError(f"{path} is in use.", remedy="Wait.")

    monkeypatch.setattr(Settling, "_domain_now", lambda _self: (certain, None))
    monkeypatch.setattr(settle, "wait_until_free", in_use)
    if certain:
        settling._clean(settling.files.base, finished=False, certain=True)
    else:
        with pytest.raises(RefusedError, match=r"a\.overlay is in use"):
            settling._clean(settling.files.base, finished=False, certain=False)
    assert (tmp_path / "a.overlay").exists() is not certain
    assert (tmp_path / "a.qcow2").exists()
