#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: linux_guest_device_names
short_description: Have a Linux guest find its disks by UUID, so that it boots from another bus
version_added: 0.1.0
author: thinvirt.kvm contributors (@thinvirt)
description:
  - Runs in a Linux guest. Names such as C(/dev/vda1), C(/dev/sda2) or those in
    C(/dev/disk/by-path) change when a disk gets to another bus. This module writes C(UUID=), or
    C(PARTUUID=) where the content has none, in their place.
  - Looks at fstab, crypttab, the kernel parameters C(root), C(resume) and C(cryptdevice) in
    C(/etc/default/grub), C(/etc/kernel/cmdline) and loader entries, and at C(RESUME) of
    initramfs-tools. C(GRUB_DISABLE_LINUX_UUID=true) is commented out.
  - Each file that is changed is kept beside it, with the time in its name, and is exchanged in one
    step.
  - A name that the boot may depend on and that cannot be replaced is an error, and nothing is
    changed.
  - What has to be made anew from these files, GRUB's C(grub.cfg) and the initial RAM disk, is named
    and is not made.
extends_documentation_fragment:
  - thinvirt.kvm.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
notes:
  - Needs Python 3.9 or newer, the guest's own util-linux, and root.
  - In check mode it changes nothing and tells what is mounted, so it serves to compare a guest
    before and after.
seealso:
  - module: thinvirt.kvm.linux_guest_info
  - module: thinvirt.kvm.domain_disk_bus
"""

EXAMPLES = r"""
- name: Name disks by UUID before the guest gets another bus
  thinvirt.kvm.linux_guest_device_names:
  register: names

- name: Write GRUB's configuration anew
  ansible.builtin.command:
    argv: ["{{ names.mkconfig }}", -o, "{{ item }}"]
  loop: "{{ names.stale_grub_cfg }}"

- name: See what would be changed
  thinvirt.kvm.linux_guest_device_names:
  check_mode: true
  diff: true
"""

RETURN = r"""
files:
  description: The files that name disks in a way that changes.
  returned: always
  type: list
  elements: dict
  contains:
    path:
      description: The file.
      type: str
      sample: /etc/fstab
    replaced:
      description: Each old name and what stands in its place.
      type: list
      elements: dict
      sample: [{before: /dev/vda1, after: UUID=7d3f}]
    ignored:
      description: Lines that keep such a name; the guest boots without them (C(nofail), C(noauto)).
      type: list
      elements: str
    backup:
      description: The file that keeps the old content; empty if nothing was written.
      type: str
stale_grub_cfg:
  description: Files of GRUB that name disks and have to be written anew, by RV(mkconfig).
  returned: always
  type: list
  elements: str
mkconfig:
  description: GRUB's program for that; empty if there is none.
  returned: always
  type: str
  sample: /usr/sbin/grub-mkconfig
grub_settings_changed:
  description: Whether what RV(mkconfig) reads was (in check mode, would be) changed.
  returned: always
  type: bool
initramfs_stale:
  description: Whether crypttab or C(RESUME) are newer than the initial RAM disk.
  returned: always
  type: bool
mounted:
  description: What is mounted, or in use as swap, and should be so after a reboot.
  returned: always
  type: list
  elements: dict
  contains:
    mount_point:
      description: Mount point; V(swap) for swap.
      type: str
    source:
      description: UUID of its content.
      type: str
    type:
      description: Type of the file system.
      type: str
"""

import dataclasses
import os
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest import boot_files
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import process


def main() -> None:
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    backups: dict[str, str] = {}
    try:
        found = boot_files.read()
        found.refuse_problems()
        if not module.check_mode:
            for file in found.changed:
                backups[file.path] = write(module, file)
    except ThinvirtError as error:
        module.fail_json(**error.result())
    changed = found.changed
    module.exit_json(
        changed=bool(changed),
        files=[
            {
                "path": file.path,
                "replaced": [{"before": old, "after": new} for old, new in file.now.replaced],
                "ignored": list(file.now.ignored),
                "backup": backups.get(file.path, ""),
            }
            for file in found.files
        ],
        stale_grub_cfg=list(found.stale_grub_cfg),
        mkconfig=found.mkconfig,
        grub_settings_changed=any(file.path.startswith("/etc/default/grub") for file in changed),
        initramfs_stale=found.initramfs_stale,
        mounted=[dataclasses.asdict(each) for each in found.mounted],
        diff=[
            {"before_header": file.path, "before": file.before, "after": file.now.text}
            for file in changed
        ],
    )


def write(module: AnsibleModule, file: boot_files.File) -> str:
    """Exchange a file; returns the name of the one that keeps the old content.

    :raises RefusedError: the new one is worse; the old one is in its place.
    """
    fd, temp = tempfile.mkstemp(dir=module.tmpdir)
    with os.fdopen(fd, "w", encoding="utf-8", errors="surrogateescape") as stream:
        stream.write(file.now.text)
    module.add_cleanup_file(temp)
    if file.path == boot_files.FSTAB and complaints(temp) > complaints(file.path):
        raise RefusedError(
            "findmnt --verify has more to complain about fstab with UUIDs than with names; it was "
            "left as it is.",
            remedy="Name disks by UUID in fstab yourself.",
        )
    backup = str(module.backup_local(file.path))
    module.atomic_move(temp, file.path)
    return backup


def complaints(path: str) -> int:
    """How many errors findmnt finds in such a table; an old one, or busybox's, finds none."""
    findmnt = process.find_program("findmnt", package="util-linux")
    argv = [findmnt, "--verify", "--tab-file", path]
    done = process.run(argv, timeout=60, max_output_bytes=1 << 20)
    return done.stdout.count(b"[E]")


if __name__ == "__main__":
    main()
