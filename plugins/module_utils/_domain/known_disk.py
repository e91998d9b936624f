# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of a ``<disk>``, and of the firmware's and the TPM's state, by operation (pure).

Whatever copies, moves, rebuilds, restores or switches a disk keeps each element and attribute of
this list, changes it on purpose, or refuses it by name.  What the list does not have is refused:
nobody has tried it.  ``tests/unit/domain/test_known_disk.py`` holds the list against libvirt's own
schema, and what is said to be kept against what is done.

Names are paths below ``<disk>``; ``@name`` is an attribute, ``@name=value`` one value of it.  An
attribute that is listed with values alone has no others that are known.  What lies below
``backingStore``, ``mirror`` and ``dataStore`` is known as that of the disk itself.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

#: What is done with a disk, in words that end "… is not known to be safe when a disk is".
BACKUP = "backed up while its domain runs"
BACKUP_OFF = "backed up while its domain is shut off"
LIVE = "compacted while its domain runs"
COMPACT_OFF = "compacted while its domain is shut off"
REBUILD = "copied for a new domain"
RESTORE = "restored"
#: A copy of the image as it lay there, not of what the guest saw.
RESTORE_IMAGE = "restored from a backup of a domain that was shut off"
BUS = "moved to another bus"
OPERATIONS = (BACKUP, BACKUP_OFF, LIVE, COMPACT_OFF, REBUILD, RESTORE, RESTORE_IMAGE, BUS)

_RUNNING = (BACKUP, LIVE)
_IMAGE_ALONE = (BACKUP_OFF, COMPACT_OFF, REBUILD)
_RESTORE = (RESTORE, RESTORE_IMAGE)
_NEW = (REBUILD, *_RESTORE)

_SHUT_OFF = "Shut the domain down first."
_LEAVE_OUT = "Name the disks that are meant without it (disks)."


@dataclasses.dataclass(frozen=True)
class Rule:
    """What becomes of an element or attribute; what is neither changed nor refused is kept.

    :param changed: operations that change it or leave it out, on purpose.
    :param refused: operations that refuse a disk that has it.
    :param why: such as "is encrypted".
    :param unless_qemu: the first version of QEMU with which nothing is refused.
    :param unless_plain_text: nothing is refused with the user's consent to a copy in plain text.
    """

    changed: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    why: str = ""
    remedy: str = ""
    unless_qemu: tuple[int, int, int] | None = None
    unless_plain_text: frozenset[str] = frozenset()


def _rules(names: str, *, prefix: str = "", **rule: t.Any) -> dict[str, Rule]:
    sets = {key: frozenset(rule[key]) for key in _SETS if key in rule}
    return {prefix + name: Rule(**{**rule, **sets}) for name in names.split()}


_SETS = ("changed", "refused", "unless_plain_text")

#: Seen with QEMU 7.2: an assertion fails when the NBD client of a backup job leaves (28 of 28), and
#: in some of the block jobs of a live compaction (1 of 12).  9.0 has given up the AioContext lock.
IOTHREAD_SAFE = (9, 0, 0)
IOTHREAD = Rule(
    refused=frozenset(_RUNNING),
    changed=frozenset({BUS}),
    why="has an iothread, with which QEMU before 9.0 may abort in such a job, guest and all",
    remedy="Shut the domain down first, take the iothread out (of the disk's or its controller's "
    "driver, virsh edit), or upgrade QEMU and start the guest anew.",
    unless_qemu=IOTHREAD_SAFE,
)
_ENCRYPTED: t.Mapping[str, t.Any] = {
    "changed": (RESTORE,),
    "refused": (BACKUP, BACKUP_OFF, LIVE, *_RESTORE),
    "unless_plain_text": (BACKUP, RESTORE),
    "why": "is encrypted",
    "remedy": "A copy of a running domain's disk is plain text: consent with "
    "accept_plain_text=true. Otherwise copy the image file itself, and keep its secret.",
}
_NOT_QEMU: t.Mapping[str, t.Any] = {
    "changed": _NEW,
    "refused": (BACKUP, *_IMAGE_ALONE, LIVE),
    "why": "is served by another process (vhost), and QEMU does not see its data",
    "remedy": f"Copy it where it is served. {_LEAVE_OUT}",
}
_VIRTIO = "queues queue_size ioeventfd event_idx iommu ats packed page_per_vq"
_IOTUNE = " ".join(
    f"{what}_{unit}_sec{more}"
    for what in ("read", "write", "total")
    for unit in ("bytes", "iops")
    for more in ("", "_max", "_max_length")
)
_AUTH = "secret secret/@type secret/@usage secret/@uuid"
_ENCRYPTION = (
    "@engine @format cipher cipher/@hash cipher/@mode cipher/@name cipher/@size ivgen "
    f"ivgen/@hash ivgen/@name {_AUTH}"
)
_ADDRESS = (
    "@base @bus @controller @cssid @devno @domain @function @iobase @irq @multifunction @port "
    "@reg @slot @ssid @target @type @unit zpci zpci/@fid zpci/@uid"
)

KNOWN: t.Mapping[str, Rule] = {
    # What kind of disk it is.
    **_rules("@type=block @type=volume", changed=_NEW),
    **_rules(
        "@type=network @type=nvme",
        changed=_NEW,
        refused=(*_IMAGE_ALONE, LIVE),
        why="is in no file or block device of this host",
        remedy=f"Back it up while the domain runs. {_LEAVE_OUT}",
    ),
    **_rules("@type=vhostuser @type=vhostvdpa", **_NOT_QEMU),
    **_rules(
        "@type=dir",
        changed=_NEW,
        refused=(BACKUP, *_IMAGE_ALONE, LIVE),
        why="is a folder that QEMU shows as a disk",
        remedy=f"Copy the folder. {_LEAVE_OUT}",
    ),
    **_rules("@type=file @device=disk @device=cdrom @device=floppy"),
    **_rules(
        "@device=lun",
        refused=(BACKUP, *_IMAGE_ALONE, LIVE),
        why="is a device of the host that the guest speaks SCSI to (lun)",
        remedy=f"Copy it where it lies, by LVM or by the storage. {_LEAVE_OUT}",
    ),
    **_rules("@model", changed=(BUS,)),
    **_rules("@rawio @sgio @snapshot privateData readonly serial alias alias/@name"),
    **_rules("format format/@type format/metadata_cache format/metadata_cache/max_size"),
    **_rules("format/metadata_cache/max_size/@unit"),
    **_rules(
        "backenddomain backenddomain/@name",
        refused=OPERATIONS,
        why="is served by another domain, as Xen has it",
        remedy=_LEAVE_OUT,
    ),
    **_rules(
        "shareable",
        changed=_RESTORE,  # QEMU shares raw images only, and who would share a copy
        refused=(*_RUNNING, REBUILD),
        why="may be used by several domains at once (shareable)",
        remedy="Shut all of them down first.",
    ),
    **_rules(
        "transient",
        changed=_RESTORE,
        refused=_RUNNING,
        why="forgets what is written to it when the domain ends (transient), and has an overlay "
        "that is removed then",
        remedy=_SHUT_OFF,
    ),
    **_rules("transient/@shareBacking", changed=(*_RESTORE, BUS)),
    # How QEMU drives it.
    **_rules(
        "@name @cache @io @error_policy @rerror_policy @discard @detect_zeroes",
        prefix="driver/",
    ),
    **_rules("driver"),
    **_rules("driver/@discard_no_unref"),
    **_rules("driver/@type", changed=_RESTORE),
    **_rules(_VIRTIO, prefix="driver/@", changed=(BUS,)),
    **_rules("driver/@copy_on_read=off"),
    **_rules(
        "driver/@copy_on_read=on",
        refused=(LIVE,),
        why="has copy_on_read, a layer of QEMU's that its block jobs do not get past",
        remedy=_SHUT_OFF,
    ),
    **{f"driver/{name}": IOTHREAD for name in ("@iothread", "iothreads")},
    **_rules("driver/iothreads/iothread", changed=(BUS,)),
    **_rules("@id queue queue/@id", prefix="driver/iothreads/iothread/", changed=(BUS,)),
    **_rules(
        "driver/metadata_cache",
        refused=(LIVE,),
        why="has a cache for qcow2's tables (metadata_cache), which would be lost",
        remedy=_SHUT_OFF,
    ),
    **_rules("driver/metadata_cache/max_size driver/metadata_cache/max_size/@unit"),
    # What the guest sees of it.
    **_rules("blockio"),
    **_rules("@logical_block_size @physical_block_size @discard_granularity", prefix="blockio/"),
    **_rules("target/@tray geometry geometry/@cyls geometry/@heads geometry/@secs"),
    **_rules(
        "target target/@dev target/@bus target/@rotation_rate target/@removable", changed=(BUS,)
    ),
    **_rules("geometry/@trans wwn vendor product acpi acpi/@index", changed=(BUS,)),
    **_rules("boot boot/@loadparm boot/@order"),
    **_rules("address", changed=(BUS,)),
    **_rules(_ADDRESS, prefix="address/", changed=(BUS,)),
    **_rules(f"{_IOTUNE} group_name size_iops_sec", prefix="iotune/"),
    **_rules("iotune throttlefilters/throttlefilter throttlefilters/throttlefilter/@group"),
    **_rules(
        "throttlefilters",
        refused=_RUNNING,
        why="has throttle filters, layers of QEMU's with which block jobs were never tried",
        remedy=_SHUT_OFF,
    ),
    # What it is encrypted with.
    **_rules("encryption source/encryption", **_ENCRYPTED),
    **_rules(_ENCRYPTION, prefix="encryption/", changed=(RESTORE,)),
    **_rules(_ENCRYPTION, prefix="source/encryption/", changed=(RESTORE,)),
    # Where its data is: a copy is elsewhere, in a file of its own.
    **_rules("auth auth/@username", changed=_RESTORE),
    **_rules(_AUTH, prefix="auth/", changed=_RESTORE),
    **_rules("backingStore backingStore/@index backingStore/@type", changed=_NEW),
    **_rules(
        "mirror",
        changed=_RESTORE,
        refused=(LIVE,),
        why="has a block job at work",
        remedy="Wait for that to end, or end it (virsh blockjob --abort).",
    ),
    **_rules("@file @format @job @ready @type", prefix="mirror/", changed=_RESTORE),
    **_rules("source", changed=_NEW),
    **_rules(
        "@dev @dir @file @index @managed @mode @name @namespace @path @pool @protocol @query @tls "
        "@startupPolicy @tlsHostname @type @volume address auth auth/@username config config/@file "
        "cookies cookies/cookie cookies/cookie/@name host host/@name host/@port host/@socket "
        "host/@transport identity identity/@group identity/@user identity/@username "
        "identity/@keyfile identity/@agentsock initiator initiator/iqn initiator/iqn/@name "
        "knownHosts knownHosts/@path privateData readahead readahead/@size reconnect "
        "reconnect/@delay reconnect/@enabled reconnect/@timeout snapshot snapshot/@name ssl "
        "ssl/@verify timeout timeout/@seconds",
        prefix="source/",
        changed=_NEW,
    ),
    **_rules("@bus @domain @function @multifunction @slot", prefix="source/address/", changed=_NEW),
    **_rules(_AUTH, prefix="source/auth/", changed=_NEW),
    **_rules(
        "source/@fdgroup",
        changed=_RESTORE,
        refused=(LIVE, *_IMAGE_ALONE),
        why="is a file that somebody has passed to libvirt open (fdgroup), whatever its name says",
        remedy=_LEAVE_OUT,
    ),
    **_rules(
        "source/slices",
        changed=(RESTORE,),
        refused=(LIVE, *_IMAGE_ALONE, RESTORE_IMAGE),
        why="is a part of its file (slices), and a copy would be of the whole file",
        remedy="A backup while the domain runs (online) is of the part alone. Otherwise copy it "
        "with qemu-img, by driver=raw,offset=,size=.",
    ),
    **_rules("slice slice/@offset slice/@size slice/@type", prefix="source/slices/", changed=_NEW),
    **_rules(
        "source/dataStore",
        changed=_NEW,
        refused=(LIVE,),
        why="has its data in a data file of its own (dataStore)",
        remedy=_SHUT_OFF,
    ),
    **_rules("source/dataStore/@type", changed=_NEW),
    **_rules(
        "source/seclabel source/reservations",
        changed=_NEW,
        refused=(LIVE,),
        why="has a label or reservations of its own in its source, which would be lost",
        remedy=_SHUT_OFF,
    ),
    **_rules("@labelskip @model @relabel label", prefix="source/seclabel/", changed=_NEW),
    **_rules(
        "@managed source source/@mode source/@path source/@type source/reconnect "
        "source/reconnect/@delay source/reconnect/@enabled source/reconnect/@timeout",
        prefix="source/reservations/",
        changed=_NEW,
    ),
}

_COPIES = (BACKUP, BACKUP_OFF, *_NEW)
_NO_FILE: t.Mapping[str, t.Any] = {
    "refused": _COPIES,
    "why": "has the variables of its firmware in something else than a file, which is not copied",
    "remedy": "Put them into a file (nvram type='file', virsh edit) first.",
}
_NOT_PLAIN = Rule(
    refused=frozenset(_COPIES),
    why="has the variables of its firmware in a file with settings of its own, which a copy of the "
    "file would lack",
    remedy="Put them into a plain file (nvram type='file', virsh edit) first.",
)
#: Below ``<os>``: what is known of ``loader``, ``nvram`` and ``varstore``.
FIRMWARE: t.Mapping[str, Rule] = {
    **_rules("loader loader/@format loader/@readonly loader/@secure loader/@stateless"),
    **_rules("loader/@type nvram/@template nvram/@templateFormat nvram/@format"),
    **_rules("nvram nvram/@type=file nvram/source", changed=_NEW),
    **{
        f"nvram/{path}": Rule(changed=frozenset(_NEW)) if not rule.refused else _NOT_PLAIN
        for path, rule in KNOWN.items()
        if path.startswith("source/")
    },
    **_rules("nvram/@type=block nvram/@type=network nvram/@type=volume", **_NO_FILE),
    **_rules("nvram/@type=dir nvram/@type=nvme nvram/@type=vhostuser", **_NO_FILE),
    **_rules("nvram/@type=vhostvdpa varstore", **_NO_FILE),
    **_rules("varstore/@path varstore/@template"),
}
#: Below ``<tpm>``, whose state is nowhere copied.
TPM: t.Mapping[str, Rule] = {
    **_rules("@model alias alias/@name address"),
    **_rules(_ADDRESS, prefix="address/"),
    **_rules(
        "@type @version @debug @persistent_state device device/@path encryption "
        "encryption/@secret active_pcr_banks active_pcr_banks/sha1 active_pcr_banks/sha256 "
        "active_pcr_banks/sha384 active_pcr_banks/sha512 profile profile/@name "
        "profile/@removeDisabled profile/@source source source/@mode source/@path "
        "source/@type=unix",
        prefix="backend/",
    ),
    **_rules("backend"),
    **_rules(
        "backend/source/@type=file backend/source/@type=dir",
        refused=_NEW,
        why="has its TPM's state where its configuration says, and two domains would share it",
        remedy="Take <source> out of the TPM's backend (virsh edit) first.",
    ),
}

_LAYER = re.compile(r"^(?:(?:backingStore|mirror|source/dataStore)/)+(?=[a-z])")


def canonical(path: str) -> str:
    """The name in :data:`KNOWN`: that of a layer below the disk's own is that of the disk's own."""
    return _LAYER.sub("", path)


def rule_of(known: t.Mapping[str, Rule], path: str, value: str) -> Rule | None:
    """What is known of an element or attribute with this value; None if nothing is."""
    return known.get(f"{path}={value}", known.get(path))
