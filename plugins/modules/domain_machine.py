#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: domain_machine
short_description: Tell how old the machine types of libvirt domains are, raise them, or rebuild
version_added: 0.1.0
author: thinvirt.kvm contributors (@thinvirt)
description:
  - A machine type freezes the hardware that a guest sees at one version of QEMU. Below 4.0,
    virtio-blk cannot discard, whatever the domain's settings are.
  - Raises a machine type to the newest of its family (i440fx, q35) that the domain's own emulator
    offers, or to one that is named. The family is never changed, and a type is never lowered.
  - Addresses of devices stay, unless libvirt refuses the new type with them.
  - Machines of other kinds (C(virt), C(pseries), C(s390-ccw-virtio) and so on) are told about and
    left alone.
  - Where a raise does not help, O(state=rebuilt) copies the disks and defines a new domain around
    the copies. The old domain is not touched.
  - Refused for domains that run, are transient, or have managed save, snapshots or checkpoints.
extends_documentation_fragment:
  - thinvirt.kvm.libvirt
  - thinvirt.kvm.libvirt.domains_required
  - thinvirt.kvm.libvirt.state_dir
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
    description:
      - V(present) only tells. Nothing is changed.
      - V(current) raises the machine type.
      - V(restored) brings back the whole configuration that a domain had before the last raise by
        this module. If there is none, nothing is changed.
      - V(rebuilt) copies the disks of one domain and defines a new one around the copies.
    type: str
    choices: [present, current, restored, rebuilt]
    default: present
  machine:
    description:
      - The machine type with O(state=current) and O(state=rebuilt); of the same family and not
        older.
      - By default the newest of the family, by its versioned name.
    type: str
  rebuild:
    description:
      - What the new domain is like; with O(state=rebuilt).
      - It has a UUID and a generation ID of its own. It is defined, not started. An emulated TPM is
        empty.
      - It has the old one's UUID nowhere, since no two domains of a host can have the same.
    type: dict
    suboptions:
      name:
        description: Name of the new domain.
        type: str
        required: true
      dest_dir:
        description:
          - The folder for the copies; an absolute path. They are called C(NAME-TARGET.FORMAT), have
            the format of the originals, and are compared with them. The firmware's variables are
            copied to C(NAME_VARS.fd).
        type: path
        required: true
      keep_mac:
        description: Whether the network interfaces keep their addresses.
        type: bool
        default: false
      allowed_dirs:
        description:
          - Folders, with all that is below them, where backing files may lie besides the folder of
            each disk itself.
        type: list
        elements: str
        default: []
      min_free_bytes:
        description: What the copies must leave free on their file system.
        type: int
        default: 1073741824
      timeout:
        description: Seconds for one disk.
        type: int
        default: 21600
seealso:
  - module: thinvirt.kvm.domain_disk_bus
  - module: thinvirt.kvm.thin_info
"""

EXAMPLES = r"""
- name: Tell how old the machines of a host are
  thinvirt.kvm.domain_machine:
    domains: ['*']
  register: machines

- name: Raise those of the guests that are shut off for it
  thinvirt.kvm.domain_machine:
    domains: [web1, web2]
    state: current

- name: Not further than the oldest host of the cluster can run
  thinvirt.kvm.domain_machine:
    domains: [web1]
    state: current
    machine: pc-q35-6.2

- name: It does not boot; take that back
  thinvirt.kvm.domain_machine:
    domains: [web1]
    state: restored

- name: Try it on a copy first
  thinvirt.kvm.domain_machine:
    domains: [erp]
    state: rebuilt
    rebuild:
      name: erp-new
      dest_dir: /var/lib/libvirt/images
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
      sample: web1
    uuid:
      description: UUID of the domain.
      type: str
      sample: f4e2b079-09dd-4204-b81e-9bec7bc31162
    changed:
      description: Whether something was (in check mode, would be) changed.
      type: bool
    machine_before:
      description: The machine type that it had.
      type: str
      returned: on success of this domain
      sample: pc-i440fx-3.1
    machine:
      description: The machine type that it has now, or that the rebuilt domain has.
      type: str
      returned: on success of this domain
      sample: pc-i440fx-7.2
    reason:
      description: Why that one; empty with O(state=present).
      type: str
      returned: on success of this domain
    family:
      description: V(i440fx) or V(q35); empty for every other kind of machine.
      type: str
      returned: on success of this domain
      sample: i440fx
    qemu_version:
      description:
        - The version of QEMU at which the old type froze its hardware; of RHEL's types only V(3.1)
          or V(4.0), on which side of 4.0 they are. Empty if it names none.
      type: str
      returned: on success of this domain
      sample: "3.1"
    newest:
      description: The newest of the family that the domain's emulator offers; empty if none.
      type: str
      returned: on success of this domain
      sample: pc-i440fx-7.2
    addresses_dropped:
      description: Whether devices get new PCI addresses, as libvirt refuses the old ones.
      type: bool
      returned: on success of this domain
    readdressed:
      description: Those devices. All others keep their addresses.
      type: list
      elements: str
      returned: on success of this domain
      sample: [controller scsi0, disk vda]
    old_xml:
      description:
        - The file that keeps the old configuration, for O(state=restored); empty if there is none.
      type: str
      returned: on success of this domain
      sample: /var/lib/thinvirt/domains/f4e2b079-09dd-4204-b81e-9bec7bc31162-machine-1a2b3c4d.xml
    identical:
      description:
        - Whether libvirt prints the restored configuration byte for byte as it did. If not, it
          prints the same in another order.
      type: bool
      returned: when it was restored
    recovered:
      description: What a killed run had left; empty if nothing.
      type: str
      returned: on success of this domain
    rebuilt:
      description: The new domain, with C(name), C(uuid), C(machine), C(nvram) and C(disks).
      type: dict
      returned: with O(state=rebuilt)
      sample:
        name: erp-new
        uuid: 8f6d5c0e-1c7b-4f0c-9a43-6d0b6a2b8f11
        machine: pc-q35-7.2
        nvram: ""
        disks:
          - target: vda
            src: /var/lib/libvirt/images/erp.qcow2
            dest: /var/lib/libvirt/images/erp-new-vda.qcow2
            format: qcow2
    findings:
      description:
        - What the type costs and what to know before it changes, each with C(id), C(severity),
          C(reason), C(remedy), C(domain) and C(disk).
        - The ids are C(machine-too-old), C(machine-deprecated), C(machine-unknown-here),
          C(machine-left-alone), C(windows-activation), C(network-names), C(shared-with-old),
          C(tpm-state), C(nvram-not-copied).
      type: list
      elements: dict
      returned: on success of this domain
    error:
      description: Why this domain was left as it is.
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
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware import machine_change, rebuild
from ansible_collections.thinvirt.kvm.plugins.module_utils._plan import diff
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import signals_raise
from ansible_collections.thinvirt.kvm.plugins.module_utils._spec import (
    failure_message,
    libvirt_spec,
    state_dir_spec,
    trusted_owners_spec,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.trust import trust

_REBUILD = {
    "name": {"type": "str", "required": True},
    "dest_dir": {"type": "path", "required": True},
    "keep_mac": {"type": "bool", "default": False},
    "allowed_dirs": {"type": "list", "elements": "str", "default": []},
    "min_free_bytes": {"type": "int", "default": 1 << 30},
    "timeout": {"type": "int", "default": 21600},
}


def _request(module: AnsibleModule) -> machine_change.Request:
    params = module.params
    given = params["rebuild"] if params["state"] == "rebuilt" else None
    return machine_change.Request(
        state=params["state"],
        machine=params["machine"] or "",
        state_dir=params["state_dir"],
        force=params["force"],
        rebuild=rebuild.Request(**{**given, "allowed_dirs": tuple(given["allowed_dirs"])})
        if given
        else None,
    )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **libvirt_spec(domains_required=True),
            **state_dir_spec(),
            "state": {
                "type": "str",
                "choices": ["present", "current", "restored", "rebuilt"],
                "default": "present",
            },
            "machine": {"type": "str"},
            "rebuild": {"type": "dict", "options": _REBUILD},
            **trusted_owners_spec(),
        },
        required_if=[("state", "rebuilt", ["rebuild"])],
        supports_check_mode=True,
    )
    if module.params["machine"] and module.params["state"] not in ("current", "rebuilt"):
        module.fail_json(msg="machine is for state=current and state=rebuilt.")
    try:
        trust(module.params["trusted_owners"])
        request = _request(module)
        with Hypervisor(module.params["uri"], local_only=True) as hypervisor, signals_raise():
            outcomes = machine_change.decide(hypervisor, module.params["domains"], request)
            changes = [change for outcome in outcomes for change in outcome.changes]
            if not module.check_mode:
                for outcome in outcomes:
                    machine_change.carry_out(hypervisor, outcome, request)
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
