#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: linux_guest_remount
short_description: Mount file systems of a Linux guest anew, so that they can be trimmed again
version_added: 0.1.0
author: thinvirt.kvm contributors (@thinvirt)
description:
  - Runs in a Linux guest. Unmounts ext4 file systems and mounts them again with the same options.
  - ext4 remembers what it has trimmed for as long as it is mounted, and does not send these
    discards again. After a trim whose discards the host dropped, this lets the next trim send them.
  - What is in use is left as it is, and so are the root, other types of file systems, and those
    that are mounted in several places. They are named, and the module does not fail.
extends_documentation_fragment:
  - thinvirt.kvm.attributes
attributes:
  check_mode:
    support: partial
    details:
      - Whether a file system is in use shows only when it is unmounted, so check mode takes it for
        unused.
  diff_mode:
    support: none
  idempotent:
    support: none
    details:
      - It is an action. Use it when M(thinvirt.kvm.domain_trim) reports what was left behind.
options:
  paths:
    description: Mount points.
    type: list
    elements: str
    required: true
notes:
  - Needs Python 3.9 or newer, the guest's own util-linux, and root.
  - Nothing is mounted at the mount point for some milliseconds. A module that is killed then leaves
    it so; C(mount -a) or a reboot mounts what is in fstab.
seealso:
  - module: thinvirt.kvm.domain_trim
  - module: thinvirt.kvm.linux_guest_info
"""

EXAMPLES = r"""
- name: Let a data disk be trimmed again
  thinvirt.kvm.linux_guest_remount:
    paths: [/srv/data]

- name: See what could be mounted anew
  thinvirt.kvm.linux_guest_remount:
    paths: "{{ trimmed.domains[0].untrimmed | map(attribute='mount_points') | flatten }}"
  check_mode: true

- name: Reboot the guest if a file system was in use
  ansible.builtin.reboot:
  when: remounted.mounts | rejectattr('remounted') | list | length > 0
"""

RETURN = r"""
summary:
  description: One line per mount point, for people.
  returned: always
  type: list
  elements: str
  sample: ["/srv/data: mounted anew."]
mounts:
  description: One entry per mount point.
  returned: always
  type: list
  elements: dict
  contains:
    path:
      description: The mount point.
      type: str
    remounted:
      description: Whether it was mounted anew, in check mode whether that would be tried.
      type: bool
    reason:
      description: Why not; empty if it was.
      type: str
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ReportedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest import remount
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import signals_raise
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown


def main() -> None:
    module = AnsibleModule(
        argument_spec={"paths": {"type": "list", "elements": "str", "required": True}},
        supports_check_mode=True,
    )
    entries: list[dict[str, t.Any]] = []
    try:
        with signals_raise():
            for plan in remount.plan(module.params["paths"], remount.read_mounts()):
                reason = plan.reason
                if plan.mount is not None and not module.check_mode:
                    reason = remount.remount(plan.mount)
                entries.append({"path": plan.path, "remounted": not reason, "reason": reason})
    except ReportedError as error:
        module.fail_json(mounts=entries, **error.result())
    module.exit_json(
        changed=any(entry["remounted"] for entry in entries),
        mounts=entries,
        summary=[f"{shown(e['path'])}: {e['reason'] or 'mounted anew.'}" for e in entries],
    )


if __name__ == "__main__":
    main()
