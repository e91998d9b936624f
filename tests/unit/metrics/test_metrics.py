# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The text of the metrics, read back by Prometheus' own client library."""

from __future__ import annotations

import json
import os

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._metrics.textfile import (
    TextFile,
    attributes_after,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._metrics.textfile import (
    text_after as text_after_of,
)
from metrics_parts import (
    GIB,
    HOSTILE_NAMES,
    MIB,
    audit,
    compaction,
    disk,
    domain,
    file_system,
    finding,
    pool,
    trim,
)
from prometheus_client.parser import text_string_to_metric_families

NOW = 1_795_579_200
TRIMMED = "thinvirt_domain_last_trim_timestamp_seconds"
COMPACTED = "thinvirt_domain_last_compaction_timestamp_seconds"
FREED = "thinvirt_domain_freed_bytes_total"
DISK_FREED = "thinvirt_disk_freed_bytes_total"


def text_after(before, **arguments):
    return text_after_of("/x.prom", before, **arguments)


def parsed(text):
    """Samples by name, as a mapping from their labels' values to the number."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(sample.labels.values())
            of_name = found.setdefault(sample.name, {})
            assert labels not in of_name, f"{sample.name}{labels} is there twice"
            of_name[labels] = sample.value
    return found


def metrics(before="", *, audit=None, trims=(), now=NOW):
    return parsed(text_after(before, audit=audit, trims=trims, now=now))


def test_every_figure_of_an_audit():
    broken = disk(
        "vdb", verdict="broken", reclaimable_bytes=None, findings=[finding("discard-ignored")]
    )
    found = metrics(audit=audit(domain("web1", disk(), broken), domain("db", active=False)))
    assert found["thinvirt_audit_timestamp_seconds"] == {(): 1_795_579_200}
    assert found["thinvirt_audit_success"] == {(): 1}
    assert found["thinvirt_domain_running"] == {("web1",): 1, ("db",): 0}
    assert found["thinvirt_disk_promised_bytes"][("web1", "vda")] == 20 * GIB
    assert found["thinvirt_disk_allocated_bytes"][("web1", "vda")] == 5 * GIB
    assert found["thinvirt_disk_length_bytes"][("web1", "vda")] == 6 * GIB
    assert found["thinvirt_disk_guest_used_bytes"][("web1", "vda")] == 4 * GIB
    assert found["thinvirt_disk_reclaimable_bytes"] == {("web1", "vda"): GIB}  # not known: absent
    assert found["thinvirt_disk_discard_verdict"] == {
        ("web1", "vda", "works"): 1,
        ("web1", "vda", "broken"): 0,
        ("web1", "vda", "unknown"): 0,
        ("web1", "vdb", "works"): 0,
        ("web1", "vdb", "broken"): 1,
        ("web1", "vdb", "unknown"): 0,
    }
    assert found["thinvirt_disk_info"][("web1", "vda", "/srv/vda.qcow2", "virtio", "qcow2", "/srv")]
    assert found["thinvirt_finding_info"] == {("web1", "", "discard-ignored", "error"): 1}
    assert found["thinvirt_filesystem_info"] == {("/srv", "/dev/sdx1", "ext4"): 1}
    assert found["thinvirt_filesystem_size_bytes"] == {("/srv",): 100 * GIB}
    assert found["thinvirt_filesystem_avail_bytes"] == {("/srv",): 50 * GIB}
    assert found["thinvirt_filesystem_promised_bytes"] == {("/srv",): 120 * GIB}
    assert found["thinvirt_filesystem_allocated_bytes"] == {("/srv",): 30 * GIB}
    assert found["thinvirt_filesystem_reclaimable_bytes"] == {("/srv",): 3 * GIB}
    assert "thinvirt_filesystem_guest_used_bytes" not in found
    assert found["thinvirt_filesystem_overcommit_ratio"] == {("/srv",): 1.5}
    assert found["thinvirt_filesystem_until_full_seconds"] == {("/srv",): 12.5 * 86400}
    assert found["thinvirt_filesystem_disks"] == {("/srv",): 1}
    assert found["thinvirt_pool_avail_bytes"] == {("default",): 50 * GIB}
    assert found["thinvirt_pool_info"] == {("default", "dir", "/srv"): 1}


def test_a_pool_on_no_file_system():
    found = metrics(audit=audit(pools=[pool("lvm", type="logical", mount_point=None)]))
    assert found["thinvirt_pool_info"] == {("lvm", "logical", ""): 1}


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_are_only_names(name):
    one = domain(name, disk(name, path=name), uuid=name, machine=name)
    system = file_system(name, source=name)
    before = text_after(
        "",
        audit=audit(one, file_systems=[system], pools=[pool(name)]),
        trims=[trim(name, disks=[{"target": name, "freed_bytes": 5}])],
        now=NOW,
    )
    found = parsed(before)
    assert not [each for each in found if "fake" in each]
    assert found["thinvirt_domain_info"] == {(name, name, name): 1}
    assert found["thinvirt_disk_info"] == {(name, name, name, "virtio", "qcow2", "/srv"): 1}
    assert found["thinvirt_filesystem_info"] == {(name, name, "ext4"): 1}
    assert found[DISK_FREED] == {(name, name, "trim"): 5}
    # and they are found again by the next run
    again = [trim(name, disks=[{"target": name, "freed_bytes": 6}])]
    assert metrics(before, trims=again)[DISK_FREED] == {(name, name, "trim"): 11}
    assert text_after(before, audit=audit(one), trims=(), now=NOW).count(DISK_FREED) == 3


def test_code_points_that_utf8_does_not_know():
    text = text_after("", audit=audit(domain("\udc80\ud800")), trims=(), now=NOW)
    text.encode("utf-8")
    assert parsed(text)["thinvirt_domain_running"] == {("\\udc80\\ud800",): 1}


def test_a_domain_that_could_not_be_read():
    failed = {"name": "x", "uuid": "u", "active": True, "error": {"msg": "No."}}
    found = metrics(audit=audit(domain("web1", disk()), failed))
    assert found["thinvirt_audit_success"] == {(): 0}
    assert found["thinvirt_domain_audit_success"] == {("web1",): 1, ("x",): 0}


def test_the_same_finding_twice_is_one_sample():
    one = domain("web1", disk())
    one["findings"] = [finding("a"), finding("a")]
    found = metrics(audit=audit(one, findings=[finding("a"), finding("b", "warning")]))
    assert found["thinvirt_finding_info"] == {
        ("", "", "a", "error"): 1,
        ("", "", "b", "warning"): 1,
    }


def test_what_trims_freed_is_added_up():
    first = text_after("", audit=None, trims=[trim()], now=NOW)
    found = parsed(first)
    assert found[TRIMMED] == {("web1",): NOW}
    assert found[FREED] == {("web1", "trim"): 300 * MIB}
    more = [trim(freed_bytes=10), trim("db", 7), compaction(trimmed_bytes=5)]
    found = metrics(first, trims=more, now=NOW + 60)
    assert found[TRIMMED] == {("web1",): NOW + 60, ("db",): NOW + 60}
    assert found[COMPACTED] == {("web1",): NOW + 60}
    assert found[FREED] == {
        ("web1", "trim"): 300 * MIB + 10 + 5,
        ("web1", "compaction"): 200 * MIB,
        ("db", "trim"): 7,
    }
    assert found[DISK_FREED] == {
        ("web1", "vda", "trim"): 300 * MIB + 10,
        ("web1", "vda", "compaction"): 200 * MIB,
        ("db", "vda", "trim"): 7,
    }


def test_a_counter_never_falls():
    before = text_after("", audit=None, trims=[trim(freed_bytes=10)], now=NOW)
    found = metrics(before, trims=[trim(freed_bytes=-5), trim("db", -5)])
    assert found[FREED] == {("web1", "trim"): 10, ("db", "trim"): 0}


@pytest.mark.parametrize("status", ["skipped", "would_trim"])
def test_what_did_not_trim_is_not_counted(status):
    assert metrics(trims=[trim(status=status)]) == {}


def test_what_failed_freed_what_it_freed_and_is_not_done():
    found = metrics(trims=[compaction(status="failed"), trim("db", status="failed")])
    assert found[FREED] == {("web1", "compaction"): 200 * MIB, ("db", "trim"): 300 * MIB}
    assert COMPACTED not in found
    assert TRIMMED not in found


def test_disks_without_a_figure():
    disks = [
        {"target": "vda", "freed_bytes": None},  # a block device
        {"target": "vdb", "changed": False, "freed_bytes": 5},  # not worth it
        {"target": "vdc", "error": {"msg": "No."}},
    ]
    assert DISK_FREED not in metrics(trims=[compaction(disks=disks)])


def test_a_module_that_returned_no_domains_counts_for_nothing():
    assert metrics(trims=[{"failed": True, "msg": "libvirt does not answer"}]) == {}


def test_an_audit_leaves_what_was_freed_and_drops_domains_that_are_gone():
    before = text_after("", audit=audit(domain("web1")), trims=[trim(), trim("old")], now=NOW)
    found = metrics(before, audit=audit(domain("web1"), domain("new")), now=NOW + 60)
    assert found[TRIMMED] == {("web1",): NOW}
    assert set(found[FREED]) == {("web1", "trim")}
    assert set(found["thinvirt_domain_running"]) == {("web1",), ("new",)}


def test_a_trim_leaves_the_audit():
    before = text_after("", audit=audit(domain("web1", disk())), trims=[trim()], now=NOW)
    after = text_after(before, audit=None, trims=[trim()], now=NOW + 60)
    assert parsed(after) == parsed(before) | {
        TRIMMED: {("web1",): NOW + 60},
        FREED: {("web1", "trim"): 600 * MIB},
        DISK_FREED: {("web1", "vda", "trim"): 600 * MIB},
    }
    assert text_after(after, audit=None, trims=(), now=NOW + 120) == after


def test_the_order_is_always_the_same():
    there = audit(domain("a", disk("vda"), disk("vdb")), domain("b"))
    back = audit(domain("b"), domain("a", disk("vdb"), disk("vda")))
    assert text_after("", audit=there, trims=(), now=1) == text_after(
        "", audit=back, trims=(), now=2
    )


def test_the_file_of_somebody_else_is_refused():
    with pytest.raises(RefusedError, match="not written by this module"):
        text_after("node_other 1\n", audit=audit(), trims=(), now=NOW)


@pytest.mark.parametrize(
    "line",
    ["a line", FREED + '{domain="a"} 1', FREED + '{domain="a",method="trim"} 1e', "x{y='z'} 1"],
)
def test_a_file_that_was_changed_by_hand_is_refused(line):
    before = text_after("", audit=None, trims=[trim()], now=NOW) + line + "\n"
    with pytest.raises(ThinvirtError, match=r"^/x.prom was changed by somebody else\. Line 11 "):
        text_after(before, audit=None, trims=(), now=NOW)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"domains": [{}]},
        audit(taken_at="yesterday"),
        audit(domain("x", disk(promised_bytes="20G"))),
        audit(domain("x", disk(promised_bytes=True))),
        audit(domain("x", disk(allocated_bytes=float("nan")))),
        audit(domain("x", disk(verdict="perhaps"))),
        audit(domain("x", disk(path=["a"]))),
        audit(domain(7)),
        audit("x"),
        audit(file_systems={"a": 1}),
    ],
    ids=repr,
)
def test_what_is_no_audit_is_refused(wrong):
    with pytest.raises(ThinvirtError, match="not what thinvirt"):
        text_after("", audit=wrong, trims=(), now=NOW)


@pytest.mark.parametrize(
    "wrong",
    [
        {"domains": [{}]},
        {"domains": [7]},
        trim(disks=[{"freed_bytes": 1}]),
        trim(freed_bytes="1"),
        compaction(disks=[{"target": "vda", "freed_bytes": True}]),
    ],
    ids=repr,
)
def test_what_is_no_trim_is_refused(wrong):
    with pytest.raises(ThinvirtError, match="something else than what"):
        text_after("", audit=None, trims=[wrong], now=NOW)


@pytest.mark.parametrize(
    ("mode", "bits"), [("0644", 0o644), ("640", 0o640), ("0o640", None), (0o644, 0o644),
                       (644, None), ("1777", None), ("u=rw", None), (None, None)],
)  # fmt: skip
def test_modes(mode, bits):
    if bits is None:
        with pytest.raises(ThinvirtError, match="octal"):
            attributes_after(None, mode=mode, owner=None, group=None)
    else:
        assert attributes_after(None, mode=mode, owner=None, group=None).mode == bits


def test_owner_and_group_by_name_or_number_or_as_they_are():
    first = attributes_after(None, mode="0600", owner="1234", group="daemon")
    assert (first.owner, first.group) == (1234, 1)
    stays = attributes_after(TextFile("", first), mode="0600", owner=None, group=None)
    assert stays == first
    new = attributes_after(None, mode="0600", owner=None, group=None)
    assert (new.owner, new.group) == (os.geteuid(), os.getegid())
    with pytest.raises(ThinvirtError, match="no user nobody-here"):
        attributes_after(None, mode="0600", owner="nobody-here", group=None)
    with pytest.raises(ThinvirtError, match="no group nobody-here"):
        attributes_after(None, mode="0600", owner=None, group="nobody-here")


def test_what_ansible_makes_of_an_audit_is_taken():
    """Arguments of modules come as JSON."""
    given = audit(domain("web1", disk()))
    over_the_wire = json.loads(json.dumps(given))
    assert metrics(audit=over_the_wire) == metrics(audit=given)
