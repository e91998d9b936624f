# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real QEMU guests under a libvirt of our own; nothing of the user's libvirt is touched.

From Python (``tools`` on the path; standard library only)::

    from lab import Disk, GuestSpec, Lab

    with Lab(Path(".cache/mylab")) as lab:     # starts libvirtd; at the end all of it is stopped
        guest = lab.create(GuestSpec("g1", machine="q35", disks=(Disk("sda", "scsi", root=True),
                           Disk("sdb", "scsi", size_bytes=2 << 30, discard="unmap"))))
        guest.start()
        guest.wait_for_agent()                 # lab.uri is for virsh, libvirt and Ansible
        print(guest.run("lsblk", "-D").stdout, guest.disk("sdb").path)
        other = lab.warm(GuestSpec("g2"))      # runs already: restored, not booted

From a shell: ``PYTHONPATH=tools python3 -m lab --state .cache/mylab up spec.json``, then
``exec g1 lsblk``, ``virsh list``, ``down`` (see ``--help``).
"""

from __future__ import annotations

from .daemon import Lab
from .domain import Disk, GuestSpec, domain_xml
from .errors import LabError
from .guest import Guest, Output
from .image import GuestImage, guest_image

__all__ = [
    "Disk",
    "Guest",
    "GuestImage",
    "GuestSpec",
    "Lab",
    "LabError",
    "Output",
    "domain_xml",
    "guest_image",
]
