# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each link of a discard's way, and what is said about one that does not hold."""

from __future__ import annotations

import inspect
import re

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit import checks
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.model import Image
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.xml import DiskSettings
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.punch import PunchProbe
from audit_parts import IGNORE, UNMAP, audit_disk, backing, disk, domain, image, qcow2


def outcome(audit):
    """(verdict, name of the culprit or None)."""
    return audit.verdict, audit.culprit.name if audit.culprit else None


@pytest.mark.parametrize(
    ("bus", "discard", "machine", "verdict", "broken"),
    [
        ("scsi", "unmap", "pc-q35-7.2", "works", None),
        ("virtio", "unmap", "pc-q35-7.2", "works", None),
        ("virtio", "unmap", "pc-i440fx-3.1", "broken", "machine"),
        ("ide", "unmap", "pc-i440fx-7.2", "works", None),
        ("scsi", None, "pc-q35-7.2", "broken", "discard"),
        ("virtio", None, "pc-q35-7.2", "broken", "discard"),
        # not in the table: shares ide's code, an explicit default, the other buses' machines
        ("sata", "unmap", "pc-q35-7.2", "works", None),
        ("virtio", "ignore", "pc-q35-7.2", "broken", "discard"),
        ("scsi", "unmap", "pc-i440fx-3.1", "works", None),
        ("ide", "unmap", "pc-i440fx-2.1", "works", None),
        ("virtio", "unmap", "pc-q35-rhel8.0.0", "broken", "machine"),
        ("virtio", "unmap", "pc-q35-rhel8.1.0", "works", None),
        # the first one counted from the guest
        ("virtio", None, "pc-i440fx-3.1", "broken", "machine"),
    ],
)
def test_what_can_discard_as_it_was_measured(bus, discard, machine, verdict, broken):
    """fstrim in a guest, and the image's blocks on the host before and after."""
    settings = DiskSettings(discard=discard) if discard else DiskSettings()
    its_disk = disk("sda", bus, settings=settings)
    audit = audit_disk(domain(its_disk, machine=machine), its_disk, configured=settings)
    assert outcome(audit) == (verdict, broken)


def test_the_links_lead_from_the_guest_to_the_storage():
    links = audit_disk(domain(), disk()).links
    assert [(link.name, link.value) for link in links] == [
        ("machine", "pc-q35-7.2"),
        ("bus", "virtio"),
        ("discard", "unmap"),
        ("format", "qcow2 (compat 1.1)"),
        ("storage", "ext4 at /srv"),
    ]
    assert {(link.state, link.finding, link.reason, link.remedy) for link in links} == {
        ("works", "", "", "")
    }


@pytest.mark.parametrize("machine", ["q35", "microvm", ""])
def test_a_machine_type_of_unknown_age(machine):
    assert outcome(audit_disk(domain(machine=machine), disk())) == ("unknown", "machine")
    # virtio-scsi discards on machine types of every age
    assert audit_disk(domain(machine=machine), disk("sda", "scsi")).verdict == "works"


@pytest.mark.parametrize(
    ("bus", "device", "models", "controller", "verdict"),
    [
        ("scsi", "disk", {0: "virtio-scsi"}, 0, "works"),
        ("scsi", "disk", {0: "virtio-transitional"}, 0, "works"),
        ("scsi", "disk", {0: "virtio-non-transitional"}, 0, "works"),
        ("scsi", "disk", {0: "virtio-scsi"}, None, "works"),
        ("scsi", "disk", {0: "lsilogic"}, 0, "unknown"),
        ("scsi", "disk", {0: ""}, 0, "unknown"),
        ("scsi", "disk", {}, 0, "unknown"),
        ("scsi", "disk", {0: "lsilogic", 1: "virtio-scsi"}, 1, "works"),
        ("scsi", "disk", {0: "virtio-scsi", 1: "lsisas1078"}, 1, "unknown"),
        ("scsi", "lun", {0: "virtio-scsi"}, 0, "unknown"),
        ("virtio", "lun", {}, None, "unknown"),
        ("usb", "disk", {}, None, "unknown"),
        ("xen", "disk", {}, None, "unknown"),
        ("", "disk", {}, None, "unknown"),
    ],
)
def test_buses(bus, device, models, controller, verdict):
    its_disk = disk("sda", bus, device=device, controller=controller)
    audit = audit_disk(domain(its_disk, scsi_models=models), its_disk)
    assert outcome(audit) == (verdict, None if verdict == "works" else "bus")


def test_the_reason_names_the_controller_that_is_unknown():
    its_disk = disk("sda", "scsi")
    audit = audit_disk(domain(its_disk, scsi_models={0: "lsilogic"}), its_disk)
    assert audit.culprit.value == "scsi (lsilogic)"
    assert "scsi (lsilogic)" in audit.culprit.reason
    assert "virtio-scsi" in audit.culprit.remedy


@pytest.mark.parametrize(
    ("live", "configured", "verdict", "found"),
    [
        # shut off: what is configured is all there is
        (None, UNMAP, "works", []),
        (None, IGNORE, "broken", ["discard-ignored"]),
        # running
        (UNMAP, UNMAP, "works", []),
        (UNMAP, IGNORE, "works", ["discard-not-configured"]),
        (IGNORE, UNMAP, "broken", ["restart-required"]),
        (IGNORE, IGNORE, "broken", ["discard-ignored"]),
        # plugged in for now: it is gone at the next start
        (UNMAP, None, "works", []),
        (IGNORE, None, "broken", ["discard-ignored"]),
    ],
)
def test_live_and_configured(live, configured, verdict, found):
    its_disk = disk(settings=live or configured)
    audit = audit_disk(domain(its_disk), its_disk, live=live, configured=configured)
    assert outcome(audit) == (verdict, "discard" if verdict == "broken" else None)
    assert [finding.id for finding in audit.findings] == found


OLD_OVERLAY = qcow2(version=2, backing_file="base.qcow2")


@pytest.mark.parametrize(
    ("name", "header", "verdict"),
    [
        ("qcow2", qcow2(), "works"),
        ("qcow2", qcow2(backing_file="base.qcow2"), "works"),
        ("qcow2", qcow2(version=2), "works"),
        ("qcow2", OLD_OVERLAY, "broken"),
        ("raw", None, "works"),
        *((name, None, "broken") for name in ("vmdk", "vdi", "vhdx", "vpc", "qed")),
        ("luks", None, "broken"),
        *((name, None, "unknown") for name in ("parallels", "qcow", "")),
    ],
)
def test_formats(name, header, verdict):
    audit = audit_disk(domain(), disk(), image(format=name, qcow2=header))
    assert outcome(audit) == (verdict, None if verdict == "works" else "format")


@pytest.mark.parametrize(
    ("name", "header", "verdict", "value"),
    [
        ("raw", None, "broken", "raw (luks)"),
        ("qcow2", qcow2(encryption="luks"), "works", "qcow2 (compat 1.1)"),
    ],
)
def test_encryption_as_it_was_measured(name, header, verdict, value):
    """qemu-io's discard of all of an image: raw kept its 33,280 blocks, qcow2 32,768 fewer."""
    its_disk = disk(format=name, encryption="luks")
    audit = audit_disk(domain(), its_disk, image(format=name, qcow2=header))
    assert outcome(audit) == (verdict, None if verdict == "works" else "format")
    assert audit.links[3].value == value


@pytest.mark.parametrize("settings", [UNMAP, IGNORE])
@pytest.mark.parametrize(
    ("which", "machine", "culprit"),
    [
        ({"bus": "scsi", "device": "lun"}, "pc-q35-7.2", "bus"),
        ({"bus": "scsi", "device": "lun"}, "pc-i440fx-3.1", "bus"),
        ({"source_type": "vhostuser"}, "pc-q35-7.2", "storage"),
        # vhost-user-blk is another device than the one that old machine types restrict
        ({"source_type": "vhostuser"}, "pc-i440fx-3.1", "storage"),
    ],
)
def test_what_passes_qemu_by_is_not_judged_by_its_settings(which, machine, culprit, settings):
    its_disk = disk(**which, settings=settings)
    its_image = NETWORK if "source_type" in which else image(**DEVICE)
    of = domain(its_disk, machine=machine)
    audit = audit_disk(of, its_disk, its_image, live=settings, configured=IGNORE)
    assert outcome(audit) == ("unknown", culprit)
    assert [finding.severity for finding in audit.findings] == ["warning"]
    assert checks.policy.discard_ignored("web1", its_disk) is None


@pytest.mark.parametrize(
    ("live", "its_disk", "verdict"),
    [
        (None, disk(), "broken"),
        (UNMAP, disk(), "works"),  # QEMU has it open
        (IGNORE, disk(settings=IGNORE), "broken"),
    ],
)
def test_a_file_that_is_missing(live, its_disk, verdict):
    its_image = image(missing="/srv/base.qcow2", backing_error="/srv/base.qcow2 does not exist.")
    audit = audit_disk(domain(its_disk), its_disk, its_image, live=live)
    assert audit.verdict == verdict
    (found,) = (one for one in audit.findings if one.id == "backing-file-not-read")
    assert found.severity == "error"
    assert found.reason.startswith("/srv/base.qcow2 does not exist")


def test_the_compat_level_is_shown():
    values = [
        next(link.value for link in audit_disk(domain(), disk(), its_image).links[3:])
        for its_image in (
            image(qcow2=qcow2(version=2)),
            image(qcow2=OLD_OVERLAY),
            image(format="raw", qcow2=None),
        )
    ]
    assert values == ["qcow2 (compat 0.10)", "qcow2 (compat 0.10, with a backing file)", "raw"]


DEVICE = {"block_device": True, "file_system": None, "format": "raw", "qcow2": None}
NETWORK = Image("", "raw")


@pytest.mark.parametrize(
    ("its_image", "verdict", "value"),
    [
        (image(), "works", "ext4 at /srv"),
        (image(punch=PunchProbe(False, "It cannot.")), "broken", "ext4 at /srv"),
        (image(punch=PunchProbe(None, "Who knows.")), "unknown", "ext4 at /srv"),
        (image(**DEVICE), "works", "block device"),
        (image(**DEVICE, punch=PunchProbe(False, "It cannot.")), "broken", "block device"),
        (image(**DEVICE, punch=PunchProbe(None, "Who knows.")), "unknown", "block device"),
        (NETWORK, "unknown", "network"),
    ],
)
def test_storage(its_image, verdict, value):
    its_disk = disk(source_type="file" if its_image.path else "network")
    audit = audit_disk(domain(), its_disk, its_image)
    assert outcome(audit) == (verdict, None if verdict == "works" else "storage")
    assert audit.links[4].value == value
    if its_image.path and verdict != "works":
        assert audit.culprit.reason == its_image.punch.reason


@pytest.mark.parametrize("source_type", ["network", "nvme", "dir", "vhostuser"])
def test_a_disk_without_a_file_is_not_said_to_be_elsewhere(source_type):
    """An NVMe drive or a folder is on this host, and yet nothing that could be looked at."""
    culprit = audit_disk(domain(), disk(source_type=source_type), NETWORK).culprit
    assert (culprit.finding, culprit.value) == ("storage-not-local", source_type)
    assert "no file or block device of this host" in culprit.reason


def test_what_could_not_be_read_is_not_called_a_block_device():
    audit = audit_disk(domain(), disk(), Image("/srv/gone", "qcow2", error="It is gone."))
    assert outcome(audit) == ("unknown", "format")
    assert audit.culprit.reason == "It is gone."
    assert "block device" not in audit.links[4].value


def test_broken_wins_over_unknown_wherever_they_stand():
    usb = disk("sda", "usb", settings=IGNORE)
    audit = audit_disk(domain(usb), usb, configured=IGNORE)
    assert [link.state for link in audit.links] == [
        "works",
        "unknown",
        "broken",
        "works",
        "works",
    ]
    assert outcome(audit) == ("broken", "discard")
    assert [(f.id, f.severity) for f in audit.findings] == [
        ("bus-not-verified", "warning"),
        ("discard-ignored", "error"),
    ]


def of_disk(which=None, its_image=None, *, machine="pc-q35-7.2", **settings):
    which = which or disk()
    return audit_disk(domain(machine=machine), which, its_image, **settings).findings


#: One way to each finding, with its severity.
FINDINGS = {
    "machine-too-old": ("error", lambda: of_disk(machine="pc-i440fx-3.1")),
    "machine-of-unknown-age": ("warning", lambda: of_disk(machine="q35")),
    "bus-not-verified": ("warning", lambda: of_disk(disk("sda", "usb"))),
    "discard-ignored": ("error", lambda: of_disk(disk(settings=IGNORE), configured=IGNORE)),
    "restart-required": ("error", lambda: of_disk(disk(settings=IGNORE), live=IGNORE)),
    "discard-not-configured": ("warning", lambda: of_disk(live=UNMAP, configured=IGNORE)),
    "image-unreadable": ("warning", lambda: of_disk(its_image=image(error="It is gone."))),
    "overlay-too-old": ("error", lambda: of_disk(its_image=image(qcow2=OLD_OVERLAY))),
    "format-without-discard": (
        "error",
        lambda: of_disk(its_image=image(format="vmdk", qcow2=None)),
    ),
    "format-not-verified": ("warning", lambda: of_disk(its_image=image(format="", qcow2=None))),
    "storage-not-local": (
        "warning",
        lambda: of_disk(disk(source_type="network"), NETWORK),
    ),
    "storage-not-verified": (
        "warning",
        lambda: of_disk(its_image=image(punch=PunchProbe(None, "Who knows."))),
    ),
    "storage-cannot-punch": (
        "error",
        lambda: of_disk(its_image=image(punch=PunchProbe(False, "It cannot."))),
    ),
    "internal-snapshots": (
        "info",
        lambda: of_disk(its_image=image(qcow2=qcow2(snapshot_count=2))),
    ),
    "backing-file-not-read": (
        "warning",
        lambda: of_disk(its_image=image(backing_error="It lies elsewhere.", backing=(backing(2),))),
    ),
    "agent-missing": (
        "warning",
        lambda: checks.domain_findings(domain(agent_channel=False), active=True),
    ),
    "agent-disconnected": (
        "warning",
        lambda: checks.domain_findings(domain(agent_connected=False), active=True),
    ),
}


@pytest.mark.parametrize("name", FINDINGS)
def test_each_finding_says_what_is_the_case_and_what_to_do(name):
    severity, ways = FINDINGS[name]
    (finding,) = ways()
    assert (finding.id, finding.severity, finding.domain) == (name, severity, "web1")
    assert finding.disk == ("" if name.startswith("agent") else finding.disk)
    for text in (finding.reason, finding.remedy):
        assert text.endswith(".")
        assert "\n" not in text
        assert "None" not in text
    if not name.startswith("agent"):
        assert finding.disk in ("vda", "sda")


def test_no_finding_is_without_a_test():
    written = set(re.findall(r'(?:finding|id)="([a-z-]+)"', inspect.getsource(checks)))
    assert written | {"discard-ignored"} == set(FINDINGS)


@pytest.mark.parametrize(
    ("channel", "connected", "active", "found"),
    [
        (True, True, True, []),
        (True, False, True, ["agent-disconnected"]),
        (True, False, False, []),  # nobody can be connected to a domain that is off
        (False, False, True, ["agent-missing"]),
        (False, False, False, ["agent-missing"]),
    ],
)
def test_the_agent(channel, connected, active, found):
    its_domain = domain(agent_channel=channel, agent_connected=connected)
    findings = checks.domain_findings(its_domain, active=active)
    assert [finding.id for finding in findings] == found


def test_snapshots_and_backing_files_do_not_break_the_way():
    its_image = image(qcow2=qcow2(snapshot_count=3), backing_error="It lies elsewhere.")
    audit = audit_disk(domain(), disk(), its_image)
    assert audit.verdict == "works"
    assert audit.culprit is None
    assert "3 internal snapshots" in audit.findings[0].reason
    assert audit.findings[1].reason.startswith("It lies elsewhere.")
