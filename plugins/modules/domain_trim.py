#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: domain_trim
short_description: Trim running guests and measure what the host gained
version_added: 0.1.0
author: thinvirt.kvm contributors (@thinvirt)
description:
  - Asks the guest agent of running domains to trim all mounted file systems (C(guest-fstrim)), many
    guests in one call and some of them at a time.
  - What a guest prints proves nothing. The result is what the host holds, in allocated blocks,
    before and after.
  - A guest none of whose disks passes discards on is refused. It would gain nothing, and ext4
    remembers what it has trimmed until it is mounted anew, so the space could not be trimmed later
    either.
  - An agent that is missing, dead or hung is an error of that domain only. The other guests are
    trimmed, their results are returned, and the module fails at the end.
  - Domains that are shut off are skipped.
  - Windows reports success whatever became of its drives. Each drive that it could not trim is a
    finding, and a domain that could trim none has failed.
extends_documentation_fragment:
  - thinvirt.kvm.libvirt
  - thinvirt.kvm.libvirt.domains_required
  - thinvirt.kvm.attributes
attributes:
  check_mode:
    support: partial
    details:
      - In check mode the agents are asked whether they are there, and nothing is trimmed.
      - Nobody can tell beforehand what the host will gain, so C(changed) is always V(false) then.
  diff_mode:
    support: none
  idempotent:
    support: partial
    details:
      - C(changed) tells that the host gained space. A guest that deletes files between two runs
        makes both change.
options:
  minimum_bytes:
    description:
      - The smallest free extent in bytes that is worth a discard; V(0) for all. Windows does not
        heed it.
    type: int
    default: 0
  parallel:
    description:
      - How many guests trim at the same time. Trimming many guests at once is a storm for the
        storage.
      - A libvirt daemon serves five requests of one connection at a time by default, so V(5) is the
        most.
    type: int
    default: 2
  timeout:
    description:
      - Seconds that one guest may take. It is not stopped when they are over, it is only not waited
        for.
      - Windows takes minutes per drive, and its agent answers nothing else meanwhile.
    type: int
    default: 600
  untrimmed_min_bytes:
    description:
      - After the trim, what the host holds for each disk is compared with what the guest's file
        systems on it use. If more than this is left over, and more than a tenth of the size of
        these file systems, it is reported under RV(domains[].untrimmed) and as the finding
        C(untrimmed). Whatever of the disk is outside of these file systems' own count, such as
        tables, journals, LUKS headers, swap and other partitions, is taken for full.
      - It is what a guest looks like that trimmed before while the host dropped its discards. ext4
        remembers that until it is mounted anew.
    type: int
    default: 1073741824
seealso:
  - module: thinvirt.kvm.domain_discard
  - module: thinvirt.kvm.thin_info
"""

EXAMPLES = r"""
- name: Trim all running guests of this host
  thinvirt.kvm.domain_trim:
    domains: ['*']

- name: Trim a Windows guest with large drives
  thinvirt.kvm.domain_trim:
    domains: [fileserver]
    timeout: 7200

- name: Trim on fast storage, five guests at a time, and leave small gaps alone
  thinvirt.kvm.domain_trim:
    domains: ['ci-*']
    parallel: 5
    minimum_bytes: 65536

- name: See which agents answer
  thinvirt.kvm.domain_trim:
    domains: ['*']
  check_mode: true
"""

RETURN = r"""
freed_bytes:
  description: What the host gained in all, in bytes of allocated blocks.
  returned: always
  type: int
  sample: 524288000
summary:
  description: One line per domain, for people.
  returned: always
  type: list
  elements: str
  sample: ["web1: 335.0 MiB freed"]
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
    status:
      description: One of V(trimmed), V(would_trim) (in check mode), V(skipped) and V(failed).
      type: str
      sample: trimmed
    reason:
      description: Why a domain was skipped.
      type: str
    guest_os:
      description: The system in the guest, as its agent calls it; V(null) where it does not tell.
      type: dict
      contains:
        id:
          description: V(mswindows), or the C(ID) of os-release such as V(debian).
          type: str
          sample: mswindows
        name:
          description: Its name for people.
          type: str
          sample: Windows Server 2022 Standard
    mounts:
      description: What the guest says. It is no proof.
      type: list
      elements: dict
      contains:
        path:
          description: Mount point in the guest, or drive.
          type: str
          sample: /
        trimmed_bytes:
          description:
            - Bytes that the guest claims to have discarded, V(null) where it does not say
              (Windows).
          type: int
          sample: 9986359296
        error:
          description: Why the guest could not trim it, empty if it could.
          type: str
    disks:
      description: The disks that the guest writes, as the host sees them.
      type: list
      elements: dict
      contains:
        target:
          description: Name of the disk in the domain.
          type: str
          sample: sda
        path:
          description: File or device on the host.
          type: str
          sample: /var/lib/libvirt/images/web1.qcow2
        allocated_before_bytes:
          description:
            - Allocated blocks before that no other file shares, by a reflink or a snapshot of the
              file system. V(null) for a block device.
          type: int
          sample: 874512384
        allocated_after_bytes:
          description: Allocated blocks after, V(null) for a block device.
          type: int
          sample: 523239424
        freed_bytes:
          description:
            - The difference, V(0) if the guest wrote more than it freed, V(null) for a block
              device.
          type: int
          sample: 351272960
    untrimmed:
      description:
        - Disks that still hold much more than the guest's file systems on them use. Empty if the
          agent does not tell what they use.
      type: list
      elements: dict
      contains:
        targets:
          description: The disks; several if a file system spans them.
          type: list
          elements: str
        mount_points:
          description: The file systems on them.
          type: list
          elements: str
        types:
          description: Types of these file systems.
          type: list
          elements: str
          sample: [ext4]
        allocated_bytes:
          description: What the host holds for them.
          type: int
        used_bytes:
          description: What these file systems use.
          type: int
        outside_bytes:
          description:
            - What of the disks these file systems do not count as theirs, such as journals, tables,
              LUKS headers, swap and volumes that are not mounted. No trim frees it.
          type: int
        excess_bytes:
          description: What is allocated beyond both.
          type: int
    findings:
      description:
        - Disks of this domain whose discards are dropped by the host (C(discard-ignored)), and
          mounts that the guest could not trim (C(trim-failed-in-guest)).
      type: list
      elements: dict
    freed_bytes:
      description: What this domain gave back, in bytes.
      type: int
      sample: 351272960
    seconds:
      description: How long it took.
      type: float
      sample: 0.26
    error:
      description: Why this domain was not trimmed.
      type: dict
      returned: on failure of this domain
      contains:
        msg:
          description: What happened and what to do, in a sentence or two.
          type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.thinvirt.kvm.plugins.module_utils._discard import trim
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
            "minimum_bytes": {"type": "int", "default": 0},
            "parallel": {"type": "int", "default": 2},
            "timeout": {"type": "int", "default": 600},
            "untrimmed_min_bytes": {"type": "int", "default": trim.UNTRIMMED_MIN_BYTES},
        },
        supports_check_mode=True,
    )
    params = module.params
    for name, lowest, highest in (
        ("parallel", 1, trim.MAX_PARALLEL),
        ("timeout", 1, (1 << 31) - 1),  # libvirt's
        ("minimum_bytes", 0, (1 << 63) - 1),  # the agent's
        ("untrimmed_min_bytes", 0, (1 << 63) - 1),
    ):
        if not lowest <= params[name] <= highest:
            module.fail_json(msg=f"{name} must be between {lowest} and {highest}.")
    try:
        with Hypervisor(params["uri"], local_only=True) as hypervisor:
            outcomes = trim.trim_all(
                hypervisor,
                hypervisor.guests(params["domains"]),
                minimum_bytes=params["minimum_bytes"],
                timeout=params["timeout"],
                parallel=params["parallel"],
                untrimmed_min_bytes=params["untrimmed_min_bytes"],
                check_mode=module.check_mode,
            )
    except ThinvirtError as error:
        module.fail_json(**error.result())
    freed = trim.freed_bytes(outcomes)
    result = {
        "changed": freed > 0 and not module.check_mode,
        "freed_bytes": freed,
        "summary": [outcome.line() for outcome in outcomes],
        "domains": [outcome.result() for outcome in outcomes],
    }
    failed = [(outcome.guest.name, outcome.error) for outcome in outcomes if outcome.error]
    if failed:
        module.fail_json(msg=failure_message("domains", failed, of=len(outcomes)), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
