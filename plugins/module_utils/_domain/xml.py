# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Domain XML as data, and edits of it that leave everything else alone (pure).

The tree is edited, never the text: comments, order, metadata, namespaces and
secrets stay as libvirt gave them.  Values are compared parsed: an attribute that
is absent equals libvirt's default (https://libvirt.org/formatdomain.html).
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    HypervisorError,
    RequirementError,
)

try:
    from lxml import etree
except ImportError:
    HAS_LXML = False
else:
    HAS_LXML = True

AGENT_CHANNEL = "org.qemu.guest_agent.0"
NOTE_NAMESPACE = "https://github.com/thinvirt/thinvirt.kvm/restart"
#: Children of a disk's source that libvirt fills in by itself.
_HARMLESS = ("privateData",)
#: Children of a disk that say where its data is.
_WHERE = ("source", "backingStore")


@dataclasses.dataclass(frozen=True)
class DiskSettings:
    """What libvirt lets an administrator say about giving space back; libvirt's defaults.

    :param discard: ``unmap`` or ``ignore``.
    :param detect_zeroes: ``off``, ``on`` or ``unmap``.
    :param discard_no_unref: qcow2 keeps a discarded cluster and punches the file only.
    :param discard_granularity_bytes: what the guest is told, 0 for QEMU's choice.
    :param rotation_rate: 1 for a solid state disk, rpm otherwise, 0 for unset.
    """

    discard: str = "ignore"
    detect_zeroes: str = "off"
    discard_no_unref: bool = False
    discard_granularity_bytes: int = 0
    rotation_rate: int = 0


@dataclasses.dataclass(frozen=True)
class Disk:
    """One ``<disk>``.

    :param path: file or block device for types ``file`` and ``block``, else empty.
    :param pool: storage pool for type ``volume``, with :attr:`volume`.
    :param format: driver type as configured (``qcow2``, ``raw``), empty if not said.
    :param controller: index of the controller that the disk hangs on, None if not said.
    :param job: kind of the block job on it, such as ``copy``; empty if none (only in live XML).
    :param details: elements that say more about its source than where it is.
    :param encryption: format that QEMU itself encrypts it in, such as ``luks``; else empty.
    """

    target: str
    bus: str
    device: str
    source_type: str
    path: str
    pool: str
    volume: str
    format: str
    readonly: bool
    shareable: bool
    controller: int | None
    settings: DiskSettings
    job: str = ""
    details: tuple[str, ...] = ()
    encryption: str = ""


@dataclasses.dataclass(frozen=True)
class Domain:
    """What this collection reads from a domain's XML.

    :param kind: ``kvm``, ``qemu``, ``test``, …
    :param scsi_models: model of each scsi controller by index, empty if not said.
    :param agent_channel: the XML has a guest agent channel.
    :param agent_connected: an agent has opened it (only in live XML).
    :param on_poweroff: what libvirt does when the guest powers off; ``destroy`` is off.
    :param restart_note: the process that has shut the guest down for its work; see ``restart``.
    :param saved_note: JSON of the disk settings that the guest ran with when that process saved
        it instead, empty if it did not; see ``save_restore``.
    :param note_since: when that was noted, seconds since the epoch; 0 if not said.
    :param note_started: when its QEMU had been started by then, see ``left_off``; empty if unknown.
    :param emulator: path of QEMU.
    :param nvram: file with the variables of its firmware; empty if it has none.
    """

    name: str
    uuid: str
    kind: str
    arch: str
    machine: str
    disks: tuple[Disk, ...]
    scsi_models: t.Mapping[int, str]
    agent_channel: bool
    agent_connected: bool
    on_poweroff: str = "destroy"
    restart_note: str = ""
    saved_note: str = ""
    note_since: int = 0
    note_started: str = ""
    emulator: str = ""
    nvram: str = ""

    def disk(self, target: str) -> Disk | None:
        return next((disk for disk in self.disks if disk.target == target), None)


def parse_tree(text: str) -> t.Any:
    """The XML of a domain as a tree.

    :raises RequirementError: lxml is missing.
    :raises HypervisorError: it is no domain XML.
    """
    tree = parse_any(text)
    if tree.tag != "domain":
        raise HypervisorError(f"Expected the XML of a domain, got <{tree.tag}>.")
    return tree


def parse_any(text: str) -> t.Any:
    """XML of libvirt's as a tree; entities and network access are off.

    :raises RequirementError: lxml is missing.
    :raises HypervisorError: it is no XML.
    """
    if not HAS_LXML:
        raise RequirementError(
            "The Python library lxml is missing on this host.",
            remedy="Install python3-lxml for the Python interpreter that Ansible uses there.",
        )
    parser = etree.XMLParser(resolve_entities=False, no_network=True)
    try:
        return etree.fromstring(text.encode("utf-8"), parser)
    except etree.XMLSyntaxError as error:
        raise HypervisorError(f"libvirt returned XML that cannot be parsed: {error}.") from error


def parse_domain(text: str) -> Domain:
    """Read a domain's XML."""
    tree = parse_tree(text)
    parts = _first_children(tree)
    os_type = next(parts["os"].iterchildren("type"), None) if "os" in parts else None
    note = tree.find(f"metadata/{{{NOTE_NAMESPACE}}}restart") if "metadata" in parts else None
    # Once through all devices: a host has a thousand domains, and to search takes longer than that.
    devices: dict[str, list[t.Any]] = {}
    for device in parts.get("devices", ()):
        devices.setdefault(device.tag, []).append(device)
    agent = [
        target
        for channel in devices.get("channel", ())
        for target in channel.iterchildren("target")
        if target.get("name") == AGENT_CHANNEL
    ]
    return Domain(
        name=_text(parts, "name"),
        uuid=_text(parts, "uuid"),
        kind=tree.get("type", ""),
        arch=os_type.get("arch", "") if os_type is not None else "",
        machine=os_type.get("machine", "") if os_type is not None else "",
        disks=tuple(_disk(element) for element in devices.get("disk", ())),
        scsi_models={
            _number(controller.get("index")) or 0: controller.get("model", "")
            for controller in devices.get("controller", ())
            if controller.get("type") == "scsi"
        },
        agent_channel=bool(agent),
        agent_connected=any(target.get("state") == "connected" for target in agent),
        on_poweroff=_text(parts, "on_poweroff") or "destroy",
        restart_note=note.get("process", "") if note is not None else "",
        saved_note=note.get("saved", "") if note is not None else "",
        note_since=(_number(note.get("since")) or 0) if note is not None else 0,
        note_started=note.get("started", "") if note is not None else "",
        emulator=next((e.text or "" for e in devices.get("emulator", ())), ""),
        nvram=_nvram(parts["os"]) if "os" in parts else "",
    )


def offers_backup(capabilities: str) -> bool | None:
    """Whether a domain's capabilities speak of backup jobs; None if they say nothing of them."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True)
    found = etree.fromstring(capabilities.encode("utf-8"), parser).find("features/backup")
    return None if found is None else found.get("supported") == "yes"


def with_settings(text: str, wanted: t.Mapping[str, DiskSettings]) -> str:
    """The XML with these settings on these disks (by target), all else as it was."""
    tree = parse_tree(text)
    for element in tree.findall("devices/disk"):
        settings = wanted.get(_attribute(element, "target", "dev"))
        if settings is not None and settings != _settings(element):
            _set(element, settings)
    return serialize(tree)


def without_settings(text: str) -> str:
    """The XML with every discard setting taken out, in canonical form.

    Two domains that differ in nothing else are equal in this form.  The order of the
    controllers says nothing: libvirt puts those that it added itself elsewhere when the same
    XML is defined again (seen with 9.0).
    """
    tree = parse_tree(text)
    for element in tree.findall("devices/disk"):
        _set(element, DiskSettings())
        driver = element.find("driver")
        if driver is not None:
            # libvirt writes defaults out in some versions only
            for name in ("discard", "detect_zeroes", "discard_no_unref"):
                driver.attrib.pop(name, None)
    return _canonical(tree)


def canonical(text: str) -> str:
    """The XML in a form in which two equal domains are equal texts."""
    return _canonical(parse_tree(text))


def source_of(text: str, target: str, *, with_backing: bool = True) -> str:
    """What says where the data of a disk is: a ``<disk>`` with its source alone.

    :param with_backing: also what lies below it, if the XML says so.
    :raises HypervisorError: there is no such disk.
    """
    element = _disk_element(parse_tree(text), target)
    kept = etree.Element("disk", type=element.get("type", "file"))
    where = _WHERE if with_backing else _WHERE[:1]
    kept.extend(child for child in list(element) if child.tag in where)
    for child in kept:
        child.tail = None
    return str(etree.tostring(kept, encoding="unicode"))


def with_source(text: str, target: str, source: str, *, image_format: str = "") -> str:
    """The XML with a disk's data where :func:`source_of` has said, all else as it was.

    :param image_format: of that data, where an overlay of another format was in its place.
    """
    tree = parse_tree(text)
    element = _disk_element(tree, target)
    driver = element.find("driver")
    if image_format and driver is not None and driver.get("type", "raw") != image_format:
        driver.set("type", image_format)
    wanted = etree.fromstring(source, etree.XMLParser(resolve_entities=False, no_network=True))
    element.set("type", wanted.get("type"))
    position = 0
    for child in [child for child in element if child.tag in _WHERE]:
        position = element.index(child)
        element.remove(child)
    for child in reversed(list(wanted)):
        element.insert(position, child)
    return serialize(tree)


def moved_source(source: str, path: str) -> str:
    """What :func:`source_of` would say of a disk whose data has moved to another file."""
    kept = etree.fromstring(source, etree.XMLParser(resolve_entities=False, no_network=True))
    element = kept.find("source")
    if kept.get("type") != "file" or element is None:  # a volume is named by its pool
        for old in kept.findall("source"):
            kept.remove(old)
        element = etree.Element("source")
        kept.insert(0, element)
        kept.set("type", "file")
    element.set("file", path)
    return str(etree.tostring(kept, encoding="unicode"))


def _disk_element(tree: t.Any, target: str) -> t.Any:
    for element in tree.findall("devices/disk"):
        if _attribute(element, "target", "dev") == target:
            return element
    raise HypervisorError(f"The domain has no disk {target} any more.")


def _canonical(tree: t.Any) -> str:
    for target in tree.findall("devices/console/target"):
        # Only the console's place among its like, which libvirt counts anew at the next definition:
        # one too few the first time, where it has put a console for the serial port before it.
        target.attrib.pop("port", None)
    for controller in sorted(tree.findall("devices/controller"), key=etree.tostring):
        # appending an element that is in the tree moves it
        controller.getparent().append(controller)
    return t.cast(str, etree.canonicalize(serialize(tree), strip_text=True))


def note_element(process: str, *, saved: str = "", since: int = 0, started: str = "") -> str:
    """The element of our own for a domain's metadata, see :attr:`Domain.restart_note`."""
    element = etree.Element("restart", process=process)
    for name, value in (("saved", saved), ("since", str(since or "")), ("started", started)):
        if value:
            element.set(name, value)
    return str(etree.tostring(element, encoding="unicode"))


def with_note(text: str, process: str) -> str:
    """The XML with a note in its metadata, in the place of any other; see :func:`note_element`."""
    tree = parse_tree(text)
    metadata = tree.find("metadata")
    if metadata is None:
        metadata = etree.Element("metadata")
        tree.insert(0, metadata)
    for old in metadata.findall(f"{{{NOTE_NAMESPACE}}}restart"):
        remove_child(metadata, old)
    etree.SubElement(
        metadata,
        f"{{{NOTE_NAMESPACE}}}restart",
        {"process": process},
        nsmap={"thinvirt": NOTE_NAMESPACE},
    )
    return serialize(tree)


def serialize(tree: t.Any) -> str:
    """The XML of a tree, comments around it included."""
    return str(etree.tostring(tree.getroottree(), encoding="unicode"))


def target_of(disk: t.Any) -> str:
    """Name of a ``<disk>`` in its domain."""
    return _attribute(disk, "target", "dev")


def bus_of(disk: t.Any) -> str:
    return _attribute(disk, "target", "bus")


def append_child(parent: t.Any, name: str, attributes: t.Mapping[str, str]) -> t.Any:
    """A new last child, indented as libvirt does."""
    child = etree.SubElement(parent, name, dict(attributes))
    before = child.getprevious()
    indent = "\n" + "  " * len(list(parent.iterancestors()))
    if before is None:
        parent.text, child.tail = indent + "  ", indent
    else:
        before.tail, child.tail = indent + "  ", indent
    return child


def remove_child(parent: t.Any, child: t.Any) -> None:
    """Take a child out; what is around it stays indented."""
    before = child.getprevious()
    if child.getnext() is None and before is not None:
        before.tail = child.tail
    parent.remove(child)


def remove_if_empty(parent: t.Any, child: t.Any) -> None:
    """Take a child out that says nothing any more."""
    if not child.attrib and not len(child) and not (child.text or "").strip():
        remove_child(parent, child)


def _nvram(of_os: t.Any) -> str:
    nvram = of_os.find("nvram")
    if nvram is None:
        return ""
    source = nvram.find("source")
    return str(source.get("file", "")) if source is not None else (nvram.text or "").strip()


def _first_children(element: t.Any) -> dict[str, t.Any]:
    """The first child of each name."""
    return {child.tag: child for child in reversed(element)}


def _text(parts: t.Mapping[str, t.Any], name: str) -> str:
    found = parts.get(name)
    return (found.text or "") if found is not None else ""


def _attribute(element: t.Any, child: str, name: str) -> str:
    return _of(_first_children(element), child, name)


def _of(parts: t.Mapping[str, t.Any], child: str, name: str) -> str:
    found = parts.get(child)
    return found.get(name, "") if found is not None else ""


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _settings(element: t.Any) -> DiskSettings:
    return _settings_of(_first_children(element))


def _settings_of(parts: t.Mapping[str, t.Any]) -> DiskSettings:
    return DiskSettings(
        discard=_of(parts, "driver", "discard") or "ignore",
        detect_zeroes=_of(parts, "driver", "detect_zeroes") or "off",
        discard_no_unref=_of(parts, "driver", "discard_no_unref") == "on",
        discard_granularity_bytes=_number(_of(parts, "blockio", "discard_granularity")) or 0,
        rotation_rate=_number(_of(parts, "target", "rotation_rate")) or 0,
    )


def _disk(element: t.Any) -> Disk:
    parts = _first_children(element)
    address, mirror = parts.get("address"), parts.get("mirror")
    if address is not None and address.get("type") != "drive":
        address = None
    return Disk(
        target=_of(parts, "target", "dev"),
        bus=_of(parts, "target", "bus"),
        device=element.get("device", "disk"),
        source_type=element.get("type", "file"),
        path=_of(parts, "source", "file") or _of(parts, "source", "dev"),
        pool=_of(parts, "source", "pool"),
        volume=_of(parts, "source", "volume"),
        format=_of(parts, "driver", "type"),
        readonly="readonly" in parts,
        shareable="shareable" in parts,
        controller=_number(address.get("controller")) if address is not None else None,
        settings=_settings_of(parts),
        job=job_of(mirror),
        details=tuple(
            str(child.tag)
            for parent in (parts.get("source"), parts.get("driver"))
            for child in (parent if parent is not None else ())
            if isinstance(child.tag, str) and child.tag not in _HARMLESS
        ),
        encryption=_encryption(parts),
    )


def job_of(mirror: t.Any) -> str:
    """Kind of the block job that a ``<mirror>`` is of; empty without one."""
    return str(mirror.get("job", "copy")) if mirror is not None else ""


def is_ready(mirror: t.Any) -> bool:
    """Whether that job has come to where it can be ended by a pivot."""
    return mirror is not None and mirror.get("ready") == "yes"


def _encryption(parts: t.Mapping[str, t.Any]) -> str:
    """Since libvirt 3.9 in the source, before that beside it; librbd encrypts below QEMU."""
    source = parts.get("source")
    found = source.find("encryption") if source is not None else None
    found = parts.get("encryption") if found is None else found
    if found is None or found.get("engine") == "librbd":
        return ""
    return str(found.get("format", ""))


def _set(element: t.Any, settings: DiskSettings) -> None:
    """Write what differs from the element's own settings; a default removes the attribute."""
    now = _settings(element)
    values = (
        ("driver", "discard", now.discard, settings.discard, "ignore"),
        ("driver", "detect_zeroes", now.detect_zeroes, settings.detect_zeroes, "off"),
        ("driver", "discard_no_unref", now.discard_no_unref, settings.discard_no_unref, False),
        (
            "blockio",
            "discard_granularity",
            now.discard_granularity_bytes,
            settings.discard_granularity_bytes,
            0,
        ),
        ("target", "rotation_rate", now.rotation_rate, settings.rotation_rate, 0),
    )
    for child_name, name, before, after, default in values:
        if after == before:
            continue
        child = element.find(child_name)
        if after == default:
            del child.attrib[name]
            if child_name == "blockio" and not child.attrib:
                element.remove(child)
        else:
            if child is None:
                child = _new_child(element, child_name)
            child.set(name, "on" if after is True else str(after))


def _new_child(element: t.Any, name: str) -> t.Any:
    """A new child where libvirt itself would write it: driver first, blockio before target."""
    child = etree.Element(name)
    if name == "driver":
        child.set("name", "qemu")
        position = 0
    else:
        target = element.find("target")
        position = element.index(target) if target is not None else len(element)
    following = element[position] if position < len(element) else None
    child.tail = element.text if following is not None else None
    element.insert(position, child)
    return child
