# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which disks lie in which storage pool, each file counted once."""

from __future__ import annotations

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit import pools
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.model import Image
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.storage_pool import (
    StoragePool,
    parse_pool,
)
from audit_parts import GIB, audit_domain, backing, file_system, image

CEPH = StoragePool("ceph", "rbd", "", 1000 * GIB, 300 * GIB, 700 * GIB)


def folder(path="/srv", *more, system=None, name="srv"):
    """A pool of files, of which libvirt's own figures are out of date."""
    pool = StoragePool(name, "dir", path, 1, 1, 1)
    return pools.PoolSums(pool, frozenset({path, *more}), system or file_system(path))


def figures(sums):
    return sums.promised_bytes // GIB, sums.allocated_bytes // GIB


def test_disks_are_found_by_their_folder():
    srv, other = folder(), folder("/other", name="other")
    elsewhere = image(9, path="/else/9.qcow2")
    pools.sum_up([srv, other], [audit_domain("a", image(1), image(2), elsewhere)])
    assert figures(srv) == (20, 4)
    assert figures(other) == (0, 0)


def test_a_folder_below_is_no_part_of_a_pool():
    srv = folder()
    pools.sum_up([srv], [audit_domain("a", image(1, path="/srv/more/1.qcow2"))])
    assert figures(srv) == (0, 0)


def test_symlinks_on_either_side():
    srv = folder("/link", "/srv", system=file_system("/srv"))
    domain = audit_domain(
        "a", image(1), image(2, path="/link/2.qcow2"), image(3, path="/x/3", real_path="/srv/3")
    )
    pools.sum_up([srv], [domain])
    assert figures(srv) == (30, 6)


def test_files_count_once_and_backing_files_promise_nothing():
    srv = folder()
    shared = image(1, backing=(backing(5), backing(6, path="/else/6.qcow2")))
    data = image(2, data_file=backing(7, path="/srv/7.raw"))
    domains = audit_domain("a", shared, data), audit_domain("b", shared)
    pools.sum_up([srv], domains)
    assert figures(srv) == (20, 2 + 2 + 1 + 1)


def test_figures_of_the_file_system_are_those_of_the_pool():
    srv = folder()
    pools.sum_up([srv], [audit_domain("a", image(1))])
    assert (srv.total_bytes, srv.free_bytes, srv.mount_point) == (100 * GIB, 50 * GIB, "/srv")
    assert srv.overcommit_ratio == pytest.approx(10 / 52, abs=1e-3)


def test_a_pool_without_files_is_what_libvirt_says():
    ceph = pools.PoolSums(CEPH, frozenset(), None)
    pools.sum_up([ceph], [audit_domain("a", Image("", "raw"), image(1))])
    assert (ceph.total_bytes, ceph.free_bytes, ceph.mount_point) == (1000 * GIB, 700 * GIB, None)
    assert figures(ceph) == (0, 300)
    assert ceph.overcommit_ratio == 0
    empty = StoragePool("a", "rbd", "", 0, 0, 0)
    assert pools.PoolSums(empty, frozenset(), None).overcommit_ratio is None


@pytest.mark.parametrize(
    ("target", "path"),
    [("<target><path>/srv </path></target>", "/srv"), ("", ""), ("<target/>", "")],
)
def test_the_xml_of_a_pool(target, path):
    xml = f"<pool type='dir'><name>a</name>{target}</pool>"
    pool = parse_pool(xml, total=3, allocated=1, free=2)
    assert pool == StoragePool("a", "dir", path, 3, 1, 2)
