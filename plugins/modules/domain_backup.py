#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: domain_backup
short_description: Keep small, verified copies of domains, while they run
version_added: 0.1.0
author: thinvirt.kvm contributors (@thinvirt)
description:
  - Copies the disks of domains, running or shut off, to new versions C(DEST_DIR/DOMAIN/TIME). All
    disks of a domain are copied as they were at one instant.
  - A running guest goes on. At the instant of the copy its file systems are frozen through the
    guest agent, if there is one, for a fraction of a second.
  - A version is whole or it is not there. While it is made it is called C(.TIME.partial); it gets
    its name when every copy was checked, compared with the disk as it was at that instant, and is
    on the disk of the host. C(manifest.json) in it says all that a restore needs, see
    M(thinvirt.kvm.domain_restore).
  - A run that fails or is stopped leaves nothing. What one has left that was killed, a backup job
    of libvirt and scratch files, is removed by the next run for that domain, and nothing else is.
    Backup jobs and block jobs of other programs make this module refuse the domain; checkpoints
    stay as they are.
extends_documentation_fragment:
  - thinvirt.kvm.libvirt
  - thinvirt.kvm.libvirt.domains_required
  - thinvirt.kvm.trusted_owners
  - thinvirt.kvm.trusted_owners.journals
  - thinvirt.kvm.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: partial
    details:
      - A domain that is shut off gets no new version as long as its disks and its configuration
        are the same. A running domain always gets a new one.
options:
  dest_dir:
    description:
      - The folder for the versions. It has to exist. Below it each domain has a folder of its own.
      - Where a domain's name begins with a dot, or has characters that cannot be printed, these are
        C(%XX) in the folder's name.
    type: path
    required: true
  disks:
    description:
      - Targets such as V(vda), or globs such as V(sd*). By default every disk that the guest
        writes.
      - A target that none of the chosen domains has is an error.
    type: list
    elements: str
    default: []
  online:
    description: Back up running domains too. With V(false) they are skipped.
    type: bool
    default: true
  quiesce:
    description:
      - Whether the file systems of a running guest are frozen at the instant of the copy.
      - V(auto) does so if an agent answers, and says in RV(domains[].consistency) how it went.
        V(required) fails without. V(off) does not ask. The copy is then what a power failure would
        leave.
    type: str
    choices: [auto, required, "off"]
    default: auto
  keep:
    description:
      - How many versions of each domain stay; V(0) for all.
      - It counts for each disk. A version goes once so many newer ones hold a copy of each of its
        disks, so that versions of some disks (O(disks)) never take the place of the last copies of
        others, nor do those of a domain that has lost a disk.
      - Versions are in the order in which they were made, whatever the clock said then.
      - Only versions are removed that this module has made of the same domain, that nobody has
        changed since, and that nobody reads.
    type: int
    default: 0
  compression:
    description:
      - How the copies are compressed. By default V(zstd) where QEMU has it, otherwise V(zlib).
    type: str
    choices: [none, zlib, zstd]
  with_secrets:
    description:
      - Put passwords of the domain's configuration, such as that of VNC, into the manifest.
      - The manifest is readable by its owner only, in any case.
    type: bool
    default: false
  accept_plain_text:
    description:
      - Consent to copies in plain text of disks that are encrypted. QEMU decrypts a disk for the
        guest, and a backup of a running domain is of what the guest sees. So are the scratch files.
      - Without, a domain with an encrypted disk is refused. One that is shut off is refused in any
        case, as its image is all that there is. Copy that by hand, and keep the secret.
    type: bool
    default: false
  min_free_bytes:
    description:
      - What must stay free where the copies and the scratch files lie. It is watched all the while;
        the backup is given up when there is less.
    type: int
    default: 1073741824
  scratch_dir:
    description:
      - Where QEMU saves what a running guest overwrites while it is copied, in a private folder
        C(.thinvirt-backup-UUID). This takes as much as the guest writes meanwhile, at most the size
        of its disks.
      - By default the folder of the domain's first image. QEMU has to be able to get to it.
    type: path
  bandwidth_bytes:
    description: Read no more than so many bytes a second from a running domain; V(0) for no limit.
    type: int
    default: 0
  parallel:
    description:
      - How many domains are backed up at the same time. Who has the oldest newest version, or none,
        comes first.
    type: int
    default: 1
  allowed_dirs:
    description:
      - Folders, with all that is below them, where backing files of a domain that is shut off may
        lie besides the folder of the image itself.
    type: list
    elements: str
    default: []
  timeout:
    description: Seconds for one domain.
    type: int
    default: 21600
requirements:
  - qemu-img 5.2 or later
  - For running domains, libvirt 7.6 with QEMU 6.1 or later; older ones are refused.
notes:
  - QEMU makes the scratch files and the socket through which they are read, as its own user.
    libvirt labels the scratch files for SELinux and AppArmor itself. The socket lies in the folder
    that libvirt has made for that QEMU, C(/var/lib/libvirt/qemu/domain-ID-NAME), where both let it
    make one; it cannot be reached by other users.
  - Versions may be copied elsewhere with C(rsync -a). With other times or sizes they are no longer
    counted, nor removed.
  - Passwords are left out of the manifest unless O(with_secrets=true). The disks hold whatever the
    guest keeps there.
  - A guest whose agent freezes the file systems and then hangs, and a task that is killed in that
    fraction of a second, leave it frozen until the next run, or C(virsh domfsthaw).
seealso:
  - module: thinvirt.kvm.domain_restore
  - module: thinvirt.kvm.image_convert
"""

EXAMPLES = r"""
- name: Back up all domains, running or not, and keep a week
  thinvirt.kvm.domain_backup:
    domains: ['*']
    dest_dir: /srv/backup
    keep: 7

- name: Back up a database server, but only with its file systems at rest
  thinvirt.kvm.domain_backup:
    domains: [db1]
    dest_dir: /srv/backup
    quiesce: required

- name: Back up the system disks gently
  thinvirt.kvm.domain_backup:
    domains: ['web*']
    disks: [vda]
    dest_dir: /srv/backup
    bandwidth_bytes: 104857600

- name: See what a backup would copy, and what is in its way
  thinvirt.kvm.domain_backup:
    domains: ['*']
    dest_dir: /srv/backup
  check_mode: true
"""

RETURN = r"""
summary:
  description: One line per domain, for people.
  returned: always
  type: list
  elements: str
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
      description: One of V(done), V(unchanged), V(skipped) and V(failed).
      type: str
    reason:
      description: Why no version was made; empty otherwise.
      type: str
    running:
      description: Whether the domain ran.
      type: bool
    changed:
      description: Whether a version was (in check mode, would be) made or removed.
      type: bool
    version:
      description: Folder of the newest version; empty if it is only to be made (check mode).
      type: str
      sample: /srv/backup/web1/20261124T204455Z
    consistency:
      description:
        - V(off); the domain was shut off. V(frozen); it ran, and its file systems were at rest.
          V(crash); the disks are as after a power failure at that instant.
      type: str
    freeze:
      description: What the guest agent did about it.
      type: dict
      contains:
        state:
          description: One of V(frozen), V(off), V(no_agent) and V(failed).
          type: str
        filesystems:
          description: How many file systems were frozen, as the guest says.
          type: int
        error:
          description: Why they were not.
          type: str
        seconds:
          description: How long they stood still.
          type: float
    disks:
      description: The disks that were (in check mode, would be) copied.
      type: list
      elements: dict
      contains:
        target:
          description: Name of the disk in the domain.
          type: str
          sample: vda
        path:
          description: Where it lies on the host; empty if elsewhere.
          type: str
        virtual_size_bytes:
          description: The size that the guest sees.
          type: int
        allocated_bytes:
          description: What it takes on the host. The copy takes about so much before compression.
          type: int
        file:
          description: Name of the copy in the version; empty in check mode.
          type: str
          sample: vda.qcow2
        sha256:
          description: Its checksum.
          type: str
        copy_bytes:
          description: Its length.
          type: int
        compared:
          description:
            - Whether the whole copy was compared in this run with the disk as it was at the instant
              of the copy.
          type: bool
        plain_text:
          description: Whether the disk is encrypted, and its copy is plain text.
          type: bool
    left_out:
      description:
        - Disks that the guest writes and that are not copied unless O(disks) says so; devices of
          the host that it speaks SCSI to (C(device='lun')).
      type: list
      elements: dict
      contains:
        target:
          description: Name of the disk in the domain.
          type: str
        reason:
          description: Why it is not copied.
          type: str
    removed:
      description: Old versions that were (in check mode, would be) removed.
      type: list
      elements: str
    recovered:
      description: What a killed run had left, and was removed; empty if nothing.
      type: str
    moved_bytes:
      description: Bytes by stage, where they are known; C(copy) is what the copies have in blocks.
      type: dict
      sample: {copy: 769720320}
    seconds:
      description: Time by stage.
      type: dict
    error:
      description: Why the domain was not backed up.
      type: dict
      returned: on failure of this domain
      contains:
        msg:
          description: What happened and what to do, in a sentence or two.
          type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.thinvirt.kvm.plugins.module_utils._backup import report as backup_report
from ansible_collections.thinvirt.kvm.plugins.module_utils._backup.backup import back_up
from ansible_collections.thinvirt.kvm.plugins.module_utils._backup.work import Settings
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import Hypervisor
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.select import refuse_duplicates
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.turns import MAX_WORKERS
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ReportedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import convert
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.inspect import Options
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
            "dest_dir": {"type": "path", "required": True},
            "disks": {"type": "list", "elements": "str", "default": []},
            "online": {"type": "bool", "default": True},
            "quiesce": {"type": "str", "choices": ["auto", "required", "off"], "default": "auto"},
            "keep": {"type": "int", "default": 0},
            "compression": {"type": "str", "choices": ["none", "zlib", "zstd"]},
            "with_secrets": {"type": "bool", "default": False},
            "accept_plain_text": {"type": "bool", "default": False},
            "min_free_bytes": {"type": "int", "default": 1 << 30},
            "scratch_dir": {"type": "path"},
            "bandwidth_bytes": {"type": "int", "default": 0},
            "parallel": {"type": "int", "default": 1},
            "allowed_dirs": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "int", "default": 21600},
            **trusted_owners_spec(),
        },
        supports_check_mode=True,
    )
    params = module.params
    for name in ("keep", "min_free_bytes", "bandwidth_bytes"):
        if params[name] < 0:
            module.fail_json(msg=f"{name} must be at least 0.")
    if not 1 <= params["parallel"] <= MAX_WORKERS:
        module.fail_json(msg=f"parallel must be between 1 and {MAX_WORKERS}.")
    try:
        trust(params["trusted_owners"])
        refuse_duplicates("disks", params["disks"])
        options = Options(allowed_dirs=tuple(params["allowed_dirs"]), timeout=params["timeout"])
        request = convert.Request(
            compression=params["compression"],
            min_free_bytes=params["min_free_bytes"],
            allowed_dirs=options.allowed_dirs,
            timeout=options.timeout,
        )
        scratch_dir = params["scratch_dir"]
        with signals_raise(), Hypervisor(params["uri"], local_only=True) as hypervisor:
            settings = Settings(
                versions=hypervisor.versions(),
                folder=convert.checked_folder(params["dest_dir"]),
                disks=params["disks"],
                online=params["online"],
                quiesce=params["quiesce"],
                keep=params["keep"],
                scratch_dir=convert.checked_folder(scratch_dir) if scratch_dir else "",
                with_secrets=params["with_secrets"],
                accept_plain_text=params["accept_plain_text"],
                bandwidth_bytes=params["bandwidth_bytes"],
                parallel=params["parallel"],
                request=request,
                check_mode=module.check_mode,
                log=module.log,
            )
            outcomes = back_up(hypervisor, params["domains"], settings)
    except ReportedError as error:
        module.fail_json(**error.result())
    answer = backup_report.result(outcomes, check_mode=module.check_mode)
    failed = [(o.guest.name, o.error) for o in outcomes if o.error is not None]
    if failed:
        module.fail_json(msg=failure_message("domains", failed, of=len(outcomes)), **answer)
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
