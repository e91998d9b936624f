#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: thin_watch
short_description: Watch what domains allocate and what their host has left
version_added: 0.1.0
author: thinvirt.kvm contributors (@thinvirt)
description:
  - Looks twice a second at the blocks that the images of some domains occupy, and at the free space
    of the file systems that they lie on, and returns at once when one of these has less left than
    it should.
  - Tells how many bytes of zeros the guest of each domain may write without bringing a file system
    there, if all chosen domains do so at the same time. The role P(thinvirt.kvm.zero_fill#role)
    keeps to that.
  - Changes nothing and asks no guest.
extends_documentation_fragment:
  - thinvirt.kvm.libvirt
  - thinvirt.kvm.libvirt.domains_required
  - thinvirt.kvm.attributes
attributes:
  check_mode:
    support: full
    details:
      - Changes nothing in either mode.
  diff_mode:
    support: N/A
    details:
      - Changes nothing.
  idempotent:
    support: full
    details:
      - Changes nothing.
options:
  disks:
    description:
      - Targets such as V(vda), or globs such as V(sd*), that are watched and that the guests write;
        by default all.
      - A target that none of the chosen domains has is an error.
    type: list
    elements: str
    default: []
  min_free_bytes:
    description: What has to stay free on each file system.
    type: int
    default: 10737418240
  seconds:
    description: How long to watch; V(0) looks once.
    type: int
    default: 0
notes:
  - Needs the right to read the images, so usually root.
seealso:
  - module: thinvirt.kvm.thin_info
  - module: thinvirt.kvm.zero_free_space
"""

EXAMPLES = r"""
- name: See what the guests may write
  thinvirt.kvm.thin_watch:
    domains: ['web*']

- name: Watch the host for a minute during a large import, and stop it before the host is full
  thinvirt.kvm.thin_watch:
    domains: [db1]
    min_free_bytes: 53687091200
    seconds: 60
  register: watched
  failed_when: watched.near
"""

RETURN = r"""
near:
  description: Whether a file system has, or had meanwhile, less than O(min_free_bytes) free.
  returned: success
  type: bool
watched_seconds:
  description: How long it was watched.
  returned: success
  type: float
domains:
  description: One entry per chosen domain, in the order of their names.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Name of the domain.
      type: str
      sample: web1
    uuid:
      description: UUID of the domain.
      type: str
      sample: f4e2b079-09dd-4204-b81e-9bec7bc31162
    active:
      description: Whether it runs.
      type: bool
    zeros_are_free:
      description:
        - Whether QEMU turns zeros that the guest writes into holes on all its disks, as it runs
          now, so that the images do not grow.
      type: bool
    growth_bytes:
      description:
        - The most that its images could grow by zeros that the guest writes; V(null) if that can't
          be told, as with a thin block device.
      type: int
    fits:
      description:
        - Whether the file systems take that growth of all chosen domains, so that the guest may
          write as much as it likes.
      type: bool
    budget_bytes:
      description:
        - How many bytes the guest may write. What the file systems have free but for
          O(min_free_bytes), less a sixteenth, in equal shares for those of the chosen domains that
          can grow there; all that its disks hold where it can't grow beyond that.
        - As things stood in the beginning.
      type: int
      sample: 21474836480
    near:
      description: Whether this domain is on a file system that has too little left.
      type: bool
    disks:
      description: The disks that the guest may write.
      type: list
      elements: dict
      contains:
        target:
          description: Name of the disk in the domain.
          type: str
          sample: vda
        mount_point:
          description: Where its file system is mounted; V(null) for a block device and the like.
          type: str
        allocated_before_bytes:
          description: Blocks of its image in the beginning; V(null) if they can't be told.
          type: int
        allocated_peak_bytes:
          description: The most that was seen.
          type: int
        allocated_after_bytes:
          description: Blocks in the end.
          type: int
file_systems:
  description: The file systems that hold the images, sorted by mount point.
  returned: success
  type: list
  elements: dict
  contains:
    mount_point:
      description: Where it is mounted.
      type: str
      sample: /var/lib/libvirt
    device:
      description: Its number, major and minor.
      type: str
      sample: "254:1"
    free_bytes:
      description: What was free in the end, as C(df) shows under available.
      type: int
    least_free_bytes:
      description: The least that was seen.
      type: int
    near:
      description: Whether that is less than O(min_free_bytes).
      type: bool
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.collect import Auditor
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.watch import Watch, only_disks
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import Hypervisor
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.module_utils._spec import (
    failure_message,
    libvirt_spec,
)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **libvirt_spec(domains_required=True),
            "disks": {"type": "list", "elements": "str", "default": []},
            "min_free_bytes": {"type": "int", "default": 10 << 30},
            "seconds": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        with Hypervisor(params["uri"], local_only=True) as hypervisor:
            auditor = Auditor(hypervisor, allowed_dirs=(), probe_storage=True)
            domains = auditor.domains(params["domains"])
    except ThinvirtError as error:
        module.fail_json(**error.result())
    failed = [(domain.name, domain.error) for domain in domains if domain.error]
    if failed:
        module.fail_json(msg=failure_message("domains", failed, of=len(domains)))
    try:
        domains = only_disks(domains, params["disks"])
    except ThinvirtError as error:
        module.fail_json(**error.result())
    watch = Watch(domains, min_free_bytes=params["min_free_bytes"])
    watched = watch.run(params["seconds"])
    module.exit_json(
        changed=False,
        near=watch.near,
        watched_seconds=round(watched, 1),
        domains=watch.domain_results(),
        file_systems=watch.file_system_results(),
    )


if __name__ == "__main__":
    main()
