# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names come to mean other files just before QEMU's tools begin: they work on what was opened."""

from __future__ import annotations

import os
import types

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import compact, convert, process
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact_policy import Request
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import Live, Record
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_img import QemuImg
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.replace import Stages
from ansible_collections.thinvirt.kvm.plugins.module_utils._live import policy
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.files import Files
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.settle import Settling
from image_lab import create, qemu_io, run


class Exchange:
    """Exchanges files for others of the same size, while a subcommand of qemu-img runs."""

    def __init__(self, subcommand: str, *paths) -> None:
        self.subcommand = subcommand
        self.paths = list(map(str, paths))
        self.done = 0

    def run(self, argv, **more):
        if argv[1] != self.subcommand:
            return process.run(argv, **more)
        self.done += 1
        for path in self.paths:
            os.rename(path, f"{path}.opened")
            run("cp", f"{path}.opened", path)
            with open(path, "r+b") as file:
                file.seek(-4096, os.SEEK_END)
                file.write(b"exchanged" * 100)
        try:
            return process.run(argv, **more)
        finally:
            for path in self.paths:
                os.rename(f"{path}.opened", path)


@pytest.fixture
def chain(tmp_path):
    """A raw file, and an overlay on it."""
    base, top = tmp_path / "base.raw", tmp_path / "top.qcow2"
    base.write_bytes(b"base" * (1 << 18))
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top)
    qemu_io(top, "write -P 7 0 64k")
    run("qemu-img", "convert", "-O", "qcow2", top, tmp_path / "wanted.qcow2")
    return base, top, tmp_path / "wanted.qcow2"


@pytest.mark.parametrize("subcommand", ["convert", "compare"])
def test_the_backing_file_of_a_copy(chain, tmp_path, subcommand):
    base, top, wanted = chain
    exchange = Exchange(subcommand, base, top)
    request = convert.Request(src_format="qcow2", min_free_bytes=0)
    dest = str(tmp_path / "copy.qcow2")
    convert.convert(str(top), dest, request, check_mode=False, stages=Stages(), runner=exchange.run)
    assert exchange.done == 1
    assert "identical" in run("qemu-img", "compare", wanted, dest)


def test_the_backing_file_of_a_flattened_image(chain):
    base, top, wanted = chain
    exchange = Exchange("convert", base)
    request = Request(method="rewrite", flatten=True, min_free_bytes=0)
    outcome = compact.compact(
        str(top),
        request,
        obstacles=lambda _image: (),
        check_mode=False,
        stages=Stages(),
        runner=exchange.run,
    )
    assert exchange.done == 1
    assert outcome.method == "rewrite"
    assert "identical" in run("qemu-img", "compare", wanted, top)


def test_the_data_file_of_a_copy(tmp_path):
    data = tmp_path / "x.data"
    path = create(tmp_path / "x.qcow2", "1M", data_file=data)
    qemu_io(path, "write -P 7 0 1M")
    exchange = Exchange("convert", data)
    dest = str(tmp_path / "copy.qcow2")
    convert.convert(
        path,
        dest,
        convert.Request(src_format="qcow2", min_free_bytes=0),
        check_mode=False,
        stages=Stages(),
        runner=exchange.run,
    )
    assert exchange.done == 1
    assert "identical" in run("qemu-img", "compare", path, dest)


def test_what_a_guest_wrote_meanwhile_goes_into_the_image_that_was_opened(
    chain, tmp_path, monkeypatch
):
    """qemu-img opens what it commits to a second time, to write to it."""
    base, top, wanted = chain
    victim = tmp_path / "victim"
    victim.write_bytes(b"v" * (1 << 20))
    settling = Settling.__new__(Settling)
    settling.files = Files(str(base), str(base), overlay=str(top))
    settling.live = Live("uuid", "sda", top.name, "", "raw")
    settling.record = Record("live", policy.MIRROR, 7, None, live=settling.live)
    settling.journal = types.SimpleNamespace(write=lambda _record: None)
    settling.stages = Stages()
    real = QemuImg.commit

    def commit(self, spec):
        os.rename(base, tmp_path / "opened")
        os.symlink(victim, base)
        real(self, spec)

    monkeypatch.setattr(QemuImg, "commit", commit)
    found = policy.Found(stage=policy.MIRROR, running=False, top="overlay", exchanged=False)
    settling._commit(found)
    assert victim.read_bytes() == b"v" * (1 << 20)
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", tmp_path / "opened", wanted)
