# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of a disk, against libvirt's own schema and against what is done with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._backup import clone
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import disk_safety, known_disk
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware import disk_bus, rebuild_xml
from lxml import etree

SCHEMAS = Path("/usr/share/libvirt/schemas")
RNG = "{http://relaxng.org/ns/structure/1.0}"
#: What libvirt up to 11.3 has, and that of Debian 12 (9.0) has not.
LATER = {
    "disk": (
        "blockio/@discard_granularity driver/@discard_no_unref driver/iothreads "
        "driver/iothreads/iothread driver/iothreads/iothread/@id driver/iothreads/iothread/queue "
        "driver/iothreads/iothread/queue/@id source/dataStore source/dataStore/@type "
        "source/identity/@agentsock source/identity/@keyfile source/identity/@username "
        "source/knownHosts source/knownHosts/@path source/reconnect/@delay "
        "source/reservations/source/reconnect/@delay throttlefilters "
        "throttlefilters/throttlefilter throttlefilters/throttlefilter/@group @type=vhostvdpa"
    ),
    "os": (
        "loader/@format nvram/@format nvram/@templateFormat nvram/@type=vhostvdpa varstore "
        "varstore/@path varstore/@template"
    ),
    "tpm": (
        "backend/@debug backend/profile backend/profile/@name backend/profile/@removeDisabled "
        "backend/profile/@source backend/source/@type=file backend/source/@type=dir"
    ),
}


def defines(name="domain.rng"):
    """Every ``<define>`` of a schema and of those that it includes."""
    found = {}
    tree = etree.parse(str(SCHEMAS / name))
    for define in tree.iter(RNG + "define"):
        found.setdefault(define.get("name"), []).append(define)
    for other in tree.iter(RNG + "include"):
        for key, elements in defines(other.get("href")).items():
            found.setdefault(key, []).extend(elements)
    return found


class Names:
    """Path of each element and attribute below nodes of a schema, and the values of attributes."""

    def __init__(self, grammar, nodes):
        self.found, self._grammar, self._seen = {}, grammar, set()
        for node in nodes:
            self._walk(node, "")

    def _walk(self, node, path):
        for child in node.iterchildren(RNG + "*"):
            tag, name = child.tag.removeprefix(RNG), child.get("name")
            if tag == "attribute":
                key = known_disk.canonical(f"{path}@{name}")
                self.found.setdefault(key, set()).update(self._values(child))
            elif tag == "element":
                below = known_disk.canonical(f"{path}{name}/")
                self.found[below.rstrip("/")] = set()
                self._walk(child, below)
            elif tag != "ref":
                self._walk(child, path)
            elif (name, path) not in self._seen:
                self._seen.add((name, path))
                for define in self._grammar[name]:
                    self._walk(define, path)

    def _values(self, node):
        for value in node.iter(RNG + "value"):
            yield value.text
        for ref in node.iter(RNG + "ref"):
            for define in self._grammar[ref.get("name")]:
                yield from self._values(define)


def schema_of(what):
    grammar = defines()
    if what == "os":
        return {
            path.removeprefix("os/"): values
            for path, values in Names(grammar, grammar["oshvm"]).found.items()
            if path.startswith(("os/loader", "os/nvram", "os/varstore"))
        }
    tops = [top for define in grammar[what] for top in define.iterchildren(RNG + "element")]
    return Names(grammar, tops).found


TABLES = {"disk": known_disk.KNOWN, "os": known_disk.FIRMWARE, "tpm": known_disk.TPM}


def expected(what):
    """The list as libvirt's schema asks for it."""
    table, wanted = TABLES[what], set(LATER[what].split())
    if what == "os":
        later = LATER["disk"].split()
        wanted.update(f"nvram/{path}" for path in later if path.startswith("source/"))
    for path, values in schema_of(what).items():
        by_value = any(key.startswith(f"{path}=") for key in table)
        wanted.update({f"{path}={value}" for value in values} if by_value else {path})
    return wanted


@pytest.mark.parametrize("what", TABLES)
def test_the_list_is_that_of_libvirts_schema(what):
    assert set(TABLES[what]) == expected(what)


def domain(disk, *, of_os="", devices=""):
    return (
        "<domain type='kvm'><name>d</name><uuid>1</uuid>"
        f"<os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type>{of_os}</os>"
        f"<devices>{disk}{devices}</devices></domain>"
    )


def disk(more="", *, driver="", source="", kind="type='file' device='disk'", bus="virtio"):
    return (
        f"<disk {kind}><driver name='qemu' type='qcow2' {driver}/><source file='/x'>{source}"
        f"</source>{more}<target dev='vda' bus='{bus}'/></disk>"
    )


def with_path(path, bus):
    """A domain whose disk has an element or attribute, and its value."""
    tree = etree.fromstring(domain(disk(bus=bus)))
    element = tree.find("devices/disk")
    name, _equals, value = path.partition("=")
    value = value or ("vda" if name == "target/@dev" else bus if name == "target/@bus" else "1")
    for part in name.split("/"):
        if part.startswith("@"):
            element.set(part[1:], value)
            break
        below = element.find(part)
        element = etree.SubElement(element, part) if below is None else below
    return etree.tostring(tree, encoding="unicode")


def value_of(text, path):
    element = etree.fromstring(text).find("devices/disk")
    for part in path.partition("=")[0].split("/"):
        if part.startswith("@"):
            return element.get(part[1:])
        element = element.find(part)
        if element is None:
            return None
    return etree.canonicalize(etree.tostring(element, encoding="unicode"), strip_text=True)


def restored(text):
    return clone.cloned_xml(text, name="n", disks={"vda": clone.CopiedDisk("/new", "qcow2")})


def rebuilt(text):
    identity = rebuild_xml.Identity("n", "2", "3", (), {"vda": "/new"}, "")
    return rebuild_xml.rebuilt(text, identity, machine="pc-i440fx-7.2")


def moved(bus):
    return lambda text: disk_bus.move_disks(text, ["vda"], bus).xml


DONE = {
    known_disk.RESTORE: [("virtio", restored)],
    known_disk.REBUILD: [("virtio", rebuilt)],
    known_disk.BUS: [
        *(("virtio", moved(bus)) for bus in ("scsi", "sata", "ide")),
        *(("scsi", moved(bus)) for bus in ("virtio", "sata")),
        ("sata", moved("virtio")),
    ],
}


@pytest.mark.parametrize("operation", DONE)
@pytest.mark.parametrize("path", known_disk.KNOWN)
def test_what_is_said_to_be_kept_is_kept_and_nothing_else(path, operation):
    rule = known_disk.KNOWN[path]
    if operation in rule.refused - rule.changed:
        return
    kept = []
    for bus, carry_out in DONE[operation]:
        text = with_path(path, bus)
        try:
            kept.append(value_of(carry_out(text), path) == value_of(text, path))
        except RefusedError:  # by the rules of that bus
            continue
    assert all(kept) is (operation not in rule.changed)


ON = {"qemu": lambda: (7, 2, 0)}
IOTHREADS = "<controller type='scsi' index='0'><driver iothread='1'/></controller>"
SCSI = "<address type='drive' controller='{}'/>"
LUKS = "<encryption format='luks'><secret type='passphrase' uuid='1'/></encryption>"
RUNNING = {known_disk.BACKUP, known_disk.LIVE}
OFF = {known_disk.BACKUP_OFF, known_disk.COMPACT_OFF, known_disk.REBUILD}
RESTORES = {known_disk.RESTORE, known_disk.RESTORE_IMAGE}
SLICES = "<slices><slice type='storage' offset='0' size='1'/></slices>"


@pytest.mark.parametrize(
    ("text", "refused", "why"),
    [
        (domain(disk()), set(), ""),
        (domain(disk(driver="iothread='1'")), RUNNING, "iothread"),
        (domain(disk("<driver><iothreads/></driver>")), RUNNING, "iothread"),
        (domain(disk(SCSI.format(0), bus="scsi"), devices=IOTHREADS), RUNNING, "iothread"),
        (domain(disk(SCSI.format(1), bus="scsi"), devices=IOTHREADS), set(), ""),
        (domain(disk(bus="sata"), devices=IOTHREADS), set(), ""),
        (domain(disk(driver="copy_on_read='on'")), {known_disk.LIVE}, "copy_on_read"),
        (domain(disk(driver="copy_on_read='off'")), set(), ""),
        (
            domain(disk(source=SLICES)),
            OFF | {known_disk.LIVE, known_disk.RESTORE_IMAGE},
            "part of its file",
        ),
        (
            domain(
                disk(
                    f"<backingStore type='file'><source file='/b'>{SLICES}</source></backingStore>"
                )
            ),
            OFF | {known_disk.LIVE, known_disk.RESTORE_IMAGE},
            "part of its file",
        ),
        (domain(disk(LUKS)), RUNNING | RESTORES | {known_disk.BACKUP_OFF}, "is encrypted"),
        (domain(disk(source=LUKS)), RUNNING | RESTORES | {known_disk.BACKUP_OFF}, "is encrypted"),
        (domain(disk(kind="type='block' device='lun'")), RUNNING | OFF, "lun"),
        (domain(disk(kind="type='network'")), OFF | {known_disk.LIVE}, "in no file"),
        (domain(disk(kind="type='nvme'")), OFF | {known_disk.LIVE}, "in no file"),
        (domain(disk("<transient/>")), RUNNING, "transient"),
        (domain(disk("<shareable/>")), RUNNING | {known_disk.REBUILD}, "shareable"),
        (domain(disk(kind="type='vhostuser'")), RUNNING | OFF, "vhost"),
        (domain(disk(kind="type='vhostvdpa'")), RUNNING | OFF, "vhost"),
        (domain(disk("<throttlefilters/>")), RUNNING, "throttle filters"),
        (domain(disk(source="<dataStore/>")), {known_disk.LIVE}, "data file"),
        (domain(disk("<new/>")), set(known_disk.OPERATIONS), "has new, which is not known"),
        (domain(disk(kind="type='ceph'")), set(known_disk.OPERATIONS), "has @type=ceph, which"),
        (domain(disk(source="<a b='c'/>")), set(known_disk.OPERATIONS), "source/a, which is not"),
        (domain(disk(driver="copy_on_read='x'")), set(known_disk.OPERATIONS), "not known"),
        (domain(disk("<!-- a comment --><privateData><x/></privateData>")), set(), ""),
    ],
)
@pytest.mark.parametrize("operation", known_disk.OPERATIONS)
def test_disks_are_refused_by_name(text, refused, why, operation):
    disk_safety.refuse_disks(text, ["vdb"], operation, **ON)
    if operation not in refused:
        disk_safety.refuse_disks(text, ["vda"], operation, **ON)
        return
    with pytest.raises(RefusedError, match=r"disk vda of domain d .*nothing was changed") as error:
        disk_safety.refuse_disks(text, ["vda"], operation, **ON)
    assert why in str(error.value)
    assert error.value.remedy


@pytest.mark.parametrize(
    ("qemu", "refused"), [((8, 2, 9), True), ((9, 0, 0), False), ((10, 0, 2), False), (None, True)]
)
def test_an_iothread_is_refused_by_the_version_that_runs(qemu, refused):
    text = domain(disk(driver="iothread='1'"))
    try:
        disk_safety.refuse_disks(text, ["vda"], known_disk.BACKUP, qemu=lambda: qemu)
    except RefusedError:
        assert refused
    else:
        assert not refused


def test_plain_text_is_made_with_consent_only_and_from_what_is_plain_text():
    text = domain(disk(LUKS))
    for operation in (known_disk.BACKUP, known_disk.RESTORE):
        disk_safety.refuse_disks(text, ["vda"], operation, plain_text=True)
    for operation in (known_disk.BACKUP_OFF, known_disk.RESTORE_IMAGE, known_disk.LIVE):
        with pytest.raises(RefusedError, match="is encrypted"):
            disk_safety.refuse_disks(text, ["vda"], operation, plain_text=True)


TPM = "<tpm model='tpm-crb'><backend type='emulator'{}/></tpm>"


@pytest.mark.parametrize(
    ("of_os", "devices", "why"),
    [
        ("<nvram template='/t'>/v</nvram><loader type='pflash'>/l</loader>", "", ""),
        ("<nvram type='file'><source file='/v'/></nvram>", TPM.format(""), ""),
        ("<nvram type='block'><source dev='/dev/x'/></nvram>", "", "something else than a file"),
        ("<nvram type='network'><source protocol='nbd'/></nvram>", "", "else than a file"),
        (f"<nvram type='file'><source file='/v'>{LUKS}</source></nvram>", "", "a plain file"),
        ("<varstore path='/v'/>", "", "something else than a file"),
        ("<nvram new='1'>/v</nvram>", "", "has nvram/@new=1, which is not known to be safe"),
        ("", TPM.format(" new='1'"), "has backend/@new=1, which is not known to be safe"),
        (
            "",
            "<tpm><backend type='emulator'><source type='dir' path='/s'/></backend></tpm>",
            "two domains would share it",
        ),
    ],
)
def test_firmware_and_tpm_are_refused_by_name(of_os, devices, why):
    text = domain("", of_os=of_os, devices=devices)
    for operation in (known_disk.REBUILD, known_disk.RESTORE):
        if not why:
            disk_safety.refuse_firmware(text, operation)
            continue
        with pytest.raises(RefusedError, match=r"domain d .*nothing was changed") as error:
            disk_safety.refuse_firmware(text, operation)
        assert why in str(error.value)
