# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""thin_info on hosts of libvirt's test driver, whose domains have real files for disks.

What is true of the files is asked from stat, df and qemu-img, never from the collection.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time

import pytest
import qcow2_bytes as made
from host_xml import disk, disk_with_source, domain, host, pool
from image_lab import create, qemu_io, run
from support import WITHOUT_OVERRIDE, assert_explains, run_module

MIB = 1 << 20


@pytest.fixture
def images(tmp_path):
    """A folder for images, apart from the host's XML."""
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


@pytest.fixture
def audit(tmp_path):
    """Audit a host that has these domains (and pools); it must succeed."""

    def audit(*parts, **arguments):
        result = run_module("thin_info", uri=host(tmp_path / "host.xml", *parts), **arguments)
        assert not result["failed"], result["msg"]
        assert not result["changed"]
        return result

    return audit


@pytest.fixture
def audit_one(audit):
    """Audit a domain with one disk; the disk's entry."""

    def audit_one(its_disk, **arguments):
        (its_domain,) = audit(domain("d", its_disk), **arguments)["domains"]
        (entry,) = its_domain["disks"]
        return entry

    return audit_one


def blocks_of(*paths):
    """Allocated bytes of all these files together, by stat."""
    printed = run("stat", "-c", "%b %B", *paths).splitlines()
    return sum(int(blocks) * int(unit) for blocks, unit in map(str.split, printed))


def virtual_size(path):
    return json.loads(run("qemu-img", "info", "--output=json", path))["virtual-size"]


def free_bytes(path):
    return int(run("df", "-B1", "--output=avail", path).split()[-1])


def findings(entry):
    return [finding["id"] for finding in entry["findings"]]


def test_a_thousand_domains_in_one_call(audit, images):
    """Measured: 1.1 s on 2 cores, 2.9 s beside other work; for one of the domains it is 0.4 s."""
    kinds = []
    for number in range(4):
        path = create(images / f"kind{number}.qcow2", f"{number + 1}G")
        qemu_io(path, f"write 0 {number * 192}k")
        kinds.append(path)
    paths = [str(images / f"vm{number:03}.qcow2") for number in range(1000)]
    for number, path in enumerate(paths):
        shutil.copyfile(kinds[number % 4], path)
    run("sync", "-f", images)
    domains = [
        domain(f"vm{number:03}", disk("vda", path), running=number % 2 == 0)
        for number, path in enumerate(paths)
    ]

    begin = time.monotonic()
    result = audit(*domains)
    assert time.monotonic() - begin < 30

    assert [entry["name"] for entry in result["domains"]] == [f"vm{n:03}" for n in range(1000)]
    disks = [entry["disks"][0] for entry in result["domains"]]
    assert {(entry["verdict"], entry["mount_point"]) for entry in disks} == {
        ("works", result["file_systems"][0]["mount_point"])
    }
    assert "1000 disks: 1000 give space back, 0 do not, 0 unknown." in result["summary"]
    (system,) = result["file_systems"]
    assert system["disks"] == 1000
    assert system["promised_bytes"] == 250 * sum(map(virtual_size, kinds))
    assert system["allocated_bytes"] == blocks_of(*paths)
    assert sum(entry["allocated_bytes"] for entry in disks) == system["allocated_bytes"]
    assert sum(entry["length_bytes"] for entry in disks) == sum(map(os.path.getsize, paths))
    assert abs(system["free_bytes"] - free_bytes(images)) < 1 << 30  # others write to it too
    room = system["allocated_bytes"] + system["free_bytes"]
    assert system["overcommit_ratio"] == pytest.approx(system["promised_bytes"] / room, abs=1e-3)


def test_a_good_disk(audit_one, images):
    path = create(images / "x.qcow2")
    qemu_io(path, "write 0 5M")
    entry = audit_one(disk("vda", path))
    assert (entry["verdict"], entry["broken_link"], entry["findings"]) == ("works", "", [])
    assert [link["link"] for link in entry["chain"]] == [
        "machine",
        "bus",
        "discard",
        "format",
        "storage",
    ]
    assert entry["promised_bytes"] == 64 * MIB
    assert entry["allocated_bytes"] == blocks_of(path) > 5 * MIB
    assert entry["length_bytes"] == os.path.getsize(path)
    assert entry["mount_point"] == run("findmnt", "-n", "-o", "TARGET", "-T", path).strip()


def test_a_raw_disk_and_what_its_guest_wrote(audit_one, images):
    """A qcow2 header in a raw disk is the guest's word: its size and its files do not count."""
    path = images / "x.raw"
    path.write_bytes(made.header(backing=b"/etc/passwd"))
    os.truncate(path, 7 * MIB)
    entry = audit_one(disk("vda", path, form="raw"))
    assert (entry["verdict"], entry["format"]) == ("works", "raw")
    assert (entry["promised_bytes"], entry["length_bytes"]) == (7 * MIB, 7 * MIB)
    assert entry["allocated_bytes"] == blocks_of(path) < MIB
    assert (entry["backing_chain"], entry["findings"]) == ([], [])


def gone(folder):
    return folder / "gone.qcow2"


def a_directory(folder):
    return folder


def a_fifo(folder):
    os.mkfifo(folder / "fifo")
    return folder / "fifo"


def a_socket(folder):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))
    return folder / "socket"


def cut_off(folder):
    path = create(folder / "cut.qcow2")
    os.truncate(path, 60)
    return path


def empty(folder):
    (folder / "empty").touch()
    return folder / "empty"


def raw_called_qcow2(folder):
    return create(folder / "x.raw", file_format="raw")


def dangling(folder):
    (folder / "link").symlink_to("nothing")
    return folder / "link"


def circle(folder):
    (folder / "circle").symlink_to("circle")
    return folder / "circle"


def relative(_folder):
    return "relative.qcow2"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (gone, "does not exist"),
        (a_directory, "is a directory, not an image"),
        (a_fifo, "is a FIFO, not an image"),
        (a_socket, "is a socket, not an image"),
        (cut_off, "qcow2"),
        (empty, "magic number"),
        (raw_called_qcow2, "magic number"),
        (dangling, "does not exist"),
        (circle, "is a symbolic link"),
        (relative, "relative.qcow2 is not an absolute path"),
    ],
)
def test_what_is_no_image_is_a_finding_of_its_disk(audit, images, make, says):
    """The other disk of the domain is audited all the same, and nobody waits for a FIFO."""
    good = create(images / "good.qcow2")
    path = make(images)
    result = audit(domain("d", disk("vda", path), disk("vdb", good)), patience=30)
    bad, other = result["domains"][0]["disks"]
    assert (bad["verdict"], bad["broken_link"]) == ("unknown", "format")
    assert "image-unreadable" in findings(bad)
    assert says in bad["reason"]
    assert bad["remedy"]
    assert bad["path"] == str(path)
    assert (bad["promised_bytes"], bad["allocated_bytes"]) == (None, None)
    assert bad["chain"][4]["value"] != "block device"
    assert other["verdict"] == "works"
    assert result["file_systems"][0]["allocated_bytes"] == blocks_of(good)
    assert "2 disks: 1 give space back, 0 do not, 1 unknown." in result["summary"]


@pytest.mark.parametrize("form", ["vmdk", "vdi", "vpc"])
def test_formats_that_keep_everything(audit_one, images, form):
    path = create(images / "x", "8M", file_format=form)
    entry = audit_one(disk("vda", path, form=form))
    assert (entry["verdict"], entry["broken_link"]) == ("broken", "format")
    assert (entry["promised_bytes"], entry["allocated_bytes"]) == (None, blocks_of(path))


def test_an_old_overlay(audit, images):
    create(images / "base.qcow2")
    old = create(images / "old.qcow2", backing="base.qcow2", compat="0.10")
    alone = create(images / "alone.qcow2", compat="0.10")
    result = audit(domain("d", disk("vda", old), disk("vdb", alone)))
    assert [
        (entry["verdict"], entry["broken_link"]) for entry in result["domains"][0]["disks"]
    ] == [
        ("broken", "format"),
        ("works", ""),
    ]


def test_internal_snapshots_are_counted(audit_one, images):
    path = create(images / "x.qcow2")
    for name in ("one", "two"):
        run("qemu-img", "snapshot", "-c", name, path)
    entry = audit_one(disk("vda", path))
    assert entry["verdict"] == "works"
    assert findings(entry) == ["internal-snapshots"]
    assert "2 internal snapshots" in entry["findings"][0]["reason"]


def test_an_overlay_with_its_base_beside_it(audit, images):
    base = create(images / "base.qcow2")
    qemu_io(base, "write 0 3M")
    tops = [create(images / f"{n}.qcow2", backing="base.qcow2") for n in range(2)]
    result = audit(*(domain(f"d{n}", disk("vda", top)) for n, top in enumerate(tops)))
    for entry in result["domains"]:
        assert entry["disks"][0]["backing_chain"] == [base]
        assert entry["findings"] == []
    (system,) = result["file_systems"]
    assert (system["disks"], system["promised_bytes"]) == (2, 128 * MIB)
    assert system["allocated_bytes"] == blocks_of(base, *tops)


def test_an_overlay_with_its_base_elsewhere(audit, tmp_path, images):
    golden = tmp_path / "golden" / "deeper"
    golden.mkdir(parents=True)
    base = create(golden / "base.qcow2")
    qemu_io(base, "write 0 3M")
    top = create(images / "x.qcow2", backing=base)
    its_domain = domain("d", disk("vda", top))

    result = audit(its_domain)
    (entry,) = result["domains"][0]["disks"]
    assert (entry["verdict"], entry["backing_chain"]) == ("works", [])
    assert findings(entry) == ["backing-file-not-read"]
    assert base in entry["findings"][0]["reason"]
    assert "was not opened" in entry["findings"][0]["reason"]
    assert "allowed_dirs" in entry["findings"][0]["remedy"]
    assert result["file_systems"][0]["allocated_bytes"] == blocks_of(top)

    result = audit(its_domain, allowed_dirs=[str(tmp_path / "golden")])
    (entry,) = result["domains"][0]["disks"]
    assert (entry["backing_chain"], entry["findings"]) == ([base], [])
    assert result["file_systems"][0]["allocated_bytes"] == blocks_of(top, base)


def test_a_base_that_is_gone_is_named(audit_one, images):
    entry = audit_one(disk("vda", create(images / "x.qcow2", backing="base.qcow2")))
    assert findings(entry) == ["backing-file-not-read"]
    assert f"{images}/base.qcow2 does not exist" in entry["findings"][0]["reason"]
    assert (entry["verdict"], entry["findings"][0]["severity"]) == ("broken", "error")


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_file_that_is_gone_at_any_depth(audit_one, images, depth):
    """QEMU can't open the disk without it, as qemu-io shows."""
    lost = images / "lost.data"
    path = create(images / "0.qcow2", data_file=lost)
    for number in range(1, depth + 1):
        path = create(images / f"{number}.qcow2", backing=f"{number - 1}.qcow2")
    assert audit_one(disk("vda", path))["verdict"] == "works"
    lost.unlink()
    run("qemu-io", "-f", "qcow2", "-c", "read 0 1k", path, rc=1)
    entry = audit_one(disk("vda", path))
    assert (entry["verdict"], findings(entry)) == ("broken", ["backing-file-not-read"])
    assert f"{lost} does not exist" in entry["reason"]


def test_an_external_data_file_is_counted(audit, images):
    """The image itself holds tables only; what the disk occupies is in the other file."""
    path = create(images / "x.qcow2", data_file=images / "x.data")
    qemu_io(path, "write 0 5M")
    result = audit(domain("d", disk("vda", path)))
    (entry,) = result["domains"][0]["disks"]
    assert entry["allocated_bytes"] == blocks_of(path, images / "x.data") > 5 * MIB
    assert result["file_systems"][0]["allocated_bytes"] == blocks_of(path, images / "x.data")
    assert entry["backing_chain"] == []


@pytest.mark.parametrize("extra", ["backing", "data"])
def test_passwd_as_a_file_below(audit_one, images, extra):
    path = images / "x.qcow2"
    create(path)
    if extra == "backing":
        data = made.header(made.extension(made.BACKING_FORMAT, b"raw"), backing=b"/etc/passwd")
    else:
        data = made.header(made.extension(made.DATA_FILE, b"/etc/passwd"), incompatible=4)
    path.write_bytes(data)
    os.truncate(path, made.FILE_LENGTH)
    entry = audit_one(disk("vda", path))
    assert findings(entry) == ["backing-file-not-read"]
    assert f"names /etc/passwd as its {extra} file" in entry["findings"][0]["reason"]
    assert (entry["backing_chain"], entry["allocated_bytes"]) == ([], blocks_of(path))


@pytest.fixture
def trace(tmp_path):
    """Run the module under strace; the calls that name files or use the network."""
    log = tmp_path / "strace"

    def trace(*parts, **arguments):
        prefix = ("strace", "-f", "-s", "4096", "-e", "trace=%file,%network", "-o", str(log))
        uri = host(tmp_path / "host.xml", *parts)
        result = run_module("thin_info", uri=uri, prefix=prefix, **arguments)
        assert not result["failed"], result["msg"]
        return result, log.read_text()

    return trace


def test_files_that_hostile_headers_name_are_not_touched(tmp_path, images, trace):
    forbidden = tmp_path / "forbidden"
    forbidden.mkdir()
    secret = forbidden / "secret"
    secret.write_bytes(b"root:secret\n" * 100)
    names = [
        str(secret),
        "../forbidden/secret",
        f"file:{secret}",
        f'json:{{"driver": "file", "filename": "{secret}"}}',
        "nbd:127.0.0.1:10809",
        "/dev/fd/0/forbidden/secret",
    ]
    headers = [
        *(
            made.header(backing=name.encode(), version=version)
            for name in names
            for version in (2, 3)
        ),
        *(
            made.header(made.extension(made.DATA_FILE, name.encode()), incompatible=flagged)
            for name in names
            for flagged in (0, 4)
        ),
    ]
    create(images / "base.qcow2")
    domains = [domain("good", disk("vda", create(images / "good.qcow2", backing="base.qcow2")))]
    for number, header in enumerate(headers):
        path = images / f"{number:02}.qcow2"
        path.write_bytes(header)
        os.truncate(path, made.FILE_LENGTH)
        domains.append(domain(f"evil{number:02}", disk("vda", path)))

    result, calls = trace(*domains)
    *evil, good = result["domains"]
    for entry in evil:
        assert "backing-file-not-read" in findings(entry), entry
        assert "was not opened" in entry["findings"][-1]["reason"]
    assert "forbidden" not in calls
    assert "AF_INET" not in calls
    # strace does see what is opened
    assert good["findings"] == []
    opened = [line for line in calls.splitlines() if f"{images}/base.qcow2" in line]
    assert any("openat(" in line for line in opened)
    assert "qemu-img" not in calls


def test_no_program_is_started(images, trace):
    _result, calls = trace(domain("d", disk("vda", create(images / "x.qcow2"))))
    assert calls.count("execve(") == 1


def test_symlinks_are_followed_as_qemu_follows_them(audit_one, tmp_path, images):
    """QEMU looks for a backing file beside the link, not beside the file that it leads to."""
    pool_dir = tmp_path / "pool"
    pool_dir.mkdir()
    for folder in (images, pool_dir):
        create(folder / "base.qcow2")
    top = create(images / "x.qcow2", backing="base.qcow2")
    qemu_io(top, "write 0 1M")
    (pool_dir / "link.qcow2").symlink_to(top)
    chain = run("qemu-img", "info", "--backing-chain", "--output=json", pool_dir / "link.qcow2")
    assert json.loads(chain)[1]["filename"] == f"{pool_dir}/base.qcow2"

    entry = audit_one(disk("vda", pool_dir / "link.qcow2"))
    assert entry["path"] == f"{pool_dir}/link.qcow2"
    assert (entry["verdict"], entry["findings"]) == ("works", [])
    assert entry["allocated_bytes"] == blocks_of(top)
    assert entry["backing_chain"] == [f"{pool_dir}/base.qcow2"]


def test_one_file_by_several_names_is_counted_once(audit, images):
    path = create(images / "x.qcow2")
    os.link(path, images / "hard.qcow2")
    (images / "soft.qcow2").symlink_to(path)
    names = (path, images / "hard.qcow2", images / "soft.qcow2")
    result = audit(*(domain(f"d{n}", disk("vda", name)) for n, name in enumerate(names)))
    (system,) = result["file_systems"]
    assert (system["disks"], system["promised_bytes"]) == (1, 64 * MIB)
    assert system["allocated_bytes"] == blocks_of(path)


def test_domains_without_disks_that_a_guest_writes(audit, images):
    iso = create(images / "x.iso", "1M", file_format="raw")
    read_only = disk("vda", create(images / "x.qcow2"))
    read_only.append(read_only.makeelement("readonly", {}))
    cdrom = disk("sda", iso, bus="sata", form="raw", device="cdrom")
    drive = disk("sdb", None, bus="sata", form="raw", device="cdrom")
    floppy = disk("fda", iso, bus="fdc", form="raw", device="floppy")
    result = audit(domain("none"), domain("no-written", cdrom, drive, floppy, read_only))
    assert [entry["disks"] for entry in result["domains"]] == [[], []]
    assert result["file_systems"] == []
    assert result["summary"] == ["0 disks: 0 give space back, 0 do not, 0 unknown."]


def test_a_host_without_domains(audit):
    result = audit()
    assert (result["domains"], result["file_systems"]) == ([], [])


ODD = [
    "<img src=x onerror=alert(1)>.qcow2",
    "\N{RIGHT-TO-LEFT OVERRIDE}2wocq.qcow2",
    "{{ 7*7 }}{% raw %}.qcow2",
    "quote\"'$(id)`;&amp;.qcow2",
    " blank .qcow2",
    "größe-日本.qcow2",
    "-x.qcow2",
    "nbd:unix:socket",
    "json:{}",
]


@pytest.mark.parametrize("exists", [True, False])
def test_odd_names(audit, images, exists):
    """They come back as they are in ``path``, and harmless in the lines for people."""
    plain = create(images / "plain.qcow2")
    domains = []
    for name in ODD:
        if exists:
            shutil.copyfile(plain, images / name)
        domains.append(domain(name, disk("vda", images / name)))
    result = audit(*domains)
    by_name = {entry["name"]: entry["disks"][0] for entry in result["domains"]}
    for name in ODD:
        entry = by_name[name]
        assert entry["path"] == f"{images}/{name}"
        assert entry["verdict"] == ("works" if exists else "unknown")
        assert (entry["reason"] == "") is exists
        assert entry["reason"].isprintable()
    assert len(result["summary"]) == (2 if exists else 1 + len(ODD))


def test_volumes_of_storage_pools(audit, images):
    path = create(images / "x.qcow2")
    parts = [
        domain(
            "d",
            disk_with_source("vda", "volume", pool="dir", volume="x"),
            disk_with_source("vdb", "volume", pool="ceph", volume="x"),
            disk_with_source("vdc", "volume", pool="gone", volume="x"),
            disk_with_source("vdd", "volume", pool="dir", volume="gone"),
        ),
        pool("dir", "dir", {"x": path}),
        pool("ceph", "rbd", {"x": "rbdpool/x"}, name="rbdpool", host="monitor"),
    ]
    for part in parts[0].findall("devices/disk/driver"):
        part.set("type", "qcow2")
    here, ceph, no_pool, no_volume = audit(*parts)["domains"][0]["disks"]
    assert (here["path"], here["verdict"], here["promised_bytes"]) == (path, "works", 64 * MIB)
    assert (ceph["path"], ceph["verdict"], ceph["broken_link"]) == ("", "unknown", "storage")
    assert findings(ceph) == ["storage-not-local"]
    assert no_pool["path"] == "gone/x"
    assert "could not look up volume x in storage pool gone" in no_pool["reason"]
    assert "could not look up volume gone in storage pool dir" in no_volume["reason"]


def test_network_disks(audit_one):
    network = disk_with_source("vda", "network", protocol="rbd", name="rbdpool/x")
    network.find("source").append(network.makeelement("host", {"name": "monitor"}))
    entry = audit_one(network)
    assert (entry["path"], entry["verdict"], entry["broken_link"]) == ("", "unknown", "storage")
    assert entry["mount_point"] is None


@pytest.fixture
def loop_device(tmp_path):
    """A block device of 16 MiB that takes discards."""
    path = tmp_path / "device"
    path.write_bytes(b"")
    os.truncate(path, 16 * MIB)
    device = run("losetup", "-f", "--show", path).strip()
    yield device
    run("losetup", "-d", device)


def test_a_block_device(audit, images, loop_device):
    golden = create(images / "x.qcow2", backing=loop_device)
    run("qemu-img", "create", "-q", "-f", "qcow2", loop_device, "8M")
    parts = domain(
        "d",
        disk("vda", loop_device, kind="block", form="raw"),
        disk("vdb", golden),
    )
    result = audit(parts, allowed_dirs=["/dev"])
    device, overlay = result["domains"][0]["disks"]
    assert device["verdict"] == "works"
    assert device["chain"][4]["value"] == "block device"
    assert (device["allocated_bytes"], device["mount_point"]) == (None, None)
    assert (device["promised_bytes"], device["length_bytes"]) == (16 * MIB, 16 * MIB)
    # A backing file on a block device is on no file system either, /dev's least of all.
    assert overlay["backing_chain"] == [loop_device]
    (system,) = result["file_systems"]
    assert system["mount_point"] == overlay["mount_point"]
    assert (system["disks"], system["allocated_bytes"]) == (1, blocks_of(golden))


@pytest.fixture
def mounted(tmp_path):
    """A file system in memory that cannot punch holes, and one that can."""
    points = []
    for kind in ("ramfs", "tmpfs"):
        point = tmp_path / kind
        point.mkdir()
        run("mount", "-t", kind, kind, point)
        points.append(point)
    yield points
    for point in points:
        run("umount", point)


def test_storage_that_cannot_punch_is_the_broken_link(audit, images, mounted):
    ramfs, tmpfs = mounted
    paths = [create(folder / "x.qcow2") for folder in (ramfs, tmpfs, images)]
    result = audit(*(domain(f"d{n}", disk("vda", path)) for n, path in enumerate(paths)))
    bad, *good = (entry["disks"][0] for entry in result["domains"])
    assert (bad["verdict"], bad["broken_link"]) == ("broken", "storage")
    assert f"{ramfs} cannot punch holes" in bad["reason"]
    assert "ext4" in bad["remedy"]
    assert [entry["verdict"] for entry in good] == ["works", "works"]
    systems = {system["mount_point"]: system for system in result["file_systems"]}
    assert len(systems) == 3
    assert list(systems) == sorted(systems)
    assert systems[str(ramfs)]["type"] == "ramfs"
    assert systems[str(ramfs)]["free_bytes"] == 0
    assert systems[str(tmpfs)]["allocated_bytes"] == blocks_of(paths[1])
    assert systems[str(tmpfs)]["total_bytes"] == int(
        run("df", "-B1", "--output=size", tmpfs).split()[-1]
    )
    assert [os.listdir(folder) for folder in (ramfs, tmpfs, images)] == [["x.qcow2"]] * 3


def test_no_room_at_all_is_no_ratio(audit, mounted):
    """ramfs counts no blocks, neither of its files nor free ones."""
    result = audit(domain("d", disk("vda", create(mounted[0] / "x.qcow2"))))
    (system,) = result["file_systems"]
    assert (system["allocated_bytes"] == 0) is (system["overcommit_ratio"] is None)


def test_read_only_storage(audit_one, mounted):
    path = create(mounted[1] / "x.qcow2")
    run("mount", "-o", "remount,ro", mounted[1])
    entry = audit_one(disk("vda", path))
    assert (entry["verdict"], entry["broken_link"]) == ("unknown", "storage")
    assert "Read-only file system" in entry["reason"]


def test_without_probing_nothing_is_written_and_nothing_is_claimed(images, trace):
    part = domain("d", disk("vda", create(images / "x.qcow2")))
    before = os.stat(images)
    result, calls = trace(part, probe_storage=False)
    after = os.stat(images)
    (entry,) = result["domains"][0]["disks"]
    assert (entry["verdict"], entry["broken_link"]) == ("unknown", "storage")
    assert "probe_storage" in entry["reason"]
    assert (before.st_mtime_ns, before.st_ctime_ns) == (after.st_mtime_ns, after.st_ctime_ns)
    written = [line for line in calls.splitlines() if "O_RDWR" in line or "O_WRONLY" in line]
    assert not any(str(images) in line for line in written)
    # strace does see the trial
    _result, calls = trace(part)
    assert f'openat(AT_FDCWD, "{images}", O_RDWR' in calls
    assert os.listdir(images) == ["x.qcow2"]


def test_each_file_system_is_tried_once(images, trace):
    parts = []
    for number in range(5):
        folder = images / str(number)
        folder.mkdir()
        parts.append(domain(f"d{number}", disk("vda", create(folder / "x.qcow2"))))
    _result, calls = trace(*parts)
    assert calls.count("O_TMPFILE") == 1


def test_running_domains_without_an_agent(audit, images):
    parts = [
        domain(name, disk("vda", create(images / name)), running=running)
        for name, running in (("on", True), ("off", False))
    ]
    off, on = audit(*parts)["domains"]
    assert (off["active"], off["agent_channel"], off["agent_connected"]) == (False, True, None)
    assert (on["active"], on["agent_channel"], on["agent_connected"]) == (True, True, False)
    assert (findings(off), findings(on)) == ([], ["agent-disconnected"])
    assert off["disks"][0]["live"] is None
    assert on["disks"][0]["live"]["discard"] == "unmap"


def test_globs_and_uuids(audit):
    parts = [domain(name) for name in ("web1", "web2", "db1")]
    uuids = {entry["name"]: entry["uuid"] for entry in audit(*parts)["domains"]}
    assert list(uuids) == ["db1", "web1", "web2"]
    for each in parts:
        each.insert(0, each.makeelement("uuid", {}))
        each[0].text = uuids[each.findtext("name")]
    for wanted in (["web*"], [uuids["web2"], "web1"], ["web1", "web*"]):
        found = audit(*parts, domains=wanted)["domains"]
        assert [entry["name"] for entry in found] == ["web1", "web2"]
    assert audit(*parts, domains=["nobody*"])["domains"] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"domains": ["nobody"]}, ["no domain nobody", "virsh list --all"]),
        ({"domains": ["x", "x"]}, ["domains names x twice", "Name it once"]),
        ({"allowed_dirs": ["golden"]}, ["golden in allowed_dirs is not", "Name it from / on"]),
        ({"uri": "nonsense"}, ["Cannot connect to libvirt at nonsense", "uri is right"]),
        (
            {"uri": "qemu+unix:///system?socket=/nonexistent/socket"},
            ["Cannot connect", "daemon runs"],
        ),
        ({"uri": "qemu+tls://[::1/system"}, ["another machine"]),
        ({"probe_storage": "perhaps"}, ["probe_storage", "boolean"]),
    ],
)
def test_bad_input(arguments, words):
    assert_explains(run_module("thin_info", **{"uri": "test:///default", **arguments}), *words)


@pytest.fixture
def ssh(tmp_path, monkeypatch):
    """A stand-in for ssh that tells when it was started."""
    started = tmp_path / "started"
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {started}\nexit 255\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return started


@pytest.mark.parametrize("module", ["thin_info", "domain_trim"])
def test_another_machine_is_refused_before_it_is_asked(ssh, module):
    """A host that does not answer would be waited for, and ssh may ask for a password."""
    result = run_module(module, uri="qemu+ssh://root@elsewhere/system", domains=["*"])
    assert_explains(result, "leads to another machine", "nothing was changed", "qemu:///system")
    assert not ssh.exists()


def test_without_the_right_to_read_an_image(tmp_path, images):
    path = create(images / "x.qcow2")
    os.chmod(path, 0)
    uri = host(tmp_path / "host.xml", domain("d", disk("vda", path)))
    prefix = WITHOUT_OVERRIDE if os.geteuid() == 0 else ()
    result = run_module("thin_info", uri=uri, prefix=prefix)
    assert not result["failed"]
    (entry,) = result["domains"][0]["disks"]
    assert entry["verdict"] == "unknown"
    assert "cannot be opened: Permission denied. Run this as root" in entry["reason"]


def test_without_the_right_to_use_the_socket(tmp_path):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        path.chmod(0)
        result = run_module(
            "thin_info",
            uri=f"qemu+unix:///system?socket={path}",
            prefix=WITHOUT_OVERRIDE if os.geteuid() == 0 else (),
        )
    assert_explains(result, "Cannot connect", "ermission denied", "become: true")


def ansible(*options, **parameters):
    """The module as Ansible runs it: packed, and under the system's Python."""
    argv = ["ansible", "-i", "localhost,", "-c", "local", "localhost", *options]
    argv += ["-e", "ansible_python_interpreter=/usr/bin/python3"]
    argv += ["-m", "thinvirt.kvm.thin_info", "-a", json.dumps(parameters)]
    process = subprocess.run(
        argv,
        env=os.environ | {"ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in process.stdout + process.stderr
    return process.returncode, json.loads(process.stdout.split("=>", 1)[1])


def test_ansible_gets_the_same_answer_in_both_modes(tmp_path, images):
    create(images / "base.qcow2")
    paths = [create(images / "x.qcow2", backing="base.qcow2"), images / "{{ gone }}.qcow2"]
    parts = [domain(f"d{n}", disk("vda", path)) for n, path in enumerate(paths)]
    uuid = "f4e2b079-09dd-4204-b81e-9bec7bc3116"
    for number, part in enumerate(parts):
        part.insert(0, part.makeelement("uuid", {}))
        part[0].text = f"{uuid}{number}"
    uri = host(tmp_path / "host.xml", *parts)
    before = os.stat(images).st_mtime_ns
    answers = [ansible(*options, uri=uri) for options in ((), ("--check", "--diff"))]
    for rc, result in answers:
        assert (rc, result["changed"]) == (0, False)
        for system in result["file_systems"]:  # others write to it
            del system["free_bytes"], system["overcommit_ratio"]
        del result["summary"][-1], result["taken_at"]
    assert answers[0] == answers[1]
    assert [entry["disks"][0]["verdict"] for entry in answers[0][1]["domains"]] == [
        "works",
        "unknown",
    ]
    assert os.stat(images).st_mtime_ns == before
    assert sorted(os.listdir(images)) == ["base.qcow2", "x.qcow2"]


def test_ansible_shows_a_failure_that_can_be_acted_on():
    rc, result = ansible(uri="test:///default", domains=["nobody"])
    assert rc == 2
    assert_explains({"failed": True, **result}, "no domain nobody", "virsh list --all")
