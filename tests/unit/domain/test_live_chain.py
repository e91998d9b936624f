# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Chains as libvirt and QEMU tell them, in their own words, and what counts as another's."""

from __future__ import annotations

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._live import chain
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.policy import (
    Found,
    Settlement,
    is_squeezed,
    role_of,
    settle,
)

#: As libvirt 9.0 has it while a copy of ours is at work.
LIVE = """
<domain type='qemu'><name>l</name><devices>
  <disk type='file' device='disk'>
    <driver name='qemu' type='qcow2'/>
    <source file='/d/l.overlay' index='2'/>
    <backingStore type='file' index='1'>
      <format type='qcow2'/><source file='/d/l.img'/><backingStore/>
    </backingStore>
    <mirror type='file' file='/d/l.second' format='qcow2' job='copy' ready='yes'>
      <format type='qcow2'/><source file='/d/l.second' index='3'/>
      <backingStore type='file' index='4'><source file='/d/l.img'/></backingStore>
    </mirror>
    <target dev='sda' bus='scsi'/><alias name='scsi0-0-0-0'/>
  </disk>
  <disk type='volume' device='disk'>
    <source pool='p' volume='v' index='5'/><backingStore/><target dev='vdb' bus='virtio'/>
    <alias name='virtio-disk1'/>
  </disk>
</devices></domain>
"""
JSON = (
    'json:{"backing": null, "driver": "qcow2", "file": {"driver": "file", "filename": "/d/l.img"}}'
)
#: As QEMU 7.2 answers to query-block and to query-named-block-nodes.
DEVICES = [
    {"qdev": "scsi0-0-0-1"},
    {
        "qdev": "scsi0-0-0-0",
        "inserted": {
            "image": {"filename": "/d/l.overlay", "backing-image": {"filename": JSON}},
        },
    },
    {
        "qdev": "/machine/peripheral/virtio-disk1/virtio-backend",
        "inserted": {"image": {"filename": "/p/v", "backing-image": {"filename": "/p/v"}}},
    },
]
NODES = [
    {"node-name": "#block024", "file": "/d/l.overlay"},
    {"node-name": "libvirt-2-format", "file": "/d/l.overlay"},
    {"node-name": "libvirt-2-storage", "file": "/d/l.overlay"},
    {"node-name": "libvirt-1-format", "file": JSON},
]


def same(path):
    return path


def of(target):
    return chain.of_libvirt(LIVE, target, real=same)


def test_libvirts_chain_to_the_node():
    found = of("sda")
    assert found.paths == ["/d/l.overlay", "/d/l.img"]
    assert [found.node(0), found.node(1)] == ["sda[2]", "sda[1]"]
    assert (found.job, found.mirror, found.ready) == ("copy", "/d/l.second", True)
    assert (of("vdb").paths, of("vdb").job) == ([""], "")
    assert of("vdc") is None


@pytest.mark.parametrize(
    ("alias", "paths"),
    [
        ("scsi0-0-0-0", ["/d/l.overlay", "/d/l.img"]),
        ("scsi0-0-0-1", []),
        ("virtio-disk1", ["/p/v"]),  # a filter has the name of what it filters
        ("virtio-disk", []),
    ],
)
def test_qemus_chain(alias, paths):
    assert chain.of_qemu(DEVICES, alias, real=same) == paths


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("/d/a:b", "/d/a:b"),
        (JSON, "/d/l.img"),
        ('json:{"driver": "nbd"}', 'json:{"driver": "nbd"}'),
        ("json:nonsense", "json:nonsense"),
    ],
)
def test_the_file_behind_what_qemu_calls_its_name(name, file):
    assert chain.file_of(name) == file


@pytest.mark.parametrize(("gone", "missing"), [(None, ""), (3, "/d/l.img")])
def test_libvirts_nodes_are_qemus(gone, missing):
    nodes = [node for number, node in enumerate(NODES) if number != gone]
    assert chain.missing_node(of("sda"), nodes, real=same) == missing


@pytest.mark.parametrize(
    ("qemu", "expected", "says"),
    [
        (["/d/l.overlay", "/d/l.img"], ["/d/l.overlay", "/d/l.img"], ""),
        (["/d/l.overlay", "/d/l.img"], ["/d/l.overlay"], ""),
        (["/d/l.overlay", "/d/l.img"], ["/d/l.img"], "libvirt has it on"),
        (["/d/x", "/d/l.overlay"], ["/d/l.overlay", "/d/l.img"], "QEMU has it on /d/x over"),
        (["/d/l.overlay"], ["/d/l.overlay", "/d/l.img"], "QEMU has it on /d/l.overlay"),
        (["/d/l.overlay", "/d/x"], ["/d/l.overlay"], "QEMU on /d/l.overlay over /d/x"),
    ],
)
def test_another_chain_than_expected(qemu, expected, says):
    found = chain.difference(of("sda"), qemu, expected)
    assert says in found
    assert bool(found) is bool(says)


def test_the_paths_that_an_xml_names():
    assert chain.paths_in(LIVE) >= {"/d/l.overlay", "/d/l.img", "/d/l.second"}
    assert "/v" in chain.paths_in("<domain><os><nvram>/v</nvram></os></domain>")


NAMES = {"base": "/d/b", "new": "/e/b", "overlay": "/d/o", "second": ""}


@pytest.mark.parametrize(
    ("paths", "role"),
    [
        (["/d/o", "/d/b"], "overlay"),
        (["/d/b"], "base"),
        (["/d/x", "/d/b"], "base"),  # theirs lies on the image: not our business
        (["/d/x", "/e/b"], "new"),
        (["/d/x", "/d/o", "/d/b"], "other"),
        (["/d/x"], "other"),
        ([], "other"),
    ],
)
def test_which_of_our_files_a_disk_is_on(paths, role):
    assert role_of(paths, NAMES) == role


@pytest.mark.parametrize(
    ("paths", "change", "squeezed"),
    [
        (["/d/o", "/d/x", "/d/b"], {}, True),
        (["/d/o", "/d/b"], {}, False),
        (["/d/o", "/d/x"], {}, False),
        (["/d/o", "/d/x", "/d/b"], {"running": False}, False),
        (["/d/o", "/d/x", "/d/b"], {"stage": "mirror"}, False),
        (["/d/o", "/d/x", "/d/b"], {"exchanged": True}, False),
    ],
)
def test_a_file_of_others_that_came_between(paths, change, squeezed):
    given = {"stage": "snapshot", "running": True, "top": "overlay", "exchanged": False, **change}
    assert is_squeezed(Found(**given, paths=NAMES), paths) is squeezed


@pytest.mark.parametrize("top", ["overlay", "second", "other"])
@pytest.mark.parametrize(
    ("change", "taken_back"),
    [
        ({}, True),
        ({"holds_original": False}, False),
        ({"exchanged": False}, False),
        ({"moves": True}, False),
        ({"holds_copy": True}, False),  # it lies below the second overlay
    ],
)
def test_what_others_need_stays_and_the_image_has_the_name_that_qemu_has_open(
    top, change, taken_back
):
    given = {"exchanged": True, "holds_original": True, **change}
    found = Found(stage="mirror", running=True, top=top, foreign="a backup", **given)
    assert settle(found) == Settlement(taken_back, commit=False, finished=False, foreign="a backup")
