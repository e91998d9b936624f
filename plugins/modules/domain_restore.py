#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: domain_restore
short_description: Make a new domain of a backup
version_added: 0.1.0
author: thinvirt.kvm contributors (@thinvirt)
description:
  - Makes a new domain of a version that M(thinvirt.kvm.domain_backup) has made. Its disks are
    copies, in a folder of your choice. The version stays as it is.
  - First the checksums of the version are verified. Each copy is compared with the version. Only
    when all of them are on the disk the domain is defined; it is not started.
  - No domain and no file is ever written over.
extends_documentation_fragment:
  - thinvirt.kvm.libvirt
  - thinvirt.kvm.trusted_owners
  - thinvirt.kvm.trusted_owners.journals
  - thinvirt.kvm.attributes
attributes:
  check_mode:
    support: full
    details:
      - The checksums are verified in check mode too.
  diff_mode:
    support: full
  idempotent:
    support: full
    details:
      - A domain of that name, whose disks are those that this module would make, is left as it is,
        whatever it has written to them since.
options:
  src:
    description:
      - The version, a folder C(DEST_DIR/DOMAIN/TIME).
      - The folder of a domain, C(DEST_DIR/DOMAIN), means its newest version, that is the one that
        was made last, whatever the clock said then.
      - A version that another user could have written is refused, since its XML becomes a domain.
    type: path
    required: true
  name:
    description: The name of the new domain.
    type: str
    required: true
  dest_dir:
    description:
      - The folder for its disks, which QEMU has to be able to get to. It has to exist.
      - They are called C(NAME-TARGET.qcow2). They are qcow2 and not compressed, whatever the
        original was.
    type: path
    required: true
  keep_uuid:
    description: Give it the UUID of the original, which must not exist any more on this host.
    type: bool
    default: false
  keep_macs:
    description:
      - Give it the MAC addresses of the original. Both must never run in one network.
    type: bool
    default: false
  accept_plain_text:
    description:
      - Consent to disks in plain text where those of the original are encrypted; the version holds
        plain text already.
    type: bool
    default: false
  min_free_bytes:
    description: What the disks must leave free on their file system.
    type: int
    default: 1073741824
  timeout:
    description: Seconds for one disk.
    type: int
    default: 21600
notes:
  - Disks of which the version holds no copy, and the media in drives, are left out.
  - The guest has the IP address, the host name and the keys of the original. Mind that before you
    start it beside it.
  - Passwords, such as that of VNC, are in the version only if it was made with C(with_secrets).
seealso:
  - module: thinvirt.kvm.domain_backup
"""

EXAMPLES = r"""
- name: Have a look at the newest backup of a guest beside the guest itself
  thinvirt.kvm.domain_restore:
    src: /srv/backup/web1
    name: web1-restored
    dest_dir: /var/lib/libvirt/images

- name: Bring a guest back that was lost with its host
  thinvirt.kvm.domain_restore:
    src: /srv/backup/web1/20261124T204455Z
    name: web1
    dest_dir: /var/lib/libvirt/images
    keep_uuid: true
    keep_macs: true

- name: Verify the checksums of a backup, and change nothing
  thinvirt.kvm.domain_restore:
    src: /srv/backup/web1
    name: web1-trial
    dest_dir: /var/lib/libvirt/images
  check_mode: true
"""

RETURN = r"""
name:
  description: Name of the new domain.
  returned: success
  type: str
uuid:
  description: Its UUID; empty if it is only to be defined (check mode).
  returned: success
  type: str
reason:
  description: Why nothing was done; empty otherwise.
  returned: success
  type: str
version:
  description: The version that it was made of.
  returned: success
  type: str
  sample: /srv/backup/web1/20261124T204455Z
created:
  description: When that was made; UTC.
  returned: success
  type: str
  sample: 20261124T204455Z
consistency:
  description: As M(thinvirt.kvm.domain_backup) returns it.
  returned: success
  type: str
disks:
  description: The new disks, by target.
  returned: success
  type: dict
  sample: {vda: /var/lib/libvirt/images/web1-restored-vda.qcow2}
dropped_disks:
  description: Targets of disks that the new domain does not have, as there was no copy of them.
  returned: success
  type: list
  elements: str
seconds:
  description: Time by stage.
  returned: success
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.thinvirt.kvm.plugins.module_utils._backup.restore import Restore
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import Hypervisor
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ReportedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.convert import checked_folder
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.progress import progress_logger
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.replace import Stages
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import signals_raise
from ansible_collections.thinvirt.kvm.plugins.module_utils._spec import trusted_owners_spec
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import encodable
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.trust import trust


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "uri": {"type": "str", "default": "qemu:///system"},
            "src": {"type": "path", "required": True},
            "name": {"type": "str", "required": True},
            "dest_dir": {"type": "path", "required": True},
            "keep_uuid": {"type": "bool", "default": False},
            "keep_macs": {"type": "bool", "default": False},
            "accept_plain_text": {"type": "bool", "default": False},
            "min_free_bytes": {"type": "int", "default": 1 << 30},
            "timeout": {"type": "int", "default": 21600},
            **trusted_owners_spec(),
        },
        supports_check_mode=True,
    )
    params = module.params
    if params["timeout"] <= 0 or params["min_free_bytes"] < 0:
        module.fail_json(msg="timeout must be positive, and min_free_bytes at least 0.")
    try:
        trust(params["trusted_owners"])
        with signals_raise(), Hypervisor(params["uri"], local_only=True) as hypervisor:
            outcome = Restore(
                hypervisor=hypervisor,
                src=params["src"],
                name=params["name"],
                folder=checked_folder(params["dest_dir"]),
                keep_uuid=params["keep_uuid"],
                keep_macs=params["keep_macs"],
                accept_plain_text=params["accept_plain_text"],
                min_free_bytes=params["min_free_bytes"],
                timeout=params["timeout"],
                check_mode=module.check_mode,
                stages=Stages(report=progress_logger(params["name"], module.log)),
            ).run()
    except ReportedError as error:
        module.fail_json(**error.result())
    disks = {target: encodable(path) for target, path in outcome.disks.items()}
    module.exit_json(
        changed=outcome.changed,
        name=outcome.name,
        uuid=outcome.uuid,
        reason=outcome.reason,
        version=encodable(outcome.version),
        created=outcome.created,
        consistency=outcome.consistency,
        disks=disks,
        dropped_disks=outcome.dropped,
        seconds={stage: round(took, 2) for stage, took in outcome.seconds.items()},
        diff={
            "before": {},
            "after": {"domain": outcome.name, "disks": disks} if outcome.changed else {},
        },
    )


if __name__ == "__main__":
    main()
