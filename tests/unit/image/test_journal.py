# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal: what is in it counts only whole, and only if it is our own."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import journal as journals
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import (
    Identity,
    Record,
    is_temp_name,
    open_journal,
    peek,
    temp_name,
)

FILE = Identity(dev=1, ino=2, size=3, mtime_ns=4)
FIRST = Record(operation="rewrite", stage="copy", pid=7, source=FILE, temp=".x.tmp")
LAST = dataclasses.replace(FIRST, stage="swap", kept=".y.tmp", keep_original=True, copy=FILE)


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    """The journals' folder, apart from that of other tests."""
    monkeypatch.setenv("THINVIRT_STATE_DIR", str(tmp_path / "state"))
    folder = tmp_path / "state" / "journals"
    folder.mkdir(mode=0o700, parents=True)
    return folder


@pytest.fixture
def image(tmp_path):
    (tmp_path / "images").mkdir()
    return str(tmp_path / "images" / "x.qcow2")


@pytest.fixture
def name(image):
    return journals.journal_path(image)


def write(image, *records, tail: bytes = b"") -> None:
    """What a run that was killed leaves; the tail is a line that was cut short."""
    with open_journal(image) as journal:
        for record in records:
            journal.write(record)
    with open(journals.journal_path(image), "ab") as file:
        file.write(tail)


def left_on(image) -> Record | None:
    with open_journal(image) as journal:
        return journal.left


def test_a_journal_that_was_cleared_is_removed(image, name, state):
    with open_journal(image) as journal:
        assert journal.left is None
        journal.write(FIRST)
        assert os.listdir(os.path.dirname(image)) == []
        assert os.listdir(state) == [os.path.basename(name)]
        journal.clear()
    assert os.listdir(state) == []


def test_a_journal_that_was_not_cleared_is_for_the_next_run(image, name):
    write(image, FIRST)
    assert os.stat(name).st_mode & 0o777 == 0o600
    assert peek(image) == FIRST
    assert left_on(image) == FIRST
    assert os.path.exists(name)


def test_an_error_clears_nothing(image):
    def fail() -> None:
        with open_journal(image) as journal:
            journal.write(FIRST)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert left_on(image) == FIRST


def test_the_last_whole_line_wins(image):
    write(image, FIRST, LAST)
    assert left_on(image) == LAST


def test_a_line_that_was_cut_short_counts_for_nothing(image):
    whole = json.dumps(dataclasses.asdict(LAST)).encode()
    for length in range(len(whole)):
        write(image, FIRST, tail=b"\n" + whole[:length])
        assert left_on(image) == FIRST, length
        os.unlink(journals.journal_path(image))
    write(image, FIRST, tail=b"\n" + whole)
    assert left_on(image) == LAST


def test_a_line_after_one_that_was_cut_short(image):
    write(image, FIRST, tail=b'\n{"operation": "rew')
    write(image, LAST)
    assert left_on(image) == LAST


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n\n\n",
        b"null",
        b"[]",
        b"7",
        b"{}",
        b'{"operation": "rewrite"}',
        b'{"source": null, "copy": null}',
        b'{"source": {"dev": 1}, "copy": null, "operation": "a", "stage": "b", "pid": 1}',
        b'{"source": null, "copy": null, "operation": "a", "stage": "b", "pid": 1, "more": 2}',
        b"\xff\xfe\x00",
        b"\x00" * 4096,
        b"x" * (journals.MAX_JOURNAL_BYTES * 2),
    ],
)
def test_nonsense_counts_for_nothing(image, name, text):
    with open(name, "wb") as file:
        file.write(text)
    os.chmod(name, 0o600)
    assert peek(image) is None
    assert left_on(image) is None


def test_a_full_disk_that_takes_a_part_of_a_line(image, monkeypatch):
    """write(2) says ENOSPC only when asked to write the rest."""
    real, room = os.write, [20]

    def scarce(fd, data):
        if room[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        piece = data[: room[0]]
        room[0] -= len(piece)
        return real(fd, piece)

    with open_journal(image) as journal:
        monkeypatch.setattr(os, "write", scarce)
        with pytest.raises(ThinvirtError, match=r"No space left on device.*Free space"):
            journal.write(FIRST)
        monkeypatch.undo()
    assert left_on(image) is None


def test_records_are_on_the_disk_before_work_goes_on(image, monkeypatch):
    synced = []
    real = os.fsync
    with open_journal(image) as journal:
        monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_mode), real(fd)))
        journal.write(FIRST)
        assert [oct(mode)[:3] for mode in synced] == ["0o1", "0o4"]  # the file, then its folder


FOREIGN = "is not a journal that this user has written; nothing was changed"


def refused(image) -> None:
    for way in (peek, left_on):
        with pytest.raises(RefusedError, match=FOREIGN):
            way(image)


@pytest.mark.skipif(os.geteuid() != 0, reason="to give a file away takes root")
def test_somebody_elses_journal(image, name):
    write(image, FIRST)
    os.chown(name, 65534, -1)
    refused(image)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_journal_that_others_may_write_to(image, name, mode):
    write(image, FIRST)
    os.chmod(name, mode)
    refused(image)


def test_a_journal_with_another_name(image, name, tmp_path):
    write(image, FIRST)
    os.link(name, tmp_path / "other")
    refused(image)


@pytest.mark.parametrize("target", ["other", "missing", "/dev/null"])
def test_a_symlink(image, name, tmp_path, target):
    (tmp_path / "other").write_bytes(b"")
    os.symlink(target, name)
    with pytest.raises(RefusedError, match=FOREIGN):
        left_on(image)
    with pytest.raises(ThinvirtError, match="journal cannot be opened"):
        peek(image)
    assert (tmp_path / "other").read_bytes() == b""
    assert not (tmp_path / "missing").exists()


def test_a_fifo_blocks_nobody(image, name):
    os.mkfifo(name, 0o600)
    refused(image)


def test_a_directory(image, name):
    os.mkdir(name)
    with pytest.raises(ThinvirtError, match="Is a directory"):
        left_on(image)


def test_two_runs_on_one_image(image):
    with open_journal(image) as journal:
        with pytest.raises(RefusedError, match=r"Another run is at work on .*x\.qcow2"):
            left_on(image)
        journal.write(FIRST)
        for way in (peek, left_on):
            with pytest.raises(RefusedError, match=r"Another run process 7 \(rewrite, copy\)"):
                way(image)
        journal.clear()
    assert left_on(image) is None


def test_the_kernel_ends_the_lock_of_a_process_that_was_killed(image):
    code = (
        "import os, sys\n"
        "from ansible_collections.thinvirt.kvm.plugins.module_utils._image import journal\n"
        "with journal.open_journal(sys.argv[1]):\n"
        "    print(flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, image], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        with pytest.raises(RefusedError, match="Another run"):
            left_on(image)
        child.kill()
    assert left_on(image) is None


def test_peeking_locks_nothing_and_makes_nothing(image, state):
    state.rmdir()
    state.parent.rmdir()
    assert peek(image) is None
    assert not state.parent.exists()
    write(image, FIRST)
    before = os.stat(journals.journal_path(image))
    assert peek(image) == peek(image) == FIRST
    after = os.stat(journals.journal_path(image))
    assert (before.st_mtime_ns, before.st_ctime_ns) == (after.st_mtime_ns, after.st_ctime_ns)


def test_a_journal_that_its_holder_removes_just_before_we_get_the_lock(image, name, monkeypatch):
    """The lock that we got is on a file without a name: it is made anew, and that one is locked."""
    real, holders = fcntl.flock, []

    def late(fd, how):
        if not holders and os.path.exists(name):
            holders.append(fd)
            os.unlink(name)
        return real(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with open_journal(image), pytest.raises(RefusedError, match="Another run"):
        left_on(image)


def test_a_file_system_without_such_locks(image, monkeypatch):
    def refuse(_fd, _how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ThinvirtError, match="cannot be locked: No locks available"):
        left_on(image)


def test_a_forged_journal_beside_the_image_counts_for_nothing(image):
    """As its folder's owner may make it, of whatever he wants to have carried out."""
    forged = journals.beside(image)
    with open(forged, "w", encoding="ascii") as file:
        json.dump(dataclasses.asdict(FIRST), file)
    if os.geteuid() == 0:
        os.chown(forged, 65534, -1)
        assert peek(image) is None
        assert left_on(image) is None
        os.chown(forged, 0, -1)
    # Ours, as an older release has left it, or as one of our files was renamed.
    for way in (peek, left_on):
        with pytest.raises(RefusedError, match=r"\.x\.qcow2\.thinvirt-journal.*is not obeyed"):
            way(image)
    assert os.path.exists(forged)


def test_a_folder_in_which_others_can_exchange_the_image(image):
    Path(image).parent.chmod(0o777)
    with pytest.raises(RefusedError, match="another user could exchange files"):
        left_on(image)


def other_paths(image):
    """Another path to the image, another name of it in its folder, and one in another folder."""
    folder, base = os.path.split(image)
    moved = f"{folder}-moved"
    return f"{moved}/{base}", f"{folder}/y.qcow2", f"{folder}-2/z.qcow2", moved


def test_the_same_folder_by_another_path(image):
    there, _renamed, _linked, moved = other_paths(image)
    write(image, FIRST)
    os.rename(os.path.dirname(image), moved)
    assert peek(there) == FIRST
    assert left_on(there) == FIRST


def test_another_folder_that_has_the_path_now(image, name):
    _there, _renamed, _linked, moved = other_paths(image)
    write(image, FIRST)
    os.rename(os.path.dirname(image), moved)
    os.mkdir(os.path.dirname(image))
    for way in (peek, left_on):
        with pytest.raises(RefusedError, match=r"in another folder, which had this path then") as e:
            way(image)
        assert name in e.value.remedy
    os.unlink(name)
    assert left_on(image) is None


@pytest.mark.parametrize("how", ["renamed", "linked"])
def test_the_same_file_by_another_name(image, how):
    _there, renamed, linked, _moved = other_paths(image)
    with open(image, "w", encoding="ascii"):
        pass
    os.mkdir(os.path.dirname(linked))
    other = renamed if how == "renamed" else linked
    with open_journal(image) as journal:
        os.link(image, other)
        for way in (peek, left_on):
            with pytest.raises(RefusedError, match="Another run is at work on"):
                way(other)
        journal.write(FIRST)
    for way in (peek, left_on):
        with pytest.raises(RefusedError, match=r"at work on .* by the name .*images/x\.qcow2"):
            way(other)
    with open_journal(image) as journal:
        journal.clear()
    assert left_on(other) is None


def test_temp_names_are_told_from_all_others(image):
    assert is_temp_name(temp_name(image), image)
    assert temp_name(image) != temp_name(image)
    assert "/" not in temp_name(image)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/",
        "x.qcow2",
        "../x",
        "../.x.qcow2.thinvirt-0123456789abcdef.tmp",
        ".x.qcow2.thinvirt-../../../../x.tmp",
        ".x.qcow2.thinvirt-/etc/shadow1234.tmp",
        ".x.qcow2.thinvirt-.tmp",
        ".x.qcow2.thinvirt-0123456789ABCDEF.tmp",
        ".x.qcow2.thinvirt-0123456789abcde.tmp",
        ".x.qcow2.thinvirt-0123456789abcdef0.tmp",
        ".x.qcow2.thinvirt-0123456789abcdef.tmp\n",
        ".x.qcow2.thinvirt-0123456789abcdef.tmp\0",
        ".x.qcow2.thinvirt-0123456789abcde\N{SUPERSCRIPT TWO}.tmp",
        "x.qcow2.thinvirt-0123456789abcdef.tmp",
        ".y.qcow2.thinvirt-0123456789abcdef.tmp",
        ".x.qcow2.thinvirt-0123456789abcdef",
        ".x.qcow2.thinvirt-journal",
        ".x.qcow2.thinvirt-original",
    ],
)
def test_hostile_temp_names(image, name):
    assert not is_temp_name(name, image)
