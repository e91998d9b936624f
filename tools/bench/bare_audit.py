# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a few lines would do in the place of ``thin_info``: its time is held against theirs.

They make the same calls of libvirt, read the same headers, and return what stands there; nothing
is checked, judged or summed up.  ``python -m bench.bare_audit URI`` runs them as a plain script,
``bench.module`` as a module, which takes the time of Ansible's own start and end besides.
"""

from __future__ import annotations

import json
import os
import struct
import sys

import libvirt
from lxml import etree

Row = dict[str, object]
_KEPT = (
    libvirt.VIR_CONNECT_LIST_DOMAINS_HAS_SNAPSHOT,
    libvirt.VIR_CONNECT_LIST_DOMAINS_HAS_CHECKPOINT,
    libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE,
)
#: docs/interop/qcow2.txt of QEMU.
_HEADER = struct.Struct(">4xIQIIQIIQQIIQ")
_FIELDS = (
    *("version", "backing_file_offset", "backing_file_size", "cluster_bits", "size"),
    *("crypt_method", "l1_size", "l1_table_offset", "refcount_table_offset"),
    *("refcount_table_clusters", "nb_snapshots", "snapshots_offset"),
)
_STATUS = ("st_dev", "st_ino", "st_mode", "st_uid", "st_gid", "st_size", "st_blocks", "st_nlink")


def audit(uri: str) -> list[Row]:
    """All domains with their disks, as they are."""
    connection = libvirt.open(uri)
    for kind in _KEPT:
        connection.listAllDomains(kind)
    connection.listAllStoragePools()
    return [_domain(domain) for domain in connection.listAllDomains()]


def _domain(domain: libvirt.virDomain) -> Row:
    configured = etree.fromstring(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    live = etree.fromstring(domain.XMLDesc(0)) if domain.ID() >= 0 else None
    judged = configured if live is None else live
    return {
        "name": domain.name(),
        "uuid": domain.UUIDString(),
        "active": live is not None,
        "os": [_attributes(each) for each in judged.findall("os/type")],
        "agent": [_attributes(each) for each in judged.findall("devices/channel/target")],
        "configured": _disks(configured),
        "live": None if live is None else _disks(live),
        "images": [
            _image(source.get("file", "")) for source in judged.findall("devices/disk/source")
        ],
    }


def _disks(tree: etree._Element) -> list[Row]:
    disks = tree.findall("devices/disk")
    return [{str(part.tag): _attributes(part) for part in disk} for disk in disks]


def _attributes(element: etree._Element) -> Row:
    return {str(key): str(value) for key, value in element.items()}


def _image(path: str) -> Row:
    fd = os.open(path, os.O_RDONLY)
    status, data = os.fstat(fd), os.pread(fd, 4096, 0)
    os.close(fd)
    header = _HEADER.unpack_from(data)
    return {
        "path": path,
        "header": dict(zip(_FIELDS, header, strict=True)),
        "status": {name: getattr(status, name) for name in _STATUS},
    }


def main() -> None:
    """As a module."""
    from ansible.module_utils.basic import AnsibleModule  # noqa: PLC0415 a script is without it

    module = AnsibleModule({"uri": {"type": "str", "required": True}})
    module.exit_json(changed=False, domains=audit(module.params["uri"]))


if __name__ == "__main__":
    print(json.dumps(audit(sys.argv[1])))
