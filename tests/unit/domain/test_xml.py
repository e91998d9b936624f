# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Domain XML is read as data and edited so that nothing else changes."""

from __future__ import annotations

import dataclasses
import difflib
import pathlib
from xml.etree import ElementTree

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import xml
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import HypervisorError
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware import compare

RICH = (pathlib.Path(__file__).parent / "data" / "rich.xml").read_text(encoding="utf-8")
THIN = xml.DiskSettings(discard="unmap")


def changed_lines(before: str, after: str) -> list[str]:
    """What an ordinary diff shows; lxml writes double quotes, so both sides get them."""
    canonical = [text.replace("'", '"').splitlines() for text in (before, after)]
    return [line for line in difflib.ndiff(*canonical) if line[0] in "+-"]


def test_a_domain_is_read():
    domain = xml.parse_domain(RICH)
    assert (domain.name, domain.kind, domain.machine) == ("web1", "kvm", "pc-q35-7.2")
    assert [disk.target for disk in domain.disks] == ["sda", "vdb", "sdc", "sdd", "vde"]
    assert domain.scsi_models == {0: "virtio-scsi"}
    assert domain.agent_channel
    assert domain.agent_connected
    sda, vdb, sdc, sdd, vde = domain.disks
    assert (sda.path, sda.format, sda.controller) == ("/srv/images/web1.qcow2", "qcow2", 0)
    assert vdb.path == "/dev/vg/web1-data"
    assert vdb.settings == xml.DiskSettings(
        discard="unmap", detect_zeroes="unmap", discard_granularity_bytes=65536
    )
    assert (sdc.pool, sdc.volume, sdc.format) == ("default", "log.raw", "")
    assert sdc.settings.rotation_rate == 1
    assert sdd.readonly
    assert vde.source_type == "network"


@pytest.mark.parametrize(
    ("inside", "encryption"),
    [
        ("<source file='/a'/>", ""),
        ("<source file='/a'><encryption format='luks'><secret/></encryption></source>", "luks"),
        # as before libvirt 3.9
        ("<source file='/a'/><encryption format='luks'><secret/></encryption>", "luks"),
        ("<source name='p/a'><encryption format='luks2' engine='librbd'/></source>", ""),
        ("<source file='/a'><encryption format='luks' engine='qemu'/></source>", "luks"),
    ],
)
def test_who_encrypts_a_disk(inside, encryption):
    text = f"<domain><devices><disk>{inside}</disk></devices></domain>"
    (disk,) = xml.parse_domain(text).disks
    assert disk.encryption == encryption


def test_one_attribute_is_added_and_nothing_else_changes():
    after = xml.with_settings(RICH, {"sda": THIN})
    assert changed_lines(RICH, after) == [
        '-       <driver name="qemu" type="qcow2" cache="none" io="native"/>',
        '+       <driver name="qemu" type="qcow2" cache="none" io="native" discard="unmap"/>',
    ]


def test_nothing_to_change_changes_nothing():
    domain = xml.parse_domain(RICH)
    same = {disk.target: disk.settings for disk in domain.disks}
    assert changed_lines(RICH, xml.with_settings(RICH, same)) == []


def test_a_disk_without_driver_gets_one():
    after = xml.with_settings(RICH, {"sdc": dataclasses.replace(THIN, rotation_rate=1)})
    assert changed_lines(RICH, after) == ['+       <driver name="qemu" discard="unmap"/>']


def test_defaults_remove_attributes():
    after = xml.with_settings(RICH, {"vdb": xml.DiskSettings(), "sdc": xml.DiskSettings()})
    assert changed_lines(RICH, after) == [
        '-       <driver name="qemu" type="raw" discard="unmap" detect_zeroes="unmap"/>',
        '+       <driver name="qemu" type="raw"/>',
        '-       <blockio logical_block_size="4096" discard_granularity="65536"/>',
        '+       <blockio logical_block_size="4096"/>',
        '-       <target dev="sdc" bus="sata" rotation_rate="1"/>',
        '+       <target dev="sdc" bus="sata"/>',
    ]


ALL = xml.DiskSettings(
    discard="unmap",
    detect_zeroes="unmap",
    discard_no_unref=True,
    discard_granularity_bytes=32768,
    rotation_rate=1,
)


@pytest.mark.parametrize("target", ["sda", "vdb", "sdc"])
def test_what_is_written_is_read_back(target):
    after = xml.with_settings(RICH, {target: ALL})
    disk = xml.parse_domain(after).disk(target)
    assert disk is not None
    assert disk.settings == ALL
    assert xml.parse_domain(xml.with_settings(after, {target: xml.DiskSettings()})).disk(
        target
    ).settings == (xml.DiskSettings())


def test_secrets_comments_and_foreign_namespaces_stay():
    after = xml.with_settings(RICH, {"sda": ALL, "vdb": ALL, "sdc": ALL})
    for text in ("hunter2", "ordered by the accountants", "the boot disk", "Käthe &amp; Söhne"):
        assert text in after
    assert '<qemu:arg value="-newarg"/>' in after


def test_another_parser_reads_the_edited_xml():
    after = xml.with_settings(RICH, {"sda": ALL})
    driver = ElementTree.fromstring(after).find("devices/disk[1]/driver")
    assert driver is not None
    assert driver.get("discard") == "unmap"


def test_without_settings_sees_every_other_difference():
    plain = xml.without_settings(RICH)
    assert plain == xml.without_settings(xml.with_settings(RICH, {"sda": ALL, "vdb": ALL}))
    assert plain != xml.without_settings(RICH.replace("hunter2", "hunter3"))
    assert plain != xml.without_settings(RICH.replace("cache='none'", "cache='writeback'"))
    assert plain != xml.without_settings(RICH.replace("<readonly/>", ""))


def test_without_settings_does_not_mind_the_order_of_controllers():
    one, two = "<controller type='usb' index='0'/>", "<controller type='scsi' index='1'/>"
    texts = [
        RICH.replace("</devices>", f"{first}\n{second}</devices>")
        for first, second in ((one, two), (two, one))
    ]
    assert xml.without_settings(texts[0]) == xml.without_settings(texts[1])
    assert xml.without_settings(texts[0]) != xml.without_settings(RICH)


def test_the_number_of_a_console_says_no_more_than_its_place():
    def domain(port: str, of: str = "virtio") -> str:
        console = f"<console type='pty'><target type='{of}' port='{port}'/></console>"
        return f"<domain><devices>{console}</devices></domain>"

    for form in (xml.canonical, xml.without_settings, compare.fingerprint):
        assert form(domain("0")) == form(domain("1"))
        assert form(domain("0")) != form(domain("0", of="serial"))
        serial = domain("0").replace("console", "serial")
        assert form(serial) != form(serial.replace("port='0'", "port='1'"))
    assert compare.is_kept(domain("0"), domain("1"))


def test_an_explicit_default_is_the_default():
    explicit = RICH.replace("io='native'", "io='native' discard='ignore' detect_zeroes='off'")
    assert xml.parse_domain(explicit).disks[0].settings == xml.DiskSettings()
    assert xml.without_settings(explicit) == xml.without_settings(RICH)


@pytest.mark.parametrize("text", ["", "<domain>", "<network/>", "no xml at all"])
def test_what_is_no_domain_is_an_error(text):
    with pytest.raises(HypervisorError):
        xml.parse_domain(text)


def test_entities_are_not_followed():
    evil = (
        '<!DOCTYPE domain [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
        "<domain><name>&x;</name></domain>"
    )
    assert "root:" not in xml.parse_domain(evil).name


def test_a_domain_without_anything_has_no_disks():
    assert xml.parse_domain("<domain/>").disks == ()


DISK_XML = """<domain><name>d</name><devices>
  <disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/>
    <source file='/p/{0}'/>{1}<target dev='vda' bus='virtio'/><boot order='1'/></disk>
  <disk type='file' device='disk'><source file='/p/other'/><target dev='vdb'/></disk>
</devices></domain>"""


@pytest.mark.parametrize("left", ["", "<backingStore/>", "<backingStore><source/></backingStore>"])
def test_a_disk_gets_its_source_back_and_nothing_else_changes(left):
    before = DISK_XML.format("a", "")
    source = xml.source_of(before, "vda")
    changed = DISK_XML.format("a.overlay", left)
    assert xml.canonical(xml.with_source(changed, "vda", source)) == xml.canonical(before)
    assert xml.canonical(changed) != xml.canonical(before)


def test_a_volume_becomes_one_again():
    volume = DISK_XML.replace("type='file' device", "type='volume' device", 1).replace(
        "<source file='/p/{0}'/>", "<source pool='p' volume='v'/>"
    )
    source = xml.source_of(volume.format("", ""), "vda")
    changed = DISK_XML.format("v", "<backingStore/>")
    assert xml.canonical(xml.with_source(changed, "vda", source)) == xml.canonical(
        volume.format("", "")
    )


def test_what_lies_below_may_be_left_out():
    text = DISK_XML.format("a", "<backingStore type='file'><source file='/p/b'/></backingStore>")
    assert "/p/b" in xml.source_of(text, "vda")
    assert xml.source_of(text, "vda", with_backing=False) == (
        '<disk type="file"><source file="/p/a"/></disk>'
    )


def test_a_block_job_is_seen():
    mirror = "<mirror type='file' job='active-commit' ready='yes'><source file='/p/a'/></mirror>"
    for text, ready in ((mirror, True), (mirror.replace(" ready='yes'", ""), False)):
        disk = xml.parse_domain(DISK_XML.format("o", text)).disk("vda")
        assert (disk.job, xml.is_ready(ElementTree.fromstring(text))) == ("active-commit", ready)
    assert xml.parse_domain(DISK_XML.format("o", "")).disk("vda").job == ""


def test_settings_of_a_source_are_seen():
    text = DISK_XML.format("a", "").replace(
        "<source file='/p/a'/>", "<source file='/p/a'><seclabel model='dac'/></source>"
    )
    assert xml.parse_domain(text).disk("vda").details == ("seclabel",)


@pytest.mark.parametrize(
    ("source", "moved"),
    [
        (
            '<disk type="file"><source file="/a" startupPolicy="optional"/><backingStore/></disk>',
            '<disk type="file"><source file="/b" startupPolicy="optional"/><backingStore/></disk>',
        ),
        (
            '<disk type="volume"><source pool="p" volume="a"/></disk>',
            '<disk type="file"><source file="/b"/></disk>',
        ),
    ],
)
def test_a_source_that_moves(source, moved):
    assert xml.moved_source(source, "/b") == moved
