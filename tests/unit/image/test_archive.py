# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Versions of backups: names, manifests, and which of them go."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    ImageError,
    RefusedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import archive
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.archive_manifest import (
    Manifest,
    StoredDisk,
    StoredFile,
    doomed,
    in_order,
    parse_manifest,
)

SUM = "0" * 64


def manifest(**changes) -> Manifest:
    fields = {
        "created": "20261124T204455Z",
        "domain": "web1",
        "uuid": "f4e2b079-09dd-4204-b81e-9bec7bc31162",
        "consistency": "frozen",
        "freeze": {},
        "xml": "<domain/>",
        "with_secrets": False,
        "verified": "compared",
        "versions": {},
        "disks": [StoredDisk("vda", "vda.qcow2", "qcow2", 1 << 30, "/images/web1.qcow2")],
        "files": [StoredFile("vda.qcow2", 3, 5, SUM)],
    }
    return Manifest(**{**fields, **changes})


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("web1", "web1"),
        ("Käthe & Söhne", "Käthe & Söhne"),
        ("..", "%2E."),
        (".hidden", "%2Ehidden"),
        ("%2E.", "%252E."),
        ("a\nb\x1b", "a%0Ab%1B"),
        ("a/b", "a%2Fb"),
        ("\udcff", "%FF"),
        ("-rf", "-rf"),
    ],
)
def test_a_domains_folder(name, folder):
    assert archive.folder_name(name) == folder
    assert os.path.normpath(f"/x/{folder}") == f"/x/{folder}"


@pytest.mark.parametrize("name", ["", "x" * 256, "ä" * 128])
def test_a_name_that_no_folder_can_have(name):
    with pytest.raises(RefusedError):
        archive.folder_name(name)


def text_of(made: Manifest) -> str:
    return json.dumps(dataclasses.asdict(made))


def test_a_manifest_is_read_as_it_was_written():
    made = manifest(
        nvram="nvram.fd",
        files=[*manifest().files, StoredFile("nvram.fd", 1, 2, SUM)],
    )
    read = parse_manifest(text_of(made))
    assert dataclasses.asdict(read) == {
        **dataclasses.asdict(made),
        "disks": tuple(dataclasses.asdict(made)["disks"]),
        "files": tuple(dataclasses.asdict(made)["files"]),
    }


DISK = manifest().disks[0]
FILE = manifest().files[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"made_by": "somebody"},
        {"format": 2},
        {"number": "1"},
        {"number": -1},
        {"xml": None},
        {"files": []},
        {"files": [FILE, FILE]},
        {"files": [FILE, dataclasses.replace(FILE, name="vdb.qcow2")]},
        {"files": [dataclasses.replace(FILE, sha256="x")]},
        {"files": [dataclasses.replace(FILE, size_bytes="3")]},
        {"disks": [dataclasses.replace(DISK, format="raw")]},
        {"disks": [dataclasses.replace(DISK, target="../vda")]},
        {
            "disks": [dataclasses.replace(DISK, file="../vda.qcow2")],
            "files": [dataclasses.replace(FILE, name="../vda.qcow2")],
        },
        {
            "disks": [dataclasses.replace(DISK, file=".x")],
            "files": [dataclasses.replace(FILE, name=".x")],
        },
    ],
)
def test_a_hostile_manifest_is_none(changes):
    with pytest.raises(ImageError, match="no manifest"):
        parse_manifest(text_of(manifest(**changes)))


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '"x"', "{" * 100_000, b"\xff"])
def test_nonsense_is_no_manifest(text):
    with pytest.raises(ImageError, match="no manifest"):
        parse_manifest(text)


@pytest.mark.parametrize(
    ("count", "keep", "fresh", "gone"),
    [(0, 1, 1, 0), (3, 0, 1, 0), (3, 3, 0, 0), (3, 3, 1, 1), (5, 2, 1, 4), (3, 1, 0, 2)],
)
def test_which_versions_are_too_many(count, keep, fresh, gone):
    versions = [archive.Version(f"/b/{n}", manifest()) for n in range(count)]
    assert doomed(versions, keep=keep, fresh=fresh) == versions[:gone]


def version(number, *disks, **changes):
    """A version of these disks: ``target`` or ``target=source``."""
    made = [
        StoredDisk(target, f"{target}.qcow2", "qcow2", 1, source or f"/images/{target}")
        for target, _equals, source in (disk.partition("=") for disk in disks)
    ]
    return archive.Version(f"/b/{number}", manifest(number=number, disks=made, **changes))


@pytest.mark.parametrize(
    ("made", "fresh", "keep", "gone"),
    [
        pytest.param(["a b", "a"], [], 1, [], id="the only copy of b"),
        pytest.param(["a b", "a", "b"], [], 1, [1], id="each disk by another version"),
        pytest.param(["a b", "a", "a", "a"], [], 2, [2], id="what is surplus itself"),
        pytest.param(["a b"], ["a"], 1, [], id="the new version is of a alone"),
        pytest.param(["a b", "a"], ["a b"], 1, [1, 2], id="the new version has both"),
        pytest.param(["a b", "a b"], ["a"], 2, [], id="one copy of b is too few"),
        pytest.param(["a=/1", "a=/2"], [], 1, [1], id="a disk that has moved"),
        pytest.param(["a=/1", "b=/1"], [], 1, [1], id="a disk with another target"),
        pytest.param(["a=/1 b=/2", "b=/1"], [], 1, [], id="the target of another disk"),
        pytest.param(["a=/1 b=/2", "a=/2 b=/1"], [], 1, [1], id="two disks that changed places"),
    ],
)
def test_copies_are_counted_for_each_disk(made, fresh, keep, gone):
    versions = [version(number, *disks.split()) for number, disks in enumerate(made, 1)]
    disks = [disk for new in fresh for disk in version(9, *new.split()).manifest.disks]
    surplus = doomed(versions, keep=keep, fresh=len(fresh), disks=disks)
    assert [each.manifest.number for each in surplus] == gone


def test_no_clock_turns_versions_around():
    made = [
        version(0, "a", created="20300101T000000Z"),  # of a release that did not count, in future
        version(0, "a", created="20240101T000000Z"),
        version(0, "a", created="20250101T000000Z"),
        version(1, "a", created="20300101T000000Z"),
        version(2, "a", created="19700101T000000Z"),
        version(3, "a", created="20260101T000000Z"),
    ]
    assert in_order(made[::-1], now="20260101T000000Z") == made


def stored(folder, name, **changes):
    """A version on the disk."""
    path = folder / name
    path.mkdir()
    (path / "vda.qcow2").write_bytes(b"abc")
    file = archive.stored_file(str(path / "vda.qcow2"), report=lambda _percent: None)
    made = manifest(created=name, files=[file], **changes)
    (path / "manifest.json").write_text(text_of(made))
    return path


def test_only_whole_versions_of_this_domain_count(tmp_path):
    wanted = stored(tmp_path, "20261124T204455Z")
    stored(tmp_path, "20261124T204456Z", uuid="another")
    (stored(tmp_path, "20261124T204457Z") / "notes").write_text("of somebody")
    (stored(tmp_path, "20261124T204458Z") / "vda.qcow2").write_bytes(b"abcd")
    os.utime(stored(tmp_path, "20261124T204459Z") / "vda.qcow2", ns=(7, 7))
    (stored(tmp_path, "20261124T204460Z") / "vda.qcow2").unlink()
    stored(tmp_path, ".20261124T204461Z.partial")
    (tmp_path / "20261124T204462Z").symlink_to(wanted)
    found = archive.versions_of(str(tmp_path), uuid=manifest().uuid)
    assert [version.path for version in found] == [str(wanted)]


def test_a_version_from_before_the_clock_was_set_back_is_the_oldest(tmp_path):
    for name in ("20990101T000000Z", "20250101T000000Z", "20240101T000000Z"):
        stored(tmp_path, name)
    found = archive.versions_of(str(tmp_path), uuid=manifest().uuid)
    assert [version.manifest.created[:4] for version in found] == ["2099", "2024", "2025"]


def test_the_newest_is_the_one_that_was_made_last(tmp_path):
    stored(tmp_path, "20300101T000000Z", number=1)
    last = stored(tmp_path, "20260101T000000Z", number=2)
    assert archive.newest(str(tmp_path)).path == str(last)


def test_a_newest_version_that_cannot_be_read_is_not_passed_over(tmp_path):
    whole = stored(tmp_path, "20260101T000000Z")
    (stored(tmp_path, "20250101T000000Z") / "manifest.json").write_text("{}")
    assert archive.newest(str(tmp_path)).path == str(whole)
    (stored(tmp_path, "20270101T000000Z") / "manifest.json").write_text("{}")
    with pytest.raises(ImageError, match=r"20270101T.*cannot be used.*Name the folder"):
        archive.newest(str(tmp_path))


def test_versions_of_one_second_are_in_the_order_in_which_they_were_made(tmp_path, monkeypatch):
    now = 4_000_000_000
    gmtime = time.gmtime
    monkeypatch.setattr(time, "time", lambda: now)
    monkeypatch.setattr(time, "gmtime", lambda seconds=None: gmtime(seconds or now))
    folder = str(tmp_path / "web1")
    made = []
    for _number in range(3):
        with archive.domain_folder(folder), archive.new_version(folder) as partial:
            Path(partial.path, "vda.qcow2").write_bytes(b"abc")
            file = archive.stored_file(f"{partial.path}/vda.qcow2", report=lambda _percent: None)
            version = partial.finish(manifest(created=partial.created, files=[file]))
            made.append(version.path)
    assert len(set(made)) == 3
    found = archive.versions_of(folder, uuid=manifest().uuid)
    assert [version.path for version in found] == made


def test_a_version_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """The file, the manifest, what has which name in the version, and in the end the version."""
    done = []
    fsync, rename = os.fsync, os.rename

    def noted(fd):
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        fsync(fd)

    with archive.new_version(str(tmp_path)) as partial:
        name, final = os.path.basename(partial.path), os.path.basename(partial.final)
        Path(partial.path, "vda.qcow2").write_bytes(b"abc")
        monkeypatch.setattr(os, "fsync", noted)
        monkeypatch.setattr(os, "rename", lambda *names: (done.append("rename"), rename(*names)))
        file = archive.stored_file(f"{partial.path}/vda.qcow2", report=lambda _percent: None)
        partial.finish(manifest(created=partial.created, files=[file]))
    assert done == ["vda.qcow2", "manifest.json", name, "rename", tmp_path.name]
    assert os.listdir(tmp_path) == [final]


def unfinished(folder):
    with archive.domain_folder(folder), archive.new_version(folder) as partial:
        Path(partial.path, "vda.qcow2").write_bytes(b"abc")
        raise RuntimeError


def test_a_version_that_was_not_finished_is_gone(tmp_path):
    with pytest.raises(RuntimeError):
        unfinished(str(tmp_path / "web1"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_others_may_write_to_is_refused(tmp_path):
    folder = tmp_path / "web1"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(RefusedError, match="only this user"), archive.domain_folder(str(folder)):
        pass
    link = tmp_path / "web2"
    link.symlink_to(tmp_path)
    with pytest.raises(RefusedError, match="exists already"), archive.domain_folder(str(link)):
        pass
    assert os.listdir(folder) == []


def test_two_runs_do_not_share_a_folder(tmp_path):
    folder = str(tmp_path / "web1")
    with archive.domain_folder(folder):
        with pytest.raises(RefusedError, match="Another run"), archive.domain_folder(folder):
            pass
        with pytest.raises(RefusedError, match="Another run"):
            archive.peek_folder(folder)


def test_what_a_killed_run_has_left_is_removed_and_no_link_is_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    left = tmp_path / "web1" / ".20261124T204455Z.partial"
    left.mkdir(parents=True)
    (left / "vda.qcow2").symlink_to(outside)
    assert "would be removed" in archive.peek_folder(str(tmp_path / "web1"))
    with archive.domain_folder(str(tmp_path / "web1")) as removed:
        assert "was removed" in removed
    assert outside.read_text() == "mine"
    assert not left.exists()


def test_a_version_that_is_restored_from_is_not_removed(tmp_path):
    path = stored(tmp_path, "20261124T204455Z")
    (version,) = archive.versions_of(str(tmp_path), uuid=manifest().uuid)
    with archive.being_read(str(path)), pytest.raises(RefusedError, match="a restore"):
        archive.remove_version(version, check_mode=False)
    archive.remove_version(version, check_mode=True)
    assert path.exists()
    archive.remove_version(version, check_mode=False)
    assert list(tmp_path.iterdir()) == []
