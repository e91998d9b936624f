#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: domain_disk_bus
short_description: Move the disks of libvirt domains to another bus, and back
version_added: 0.1.0
author: thinvirt.kvm contributors (@thinvirt)
description:
  - Moves any disk, the boot disk included, between ide, sata, virtio (virtio-blk) and scsi
    (virtio-scsi). Only the domain's configuration is changed. No image is touched.
  - For thin disks alone there is seldom a need. ide, sata and scsi pass discards, and so does
    virtio with a machine type of 4.0 or later; see M(thinvirt.kvm.domain_machine).
  - A virtio-scsi controller with room is used, or one is added. A controller of another model, such
    as C(lsilogic), is not virtio-scsi and is not used. A disk on one is moved off it.
  - The disk gets a free name and a free place on the new bus. Source, serial number, boot order,
    alias, iotune and encryption stay. What the new bus does not know is dropped, and named in
    RV(domains[].disks[].dropped).
  - A domain that boots "from the first disk" gets a boot order for each device, where another disk
    would come first otherwise.
  - The guest is not prepared. It needs the driver of the new bus, in its initramfs or bound in
    Windows, and must not look for its disks by names such as C(/dev/vda). The role
    P(thinvirt.kvm.virtio_scsi#role) does that.
  - Refused for domains that are transient, have managed save, snapshots or checkpoints, or run,
    unless O(power=cycle).
  - With O(power=cycle) a guest that runs is shut down in order, changed, started, and has to come
    up. If its agent does not answer within O(boot_timeout), it is turned off, its old
    configuration is brought back, it is started with that, and the module fails. All of this
    happens on the hypervisor. A controller that is gone stops nothing, and if the module itself is
    killed, the next run brings the guest back and says on which bus.
extends_documentation_fragment:
  - thinvirt.kvm.libvirt
  - thinvirt.kvm.libvirt.domains_required
  - thinvirt.kvm.libvirt.state_dir
  - thinvirt.kvm.trusted_owners
  - thinvirt.kvm.attributes
attributes:
  check_mode:
    support: full
    details:
      - What only libvirt can tell, such as that no PCI slot is left, shows in a real run.
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  state:
    description:
      - V(present) has the disks on O(bus).
      - V(restored) brings back the whole configuration that a domain had before the last change by
        this module. If there is none, nothing is changed.
      - V(recovered) only brings guests back that a run with O(power=cycle) has left on their way
        because it was killed. One that boots on its new bus is waited for; one that is off comes
        back on its old bus. The others are left as they are.
    type: str
    choices: [present, restored, recovered]
    default: present
  bus:
    description: The bus; required with O(state=present). V(scsi) means virtio-scsi.
    type: str
    choices: [virtio, scsi, sata, ide]
  disks:
    description:
      - Targets such as V(vda), or globs such as V(hd*).
      - A disk that this module has moved last goes by the name that it had before, too. So a
        second run finds it.
      - By default every disk that the guest writes and that is backed by a file, a storage volume
        or a block device. Others, CD drives too, have to be named.
      - A target that none of the chosen domains has is an error.
    type: list
    elements: str
    default: []
  power:
    description:
      - V(keep) refuses domains that run.
      - V(cycle) shuts a running guest down through its agent or ACPI and starts it again. It is
        turned off by force only when it did not come up on its new bus, its agent does not answer,
        and it has not obeyed ACPI for 30 seconds.
      - Domains that are off are changed and stay off.
    type: str
    choices: [keep, cycle]
    default: keep
  shutdown_timeout:
    description: Seconds that a guest may take to power off, with O(power=cycle).
    type: int
    default: 300
  boot_timeout:
    description:
      - Seconds after the start within which the guest's agent has to answer, with O(power=cycle).
      - The guest is rolled back after that. So leave it time, such as for a check of its file
        systems.
    type: int
    default: 600
  parallel:
    description:
      - How many guests are shut down and started at the same time, with O(power=cycle); 5 at most.
    type: int
    default: 1
seealso:
  - module: thinvirt.kvm.domain_machine
  - module: thinvirt.kvm.domain_helper_disk
  - module: thinvirt.kvm.domain_discard
  - module: thinvirt.kvm.thin_info
"""

EXAMPLES = r"""
- name: Move all disks of a guest that is prepared and shut off to virtio-scsi
  thinvirt.kvm.domain_disk_bus:
    domains: [web1]
    bus: scsi

- name: Tell what would be dropped, and what to know before
  thinvirt.kvm.domain_disk_bus:
    domains: ['*']
    bus: scsi
  check_mode: true
  diff: true

- name: Move only the data disk
  thinvirt.kvm.domain_disk_bus:
    domains: [db1]
    disks: [hdb]
    bus: virtio

- name: Move the disks of prepared guests that run, and back if they do not come up
  thinvirt.kvm.domain_disk_bus:
    domains: [web1, web2]
    bus: scsi
    power: cycle
    boot_timeout: 300
    parallel: 2

- name: It does not boot; take that back
  thinvirt.kvm.domain_disk_bus:
    domains: [web1]
    state: restored
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
      description: Whether its configuration was (in check mode, would be) changed.
      type: bool
    active:
      description: Whether it ran and was (in check mode, would be) shut down and started again.
      type: bool
      returned: always
    actions:
      description:
        - What was done to a guest that ran or that a killed run had left, in that order. One of
          V(shut_down), V(changed), V(restored), V(started), V(turned_off), V(recovered).
      type: list
      elements: str
      returned: always
      sample: [shut_down, changed, started]
    downtime_seconds:
      description: From the request to shut down until the agent answered, with O(power=cycle).
      type: float
      returned: always
    disks:
      description: The disks that were chosen.
      type: list
      elements: dict
      returned: on success of this domain
      contains:
        target_before:
          description: Its name before.
          type: str
          sample: hda
        target:
          description: Its name now.
          type: str
          sample: sda
        bus_before:
          description: Its bus before.
          type: str
          sample: ide
        bus:
          description: Its bus now.
          type: str
          sample: scsi
        place:
          description:
            - Its address on the new bus (controller, bus, target and unit); empty where libvirt
              chooses one, and if it was not moved.
          type: str
          sample: "0:0:0:0"
        changed:
          description: Whether it was moved.
          type: bool
        dropped:
          description:
            - Settings that the new bus does not know, each with C(setting), C(value), C(reason).
          type: list
          elements: dict
          sample:
            - {setting: driver/@event_idx, value: "off", reason: scsi does not know it}
        carried:
          description: Settings of its driver that the controller that was added has taken over.
          type: list
          elements: str
          sample: [queues, iothread]
    controllers_added:
      description: Controllers that were added.
      type: list
      elements: str
      returned: on success of this domain
      sample: ["scsi 0 (virtio-scsi)"]
    boot_orders:
      description: The devices that got a boot order of their own, in that order.
      type: list
      elements: str
      returned: on success of this domain
    old_xml:
      description:
        - The file that keeps the old configuration, for O(state=restored); empty if there is none.
      type: str
      returned: on success of this domain
      sample: /var/lib/thinvirt/domains/f4e2b079-09dd-4204-b81e-9bec7bc31162-disk_bus-1a2b3c4d.xml
    identical:
      description:
        - Whether libvirt prints the restored configuration byte for byte as it did. If not, it
          prints the same in another order.
      type: bool
      returned: when it was restored
    recovered:
      description: What a killed run had left, and what became of it; empty if nothing.
      type: str
      returned: on success of this domain
    findings:
      description:
        - What to know and to do before the guest starts, each with C(id), C(severity), C(reason),
          C(remedy), C(domain) and C(disk).
        - The ids are C(virtio-blk-discards), C(machine-too-old), C(driver-needed), C(serial-cut),
          C(uefi-boot-entries), C(boot-order-spelled-out).
      type: list
      elements: dict
      returned: on success of this domain
    error:
      description: Why this domain was left as it is, or rolled back.
      type: dict
      returned: on failure of this domain
      contains:
        msg:
          description: What happened and what to do, in a sentence or two.
          type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import Hypervisor
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.select import refuse_duplicates
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.turns import MAX_WORKERS
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ReportedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._hardware import bus_change
from ansible_collections.thinvirt.kvm.plugins.module_utils._plan import diff
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import signals_raise
from ansible_collections.thinvirt.kvm.plugins.module_utils._spec import (
    failure_message,
    libvirt_spec,
    state_dir_spec,
    trusted_owners_spec,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.trust import trust

_PLAIN = ("state_dir", "force", "power", "shutdown_timeout", "boot_timeout", "parallel")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **libvirt_spec(domains_required=True),
            **state_dir_spec(),
            "state": {
                "type": "str",
                "choices": ["present", "restored", "recovered"],
                "default": "present",
            },
            "bus": {"type": "str", "choices": ["virtio", "scsi", "sata", "ide"]},
            "disks": {"type": "list", "elements": "str", "default": []},
            "power": {"type": "str", "choices": ["keep", "cycle"], "default": "keep"},
            "shutdown_timeout": {"type": "int", "default": 300},
            "boot_timeout": {"type": "int", "default": 600},
            "parallel": {"type": "int", "default": 1},
            **trusted_owners_spec(),
        },
        required_if=[("state", "present", ["bus"])],
        supports_check_mode=True,
    )
    params = module.params
    request = bus_change.Request(
        disks=tuple(params["disks"]),
        state=params["state"],
        bus=params["bus"] or "",
        **{name: params[name] for name in _PLAIN},
    )
    if params["state"] != "present" and (params["bus"] or params["disks"]):
        module.fail_json(
            msg=f"state={params['state']} is for whole domains: leave out bus and disks."
        )
    if not 1 <= params["parallel"] <= MAX_WORKERS:
        module.fail_json(msg=f"parallel has to be between 1 and {MAX_WORKERS}.")
    try:
        trust(params["trusted_owners"])
        refuse_duplicates("disks", params["disks"])
        with signals_raise(), Hypervisor(params["uri"], local_only=True) as hypervisor:
            outcomes = bus_change.decide(hypervisor, params["domains"], request)
            if not module.check_mode:
                bus_change.carry_out(hypervisor, outcomes, request)
            changes = [change for outcome in outcomes for change in outcome.changes]
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
