# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a snapshot is worth whose backup job has ended."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._backup import job
from ansible_collections.thinvirt.kvm.plugins.module_utils._backup.freeze import Freeze
from ansible_collections.thinvirt.kvm.plugins.module_utils._backup.qemu_process import QemuProcess
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import HypervisorError


@pytest.mark.parametrize("files", ["", "/elsewhere/vda", "OURS/vda"])
def test_copies_count_only_while_our_own_job_runs(tmp_path, monkeypatch, files):
    folder = job.Workplace(str(tmp_path), "u1").folder
    files = files.replace("OURS", folder)
    text = f"<domainbackup><disks><disk><scratch file='{files}'/></disk></disks></domainbackup>"
    guest = SimpleNamespace(
        uuid="u1", name="web1", is_lost=lambda: False, backup_job=lambda: text if files else ""
    )
    ended = []
    for name, stand_in in (
        ("qemu_of", lambda *_given: QemuProcess(1, 0, 0, "/run")),
        ("refuse_busy", lambda *_given: None),
        ("make_private", lambda *_given, **_more: None),
        ("_begin", lambda *_given, **_more: Freeze()),
        ("_end", lambda *_given, **_more: ended.append(True)),
    ):
        monkeypatch.setattr(job, name, stand_in)

    def copy():
        live = SimpleNamespace(disks=[])
        with job.snapshot(guest, live, [], parent=str(tmp_path), quiesce="off"):
            pass

    if files.startswith(folder):
        copy()
    else:
        with pytest.raises(HypervisorError, match="ended before its disks were copied"):
            copy()
    assert ended == [True]
