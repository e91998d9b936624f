# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""linux_guest_remount on real ext4 in loop devices; a guest that trims again is in tests/live."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import pytest
from support import run_module

MIB = 1 << 20


def run(*argv: object) -> str:
    command = list(map(str, argv))
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture
def mounted(tmp_path):
    """Where an ext4 is mounted, with options that are no defaults; a blank is in its name."""
    image, point = tmp_path / "image", tmp_path / "mount point"
    point.mkdir()
    with open(image, "wb") as file:
        file.truncate(64 * MIB)
    run("mkfs.ext4", "-q", "-F", image)
    with contextlib.ExitStack() as stack:
        device = run("losetup", "-f", "--show", image).strip()
        stack.callback(run, "losetup", "-d", device)
        # Namespaces that others begin meanwhile, as a lab does, let go of it as we do.
        run("mount", "--bind", tmp_path, tmp_path)
        stack.callback(run, "umount", tmp_path)
        # Where / is shared, as systemd has it, the same would be mounted below tmp_path as well.
        run("mount", "--make-private", tmp_path)
        run("mount", "--make-shared", tmp_path)
        run("mount", "-t", "ext4", "-o", "noatime,nodev,commit=7", device, point)
        stack.callback(run, "umount", point)
        (point / "file").write_text("content")
        yield point


def mount_of(point):
    return run("findmnt", "-n", "-r", "-o", "ID,SOURCE,FSTYPE,OPTIONS", "-M", point).split(" ", 1)


def remount(point, **more):
    result = run_module("linux_guest_remount", paths=[str(point)], **more)
    assert not result["failed"], result["msg"]
    (entry,) = result["mounts"]
    assert result["changed"] is entry["remounted"]
    return entry["reason"]


def test_it_is_mounted_anew_as_it_was(mounted):
    number, rest = mount_of(mounted)
    assert "noatime" in rest
    assert "commit=7" in rest
    device = rest.split()[0].removeprefix("/dev/")
    writes = Path(f"/sys/fs/ext4/{device}/session_write_kbytes")
    assert remount(mounted, check=True) == ""
    assert mount_of(mounted) == [number, rest], "check mode"

    (mounted / "big").write_bytes(bytes(4 * MIB))
    run("sync", "-f", mounted)
    assert int(writes.read_text()) > 4000  # counted since it was mounted
    assert remount(mounted) == ""
    assert mount_of(mounted)[1] == rest
    assert int(writes.read_text()) < 4000, "ext4 has begun anew"
    assert (mounted / "file").read_text() == "content"


def test_what_is_in_use_is_left_as_it_is(mounted):
    before = mount_of(mounted)
    with open(mounted / "file"):
        assert remount(mounted).startswith("It is in use, so reboot the guest")
    assert mount_of(mounted) == before


def test_one_that_another_namespace_holds_is_told_apart(mounted):
    """Like a service with mounts of its own: it is unmounted here, and ext4 goes on."""
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; read -r line"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        reason = remount(mounted)
        holder.communicate(b"\n")
    assert reason.startswith("Another mount namespace")
    assert (mounted / "file").read_text() == "content"


def test_several_and_one_that_is_not_there(mounted):
    result = run_module("linux_guest_remount", paths=["/", "/nowhere", str(mounted)])
    assert [entry["remounted"] for entry in result["mounts"]] == [False, False, True]
    assert result["summary"][1] == "/nowhere: Nothing is mounted there."


def test_what_is_refused_as_it_was_is_mounted_as_fstab_says(mounted, tmp_path):
    """Anything is better than unmounted: options may be there that a newer mount(8) refuses."""
    device = mount_of(mounted)[1].split()[0]
    fake, real = tmp_path / "mount", tmp_path / "real"
    fake.write_text(f'#!/bin/sh\n[ "$1" = -- ] || exit 32\nexec "{real}" -t ext4 {device} "$2"\n')
    fake.chmod(0o755)
    script = f'cp "$(command -v mount)" "{real}"; mount --bind "{fake}" "$(command -v mount)"; '
    script += f'"$@"; cp "{mounted}/file" "{tmp_path}/seen"'
    prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    # It was never unmounted here.
    assert remount(mounted, prefix=prefix).startswith("Another mount namespace")
    assert (tmp_path / "seen").read_text() == "content"


def test_if_it_can_not_be_mounted_again_that_is_said(mounted, tmp_path):
    """In a mount namespace of its own, where mount(8) fails."""
    device = mount_of(mounted)[1].split()[0]
    fake = tmp_path / "mount"
    fake.write_text("#!/bin/sh\necho no >&2\nexit 32\n")
    fake.chmod(0o755)
    script = f'mount --bind "{fake}" "$(command -v mount)"; exec "$@"'
    prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    result = run_module("linux_guest_remount", paths=[str(mounted)], prefix=prefix)
    assert result["failed"]
    assert "was unmounted and could not be mounted again" in result["msg"]
    assert "Mount it by hand" in result["msg"]
    assert f"-- {device} {mounted}" in result["msg"]
