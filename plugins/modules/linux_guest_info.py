#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: linux_guest_info
short_description: Tell what in a Linux guest keeps discards from its disks
version_added: 0.1.0
author: thinvirt.kvm contributors (@thinvirt)
description:
  - Runs in a Linux guest. Follows each mounted file system link by link down to the disk (dm-crypt,
    LVM, md, multipath, partitions), and names the link that stops discards.
  - Reads whether the guest trims by itself (C(fstrim.timer), cron), whether the guest agent is
    there, and whether the initial RAM disk has the driver C(virtio_scsi).
  - Changes nothing. What QEMU and the host do with the discards is judged by
    M(thinvirt.kvm.thin_info); what came of them is measured by M(thinvirt.kvm.domain_trim).
extends_documentation_fragment:
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
  domain:
    description: Name of the guest's domain, for the findings. A guest does not know it.
    type: str
    default: ''
  examine_initramfs:
    description:
      - Look into the initial RAM disk of the running kernel, which takes a second or two.
    type: bool
    default: true
notes:
  - Needs Python 3.9 or newer and the guest's own util-linux (2.32 or newer), and root.
  - C(guest-discard-dm-crypt) (error) - dm-crypt drops discards, as it does by default.
  - C(guest-discard-dm-crypt-reopen) (warning) - crypttab allows discards, the mapping was opened
    before that.
  - C(guest-discard-lvm) (error) - a logical volume takes none, such as a snapshot. Ordinary volumes
    pass discards on; C(issue_discards) of lvm.conf has no part in it.
  - C(guest-discard-md) (error) - an array takes none; RAID 4, 5 and 6 do not by default.
  - C(guest-discard-multipath) (error) - a multipath device takes none, though its paths do.
  - C(guest-discard-disk) (error) - the disk itself offers none, which is the hypervisor's part.
  - C(guest-discard-switched-off) (error) - C(discard_max_bytes) was set to 0 in the guest.
  - C(guest-discard-link) (error) - another kind of device takes none.
  - C(guest-mount-notrim) (warning) - C(X-fstrim.notrim) in fstab keeps fstrim away.
  - C(guest-mount-nodiscard) (info) - a mount has C(nodiscard), which fstrim does not heed.
  - C(guest-mount-not-in-fstab) (warning) - C(fstrim.service) reads fstab only and misses a mount.
  - C(guest-timer-off) (warning; info if cron runs fstrim, or all file systems are mounted with
    C(discard)) - C(fstrim.timer) is missing, masked, disabled or not started.
  - C(guest-trim-not-scheduled) (warning; info if all file systems are mounted with C(discard)) - no
    systemd, and no cron job runs fstrim.
  - C(guest-cron-fstrim) (warning) - cron runs fstrim besides the timer, or besides the role's job.
  - C(guest-agent-missing), C(guest-agent-stopped) (warning) - the host can't have the guest trim.
  - C(guest-selinux-agent) (warning) - SELinux enforces, C(virt_qemu_ga_read_nonsecurity_files) is
    off.
  - C(guest-initramfs-without-virtio-scsi) (warning) - the guest would not boot from virtio-scsi.
  - C(guest-initramfs-unknown) (info) - that could not be found out.
seealso:
  - module: thinvirt.kvm.thin_info
  - module: thinvirt.kvm.domain_trim
"""

EXAMPLES = r"""
- name: See what keeps this guest from giving space back
  thinvirt.kvm.linux_guest_info:
  register: guest

- name: Show it, with the remedies
  ansible.builtin.debug:
    msg: "{{ guest.summary }}"

- name: Fail a CI job if a file system of the guest can't be trimmed
  thinvirt.kvm.linux_guest_info:
    domain: "{{ kvm_domain }}"
    examine_initramfs: false
  register: guest
  failed_when: guest.file_systems | selectattr('stopped_by') | list | length > 0

- name: Refuse to move a disk to virtio-scsi if the guest would not boot from it
  ansible.builtin.assert:
    that: guest.initramfs.virtio_scsi
"""

RETURN = r"""
summary:
  description: One line per finding, for people.
  returned: always
  type: list
  elements: str
  sample:
    - "error guest-discard-dm-crypt. dm-crypt drops the discards of data: crypttab does not allow
      them. It concerns /srv. Set linux_guest_luks_discard: true, ..."
findings:
  description: What keeps discards from the disks, or the guest from trimming; the worst first.
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: Stable name of the finding; the notes list them.
      type: str
      sample: guest-discard-dm-crypt
    severity:
      description: One of V(info), V(warning) and V(error).
      type: str
    reason:
      description: What is the case.
      type: str
    remedy:
      description: What to do, with the variable of the role P(thinvirt.kvm.linux_guest#role).
      type: str
    domain:
      description: Name of the domain, as it was given.
      type: str
    disk:
      description: Always empty, as a guest does not know the disk's target in the domain.
      type: str
kernel:
  description: Release of the running kernel.
  returned: always
  type: str
file_systems:
  description: The mounted file systems that lie on disks of the guest.
  returned: always
  type: list
  elements: dict
  contains:
    source:
      description: The device that is mounted.
      type: str
      sample: /dev/mapper/vg-data
    type:
      description: Its type.
      type: str
      sample: ext4
    mount_points:
      description: Where it is mounted, each subvolume and bind mount included.
      type: list
      elements: str
    options:
      description: Options of its mounts and its own.
      type: list
      elements: str
    read_only:
      description: Whether it takes no writes.
      type: bool
    total_bytes:
      description: Its size; V(null) if it was not asked.
      type: int
    used_bytes:
      description: What it counts as in use; V(null) if it was not asked.
      type: int
    stopped_by:
      description: Kernel's name of the link that stops its discards; empty if all pass them on.
      type: str
      sample: dm-1
    links:
      description: The devices that it lies on, from the top down to the disks.
      type: list
      elements: dict
      contains:
        device:
          description: Kernel's name.
          type: str
          sample: dm-1
        name:
          description: Name that people know.
          type: str
          sample: vg-data
        type:
          description: Kind of device, as lsblk has it.
          type: str
          sample: lvm
        serial:
          description: Serial number of a disk; empty if it has none.
          type: str
        granularity_bytes:
          description: The smallest piece that it discards.
          type: int
        discard_max_bytes:
          description: The largest discard that it takes; V(0) if it takes none.
          type: int
timer:
  description: C(fstrim.timer) and C(fstrim.service); V(null) where systemd does not run the system.
  returned: always
  type: dict
  contains:
    enablement:
      description: Such as V(enabled), V(disabled), V(masked); empty if there is no such timer.
      type: str
    active:
      description: Whether it is started.
      type: bool
    calendar:
      description: When it fires, as systemd spells it.
      type: list
      elements: str
    delay_seconds:
      description: Its random delay.
      type: int
    command:
      description: The argument lists that the service runs.
      type: list
      elements: list
    needs_reload:
      description: Whether their files have changed since systemd read them.
      type: bool
    own_conf:
      description: The role's drop-in of the timer; empty if there is none.
      type: str
    own_service_conf:
      description: The role's drop-in of the service; empty if there is none.
      type: str
    only_fstab:
      description: Whether the service leaves out mounts that are not in fstab.
      type: bool
cron_jobs:
  description: Jobs of cron that run fstrim.
  returned: always
  type: list
  elements: dict
  contains:
    path:
      description: Crontab or script.
      type: str
    line:
      description: Number of the line; V(0) for a script.
      type: int
    text:
      description: That line, or the script's line with fstrim.
      type: str
    removable:
      description: Whether it does nothing but fstrim.
      type: bool
    own:
      description: Whether the role made it.
      type: bool
crypttab:
  description: The mappings in crypttab.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Name of the mapping.
      type: str
    discard:
      description: Whether discards are allowed.
      type: bool
    stops_discards:
      description: Whether a mounted file system is kept from its disk by this mapping.
      type: bool
fstab_notrim:
  description: Mount points that fstab keeps fstrim off.
  returned: always
  type: list
  elements: str
agent:
  description: The guest agent.
  returned: always
  type: dict
  contains:
    installed:
      description: Whether it is installed.
      type: bool
    running:
      description: Whether it runs.
      type: bool
    enabled:
      description: Whether systemd starts it after a reboot; V(null) without systemd.
      type: bool
selinux:
  description: What SELinux lets the agent do.
  returned: always
  type: dict
  contains:
    enforcing:
      description: Whether SELinux enforces.
      type: bool
    agent_may_trim:
      description: C(virt_qemu_ga_read_nonsecurity_files); V(null) if there is no such boolean.
      type: bool
initramfs:
  description: The initial RAM disk of the running kernel.
  returned: always
  type: dict
  contains:
    generator:
      description: What made it; empty if that is unknown.
      type: str
      sample: initramfs-tools
    path:
      description: Its file.
      type: str
    virtio_scsi:
      description: Whether it, or the kernel itself, has the driver; V(null) if that is unknown.
      type: bool
    older_than_crypttab:
      description: Whether crypttab was written after it, which it may hold a copy of.
      type: bool
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest import checks, collect, report


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "domain": {"type": "str", "default": ""},
            "examine_initramfs": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    try:
        state = collect.guest_state(with_initramfs=module.params["examine_initramfs"])
    except ThinvirtError as error:
        module.fail_json(**error.result())
    findings = checks.findings(state, domain=module.params["domain"])
    module.exit_json(changed=False, **report.result(state, findings))


if __name__ == "__main__":
    main()
