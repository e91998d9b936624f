# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images and names that want to lead somewhere: refused, and strace shows nothing was touched."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess

import pytest
import qcow2_bytes as made
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.inspect import read_image_header
from image_lab import create, error_of, image_info, info_of, run
from support import WITHOUT_OVERRIDE

HUGE = 0xFFFFFFFF


def place(path, data: bytes, length: int = made.FILE_LENGTH) -> str:
    path.write_bytes(data)
    os.truncate(path, length)
    return str(path)


@pytest.fixture
def trace(tmp_path):
    """Run the module under strace; the calls that name files or use the network."""
    log = tmp_path / "strace"

    def trace(*paths, **parameters) -> tuple[dict, str]:
        prefix = ["strace", "-f", "-s", "4096", "-e", "trace=%file,%network", "-o", str(log)]
        result = image_info(*paths, prefix=prefix, **parameters)
        return result, log.read_text()

    return trace


def test_strace_does_see_what_is_opened(tmp_path, trace):
    create(tmp_path / "base.qcow2")
    result, calls = trace(create(tmp_path / "top.qcow2", backing="base.qcow2"))
    assert not result.get("failed")
    opened = [line for line in calls.splitlines() if f"{tmp_path}/base.qcow2" in line]
    assert any("openat(" in line for line in opened)
    assert 'execve("/usr/bin/qemu-img"' in calls
    # The backing file is read by our own reader, and never by qemu-img.
    child = calls[calls.index('execve("/usr/bin/qemu-img"') :]
    assert "base.qcow2" not in child


@pytest.fixture
def secret(tmp_path):
    folder = tmp_path / "forbidden"
    folder.mkdir()
    (folder / "secret").write_bytes(b"root:secret\n" * 100)
    return folder / "secret"


def hostile_backing(secret) -> list[bytes]:
    return [
        str(secret).encode(),
        b"../forbidden/secret",
        b'json:{"driver": "file", "filename": "%s"}' % str(secret).encode(),
        b"file:" + str(secret).encode(),
        b"nbd:127.0.0.1:10809",
        b"nbd+unix:///x?socket=" + str(secret).encode(),
        b"http://127.0.0.1/forbidden/secret",
        b"fat:rw:" + str(secret.parent).encode(),
        b"/dev/fd/0/forbidden/secret",
    ]


@pytest.mark.parametrize("number", range(9))
@pytest.mark.parametrize("version", [2, 3])
def test_backing_files_outside_are_not_touched(tmp_path, secret, trace, number, version):
    name = hostile_backing(secret)[number]
    path = tmp_path / "pool" / "x.qcow2"
    path.parent.mkdir()
    extension = made.extension(made.BACKING_FORMAT, b"raw")
    place(path, made.header(extension, backing=name, version=version))
    assert "as its backing file" in error_of(path)
    result, calls = trace(path)
    assert name.decode() in result["images"][0]["error"]
    assert "was not opened" in result["images"][0]["error"]
    assert "forbidden" not in calls
    assert "qemu-img" not in calls
    assert "AF_INET" not in calls
    assert str(path) in calls


@pytest.mark.parametrize("flagged", [4, 0])
@pytest.mark.parametrize("template", ['json:{"driver":"file","filename":"%s"}', "%s", "nbd:%s"])
def test_data_files_outside_are_not_touched(tmp_path, secret, trace, template, flagged):
    """CVE-2024-4467: ``qemu-img info`` opened what the header named as data file."""
    path = tmp_path / "pool" / "x.qcow2"
    path.parent.mkdir()
    name = (template % secret).encode()
    place(path, made.header(made.extension(made.DATA_FILE, name), incompatible=flagged))
    result, calls = trace(path)
    assert "as its data file" in result["images"][0]["error"]
    assert "forbidden" not in calls
    assert "qemu-img" not in calls


def test_a_backing_file_with_a_hostile_data_file(tmp_path, secret, trace):
    data = made.header(made.extension(made.DATA_FILE, str(secret).encode()), incompatible=4)
    place(tmp_path / "base.qcow2", data)
    result, calls = trace(create(tmp_path / "top.qcow2", backing="base.qcow2"))
    assert f"base.qcow2 names {secret} as its data file" in result["images"][0]["error"]
    assert "forbidden" not in calls


def test_a_raw_disk_whose_guest_wrote_a_header(tmp_path, secret, trace):
    """CVE-2026-24708: with the format named, the content of a raw disk means nothing."""
    path = tmp_path / "disk.raw"
    place(path, made.header(backing=str(secret).encode()))
    assert "say so with format=raw" in error_of(path)
    result, calls = trace(path, format="raw")
    assert result["images"][0]["format"] == "raw"
    assert result["images"][0]["backing_chain"] == []
    assert "forbidden" not in calls


def test_passwd_as_backing_file(tmp_path):
    path = create(tmp_path / "x.qcow2", backing="/etc/passwd")
    assert "names /etc/passwd as its backing file" in error_of(path)


def test_a_backing_file_that_is_a_fifo_makes_nobody_wait(tmp_path):
    os.mkfifo(tmp_path / "base.qcow2")
    path = create(tmp_path / "x.qcow2", backing="base.qcow2")
    (link,) = info_of(path, timeout=20)["backing_chain"]
    assert "is a FIFO, not an image" in link["error"]


def test_loops(tmp_path):
    itself = create(tmp_path / "self.qcow2", backing="self.qcow2")
    assert f"loops at {itself}" in error_of(itself)
    create(tmp_path / "b.qcow2", backing="a.qcow2")
    assert "loops at" in error_of(create(tmp_path / "a.qcow2", backing="b.qcow2"))
    os.link(create(tmp_path / "c.qcow2", backing="d.qcow2"), tmp_path / "d.qcow2")
    assert "loops at" in error_of(tmp_path / "c.qcow2")


def test_endless_chain(tmp_path):
    for number in range(203):
        data = made.header(backing=b"%d.qcow2" % (number + 1))
        place(tmp_path / f"{number}.qcow2", data)
    assert "more than 200 backing files" in error_of(tmp_path / "0.qcow2")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"l1_size": HUGE}, "l1_size is 4294967295"),
        ({"nb_snapshots": HUGE, "snapshots_offset": 65536}, "nb_snapshots is 4294967295"),
        ({"nb_snapshots": 65536, "snapshots_offset": 65536}, "snapshot table"),
        ({"refcount_table_clusters": HUGE}, "refcount_table_clusters is"),
        ({"cluster_bits": 63}, "cluster_bits is 63"),
        ({"backing_file_offset": 1 << 60, "backing_file_size": 9}, "backing_file_offset is"),
        ({"incompatible": 1 << 40}, "bit 40 (no name)"),
        ({"version": 1}, "version is 1"),
    ],
)
def test_malformed_headers(tmp_path, fields, says):
    error = error_of(place(tmp_path / "x.qcow2", made.header(**fields)))
    assert says in error
    assert error.startswith(f"{tmp_path}/x.qcow2: ")


@pytest.mark.parametrize("mask", [0x01, 0x41, 0xFF])
def test_it_understands_headers_as_qemu_does(tmp_path, mask):
    """Every byte of a real header changed: what ours finds sound reads the same in QEMU."""
    with open(create(tmp_path / "real.qcow2"), "rb") as file:
        data = file.read()
    path = tmp_path / "x.qcow2"
    both = 0
    for offset in range(4, 112):
        path.write_bytes(data[:offset] + bytes([data[offset] ^ mask]) + data[offset + 1 :])
        try:
            header = read_image_header(str(path), image_format="qcow2")
        except ThinvirtError:
            continue
        argv = ["qemu-img", "info", "-U", "-f", "qcow2", "--output=json", path]
        process = subprocess.run(argv, capture_output=True, text=True, check=False)
        if process.returncode == 0:
            both += 1
            other = json.loads(process.stdout)
            assert header.virtual_size_bytes // 512 * 512 == other["virtual-size"]
            assert header.qcow2.cluster_size_bytes == other["cluster-size"]
            assert header.qcow2.snapshot_count == len(other.get("snapshots", []))
    assert both > 20


@pytest.mark.parametrize("length", [4, 23, 24, 71, 72, 103, 104, 111, 112, 4096, 65536, 196608])
def test_truncated_files(tmp_path, length):
    path = create(tmp_path / "x.qcow2")
    os.truncate(path, length)
    assert "qcow2" in error_of(path)


def test_empty_file_with_a_format(tmp_path):
    (tmp_path / "x").touch()
    assert "magic number" in error_of(tmp_path / "x", format="qcow2")


def test_files_that_are_no_images(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{tmp_path}/socket")
    assert "is a FIFO" in error_of(tmp_path / "fifo", timeout=20)
    assert "is a socket" in error_of(tmp_path / "socket")
    assert "is a directory" in error_of(tmp_path)
    assert "is a character device" in error_of("/dev/null")
    assert "is not an absolute path" in error_of("x.qcow2")
    assert "is not an absolute path" in error_of("~/x.qcow2")
    assert "does not exist" in error_of(tmp_path / "gone")
    assert "File name too long" in error_of(f"/{'x' * 300}")


def test_symlinks(tmp_path, secret):
    pool = tmp_path / "pool"
    pool.mkdir()
    image = create(pool / "x.qcow2")
    (pool / "inside").symlink_to("x.qcow2")
    (pool / "outside").symlink_to(secret)
    (pool / "hop").symlink_to("outside")
    (pool / "dangling").symlink_to("/nowhere/x")
    (pool / "circle").symlink_to("circle")
    (tmp_path / "alias").symlink_to("pool")
    assert info_of(pool / "inside")["format"] == "qcow2"
    assert info_of(tmp_path / "alias" / "x.qcow2")["format"] == "qcow2"
    assert info_of(tmp_path / "alias" / "inside")["format"] == "qcow2"
    for name in ("outside", "hop"):
        error = error_of(pool / name)
        assert f"leads out of its folder, to {secret}" in error
        assert "Name the target itself" in error
    for name in ("dangling", "circle"):
        assert "Traceback" not in error_of(pool / name)
    assert os.path.samefile(pool / "inside", image)


@pytest.mark.parametrize(
    "name",
    [
        "-x.qcow2",
        "a:b.qcow2",
        "json:{}.qcow2",
        'json:{"driver":"raw"}',
        "nbd:unix:socket",
        "new\nline.qcow2",
        "comma,file.driver=nbd,,.qcow2",
        " blank .qcow2",
        "quote\"'$(id)`.qcow2",
        "größe.qcow2",
        "[ab]*?.qcow2",
        "%s%n{{ 7*7 }}.qcow2",
    ],
)
def test_odd_names(tmp_path, name):
    plain = create(tmp_path / "plain.qcow2")
    os.rename(plain, tmp_path / name)
    entry = info_of(tmp_path / name)
    assert entry["path"] == f"{tmp_path}/{name}"
    assert entry["check"]["result"] == "clean"


def test_a_name_that_is_no_utf8(tmp_path):
    os.rename(create(tmp_path / "plain.qcow2"), os.fsencode(tmp_path) + b"/\xff.qcow2")
    (tmp_path / "plain").write_bytes(b"x")
    os.rename(tmp_path / "plain", os.fsencode(tmp_path) + b"/\xfe.raw")
    result = image_info(tmp_path / "*.*")
    assert [entry["path"] for entry in result["images"]] == [
        rf"{tmp_path}/\xfe.raw",
        rf"{tmp_path}/\xff.qcow2",
    ]
    assert result["images"][0]["format"] == "raw"
    assert "not valid UTF-8" in result["images"][1]["error"]


def test_a_table_that_claims_more_memory_than_there_is(tmp_path):
    """A sparse file of 8 PiB: qemu-img is stopped by its limits, and the others are reported."""
    big = create(tmp_path / "big.qcow2", "1T", cluster_size="2M")
    with open(big, "r+b") as file:
        file.truncate(1 << 43)
        file.seek((1 << 43) - 4)
        file.write(struct.pack(">I", 1))
    good = create(tmp_path / "good.qcow2")
    result = image_info(good, big, timeout=30)
    assert result["images"][0]["check"]["result"] == "clean"
    assert "Traceback" not in str(result)


def test_without_rights(tmp_path):
    path = create(tmp_path / "x.qcow2")
    os.chmod(path, 0)
    result = image_info(path, prefix=WITHOUT_OVERRIDE if os.geteuid() == 0 else ())
    assert "cannot be opened: Permission denied. Run this as root" in result["msg"]


def test_parameters_that_cannot_be_meant(tmp_path):
    path = create(tmp_path / "x.qcow2")
    for parameters in ({"timeout": 0}, {"allowed_dirs": ["relative"]}, {"format": "vmdk"}):
        result = image_info(path, **parameters)
        assert result["failed"]
        assert "images" not in result
    assert "named twice" in image_info(path, path)["msg"]
    assert run("stat", "-c", "%s", path)
