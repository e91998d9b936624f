# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""thin_watch on hosts of libvirt's test driver, and what the role zero_fill makes of it.

The images lie on a small file system of their own, so that nobody else's writes count.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time

import pytest
from host_xml import disk, domain, host
from image_lab import create, qemu_io, run
from support import assert_explains, run_module, run_playbook

MIB = 1 << 20
PLAY = """
- hosts: guests
  gather_facts: false
  roles: [thinvirt.kvm.zero_fill]
"""


@pytest.fixture
def images(tmp_path):
    """A file system of 256 MiB."""
    point, image = tmp_path / "images", tmp_path / "storage"
    point.mkdir()
    with contextlib.ExitStack() as stack:
        with open(image, "wb") as file:
            file.truncate(256 * MIB)
        run("mkfs.ext4", "-q", "-F", "-m", "0", image)
        device = run("losetup", "-f", "--show", image).strip()
        stack.callback(run, "losetup", "-d", device)
        run("mount", device, point)
        stack.callback(run, "umount", point)
        yield point


def zeroing(element):
    element.find("driver").set("detect_zeroes", "unmap")
    return element


@pytest.fixture
def uri(tmp_path, images):
    for name in ("a", "b", "c"):
        path = create(images / f"{name}.qcow2", "1G")
        qemu_io(path, "write -P 1 0 8M")
    return host(
        tmp_path / "host.xml",
        domain("a", disk("vda", images / "a.qcow2"), running=True),
        domain("b", disk("vda", images / "b.qcow2"), running=True),
        domain("c", zeroing(disk("vda", images / "c.qcow2")), running=True),
        domain("off", disk("vda", images / "a.qcow2")),
    )


def free(images) -> int:
    run("sync", "-f", images)
    return int(run("df", "-B1", "--output=avail", images).split()[-1])


def test_budgets_of_guests_that_write_at_once(uri, images):
    keep = 64 * MIB
    found = run_module("thin_watch", uri=uri, domains=["a", "b", "c"], min_free_bytes=keep)
    a, b, c = found["domains"]
    assert a["budget_bytes"] == b["budget_bytes"]
    # Two of them together, and the third as much as it likes: what has to stay free stays.
    assert 0.9 * (free(images) - keep) < 2 * a["budget_bytes"] < free(images) - keep
    assert not a["fits"]
    assert (c["zeros_are_free"], c["budget_bytes"], c["growth_bytes"]) == (True, 1 << 30, 0)
    assert not found["near"]


def test_it_returns_at_once_when_a_file_system_comes_to_its_end(uri, images):
    keep, other = 64 * MIB, images / "other"

    def fill() -> None:
        time.sleep(2)
        with open(images / "a.qcow2", "r+b") as file:
            os.posix_fallocate(file.fileno(), 64 * MIB, 30 * MIB)
        with open(other, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, free(images) - 32 * MIB)

    before = os.stat(images / "a.qcow2").st_blocks * 512
    writer = threading.Thread(target=fill)
    writer.start()
    found = run_module("thin_watch", uri=uri, domains=["a"], min_free_bytes=keep, seconds=60)
    writer.join()
    assert found["near"]
    assert found["watched_seconds"] < 59  # of 60: it did not wait for its time to be over
    (system,) = found["file_systems"]
    assert (system["mount_point"], system["near"]) == (str(images), True)
    assert system["least_free_bytes"] < keep
    (one,) = found["domains"][0]["disks"]
    assert one["allocated_before_bytes"] == before
    assert one["allocated_after_bytes"] == one["allocated_peak_bytes"] >= before + 30 * MIB
    assert one["allocated_after_bytes"] == os.stat(images / "a.qcow2").st_blocks * 512


def test_it_ends_when_its_time_is_over(uri):
    found = run_module("thin_watch", uri=uri, domains=["*"], min_free_bytes=0, seconds=2)
    assert 2 <= found["watched_seconds"] < 60
    assert not found["near"]


def test_disks_that_do_not_exist(uri):
    assert_explains(run_module("thin_watch", uri=uri, domains=["a"], disks=["sda"]), "sda")
    assert not run_module("thin_watch", uri=uri, domains=["a"], disks=["vd?"])["failed"]


def play(tmp_path, uri, guests, *options, **variables):
    """Apply the role with this machine in the place of hypervisor and guests."""
    local = {
        "ansible_connection": "local",
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_remote_tmp": str(tmp_path / "ansible-tmp"),
    }
    members = {name: {**local, "kvm_host": "hypervisor"} | own for name, own in guests.items()}
    inventory = {"kvm_hosts": {"hosts": {"hypervisor": local}}, "guests": {"hosts": members}}
    windows = {name: {} for name in guests if name.startswith("windows")}
    inventory["kvm_windows_guests"] = {"hosts": windows}
    (tmp_path / "play.yml").write_text(PLAY)
    given = {"zero_fill_uri": uri} | {f"zero_fill_{key}": v for key, v in variables.items()}
    done = run_playbook(tmp_path, "play.yml", inventory, "-e", json.dumps(given), *options)
    return done.returncode, " ".join(done.stdout.split())


def test_the_role_refuses_before_anything_is_written(tmp_path, uri, images):
    guests = {
        "lost": {"kvm_host": "nowhere"},
        "windows": {"kvm_domain": "b"},
        "off": {},
        "a": {},
        "c": {},
    }
    begin = free(images)
    rc, output = play(
        tmp_path, uri, guests, "--check", paths=["/nowhere"], host_min_free_bytes=32 * MIB
    )
    assert rc != 0
    assert "lost needs the variable kvm_host" in output
    assert "zero_fill_windows_accept_sdelete_eula" in output
    assert "off is off. Nothing was written." in output
    assert "The images of a would grow by up to" in output
    assert "/nowhere does not exist" in output  # c, whose zeros are holes, got as far as that
    assert free(images) == begin


def test_the_role_asks_the_host_once_for_all_guests(tmp_path, uri):
    guests = {"a": {}, "b": {}}
    rc, output = play(
        tmp_path, uri, guests, "--check", accept_growth=True, host_min_free_bytes=1 << 40
    )
    assert rc != 0
    for name in guests:
        assert f"hypervisor has no room for zeros of {name}" in output
    assert output.count("-> hypervisor]") == 1
