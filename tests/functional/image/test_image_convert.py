# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies elsewhere, judged by qemu-img and stat."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.convert import Request
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.versions import copy_versions
from compact_lab import answer, go_on, held_child, leftovers, start_module, state
from image_lab import create, qemu_io, run
from qcow2_bytes import patch
from support import assert_explains, run_module

MIB = 1 << 20


@pytest.fixture
def image(tmp_path):
    """An image of 64 MiB with 20 MiB of data and 10 MiB of written zeros."""
    path = create(tmp_path / "web1.qcow2")
    qemu_io(path, "write -P 7 0 20M", "write -P 0 20M 10M")
    (tmp_path / "out").mkdir()
    return path


def convert(**arguments):
    return run_module("image_convert", **{"min_free_bytes": 0, **arguments})


def info(path) -> dict:
    return json.loads(run("qemu-img", "info", "-f", "qcow2", "--output=json", path))


def test_a_copy_is_made_once(image, tmp_path):
    dest = tmp_path / "out" / "copy.qcow2"
    os.chmod(image, 0o640)
    checked = convert(src=image, dest=str(dest), check=True)
    assert checked["changed"]
    assert os.listdir(tmp_path / "out") == []

    made = convert(src=image, dest=str(dest))
    (entry,) = made["images"]
    assert made["changed"]
    assert entry["compared"]
    assert made["diff"] == checked["diff"]
    assert "identical" in run("qemu-img", "compare", image, dest)
    # Four tables of a cluster of 2 MiB each, and hardly any data.
    assert entry["target"]["allocated_bytes"] == os.stat(dest).st_blocks * 512 < 10 * MIB
    assert info(dest)["cluster-size"] == 2 * MIB
    assert info(dest)["format-specific"]["data"]["compression-type"] == "zstd"
    assert os.stat(dest).st_mode & 0o777 == 0o640

    before = os.stat(dest)
    again = convert(src=image, dest=str(dest))
    assert not again["changed"]
    assert again["images"][0]["reason"] == "The copy is up to date."
    assert os.stat(dest).st_mtime_ns == before.st_mtime_ns
    assert sorted(os.listdir(tmp_path / "out")) == ["copy.qcow2", "copy.qcow2.thinvirt.json"]


def test_a_changed_image_or_option_is_copied_again(image, tmp_path):
    dest = str(tmp_path / "out" / "copy.qcow2")
    convert(src=image, dest=dest)
    qemu_io(image, "write -P 8 40M 1M")
    assert convert(src=image, dest=dest)["changed"]
    assert "identical" in run("qemu-img", "compare", image, dest)
    assert convert(src=image, dest=dest, compression="none")["changed"]
    assert info(dest)["cluster-size"] == 65536
    assert not convert(src=image, dest=dest, compression="none")["changed"]
    assert convert(src=image, dest=dest, compression="none", force=True)["changed"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"format": "raw"}, 20 * MIB),
        ({"format": "raw", "sparse": False}, 64 * MIB),
        ({"format": "raw", "preallocation": "falloc"}, 64 * MIB),
        ({"compression": "none"}, 20 * MIB),
        ({"compression": "none", "preallocation": "full"}, 64 * MIB),
        ({"compression": "zlib", "cluster_size_bytes": 65536}, 0),
    ],
)
def test_forms(image, tmp_path, options, expected):
    dest = str(tmp_path / "out" / "copy")
    result = convert(src=image, dest=dest, **options)
    assert result["changed"]
    assert "identical" in run("qemu-img", "compare", image, dest)
    assert expected <= os.stat(dest).st_blocks * 512 < expected + 2 * MIB


def test_owner_and_mode_as_asked(image, tmp_path):
    dest = str(tmp_path / "out" / "copy.qcow2")
    convert(src=image, dest=dest, mode="0600")
    assert os.stat(dest).st_mode & 0o777 == 0o600
    assert convert(src=image, dest=dest, mode="0644")["changed"]
    assert os.stat(dest).st_mode & 0o777 == 0o644
    assert not convert(src=image, dest=dest, mode="0644")["changed"]


def test_a_new_mode_is_in_the_diff(image, tmp_path):
    dest = str(tmp_path / "out" / "copy.qcow2")
    convert(src=image, dest=dest, mode="0600")
    checked = convert(src=image, dest=dest, mode="0644", check=True)
    assert os.stat(dest).st_mode & 0o777 == 0o600
    assert checked["diff"]["before"]["attributes"][dest]["mode"] == "0600"
    assert checked["diff"]["after"]["attributes"][dest]["mode"] == "0644"
    assert convert(src=image, dest=dest, mode="0644")["diff"] == checked["diff"]
    assert "attributes" not in convert(src=image, dest=dest, mode="0644")["diff"]["after"]


def test_the_copy_of_an_overlay_is_whole(image, tmp_path):
    (tmp_path / "top").mkdir()
    top = create(tmp_path / "top" / "top.qcow2", backing=image)
    qemu_io(top, "write -P 9 50M 1M")
    dest = str(tmp_path / "out" / "copy.qcow2")
    refused = convert(src=top, dest=dest)
    assert_explains(refused, "lies in no allowed folder", "allowed_dirs")
    assert os.listdir(tmp_path / "out") == []
    convert(src=top, dest=dest, src_format="qcow2", allowed_dirs=[str(tmp_path)])
    assert "backing-filename" not in info(dest)
    assert "identical" in run("qemu-img", "compare", top, dest)


def test_an_external_data_file_is_taken_in(tmp_path):
    path = create(tmp_path / "x.qcow2", data_file=str(tmp_path / "x.raw"))
    qemu_io(path, "write -P 5 0 3M")
    dest = str(tmp_path / "copy.qcow2")
    convert(src=path, dest=dest, src_format="qcow2")
    assert "data-file" not in info(dest)["format-specific"]["data"]
    assert "identical" in run("qemu-img", "compare", path, dest)


@pytest.mark.parametrize("file_format", ["vdi", "vmdk", "vhdx", "vpc", "qed", "parallels"])
@pytest.mark.parametrize("check", [False, True])
def test_a_container_of_others_is_not_taken_for_the_disk_in_it(tmp_path, file_format, check):
    (tmp_path / "out").mkdir()
    path = create(tmp_path / "x.img", file_format=file_format)
    refused(path, tmp_path, " image, which is not read here", f"-f {file_format} ", check=check)


def test_a_vhd_of_fixed_size_is_known_by_its_end(tmp_path):
    (tmp_path / "out").mkdir()
    path = create(tmp_path / "x.vhd", file_format="vpc", subformat="fixed")
    refused(path, tmp_path, "is a VHD image")
    assert convert(src=path, dest=f"{tmp_path}/out/copy", src_format="raw")["changed"]


@pytest.mark.parametrize("other", ["victim.img", "data file", "backing file of the backing file"])
def test_what_a_guest_wrote_into_its_raw_disk_gets_no_data_of_others(tmp_path, other):
    (tmp_path / "out").mkdir()
    victim = tmp_path / "victim.img"
    victim.write_bytes(b"SECRET" * 100_000)
    header, disk = tmp_path / "header", tmp_path / "disk.img"
    if other == "data file":
        create(header, "8M", data_file=tmp_path / "own", data_file_raw="on")
        os.replace(victim, tmp_path / "own")
    else:
        run("qemu-img", "create", "-qu", "-fqcow2", "-b", victim, "-Fraw", header, "8M")
    disk.write_bytes(header.read_bytes().ljust(8 * MIB, b"\0"))
    src, given = str(disk), {}
    if "backing file of" in other:  # of an overlay that does not say what it lies on
        src, given = str(tmp_path / "top.qcow2"), {"src_format": "qcow2"}
        run("qemu-img", "create", "-qu", "-fqcow2", "-b", disk, "-Fqcow2", src, "8M")
        with open(src, "r+b") as file:
            data = file.read()
            file.seek(0)
            file.write(data.replace(b"\xe2\x79\x2a\xca", b"none"))
    refused(src, tmp_path, "the guest of a raw disk can write them", **given)
    copied = convert(src=str(disk), dest=f"{tmp_path}/out/copy", src_format="raw", format="raw")
    assert copied["changed"]
    assert disk.read_bytes() == (tmp_path / "out" / "copy").read_bytes()


def refused(image, tmp_path, *words, **arguments):
    """It is refused with these words, and the folder stays as it was."""
    before = {name: os.stat(tmp_path / "out" / name) for name in os.listdir(tmp_path / "out")}
    given = {"src": image, "dest": str(tmp_path / "out" / "copy.qcow2"), **arguments}
    assert_explains(convert(**given), *words)
    after = {name: os.stat(tmp_path / "out" / name) for name in os.listdir(tmp_path / "out")}
    assert {n: (s.st_ino, s.st_mtime_ns) for n, s in before.items()} == {
        n: (s.st_ino, s.st_mtime_ns) for n, s in after.items()
    }


def test_refusals(image, tmp_path):
    out = tmp_path / "out"
    (out / "foreign.qcow2").write_text("somebody's only copy of something")
    (out / "link.qcow2").symlink_to("/etc/passwd")
    refused(image, tmp_path, "is no copy that this module made", dest=str(out / "foreign.qcow2"))
    refused(image, tmp_path, "no regular file", dest=str(out / "link.qcow2"))
    refused(image, tmp_path, "no regular file", dest=str(out), force=True)
    refused(image, tmp_path, "is the image itself", dest=image, force=True)
    refused(image, tmp_path, "is no folder", dest=str(tmp_path / "nowhere" / "x"))
    refused(image, tmp_path, "absolute path", dest="relative.qcow2")
    refused(image, tmp_path, "does not exist", src=str(tmp_path / "gone"))
    refused(
        image,
        tmp_path,
        "both compressed and preallocated",
        compression="zlib",
        preallocation="full",
    )
    refused(image, tmp_path, "neither clusters nor compression", format="raw", compression="zstd")
    refused(image, tmp_path, "power of two", cluster_size_bytes=1000)
    refused(image, tmp_path, "free (min_free_bytes)", min_free_bytes=1 << 60)
    assert (out / "foreign.qcow2").read_text() == "somebody's only copy of something"


@pytest.mark.parametrize("check", [True, False])
def test_an_encrypted_image_is_refused(image, tmp_path, check):
    with open(image, "r+b") as file:
        head = file.read(4096)
        file.seek(0)
        file.write(patch(head, crypt_method=1))
    before = state(tmp_path)
    refused(image, tmp_path, "is encrypted", "nothing was changed. Copy the file", check=check)
    assert state(tmp_path) == before


def begun(image, dest, stage="convert"):
    """A copy that stands still in a stage: the process, and QEMU's in it."""
    given = {"src": image, "dest": str(dest), "min_free_bytes": 0}
    process = start_module("image_convert", hold=stage, **given)
    return process, held_child(process)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_leaves_the_older_copy(image, tmp_path, number):
    dest = tmp_path / "out" / "copy.qcow2"
    convert(src=image, dest=str(dest))
    qemu_io(image, "write -P 8 0 20M")
    before = state(tmp_path)
    process, child = begun(image, dest)
    assert len(os.listdir(dest.parent)) == 3  # the copy, its note, a new copy
    assert "journal of copy.qcow2" in leftovers(dest.parent)
    process.send_signal(number)
    assert f"Stopped by {number.name} before the end" in answer(process)["msg"]
    assert not os.path.exists(f"/proc/{child}")
    assert state(tmp_path) == before
    assert convert(src=image, dest=str(dest))["images"][0]["recovered"] == ""


def test_a_second_run_fails_at_once_and_names_the_first(image, tmp_path):
    dest = tmp_path / "out" / "copy.qcow2"
    process, child = begun(image, dest)
    before = state(tmp_path)
    for check in (True, False):
        result = convert(src=image, dest=str(dest), check=check)
        busy = f"Another run process {process.pid} (convert, copy) is at work on {dest}"
        assert_explains(result, busy, "nothing was changed. Wait for it to end.")
    assert state(tmp_path) == before
    go_on(child)
    assert answer(process)["changed"]
    assert "identical" in run("qemu-img", "compare", image, dest)


def test_a_copy_that_somebody_changed_is_not_ours_any_more(image, tmp_path):
    dest = tmp_path / "out" / "copy.qcow2"
    convert(src=image, dest=str(dest))
    qemu_io(dest, "write -P 1 0 1M")
    qemu_io(image, "write -P 2 0 1M")
    refused(image, tmp_path, "was changed since")


def test_damage_is_not_copied(image, tmp_path):
    with open(image, "r+b") as file:
        file.seek(2 * 65536)
        file.write(bytes(64))  # reference counts of clusters that are used
    refused(image, tmp_path, "damaged")


def test_an_image_in_use_is_refused(image, tmp_path):
    reader = subprocess.Popen(
        ["qemu-io", "-f", "qcow2", image], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 20
        while "in use" not in (result := convert(src=image, dest=f"{tmp_path}/out/x"))["msg"]:
            assert time.monotonic() < deadline
            shutil.rmtree(tmp_path / "out")
            (tmp_path / "out").mkdir()
        assert_explains(result, "in use", "Shut the domain down")
        assert os.listdir(tmp_path / "out") == []
    finally:
        reader.communicate(b"quit\n", timeout=20)


def test_a_second_name_of_the_image_is_the_image_itself(image, tmp_path):
    os.link(image, tmp_path / "out" / "second.qcow2")
    dest = f"{tmp_path}/out/second.qcow2"
    refused(image, tmp_path, "is the image itself", dest=dest, force=True)


@pytest.mark.parametrize("check", [False, True])
def test_an_image_that_a_program_without_locks_may_write_to_is_refused(image, tmp_path, check):
    code = "import sys; file = open(sys.argv[1], 'r+b'); print(flush=True); sys.stdin.read()"
    argv = [sys.executable, "-c", code, image]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        refused(image, tmp_path, f"({writer.pid}); nothing was changed", check=check)
        writer.communicate(timeout=20)


def versions(tmp_path) -> list[str]:
    return sorted(name for name in os.listdir(tmp_path / "out") if name.endswith(".qcow2"))


def test_versions_and_retention(image, tmp_path):
    out = str(tmp_path / "out")
    (tmp_path / "out" / "web1-20200101T000000Z.qcow2").write_text("not ours")
    made = []
    for number in range(4):
        assert convert(paths=[image], dest_dir=out, keep=2)["changed"]
        assert not convert(paths=[image], dest_dir=out, keep=2)["changed"]
        made = [name for name in versions(tmp_path) if "2020" not in name]
        assert len(made) == min(number + 1, 2)
        qemu_io(image, f"write -P {number} 0 1M")
        time.sleep(1.1)  # versions are told apart by the second
    checked = convert(paths=[image], dest_dir=out, keep=1, check=True)
    assert [os.path.basename(path) for path in checked["images"][0]["removed"]] == made
    assert [name for name in versions(tmp_path) if "2020" not in name] == made
    real = convert(paths=[image], dest_dir=out, keep=1)
    assert real["images"][0]["removed"] == checked["images"][0]["removed"]
    (latest,) = (name for name in versions(tmp_path) if "2020" not in name)
    assert "identical" in run("qemu-img", "compare", image, tmp_path / "out" / latest)
    assert (tmp_path / "out" / "web1-20200101T000000Z.qcow2").read_text() == "not ours"


def test_as_many_stay_as_asked_for_where_nothing_is_copied(image, tmp_path):
    out = str(tmp_path / "out")
    for number in range(3):
        qemu_io(image, f"write -P {number} 0 1M")
        assert convert(paths=[image], dest_dir=out)["changed"]
    first, *newer = versions(tmp_path)
    (entry,) = convert(paths=[image], dest_dir=out, keep=2)["images"]
    assert (entry["reason"], entry["removed"]) == ("The copy is up to date.", [f"{out}/{first}"])
    assert versions(tmp_path) == newer


def test_versions_of_another_image_of_that_name_stay(image, tmp_path):
    (tmp_path / "other").mkdir()
    other = str(shutil.copy(image, tmp_path / "other" / "web1.qcow2"))
    for path in (image, other):
        assert convert(paths=[path], dest_dir=str(tmp_path / "out"), keep=1)["changed"]
    assert len(versions(tmp_path)) == 2


def test_two_images_of_one_name_are_refused(image, tmp_path):
    (tmp_path / "other").mkdir()
    other = shutil.copy(image, tmp_path / "other" / "web1.qcow2")
    result = convert(paths=[image, str(other)], dest_dir=str(tmp_path / "out"))
    assert_explains(result, "2 of the images would be called web1", "(names)")


_KILLED = """
import sys
sys.path[:0] = {path!r}
from support import run_module
run_module("image_convert", src={src!r}, dest={dest!r}, min_free_bytes=0)
"""


def test_killed_at_any_time_the_next_run_goes_on(image, tmp_path):
    """The old copy, or the new one, always has the name; never anything else."""
    dest = tmp_path / "out" / "copy.qcow2"
    qemu_io(image, "write -P 3 0 60M")
    convert(src=image, dest=str(dest))
    shutil.copy(dest, tmp_path / "first.qcow2")
    qemu_io(image, "write -P 4 0 60M")
    program = _KILLED.format(path=sys.path, src=image, dest=str(dest))
    for delay in (0.25, 0.35, 0.45, 0.55, 0.65, 0.8):
        process = subprocess.Popen(
            [sys.executable, "-c", program], start_new_session=True, stderr=subprocess.DEVNULL
        )
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        contents = [
            subprocess.run(["qemu-img", "compare", other, dest], capture_output=True, check=False)
            for other in (str(tmp_path / "first.qcow2"), image)
        ]
        assert 0 in [answer.returncode for answer in contents]
    convert(src=image, dest=str(dest))
    assert "identical" in run("qemu-img", "compare", image, dest)
    assert sorted(os.listdir(tmp_path / "out")) == ["copy.qcow2", "copy.qcow2.thinvirt.json"]


@pytest.mark.parametrize("other", ["data file", "backing file"])
def test_the_data_may_change_in_another_file(tmp_path, other):
    """The image itself stays as it was to the byte; its copy must not count as up to date."""
    (tmp_path / "out").mkdir()
    if other == "data file":
        path = written = create(tmp_path / "x.qcow2", data_file=str(tmp_path / "x.raw"))
        qemu_io(path, "write -P 5 0 3M")
    else:
        written = create(tmp_path / "base.qcow2")
        path = create(tmp_path / "x.qcow2", backing=written)
    dest = str(tmp_path / "out" / "copy.qcow2")
    convert(src=path, dest=dest, src_format="qcow2")
    assert not convert(src=path, dest=dest, src_format="qcow2")["changed"]
    before = os.stat(path).st_mtime_ns
    qemu_io(written, "write -P 6 0 3M")
    os.utime(path, ns=(before, before))
    assert convert(src=path, dest=dest, src_format="qcow2")["changed"]
    assert "identical" in run("qemu-img", "compare", path, dest)


def test_check_mode_refuses_what_a_run_would_refuse(image, tmp_path):
    (tmp_path / "top").mkdir()
    top = create(tmp_path / "top" / "top.qcow2", backing=image)
    refused(image, tmp_path, "lies in no allowed folder", src=top, check=True)
    refused(image, tmp_path, "too long a name", dest=f"{tmp_path}/out/{'x' * 230}")
    refused(image, tmp_path, "too long a name", dest=f"{tmp_path}/out/{'x' * 230}", check=True)


def test_a_manifest_that_somebody_else_wrote_counts_for_nothing(image, tmp_path):
    dest = tmp_path / "out" / "copy.qcow2"
    manifest = tmp_path / "out" / "copy.qcow2.thinvirt.json"
    convert(src=image, dest=str(dest))
    qemu_io(image, "write -P 2 0 1M")
    whole = manifest.read_text()
    for text in ("[" * 50_000, whole.replace('"src"', '"SRC"'), "", whole[:100]):
        manifest.write_text(text)
        refused(image, tmp_path, "is no copy that this module made")
    manifest.write_text(whole)
    manifest.chmod(0o666)
    refused(image, tmp_path, "is no copy that this module made")
    manifest.chmod(0o600)
    if os.geteuid() == 0:  # to give a file away takes root
        os.chown(manifest, 1234, -1)
        refused(image, tmp_path, "is no copy that this module made")
        os.chown(manifest, 0, -1)
    # Of a reboot, after which the device may have another number.
    fields = json.loads(whole)
    fields["copy"]["dev"] += 1
    manifest.write_text(json.dumps(fields))
    os.mkfifo(f"{manifest}.tmp")  # put there to be waited for
    assert convert(src=image, dest=str(dest))["changed"]
    assert sorted(os.listdir(tmp_path / "out")) == ["copy.qcow2", "copy.qcow2.thinvirt.json"]


def test_versions_by_names_that_are_given(image, tmp_path):
    (tmp_path / "other").mkdir()
    other = create(tmp_path / "other" / os.path.basename(image))
    asked = {
        "paths": [image, other],
        "dest_dir": str(tmp_path / "out"),
        "names": {image: "web[1]-vda", other: "web2-vda"},
        "keep": 1,
    }
    for number in (1, 2):
        qemu_io(image, f"write -P {number} 0 1M")
        done = convert(**asked)
        assert done["changed"]
        assert [len(entry["removed"]) for entry in done["images"]] == [number - 1, 0]
        assert not convert(**asked)["changed"]
    two, one = versions(tmp_path)  # in the order of their bytes
    assert one.startswith("web[1]-vda-2")
    assert two.startswith("web2-vda-2")
    assert "identical" in run("qemu-img", "compare", image, str(tmp_path / "out" / one))
    assert "identical" in run("qemu-img", "compare", other, str(tmp_path / "out" / two))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"/elsewhere.qcow2": "web1"}, "none of the images"),
        ({"IMAGE": "../web1"}, "cannot be the name"),
        ({"IMAGE": ""}, "cannot be the name"),
        ({"IMAGE": ".hidden"}, "cannot be the name"),
    ],
)
def test_names_that_are_none(image, tmp_path, names, words):
    names = {path.replace("IMAGE", image): name for path, name in names.items()}
    assert_explains(convert(paths=[image], dest_dir=str(tmp_path / "out"), names=names), words)
    assert os.listdir(tmp_path / "out") == []


def test_a_version_in_use_is_not_removed(image, tmp_path):
    out = str(tmp_path / "out")
    (old,) = (entry["dest"] for entry in convert(paths=[image], dest_dir=out)["images"])
    qemu_io(image, "write -P 2 0 1M")
    reader = subprocess.Popen(
        ["qemu-io", "-r", "-f", "qcow2", old], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        # Its prompt comes once it has the file. Trying to open it meanwhile could keep it out.
        assert reader.stdout.read(len(b"qemu-io>")) == b"qemu-io>"
        result = convert(paths=[image], dest_dir=out, keep=1)
        assert_explains(result, "in use", os.path.basename(old))
        assert len(versions(tmp_path)) == 2
    finally:
        reader.communicate(b"quit\n", timeout=20)
    assert convert(paths=[image], dest_dir=out, keep=1)["images"][0]["removed"] == [old]


def test_versions_of_one_second_and_of_a_clock_that_was_set_back(image, tmp_path, monkeypatch):
    out, now = str(tmp_path / "out"), 4_000_000_000
    monkeypatch.setattr(time, "time", lambda: now)
    gmtime = time.gmtime
    monkeypatch.setattr(time, "gmtime", lambda seconds=None: gmtime(seconds or now))

    def copied(number):
        qemu_io(image, f"write -P {number} 0 1M")
        copy = copy_versions(
            [image], out, Request(min_free_bytes=0), keep=2, check_mode=False, log=print
        )[0]
        assert copy.error is None
        assert copy.outcome is not None
        assert copy.outcome.changed
        return copy

    made = [os.path.basename(copied(number).outcome.dest) for number in range(3)]
    assert versions(tmp_path) == made[1:]
    now -= 1_000_000_000
    new = copied(7)
    assert versions(tmp_path) == sorted([made[2], os.path.basename(new.outcome.dest)])
    newer = copied(8)
    assert versions(tmp_path) == sorted(
        os.path.basename(copy.outcome.dest) for copy in (new, newer)
    )
    now -= 1_000_000_000  # it is behind, for one version
    behind = copied(9)
    now += 1_100_000_000
    last = copied(10)
    assert versions(tmp_path) == sorted(
        os.path.basename(copy.outcome.dest) for copy in (behind, last)
    )


def test_what_a_killed_run_has_left_of_a_version_goes(image, tmp_path):
    """The next run gives its copy another name, and would not come back to the old one."""
    qemu_io(image, "write -P 3 0 60M")
    out = tmp_path / "out"
    program = _KILLED_VERSION.format(path=sys.path, src=image, dest=str(out))
    process = subprocess.Popen(
        [sys.executable, "-c", program], start_new_session=True, stderr=subprocess.DEVNULL
    )
    while not any(name.endswith(".tmp") for name in os.listdir(out)):
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert len(leftovers(out)) >= 2
    checked = convert(paths=[image], dest_dir=str(out), check=True)
    assert "was killed" in checked["images"][0]["recovered"]
    real = convert(paths=[image], dest_dir=str(out))
    assert "was killed" in real["images"][0]["recovered"]
    (name,) = versions(tmp_path)
    assert sorted(os.listdir(out)) == [name, f"{name}.thinvirt.json"]


_KILLED_VERSION = """
import sys
sys.path[:0] = {path!r}
from support import run_module
run_module("image_convert", paths=[{src!r}], dest_dir={dest!r}, min_free_bytes=0)
"""
