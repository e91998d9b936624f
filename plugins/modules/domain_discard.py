#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: domain_discard
short_description: Make the disks of libvirt domains give discarded space back
version_added: 0.1.0
author: thinvirt.kvm contributors (@thinvirt)
description:
  - Sets C(discard), C(detect_zeroes) and their companions on the disks of existing domains, all
    domains of a host in one call.
  - Neither libvirt nor QEMU passes a guest's discards (TRIM, UNMAP) to the host by default.
    Without C(discard=unmap) the guest trims and believes that it worked, and the host drops the
    requests.
  - The domain's XML is edited as a tree; comments, metadata, secrets and the UUID are kept, and the
    new configuration is verified by reading it back.
  - A setting becomes effective when a new QEMU process reads it, that is when the guest is powered
    off and started again. A reboot inside the guest does not do that.
    RV(domains[].restart_required) tells where it is still due, and O(apply) can do it, without a
    reboot of the guest too.
extends_documentation_fragment:
  - thinvirt.kvm.libvirt
  - thinvirt.kvm.libvirt.domains_required
  - thinvirt.kvm.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  disks:
    description:
      - Targets such as V(vda), or globs such as V(sd*).
      - By default every disk that can be thin; disks that the guest writes and that are backed by a
        file, a storage volume or a block device. CD-ROMs, floppies, read-only disks and network
        disks are left alone.
      - A network disk can be named. A read-only or removable one is refused.
      - A target that none of the chosen domains has is an error.
    type: list
    elements: str
    default: []
  discard:
    description:
      - Whether discards of the guest reach the host. V(ignore) is libvirt's default for a disk that
        says nothing.
    type: str
    choices: [unmap, ignore]
    default: unmap
  detect_zeroes:
    description:
      - Whether QEMU looks for zeros in what the guest writes, at some cost of CPU time; V(unmap)
        turns them into holes and needs O(discard=unmap).
      - Left as it is by default.
    type: str
    choices: ["off", "on", unmap]
  discard_no_unref:
    description:
      - Keep the cluster in the qcow2 file reserved when the guest discards it, and only punch the
        hole in the host's file. Scattered discards do not fragment the image then.
      - Needs libvirt 9.5.0 and QEMU 8.1.0, and an image in qcow2 format.
      - Left as it is by default.
    type: bool
  discard_granularity_bytes:
    description:
      - The smallest piece in bytes that the guest is told to discard, a power of two; V(0) for
        QEMU's own choice. Some releases of Windows trim only with V(32768) or V(65536).
      - Needs libvirt 9.7.0.
      - Left as it is by default.
    type: int
  rotation_rate:
    description:
      - V(1) presents the disk as a solid state disk, V(1025) to V(65534) as one that turns so many
        times a minute, V(0) says nothing.
      - Only on the buses scsi, ide and sata. Needs libvirt 7.3.0.
      - Left as it is by default.
    type: int
  apply:
    description:
      - How the settings become effective on running guests.
      - With V(config) they wait for the guest's next start.
      - With V(save_restore) a guest that needs it is saved (C(virsh managedsave)) and restored with
        the new settings. It is not rebooted, its programs go on, and its connections last if the
        other end is patient; consoles and VNC or SPICE sessions are cut off. It stands still
        meanwhile, about as long as the host takes to write and read its memory. Killed in between,
        the next run or the next start of the domain resumes it.
      - With V(save_restore) the guest agent sets the guest's clock afterwards. Without an agent
        the clock is behind, which is told in a warning.
      - V(save_restore) is refused where the guest cannot be saved (host devices, shared folders,
        vhost-user and the like, running jobs), where its memory does not fit into the folder where
        libvirt saves guests, and for O(discard_granularity_bytes) and O(rotation_rate), which a
        guest reads only when it starts. It needs to run on the hypervisor, with a local O(uri).
      - With V(power_cycle) a guest that needs it is shut down in order, through its agent or ACPI,
        and started again. It is never forced off.
      - One guest after the other, with either.
      - A guest on ext4 that has trimmed while the host dropped its discards does not send those
        again until the file system is mounted anew. V(power_cycle) sees to that, V(save_restore)
        does not.
      - If a guest cannot be restored with its new settings, it is restored with its old ones.
    type: str
    choices: [config, save_restore, power_cycle]
    default: config
  timeout:
    description:
      - Seconds that a guest may take to power off, and again to come back, with
        O(apply=power_cycle).
    type: int
    default: 300
seealso:
  - module: thinvirt.kvm.thin_info
  - module: thinvirt.kvm.domain_trim
"""

EXAMPLES = r"""
- name: Let every guest of this host give space back, from its next start on
  thinvirt.kvm.domain_discard:
    domains: ['*']

- name: Tell whether a host is configured as it should be, for CI
  thinvirt.kvm.domain_discard:
    domains: ['*']
    detect_zeroes: unmap
  check_mode: true
  register: drift
  failed_when: drift is changed

- name: Do it now, without a reboot; each guest stands still for some seconds
  thinvirt.kvm.domain_discard:
    domains: ['db*']
    apply: save_restore

- name: Do it now for the web servers, restarting one after the other
  thinvirt.kvm.domain_discard:
    domains: ['web*']
    apply: power_cycle
    timeout: 600

- name: Windows 11 that reports event 264 when it optimizes its drives
  thinvirt.kvm.domain_discard:
    domains: [desktop7]
    disks: [sda]
    discard_granularity_bytes: 32768
    rotation_rate: 1
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
      description:
        - Whether anything was (in check mode, would be) done, also if there was an error
          afterwards.
      type: bool
    actions:
      description:
        - What was (in check mode, would be) done, in this order, whatever went wrong afterwards.
        - V(recovered) stands for the end of what a killed run had left, V(configured) for a new
          configuration, V(shut_down) and V(started), V(saved) and V(restored) for the running
          guest.
      type: list
      elements: str
      sample: [configured, saved, restored]
    restart_required:
      description: Whether the running guest still works with other settings than those asked for.
      type: bool
      returned: when it could be planned
    downtime_seconds:
      description: Time from the request to power off until the guest was back.
      type: float
      returned: when the guest was restarted
      sample: 24.5
    pause_seconds:
      description:
        - How long the guest stood still at most; from the request to save it until libvirt had
          restored it.
      type: float
      returned: when the guest was saved
      sample: 2.9
    clock_set:
      description: Whether the guest agent has set the guest's clock after the pause.
      type: bool
      returned: when a running guest was saved and restored
    disks:
      description: The disks that were chosen.
      type: list
      elements: dict
      returned: when it could be planned
      contains:
        target:
          description: Name of the disk in the domain.
          type: str
          sample: vda
        bus:
          description: Its bus.
          type: str
          sample: virtio
        changed:
          description: Whether its configuration is changed.
          type: bool
        restart_required:
          description: Whether the running guest still has other settings.
          type: bool
        before:
          description:
            - Configured settings before the run; C(discard), C(detect_zeroes), C(discard_no_unref),
              C(discard_granularity_bytes) and C(rotation_rate).
          type: dict
          sample: {discard: ignore, detect_zeroes: "off", discard_no_unref: false,
                   discard_granularity_bytes: 0, rotation_rate: 0}
        after:
          description: Configured settings after the run.
          type: dict
        live:
          description: Settings of the running guest, V(null) if it is off or lacks the disk.
          type: dict
    error:
      description: Why this domain could not be worked on.
      type: dict
      returned: on failure of this domain
      contains:
        msg:
          description: What happened and what to do, in a sentence or two.
          type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.thinvirt.kvm.plugins.module_utils._discard import discard
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain import policy
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import Hypervisor
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.select import refuse_duplicates
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.module_utils._plan import diff
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import (
    StoppedError,
    signals_raise,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._spec import (
    failure_message,
    libvirt_spec,
)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **libvirt_spec(domains_required=True),
            "disks": {"type": "list", "elements": "str", "default": []},
            "discard": {"type": "str", "choices": ["unmap", "ignore"], "default": "unmap"},
            "detect_zeroes": {"type": "str", "choices": ["off", "on", "unmap"]},
            "discard_no_unref": {"type": "bool"},
            "discard_granularity_bytes": {"type": "int"},
            "rotation_rate": {"type": "int"},
            "apply": {"type": "str", "choices": list(discard.APPLY), "default": "config"},
            "timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    params = module.params
    wanted = policy.Wanted(
        discard=params["discard"],
        detect_zeroes=params["detect_zeroes"],
        discard_no_unref=params["discard_no_unref"],
        discard_granularity_bytes=params["discard_granularity_bytes"],
        rotation_rate=params["rotation_rate"],
    )
    outcomes: list[discard.Outcome] = []
    stopped: StoppedError | None = None
    try:
        refuse_duplicates("disks", params["disks"])
        with signals_raise(), Hypervisor(params["uri"]) as hypervisor:
            setter = discard.Setter(
                hypervisor,
                disks=params["disks"],
                wanted=wanted,
                apply=params["apply"],
                timeout=params["timeout"],
            )
            outcomes = setter.decide(params["domains"])
            if not module.check_mode:
                setter.carry_out(outcomes)
    except StoppedError as error:
        stopped = error
    except ThinvirtError as error:
        module.fail_json(**error.result())
    for name in [outcome.guest.name for outcome in outcomes if outcome.clock_is_behind]:
        module.warn(
            f"The clock of domain {name} is as far behind as the guest stood still: no guest agent "
            "set it. A time service in the guest corrects that."
        )
    result = {
        "changed": any(outcome.changed for outcome in outcomes),
        "domains": [outcome.result() for outcome in outcomes],
        "diff": diff(change for outcome in outcomes for change in outcome.changes()),
    }
    if stopped:
        module.fail_json(**stopped.result(), **result)
    failed = [(outcome.guest.name, outcome.error) for outcome in outcomes if outcome.error]
    if failed:
        module.fail_json(msg=failure_message("domains", failed, of=len(outcomes)), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
