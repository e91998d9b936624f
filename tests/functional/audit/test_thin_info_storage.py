# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""thin_info on what could come back, on storage pools and on what libvirt keeps of domains.

libvirt's test driver, real files; what is true is asked from stat, df, filefrag, qemu-img and
virsh.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
from xml.etree import ElementTree as ET

import pytest
import qcow2_bytes as made
from compact_lab import with_dead_clusters
from host_xml import disk, disk_with_source, domain, host, pool
from image_lab import create, qemu_io, run
from support import assert_explains, run_module

MIB = 1 << 20
TEST = "{http://libvirt.org/schemas/domain/test/1.0}"


@pytest.fixture
def images(tmp_path):
    """A folder for images, apart from the host's XML."""
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


@pytest.fixture
def uri(tmp_path):
    """The URI of a host of these domains and pools."""
    return lambda *parts: host(tmp_path / "host.xml", *parts)


def audit(uri, **arguments):
    result = run_module("thin_info", uri=uri, **arguments)
    assert not result["failed"], result["msg"]
    return result


def audit_disk(uri, **arguments):
    (entry,) = audit(uri, **arguments)["domains"]
    (its_disk,) = entry["disks"]
    return its_disk


def blocks(path):
    return int(run("stat", "-c", "%b", path)) * 512


def estimate(entry):
    return entry["reclaimable_bytes"], entry["reclaimable_estimate"]


def a_pool(name, path):
    element = pool(name, "dir", {})
    element.find("target/path").text = str(path)
    return element


def no_files():
    """Pools of no files; that of logical volumes has a folder of devices."""
    volumes = pool("lvm", "logical", {}, name="vg")
    volumes.find("target/path").text = "/dev"
    return pool("ceph", "rbd", {}, name="rbdpool", host="monitor"), volumes


def test_blocks_that_were_never_written(images, uri):
    """cp --sparse=always makes a copy without them."""
    path = images / "x.raw"
    run("fallocate", "-l", "8M", path)
    run("dd", "if=/dev/urandom", f"of={path}", "bs=1M", "count=2", "conv=notrunc,fsync")
    where = uri(domain("d", disk("vda", path, form="raw")))
    entry = audit_disk(where)
    run("cp", "--sparse=always", path, images / "copy")
    run("sync", "-f", images)
    assert (
        estimate(entry) == (blocks(path) - blocks(images / "copy"), "zeros") == (6 * MIB, "zeros")
    )
    assert estimate(audit_disk(where, measure=True)) == (6 * MIB, "zeros")
    # a guest that runs may be writing there
    running = uri(domain("d", disk("vda", path, form="raw"), running=True))
    assert estimate(audit_disk(running)) == (None, "")


def test_of_an_image_that_is_written_through_nothing_is_known(images, uri):
    path = images / "x.raw"
    run("dd", "if=/dev/urandom", f"of={path}", "bs=1M", "count=2", "conv=fsync")
    assert estimate(audit_disk(uri(domain("d", disk("vda", path, form="raw"))))) == (None, "")


def test_clusters_that_nothing_refers_to(images, uri):
    """qemu-img convert makes a copy without them."""
    path = with_dead_clusters(images / "x.qcow2")
    run("sync", "-f", images)
    where = uri(domain("d", disk("vda", path)))
    assert estimate(audit_disk(where)) == (None, "")
    entry = audit_disk(where, measure=True)
    run("qemu-img", "convert", "-O", "qcow2", path, images / "copy")
    run("sync", "-f", images)
    size, how = estimate(entry)
    assert how == "measure"
    assert size == pytest.approx(blocks(path) - blocks(images / "copy"), abs=MIB)
    assert size > 7 * MIB


def test_fragments_are_those_that_other_tools_count(images, uri):
    path = create(images / "x.qcow2")
    backwards = [f"write {n * 128}k 64k" for n in range(40, 0, -1)]
    qemu_io(path, *backwards)
    run("sync", "-f", images)
    where = uri(domain("d", disk("vda", path)))
    printed = run("filefrag", "-v", path).splitlines()
    extents = sum(line.split(":")[0].strip().isdecimal() for line in printed)
    assert audit_disk(where)["fragmentation"] == {
        "file_extents": extents,
        "fragmented_clusters": None,
    }
    check = json.loads(run("qemu-img", "check", "--output=json", path))
    fragments = audit_disk(where, measure=True)["fragmentation"]
    assert fragments == {
        "file_extents": extents,
        "fragmented_clusters": check["fragmented-clusters"],
    }
    assert check["fragmented-clusters"] > 30


def test_an_image_that_may_not_be_measured_is_audited_all_the_same(images, uri):
    path = images / "x.qcow2"
    path.write_bytes(made.header(backing=b"/etc/passwd"))
    os.truncate(path, made.FILE_LENGTH)
    entry = audit_disk(uri(domain("d", disk("vda", path))), measure=True)
    assert entry["verdict"] == "works"
    assert {f["id"] for f in entry["findings"]} == {"backing-file-not-read", "image-not-measured"}
    assert estimate(entry) == (None, "")


def test_sums_of_what_is_known(images, uri):
    kinds = {}
    for name, size in (("a", 6), ("b", 3)):
        kinds[name] = images / f"{name}.raw"
        run("fallocate", "-l", f"{size}M", kinds[name])
    create(images / "c.qcow2")
    disks = [disk(f"vd{n}", images / f"{n}.raw", form="raw") for n in "ab"]
    parts = domain("d", *disks), domain("e", disk("vdc", images / "c.qcow2"), disks[0])
    (system,) = audit(uri(*parts))["file_systems"]
    assert system["reclaimable_bytes"] == 9 * MIB
    assert system["guest_used_bytes"] is None
    (system,) = audit(uri(parts[1]), domains=["*"])["file_systems"]
    assert system["reclaimable_bytes"] == 6 * MIB


def test_pools(images, tmp_path, uri):
    paths = [create(images / f"{n}.qcow2", f"{n}G") for n in (1, 2)]
    for path in paths:
        qemu_io(path, "write 0 3M")
    (images / "below").mkdir()
    below = create(images / "below" / "x.qcow2")
    os.symlink(images, tmp_path / "link")
    run("sync", "-f", images)
    where = uri(
        domain("d", disk("vda", paths[0]), disk("vdb", below)),
        domain("e", disk("vda", tmp_path / "link" / "2.qcow2")),
        a_pool("files", tmp_path / "link"),
        a_pool("nowhere", "/nowhere"),
        *no_files(),
    )
    ceph, files, lvm, nowhere = audit(where)["pools"]
    assert (files["name"], files["type"], files["path"]) == ("files", "dir", f"{tmp_path}/link")
    assert files["mount_point"] == run("findmnt", "-n", "-o", "TARGET", "-T", images).strip()
    assert files["promised_bytes"] == 3 << 30
    assert files["allocated_bytes"] == sum(map(blocks, paths))
    size, free = map(int, run("df", "-B1", "--output=size,avail", images).split()[-2:])
    assert files["total_bytes"] == size
    assert abs(files["free_bytes"] - free) < 1 << 30  # others write to it too
    for entry in (ceph, lvm, nowhere):
        said = dict(
            line.split(":", 1)
            for line in run(
                "virsh", "-c", where, "pool-info", "--bytes", entry["name"]
            ).splitlines()
            if line
        )
        assert entry["mount_point"] is None
        assert entry["total_bytes"] == int(said["Capacity"])
        assert entry["allocated_bytes"] == int(said["Allocation"])
        assert entry["free_bytes"] == int(said["Available"])


def test_a_volume_is_in_its_pool_wherever_it_lies(images, uri):
    path = create(images / "x.qcow2", "5G")
    volume = disk_with_source("vda", "volume", pool="p", volume="x")
    volume.find("driver").set("type", "qcow2")
    (entry,) = audit(uri(domain("d", volume), pool("p", "dir", {"x": path})))["pools"]
    assert (entry["name"], entry["promised_bytes"]) == ("p", 5 << 30)


def test_days_until_full(images, uri):
    create(images / "x.qcow2")
    where = uri(
        domain("d", disk("vda", images / "x.qcow2")),
        a_pool("p", images),
        no_files()[0],
    )
    now = audit(where)
    taken_at = datetime.datetime.strptime(now["taken_at"], "%Y-%m-%dT%H:%M:%S%z")
    assert abs(datetime.datetime.now(datetime.UTC) - taken_at) < datetime.timedelta(minutes=5)
    assert now["file_systems"][0]["days_until_full"] is None

    earlier = []
    for days in (20, 10):
        report = json.loads(json.dumps(now))
        report["taken_at"] = str(taken_at - datetime.timedelta(days=days))
        for entry in (*report["file_systems"], *report["pools"]):
            entry["free_bytes"] = int(entry["free_bytes"] * (1 + days / 10))
        earlier.append(report)
    later = audit(where, earlier=earlier)
    (system,) = later["file_systems"]
    ceph, files = later["pools"]
    # what is free now is a tenth of a tenth less every day, so it lasts ten more
    assert system["days_until_full"] == pytest.approx(10, abs=1)
    assert files["days_until_full"] == system["days_until_full"]
    assert ceph["days_until_full"] == pytest.approx(10, abs=0.2)
    found = [f for f in later["findings"] if f["id"] == "storage-filling-up"]
    assert len(found) == 2
    assert {(f["domain"], f["disk"], f["severity"]) for f in found} == {("", "", "warning")}
    assert sum(" will be full in " in line for line in later["summary"]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"earlier": [{"file_systems": []}]}, ("Report 1 in earlier has no taken_at", "Give")),
        ({"agent_timeout": 0}, ("agent_timeout is 0", "between 1 and 600")),
        ({"agent_timeout": 601}, ("agent_timeout is 601",)),
        ({"allowed_dirs": ["srv"]}, ("srv in allowed_dirs",)),
    ],
)
def test_bad_input(uri, arguments, words):
    result = run_module("thin_info", uri=uri(domain("d")), **arguments)
    assert_explains(result, *words)


def test_what_libvirt_keeps_of_a_domain(uri):
    plain, saved, snap = (domain(name) for name in ("plain", "saved", "snap"))
    ET.SubElement(saved, f"{TEST}hasmanagedsave").text = "true"
    snapshot = ET.SubElement(snap, f"{TEST}domainsnapshot")
    for name, text in {"name": "s", "creationTime": "1", "state": "shutoff", "active": "1"}.items():
        ET.SubElement(snapshot, name).text = text
    snapshot.append(domain("snap"))
    where = uri(plain, saved, snap)
    assert run("virsh", "-q", "-c", where, "snapshot-list", "--name", "snap").split() == ["s"]
    listed = run("virsh", "-q", "-c", where, "list", "--all", "--with-managed-save", "--name")
    assert listed.split() == ["saved"]

    found = {
        entry["name"]: [finding["id"] for finding in entry["findings"]]
        for entry in audit(where)["domains"]
    }
    assert found == {"plain": [], "saved": ["managed-save"], "snap": ["libvirt-snapshots"]}


def test_all_findings_stand_at_the_top_too(images, uri):
    shutil.copyfile("/bin/true", images / "x.raw")
    where = uri(
        domain("a", disk("vda", images / "x.raw", form="raw", discard=None), running=True),
        domain("b", disk("vda", images / "gone.qcow2")),
    )
    result = audit(where)
    of_domains = [finding for entry in result["domains"] for finding in entry["findings"]]
    of_storage = [finding for finding in result["findings"] if not finding["domain"]]
    assert result["findings"] == [*of_storage, *of_domains]
    assert {f["id"] for f in of_domains} == {
        *("agent-disconnected", "discard-ignored", "image-unreadable")
    }
