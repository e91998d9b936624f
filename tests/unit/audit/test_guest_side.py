# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What guests say of their file systems, against what the host holds for their disks."""

from __future__ import annotations

import dataclasses

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit import guest_side
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.asking import Answer
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.image_checks import reclaimable
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.obstacles import Kept
from ansible_collections.thinvirt.kvm.plugins.module_utils._discard.untrimmed import (
    Address,
    GuestFileSystem,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import HypervisorError
from audit_parts import GIB, audit_domain, backing, image, qcow2

VDA, VDB, ELSEWHERE = (Address((0, 0, number, 0)) for number in (4, 5, 6))
ADDRESSES = {VDA: "vda", VDB: "vdb"}


def system(used, *addresses, total=10, name="vda1"):
    """A file system, sizes in GiB."""
    return GuestFileSystem(name, f"/{name}", "ext4", total * GIB, int(used * GIB), addresses)


def audited(*systems, images=(), agent="answered", kept=None, **answer):
    """A domain with two disks of 10 GiB, of which the host holds 8 each, after its answer."""
    images = images or (image(1, allocated_bytes=8 * GIB), image(2, allocated_bytes=8 * GIB))
    return guest_side.completed(
        dataclasses.replace(audit_domain("web1", *images), active=True),
        kept=kept or Kept(),
        answer=Answer(agent=agent, file_systems=systems, addresses=ADDRESSES, **answer),
    )


def estimates(domain):
    """(used, could come back, how) of each disk, in GiB."""
    return [
        (
            None if disk.guest_used_bytes is None else disk.guest_used_bytes / GIB,
            None if reclaimable(disk)[0] is None else reclaimable(disk)[0] / GIB,
            reclaimable(disk)[1],
        )
        for disk in domain.disks
    ]


UNKNOWN = (None, None, "")


@pytest.mark.parametrize(
    ("systems", "first", "second"),
    [
        ((), UNKNOWN, UNKNOWN),
        ((system(3, VDA),), (3, 5, "guest"), UNKNOWN),
        ((system(3, VDA), system(1, VDB, name="b")), (3, 5, "guest"), (1, 7, "guest")),
        # two of them on one disk
        ((system(3, VDA, total=6), system(1, VDA, total=4, name="b")), (4, 4, "guest"), UNKNOWN),
        # what lies beside file systems may all be on the host
        ((system(3, VDA, total=9),), (3, 4, "guest"), UNKNOWN),
        ((system(3, VDA, total=2),), (3, 0, "guest"), UNKNOWN),
        # the guest counts more than the host holds
        ((system(9, VDA),), (9, 0, "guest"), UNKNOWN),
        # one over both disks: it can't be told how much on which
        ((system(3, VDA, VDB, total=20),), UNKNOWN, UNKNOWN),
        # a disk that is not this domain's, or none at all
        ((system(3, ELSEWHERE),), UNKNOWN, UNKNOWN),
        ((system(3, VDA, ELSEWHERE),), UNKNOWN, UNKNOWN),
        ((system(3),), UNKNOWN, UNKNOWN),
    ],
)
def test_estimates(systems, first, second):
    assert estimates(audited(*systems)) == [first, second]


def test_the_data_file_is_what_the_host_holds():
    its_image = image(allocated_bytes=0, data_file=backing(7, allocated_bytes=8 * GIB))
    assert estimates(audited(system(3, VDA), images=(its_image,))) == [(3, 5, "guest")]


@pytest.mark.parametrize(
    "changes",
    [
        {"allocated_bytes": None},
        {"promised_bytes": None},
        {"qcow2": qcow2(snapshot_count=1)},
    ],
)
def test_disks_of_which_nothing_can_be_told(changes):
    (found,) = estimates(audited(system(3, VDA), images=(image(**changes),)))
    assert found == UNKNOWN


def test_what_the_guest_says_is_shown_with_the_disks_that_it_is_of():
    domain = audited(system(3, VDA), system(1, VDA, VDB, ELSEWHERE, name="b"), system(1, name="c"))
    assert [(s.mount_point, s.targets) for s in domain.guest_file_systems] == [
        ("/vda1", ("vda",)),
        ("/b", ("vda", "vdb")),
        ("/c", ()),
    ]


@pytest.mark.parametrize(
    ("agent", "finding"),
    [
        ("silent", ("agent-silent", "warning")),
        ("refused", ("agent-refused", "warning")),
        ("no-time", ("agent-not-asked", "info")),
        ("not-asked", None),
        ("answered", None),
    ],
)
def test_agents_that_did_not_answer(agent, finding):
    domain = audited(agent=agent, reason="It said why.", remedy="Wake it up.")
    assert [(f.id, f.severity) for f in domain.findings] == ([finding] if finding else [])
    assert (domain.guest_file_systems is None) is (agent != "answered")
    if agent == "refused":
        assert domain.findings[0].remedy.startswith("Wake it up. If ")
    if agent in ("silent", "refused"):
        assert domain.findings[0].reason.startswith("It said why.")


@pytest.mark.parametrize(
    ("stopped", "errors", "verdicts"),
    [
        (False, {}, ["works", "works"]),
        (True, {"vda": "no space left on its storage"}, ["broken", "works"]),
        (True, {}, ["unknown", "unknown"]),  # it was one of them
    ],
)
def test_a_guest_that_an_io_error_has_paused(stopped, errors, verdicts):
    domain = audited(agent="not-asked", stopped=stopped, io_errors=errors)
    assert [disk.verdict for disk in domain.disks] == verdicts
    assert [(f.id, f.severity) for f in domain.findings] == (
        [("paused-by-io-error", "error")] if stopped else []
    )
    if errors:
        assert "(vda: no space left on its storage)" in domain.findings[0].reason
        assert domain.disks[0].culprit.name == "storage"
        assert "no space left" in domain.disks[0].culprit.reason


def test_what_libvirt_keeps_and_does():
    uuid = audit_domain("web1").uuid
    other = Kept(frozenset({"x"}), frozenset({"y"}), frozenset({"z"}))
    assert audited(kept=other).findings == ()
    for kept, finding in (
        (Kept(snapshots=frozenset({uuid})), ("libvirt-snapshots", "info")),
        (Kept(checkpoints=frozenset({uuid})), ("checkpoints", "info")),
        (Kept(saved=frozenset({uuid})), ("managed-save", "warning")),
    ):
        (found,) = audited(kept=kept).findings
        assert (found.id, found.severity, found.domain, found.disk) == (*finding, "web1", "")
    (found,) = audited(jobs=("block job on vda", "backup\n")).findings
    assert (found.id, found.domain) == ("job-running", "web1")
    assert "block job on vda, backup\\n." in found.reason


def test_a_domain_that_could_not_be_read_stays_as_it_is():
    failed = dataclasses.replace(audit_domain("web1"), error=HypervisorError("It is gone."))
    kept = Kept(snapshots=frozenset({failed.uuid}))
    assert guest_side.completed(failed, kept=kept, answer=None) == failed


def test_a_domain_that_was_not_asked_has_what_is_known_without_it():
    its_image = image(unwritten_bytes=2 * GIB, allocated_bytes=8 * GIB)
    domain = guest_side.completed(audit_domain("web1", its_image), kept=Kept(), answer=None)
    assert domain.guest_file_systems is None
    assert [f.id for f in domain.disks[0].findings] == ["space-to-reclaim"]
