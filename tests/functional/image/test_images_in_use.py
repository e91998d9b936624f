# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images that a running QEMU holds: seen, named, read, and never disturbed."""

from __future__ import annotations

import pytest
from image_lab import create, image_info, info_of, qemu_io, run
from qemu_machine import Machine, blockdev


@pytest.fixture
def boot():
    machines = []

    def boot(*options: str) -> Machine:
        machines.append(Machine(*options))
        return machines[-1]

    yield boot
    for machine in machines:
        machine.end()


def test_an_image_that_a_machine_writes_to(tmp_path, boot):
    path = create(tmp_path / "x.qcow2")
    run("qemu-img", "bitmap", "--add", path, "b0")
    idle = info_of(path)
    machine = boot(*blockdev(path))
    machine.io("write 0 5M")
    result = image_info(path, tmp_path / "*.raw")
    (entry,) = result["images"]
    assert (entry["in_use"], entry["writer"]) == (True, True)
    holder = {"pid": machine.process.pid, "command": "qemu-system-x86", "writes": True}
    assert entry["holders"] == [holder]
    assert entry["check"]["result"] == "skipped"
    assert "in use" in entry["check"]["reason"]
    assert entry["allocated_clusters"] is None
    assert entry["reclaimable_bytes"] is None
    assert entry["virtual_size_bytes"] == 64 << 20
    assert entry["allocated_bytes"] > idle["allocated_bytes"] + (4 << 20)
    assert [bitmap["name"] for bitmap in entry["bitmaps"]] == ["b0"]
    machine.io("write 10M 1M")
    machine.command("quit")
    machine.process.wait(10)
    again = info_of(path)
    assert (again["in_use"], again["holders"]) == (False, [])
    assert again["check"]["result"] == "clean"


def test_a_backing_file_that_is_shared(tmp_path, boot):
    base = create(tmp_path / "base.qcow2")
    qemu_io(base, "write 0 5M")
    tops = [create(tmp_path / f"{n}.qcow2", backing="base.qcow2") for n in range(2)]
    machines = [boot(*blockdev(top)) for top in tops]
    result = image_info(base, *tops)
    assert not result.get("failed")
    shared, *others = result["images"]
    assert (shared["in_use"], shared["writer"]) == (True, False)
    assert [h["pid"] for h in shared["holders"]] == sorted(m.process.pid for m in machines)
    assert not any(holder["writes"] for holder in shared["holders"])
    # Nobody writes to it, so that its tables can be trusted.
    assert shared["check"]["result"] == "clean"
    assert [entry["writer"] for entry in others] == [True, True]


def test_a_machine_can_start_while_the_module_looked(tmp_path, boot):
    """The module holds no lock once it has ended."""
    path = create(tmp_path / "x.qcow2")
    info_of(path)
    boot(*blockdev(path)).io("write 0 64k")
    assert info_of(path)["writer"]


def test_a_machine_that_starts_in_between(tmp_path, boot):
    """The lock appears between our look at it and qemu-img: no error, but no check."""
    from ansible_collections.thinvirt.kvm.plugins.module_utils._image import inspect  # noqa: PLC0415
    from ansible_collections.thinvirt.kvm.plugins.module_utils._image.process import (  # noqa: PLC0415
        run as real_run,
    )

    path = create(tmp_path / "x.qcow2")

    def runner(argv, *, timeout):
        boot(*blockdev(path))
        return real_run(argv, timeout=timeout)

    info = inspect.inspect_image(path, inspect.Options(), runner=runner)
    assert info.locks.writer
    assert info.check is None
    assert "in use" in info.check_skipped
