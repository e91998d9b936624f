# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m bench.bare_audit URI``: what a script of a few lines would do for ``thin_info``.

It makes the same calls of libvirt for every domain and reads the same headers, judges nothing and
returns sums.  It is what the module's time is held against.
"""

from __future__ import annotations

import os
import sys

import libvirt
from lxml import etree


def main() -> int:
    """Entry point; prints the number of disks, their allocated bytes, and their sizes."""
    connection = libvirt.open(sys.argv[1])
    disks = allocated = promised = 0
    for kind in (
        libvirt.VIR_CONNECT_LIST_DOMAINS_HAS_SNAPSHOT,
        libvirt.VIR_CONNECT_LIST_DOMAINS_HAS_CHECKPOINT,
        libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE,
    ):
        connection.listAllDomains(kind)
    for domain in connection.listAllDomains():
        text = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        if domain.ID() >= 0:
            text = domain.XMLDesc(0)
        for source in etree.fromstring(text).findall("devices/disk/source"):
            fd = os.open(source.get("file", ""), os.O_RDONLY)
            status = os.fstat(fd)
            header = os.pread(fd, 4096, 0)
            os.close(fd)
            disks += 1
            allocated += status.st_blocks * 512
            promised += int.from_bytes(header[24:32], "big")
    print(disks, allocated, promised)
    return 0


if __name__ == "__main__":
    sys.exit(main())
