# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a few lines would do in the place of ``thin_info``: its time is held against theirs.

They make the same calls of libvirt, read the same headers, and return what stands there; nothing
is checked, judged or summed up.  ``python -m bench.bare_audit URI`` runs them as a plain script,
``bench.module`` as a module, which takes the time of Ansible's own start and end besides.
"""

from __future__ import annotations

import os
import sys

import libvirt
from lxml import etree

Row = dict[str, object]
_KEPT = (
    libvirt.VIR_CONNECT_LIST_DOMAINS_HAS_SNAPSHOT,
    libvirt.VIR_CONNECT_LIST_DOMAINS_HAS_CHECKPOINT,
    libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE,
)


def audit(uri: str) -> list[Row]:
    """All domains with their disks; sizes in bytes."""
    connection = libvirt.open(uri)
    for kind in _KEPT:
        connection.listAllDomains(kind)
    connection.listAllStoragePools()
    return [_domain(domain) for domain in connection.listAllDomains()]


def _domain(domain: libvirt.virDomain) -> Row:
    configured = etree.fromstring(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    active = domain.ID() >= 0
    tree = etree.fromstring(domain.XMLDesc(0)) if active else configured
    return {
        "name": domain.name(),
        "uuid": domain.UUIDString(),
        "active": active,
        "machine": tree.find("os/type").get("machine"),
        "agent": [target.get("state") for target in tree.findall("devices/channel/target")],
        "disks": [_disk(disk) for disk in tree.findall("devices/disk")],
    }


def _disk(disk: etree._Element) -> Row:
    parts = {part.tag: part.attrib for part in disk}
    path = parts["source"].get("file", "")
    fd = os.open(path, os.O_RDONLY)
    status, header = os.fstat(fd), os.pread(fd, 4096, 0)
    os.close(fd)
    return {
        "target": parts["target"].get("dev"),
        "bus": parts["target"].get("bus"),
        "path": path,
        "format": parts["driver"].get("type"),
        "discard": parts["driver"].get("discard"),
        "promised_bytes": int.from_bytes(header[24:32], "big"),
        "allocated_bytes": status.st_blocks * 512,
        "length_bytes": status.st_size,
    }


def main() -> None:
    """As a module."""
    from ansible.module_utils.basic import AnsibleModule  # noqa: PLC0415 a script is without it

    module = AnsibleModule({"uri": {"type": "str", "required": True}})
    module.exit_json(changed=False, domains=audit(module.params["uri"]))


if __name__ == "__main__":
    print(*audit(sys.argv[1]), sep="\n")
