#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: thin_info
short_description: Tell which guests' discards reach the host's storage, and what is promised
version_added: 0.1.0
author: thinvirt.kvm contributors (@thinvirt)
description:
  - Follows each disk of each domain of a host link by link, from the guest down to the storage, and
    says whether space that the guest gives back comes back, which link is broken, and what mends
    it. All domains in one call.
  - A running domain is judged by what QEMU runs with, one that is off by its configuration.
  - Tells what each disk promises, occupies and could give back, and for each file system and
    storage pool the sums of that against the space that is free, and when it will be full.
  - Running guests are asked through their agents what their file systems use, all of them side by
    side, and none for longer than O(agent_timeout). That is the guest's word, and only an estimate
    comes of it.
  - Names what stands in the way of making the disks thin, such as snapshots, checkpoints, saved
    memory and running jobs. Each finding has an ID and a page in C(docs/findings) of the
    collection.
  - Changes nothing. The verdict says what can work. That it did is shown by
    M(thinvirt.kvm.domain_trim), which measures the host's blocks.
  - Disks that a guest can't write, such as CD-ROMs, are left out.
extends_documentation_fragment:
  - thinvirt.kvm.libvirt
  - thinvirt.kvm.libvirt.domains_default_all
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
  allowed_dirs:
    description:
      - Folders, with all that is below them, where backing files may lie besides the folder of the
        image itself. A backing file elsewhere is named in a finding and not opened.
    type: list
    elements: str
    default: []
  ask_agents:
    description:
      - Ask the agents of running guests for their file systems (C(guest-get-fsinfo)).
      - The agent looks at each mounted file system for that, so a guest with a network mount whose
        server is gone does not answer.
    type: bool
    default: true
  agent_timeout:
    description:
      - Seconds for each agent to answer, besides the 5 that libvirt gives it to wake up. A guest
        that does not answer gets the finding V(agent-silent), and the others their results.
      - A minute after the first of them nobody is asked any more (finding V(agent-not-asked)).
    type: int
    default: 5
  earlier:
    description:
      - Earlier results of this module, or as much of them as is needed to tell when storage will be
        full. Each has C(taken_at), and C(file_systems) with C(mount_point) and C(free_bytes);
        C(pools) with C(name) and C(free_bytes) is needed for pools that are not on a file system of
        this host.
      - With less than two of them, or all within a day, RV(file_systems[].days_until_full) is
        V(null).
    type: list
    elements: dict
    default: []
  measure:
    description:
      - Walk through the tables of images that nobody writes to (C(qemu-img check) and C(measure)).
        That finds clusters that nothing refers to, and counts fragments.
      - Takes some 30 ms for each image, and seconds for large fragmented ones. Otherwise no program
        is started.
    type: bool
    default: false
  probe_storage:
    description:
      - Find out for each file system whether it frees a punched hole, by trying it with a file of
        64 KiB without a name, once in the folder of one of its images. Nothing is left behind.
      - With V(false) nothing is written, and the verdict of a disk in a file is V(unknown) at best.
    type: bool
    default: true
notes:
  - Needs the right to read the images, so usually root.
seealso:
  - module: thinvirt.kvm.domain_discard
  - module: thinvirt.kvm.domain_trim
  - module: thinvirt.kvm.image_info
  - module: thinvirt.kvm.linux_guest_info
"""

EXAMPLES = r"""
- name: See which disks of this host give space back
  thinvirt.kvm.thin_info:
  register: audit

- name: Show what is broken, with the remedy
  ansible.builtin.debug:
    msg: "{{ audit.summary }}"

- name: Fail a CI job if a database server has a disk that keeps what its guest discards
  thinvirt.kvm.thin_info:
    domains: ['db*']
  register: databases
  failed_when: databases.domains | map(attribute='disks') | flatten
    | selectattr('verdict', '==', 'broken') | list | length > 0

- name: Audit linked clones whose golden images lie elsewhere
  thinvirt.kvm.thin_info:
    domains: ['desktop-*']
    allowed_dirs: [/srv/golden]

- name: Warn when the guests could fill a file system
  ansible.builtin.debug:
    msg: "{{ item.mount_point }} is promised {{ item.overcommit_ratio }} times"
  loop: "{{ audit.file_systems }}"
  loop_control:
    label: "{{ item.mount_point }}"
  when: (item.overcommit_ratio or 0) > 1

- name: Tell when storage will be full, from the reports of the last weeks
  thinvirt.kvm.thin_info:
    earlier: "{{ query('ansible.builtin.fileglob', 'reports/' ~ inventory_hostname ~ '-*.json')
      | map('ansible.builtin.file') | map('from_json') }}"
  register: audit

- name: Compact the disks of guests that are off and hold a GiB or more for nothing
  thinvirt.kvm.domain_compact:
    domains: "{{ audit.findings | selectattr('id', '==', 'space-to-reclaim')
      | map(attribute='domain') | unique }}"
"""

RETURN = r"""
taken_at:
  description: When the host was audited, in UTC (ISO 8601).
  returned: always
  type: str
  sample: "2026-11-25T04:00:00Z"
summary:
  description: Lines for people; errors, warnings, how many disks work, and the file systems.
  returned: always
  type: list
  elements: str
  sample:
    - "web1/vda: error discard-ignored. QEMU drops the guest's discards, and the guest does not
      notice. Set discard with thinvirt.kvm.domain_discard and power the guest off and on."
    - "1 disks: 0 give space back, 1 do not, 0 unknown."
    - "/srv (ext4): 10.0 GiB promised, 0.8 GiB allocated, 43.0 GiB free."
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
    active:
      description: Whether it runs.
      type: bool
    machine:
      description: Its machine type.
      type: str
      returned: success
      sample: pc-q35-7.2
    agent_channel:
      description: Whether it has a channel for the guest agent.
      type: bool
      returned: success
    agent_connected:
      description: Whether an agent has opened that channel; V(null) if the domain is off.
      type: bool
      returned: success
    findings:
      description: What stands in the way in this domain, that of its disks included.
      type: list
      elements: dict
      returned: success
      contains:
        id:
          description: Stable name of the finding.
          type: str
          sample: discard-ignored
        severity:
          description: One of V(info), V(warning) and V(error).
          type: str
        reason:
          description: What is the case, one sentence.
          type: str
        remedy:
          description: What to do.
          type: str
        domain:
          description: Name of the domain.
          type: str
        disk:
          description: Target of the disk; empty if it concerns the whole domain.
          type: str
    guest_file_systems:
      description: The guest's mounted file systems, by its own word; V(null) if it tells nothing.
      type: list
      elements: dict
      returned: success
      contains:
        mount_point:
          description: Where it is mounted in the guest.
          type: str
          sample: /
        type:
          description: Its type.
          type: str
          sample: ext4
        device:
          description: Its device in the guest.
          type: str
          sample: vda1
        total_bytes:
          description: Its size.
          type: int
        used_bytes:
          description: What is in use.
          type: int
        targets:
          description: The domain's disks that it lies on; empty if the guest does not tell.
          type: list
          elements: str
          sample: [vda]
    disks:
      description: The disks that the guest may write.
      type: list
      elements: dict
      returned: success
      contains:
        target:
          description: Name of the disk in the domain.
          type: str
          sample: vda
        bus:
          description: Its bus.
          type: str
          sample: virtio
        source_type:
          description: Type of its source, such as V(file), V(block), V(volume) or V(network).
          type: str
        path:
          description: File or device on the host; empty if the data is elsewhere.
          type: str
          sample: /var/lib/libvirt/images/web1.qcow2
        format:
          description: The format that the domain names.
          type: str
          sample: qcow2
        promised_bytes:
          description: Size of the disk that the guest sees; V(null) if it could not be read.
          type: int
          sample: 10737418240
        allocated_bytes:
          description: Blocks that it occupies on the host, as C(du) counts, an external data file
            included; V(null) for a block device.
          type: int
          sample: 874512384
        length_bytes:
          description: Length of the file, as C(ls) shows; the capacity of a block device.
          type: int
          sample: 10739318784
        reclaimable_bytes:
          description:
            - What could come back at least; an estimate. V(null) if nothing is known.
          type: int
          sample: 312475648
        reclaimable_estimate:
          description:
            - How that was estimated. V(guest) is what the host holds, less what the guest's file
              systems use and less all that lies beside them. V(measure) are clusters that nothing
              refers to (see O(measure)). V(zeros) are blocks that were allocated and never written.
              The last two know nothing of what the guest has deleted. Empty if nothing is known.
          type: str
          sample: guest
        guest_used_bytes:
          description:
            - What the guest's file systems on this disk use, by its word. V(null) if it does not
              tell, if they span several disks, or if the image has internal snapshots.
          type: int
        fragmentation:
          description: In how many pieces it lies.
          type: dict
          contains:
            file_extents:
              description: Pieces of the file on the host's file system; V(null) if not known.
              type: int
            fragmented_clusters:
              description:
                - Clusters of a qcow2 image that do not follow the one before. V(null) without
                  O(measure).
              type: int
        mount_point:
          description: Where its file system is mounted; V(null) for a block device.
          type: str
          sample: /var/lib/libvirt
        backing_chain:
          description: The backing files that were read, from the image's own downwards.
          type: list
          elements: str
        verdict:
          description:
            - V(works) if every link passes the guest's discards on, V(broken) if one is known not
              to, V(unknown) otherwise.
          type: str
        broken_link:
          description:
            - The first link that does not work, or is not known to, counted from the guest; empty
              if all work.
          type: str
          sample: discard
        reason:
          description: What is the matter with that link; empty if all work.
          type: str
        remedy:
          description: What mends it; empty if all work.
          type: str
        chain:
          description: The links, from the guest to the storage.
          type: list
          elements: dict
          contains:
            link:
              description: One of V(machine), V(bus), V(discard), V(format) and V(storage).
              type: str
            value:
              description: What is there.
              type: str
              sample: pc-q35-7.2
            state:
              description: One of V(works), V(broken) and V(unknown).
              type: str
            reason:
              description: Why it does not work, or is not known to; empty otherwise.
              type: str
            remedy:
              description: What to do; empty if it works.
              type: str
        live:
          description:
            - Settings of the running QEMU; C(discard), C(detect_zeroes), C(discard_no_unref),
              C(discard_granularity_bytes) and C(rotation_rate). V(null) if the domain is off.
          type: dict
        configured:
          description: The same settings at the next start; V(null) if the disk is gone by then.
          type: dict
        findings:
          description: What stands in the way on this disk, as for the domain.
          type: list
          elements: dict
    error:
      description: Why the domain could not be read.
      type: dict
      returned: on failure of this domain
      contains:
        msg:
          description: What happened and what to do, in a sentence or two.
          type: str
file_systems:
  description: The file systems that hold images, sorted by mount point. Block devices have none.
  returned: always
  type: list
  elements: dict
  contains:
    mount_point:
      description: Where it is mounted.
      type: str
      sample: /var/lib/libvirt
    source:
      description: The device or export that is mounted there.
      type: str
    type:
      description: Its type.
      type: str
      sample: ext4
    device:
      description: Its number, major and minor.
      type: str
      sample: "254:1"
    read_only:
      description: Whether it takes no writes.
      type: bool
    total_bytes:
      description: Its size.
      type: int
    free_bytes:
      description: What may still be allocated, as C(df) shows under available.
      type: int
    disks:
      description: Images of the chosen domains on it; one that two domains share counts once.
      type: int
    promised_bytes:
      description: The sizes of their disks together, as the guests see them.
      type: int
    allocated_bytes:
      description: What they and their backing and data files occupy.
      type: int
    overcommit_ratio:
      description:
        - C(promised_bytes) divided by the sum of C(allocated_bytes) and C(free_bytes). Above 1 the
          guests can fill the file system. V(null) if there is neither.
      type: float
      sample: 2.4
    reclaimable_bytes:
      description: The sum of what is known of its disks; V(null) if nothing is.
      type: int
    guest_used_bytes:
      description: Likewise.
      type: int
    days_until_full:
      description:
        - Days until nothing is free any more, by a straight line through O(earlier) and this
          result. V(null) if it is not filling, or not within ten years, or if that can't be told.
      type: float
      sample: 41.5
pools:
  description: The active storage pools of libvirt, sorted by name.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Its name.
      type: str
      sample: default
    type:
      description: Its type.
      type: str
      sample: dir
    path:
      description: The folder of its volumes; empty if it has none.
      type: str
      sample: /var/lib/libvirt/images
    mount_point:
      description: Where the file system of that folder is mounted; V(null) if it is none of files.
      type: str
      sample: /var/lib/libvirt
    promised_bytes:
      description: The sizes of the chosen domains' disks in it together, as the guests see them.
      type: int
    allocated_bytes:
      description:
        - What they and their backing and data files in it occupy. In a pool that is not one of
          files what libvirt counts, whoever takes it.
      type: int
    total_bytes:
      description: Size of its file system, or what libvirt says of it.
      type: int
    free_bytes:
      description: What is free there.
      type: int
    overcommit_ratio:
      description: As for file systems.
      type: float
      sample: 2.4
    days_until_full:
      description: As for file systems.
      type: float
      sample: 41.5
findings:
  description:
    - All findings of all domains, in the shape of those of a domain, and before them those of the
      host's storage, whose C(domain) and C(disk) are empty.
  returned: always
  type: list
  elements: dict
  sample:
    - id: storage-nearly-full
      severity: error
      reason: /srv has 2.1 of 100.0 GiB left. When it is full, guests that write there are paused.
      remedy: Free space with the playbook thinvirt.kvm.reclaim, or move images elsewhere with
        thinvirt.kvm.domain_compact and dest_dir.
      domain: ""
      disk: ""
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit import report
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.forecast import parse_reports
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.survey import Wish, survey
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import Hypervisor
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.module_utils._spec import (
    failure_message,
    libvirt_spec,
)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **libvirt_spec(domains_required=False),
            "allowed_dirs": {"type": "list", "elements": "str", "default": []},
            "ask_agents": {"type": "bool", "default": True},
            "agent_timeout": {"type": "int", "default": 5},
            "earlier": {"type": "list", "elements": "dict", "default": []},
            "measure": {"type": "bool", "default": False},
            "probe_storage": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        wish = Wish(
            domains=params["domains"],
            allowed_dirs=tuple(params["allowed_dirs"]),
            probe_storage=params["probe_storage"],
            measure=params["measure"],
            ask_agents=params["ask_agents"],
            agent_timeout=params["agent_timeout"],
            earlier=parse_reports(params["earlier"]),
        )
        with Hypervisor(params["uri"], local_only=True) as hypervisor:
            found = survey(hypervisor, wish)
    except ThinvirtError as error:
        module.fail_json(**error.result())
    result = {"changed": False, **report.result(found)}
    failed = [(domain.name, domain.error) for domain in found.domains if domain.error]
    if failed:
        module.fail_json(msg=failure_message("domains", failed, of=len(found.domains)), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
