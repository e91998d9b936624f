#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: domain_helper_disk
short_description: Give domains a small disk on virtio-scsi and a CD for a while, and take them away
version_added: 0.1.0
author: thinvirt.kvm contributors (@thinvirt)
description:
  - Windows boots from virtio-scsi only when its driver was bound before. So it has to see some disk
    on virtio-scsi first, and the virtio-win ISO, before its boot disk is moved
    (M(thinvirt.kvm.domain_disk_bus)).
  - With O(state=present), the configuration gets a virtio-scsi controller if it has none with room,
    an empty disk of 64 MiB with the serial number C(thinvirt-helper), and a CD drive with O(iso).
  - With O(state=absent), exactly these are removed, and the disk's file. They are known by aliases
    of their own. A controller that other disks use by then stays.
  - What the domain boots from stays the same.
  - Refused for domains that are transient, or have managed save, snapshots or checkpoints.
extends_documentation_fragment:
  - thinvirt.kvm.libvirt
  - thinvirt.kvm.libvirt.domains_required
  - thinvirt.kvm.trusted_owners
  - thinvirt.kvm.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  state:
    description: Whether they should be there.
    type: str
    choices: [present, absent]
    default: present
  disk:
    description: With a helper disk; V(false) for the CD drive alone.
    type: bool
    default: true
  iso:
    description: Absolute path, on the hypervisor, of what is in the CD drive. None, no drive.
    type: path
  dir:
    description:
      - Folder for the helper disk's file, C(DOMAIN-thinvirt-helper.img); beside the domain's first
        disk by default.
    type: path
  power:
    description:
      - A guest that runs sees the change at its next start. With V(keep) that is told by
        RV(domains[].restart_required), and a file that is in use is left for the next run. With
        V(cycle) it is shut down in order, never by force, and started again.
    type: str
    choices: [keep, cycle]
    default: keep
  timeout:
    description: Seconds that a guest may take to power off, and again to come back.
    type: int
    default: 300
seealso:
  - module: thinvirt.kvm.domain_disk_bus
"""

EXAMPLES = r"""
- name: Let a Windows guest see virtio-scsi and its driver
  thinvirt.kvm.domain_helper_disk:
    domains: [win1]
    iso: /var/lib/libvirt/images/virtio-win.iso
    power: cycle

- name: Put the drivers beside the installation CD of a domain that is not installed yet
  thinvirt.kvm.domain_helper_disk:
    domains: [win2]
    disk: false
    iso: /var/lib/libvirt/images/virtio-win.iso

- name: Remove both again
  thinvirt.kvm.domain_helper_disk:
    domains: [win1, win2]
    state: absent
    power: cycle
"""

RETURN = r"""
domains:
  description: One entry per chosen domain, in the order of their names.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Name of the domain.
      type: str
      sample: win1
    uuid:
      description: UUID of the domain.
      type: str
    changed:
      description: Whether something was (in check mode, would be) changed.
      type: bool
    actions:
      description: What was done to a guest that ran; V(shut_down), V(started).
      type: list
      elements: str
    helper_disk:
      description: File of the helper disk; empty if there is none.
      type: str
      returned: on success of this domain
    iso:
      description: What is in the CD drive; empty if there is none.
      type: str
      returned: on success of this domain
    targets:
      description: Names of both in the domain.
      type: list
      elements: str
      returned: on success of this domain
      sample: [sda, sdb]
    restart_required:
      description: Whether the guest runs without what is configured.
      type: bool
      returned: on success of this domain
    file_left:
      description: File of the helper disk that was left because it is in use; empty if none was.
      type: str
      returned: on success of this domain
    error:
      description: Why this domain was left as it is, or what went wrong.
      type: dict
      returned: on failure of this domain
      contains:
        msg:
          description: What happened and what to do, in a sentence or two.
          type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import Hypervisor
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ReportedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware import helper
from ansible_collections.thinvirt.kvm.plugins.module_utils._plan import diff
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import signals_raise
from ansible_collections.thinvirt.kvm.plugins.module_utils._spec import (
    failure_message,
    libvirt_spec,
    trusted_owners_spec,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.trust import trust


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **libvirt_spec(domains_required=True),
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "disk": {"type": "bool", "default": True},
            "iso": {"type": "path"},
            "dir": {"type": "path"},
            "power": {"type": "str", "choices": ["keep", "cycle"], "default": "keep"},
            "timeout": {"type": "int", "default": 300},
            **trusted_owners_spec(),
        },
        supports_check_mode=True,
    )
    params = module.params
    request = helper.Request(
        present=params["state"] == "present",
        disk=params["disk"],
        iso=(params["iso"] or "") if params["state"] == "present" else "",
        folder=params["dir"] or "",
        power=params["power"],
        timeout=params["timeout"],
    )
    try:
        trust(params["trusted_owners"])
        with signals_raise(), Hypervisor(params["uri"], local_only=True) as hypervisor:
            outcomes = helper.decide(hypervisor, params["domains"], request)
            changes = [change for outcome in outcomes for change in outcome.changes]
            if not module.check_mode:
                for outcome in outcomes:
                    helper.carry_out(hypervisor, outcome, request)
    except ReportedError as error:
        module.fail_json(**error.result())
    result = {
        "changed": any(outcome.changed for outcome in outcomes),
        "domains": [outcome.result() for outcome in outcomes],
        "diff": diff(changes),
    }
    failed = [(outcome.guest.name, outcome.error) for outcome in outcomes if outcome.error]
    if failed:
        module.fail_json(msg=failure_message("domains", failed, of=len(outcomes)), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
