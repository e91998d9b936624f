#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: zero_free_space
short_description: Fill the free space of a Linux guest with zeros, within limits, and clean up
version_added: 0.1.0
author: thinvirt.kvm contributors (@thinvirt)
description:
  - Runs in the guest. Writes zeros to a file until the free space of a file system is down to a
    reserve, or a budget is used up, then gives the space back to the guest. A disk with
    C(detect_zeroes=unmap) turns the zeros into holes at once, otherwise
    M(thinvirt.kvm.domain_compact) finds them.
  - This is the historical method, for guests that can't trim. Where discard works,
    M(thinvirt.kvm.domain_trim) does the same in a second and writes nothing.
  - Without C(detect_zeroes=unmap) the image grows by what is written, up to O(max_bytes), and may
    fill the host. The role P(thinvirt.kvm.zero_fill#role) makes the budget from what the host has
    left, and watches that.
  - The file has no name (C(O_TMPFILE)), so the kernel frees it whatever ends this module, SIGKILL
    included. A file system that makes no such files gets one called C(.thinvirt-zero-fill) in its
    root, which loses its name before the first byte is written. Killed in that very instant it
    stays, empty, and the next run removes it.
  - One filler at a time in a guest. A second one is refused.
  - How far it is goes to the guest's log (syslog, journal) from time to time.
extends_documentation_fragment:
  - thinvirt.kvm.attributes
attributes:
  check_mode:
    support: full
    details:
      - RV(file_systems[].planned_bytes) tells what would be written.
  diff_mode:
    support: none
  idempotent:
    support: partial
    details:
      - Filling always writes. Nobody can tell from within which free blocks are zeros already.
      - O(state=absent) is idempotent.
options:
  paths:
    description:
      - Mount points, absolute, as C(findmnt) shows them. They are filled in this order.
      - ext2, ext3, ext4 and xfs, on disks, partitions, LVM or md.
      - Refused are encrypted volumes, as zeros reach the host as random data that only takes space;
        file systems without a disk (tmpfs, overlay, NFS, FUSE and others); VDO; and what is mounted
        read-only.
      - Required with O(state=filled). With O(state=absent), where to look for what a killed run
        left; by default all file systems that could have been filled.
    type: list
    elements: str
    default: []
  max_bytes:
    description:
      - How many bytes may be written, to all O(paths) together. The host's image may grow by as
        much.
      - Required with O(state=filled).
    type: int
  keep_free_bytes:
    description:
      - What has to stay free in each file system for those who write meanwhile. It is looked at
        before every 4 MiB, so others can undercut it, and then the filler ends at once.
      - By default 5 % of the file system, or 256 MiB if that is more.
    type: int
  timeout:
    description:
      - Seconds for all O(paths) together. Then what was written is given back, and the module
        succeeds.
      - With O(state=absent), how long the filler may take to end, 60 at most.
    type: int
    default: 3600
  force:
    description:
      - Also fill file systems where zeros may not reach the free blocks, as they compress or write
        everything to new places (btrfs, zfs, bcachefs, f2fs, nilfs2), thin pools of the guest,
        which grow, and types that were never tried.
    type: bool
    default: false
  state:
    description:
      - V(filled) fills and gives back.
      - V(absent) ends a filler that runs, and removes what a killed one left.
    type: str
    choices: [filled, absent]
    default: filled
requirements:
  - Python 3.9 or later and Linux in the guest
  - The rights of root there
notes:
  - Use C(async) for more than a few gigabytes. A filler whose controller is gone ends by itself
    when O(timeout) is over.
seealso:
  - module: thinvirt.kvm.thin_watch
  - module: thinvirt.kvm.domain_trim
  - module: thinvirt.kvm.domain_compact
"""

EXAMPLES = r"""
- name: Fill the free space of a guest whose disk has detect_zeroes=unmap
  thinvirt.kvm.zero_free_space:
    paths: [/, /srv]
    max_bytes: "{{ 40 * 1024 ** 3 }}"

- name: At most 10 GiB, and keep 2 GiB free for a busy database
  thinvirt.kvm.zero_free_space:
    paths: [/var/lib/postgresql]
    max_bytes: 10737418240
    keep_free_bytes: 2147483648
    timeout: 1800
  async: 2000
  poll: 10

- name: See what it would write
  thinvirt.kvm.zero_free_space:
    paths: [/]
    max_bytes: 1099511627776
  check_mode: true

- name: End whatever fills this guest, and clean up
  thinvirt.kvm.zero_free_space:
    state: absent
"""

RETURN = r"""
written_bytes:
  description: How many bytes of zeros were written in all.
  returned: with O(state=filled)
  type: int
  sample: 8589934592
file_systems:
  description: One entry per path, in their order.
  returned: with O(state=filled)
  type: list
  elements: dict
  contains:
    path:
      description: The mount point.
      type: str
      sample: /
    source:
      description: The device that is mounted there.
      type: str
      sample: /dev/sda1
    type:
      description: The type of the file system.
      type: str
      sample: ext4
    planned_bytes:
      description: What was to be written, as things stood in the beginning.
      type: int
    written_bytes:
      description: What was written; V(0) in check mode.
      type: int
    keep_free_bytes:
      description: The reserve that was heeded.
      type: int
    free_before_bytes:
      description: Free for users before, as C(df) shows under available.
      type: int
    free_after_bytes:
      description: The same after the file was removed and the file system flushed.
      type: int
    stopped_by:
      description:
        - V(reserve) if all but the reserve was filled, V(budget) if O(max_bytes) was used up.
        - V(full) if the file system was full, or a quota used up, before that; V(timeout) and
          V(stopped) (by a signal) if it was ended early.
        - Empty in check mode.
      type: str
      sample: reserve
    seconds:
      description: How long it took.
      type: float
ended:
  description: Whether a filler was running and was (in check mode, would be) ended.
  returned: with O(state=absent)
  type: bool
removed:
  description: Mount points from which something was (in check mode, would be) removed.
  returned: with O(state=absent)
  type: list
  elements: str
"""

import os
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    RefusedError,
    ReportedError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest import zero_fill, zero_lock
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import signals_raise

#: The longest that ``state=absent`` waits.
_END_SECONDS = 60


def _fill(module: AnsibleModule) -> dict[str, t.Any]:
    params = module.params
    for name in ("max_bytes", "keep_free_bytes", "timeout"):
        if (params[name] or 0) < 0:
            raise RefusedError(f"{name} is negative.", remedy="Use 0 or more.")
    wish = zero_fill.Wish(
        paths=tuple(params["paths"]),
        max_bytes=params["max_bytes"],
        keep_free_bytes=params["keep_free_bytes"],
        force=params["force"],
    )
    if module.check_mode:
        outcomes = [zero_fill.Outcome(target) for target in zero_fill.decide(wish)]
        changed = any(outcome.target.planned_bytes for outcome in outcomes)
    else:
        with signals_raise(), zero_lock.the_only_filler():
            outcomes = zero_fill.fill(
                zero_fill.decide(wish),
                max_bytes=wish.max_bytes,
                timeout=params["timeout"],
                say=module.log,
            )
        changed = any(outcome.written_bytes for outcome in outcomes)
    return {
        "changed": changed,
        "written_bytes": sum(outcome.written_bytes for outcome in outcomes),
        "file_systems": [outcome.result() for outcome in outcomes],
    }


def _end(module: AnsibleModule) -> dict[str, t.Any]:
    paths = module.params["paths"] or zero_fill.fillable_mount_points()
    ended = zero_lock.running_filler()
    removed = zero_fill.leftovers(paths)
    if not module.check_mode:
        ended = zero_lock.end_filler(timeout=min(_END_SECONDS, module.params["timeout"]))
        with zero_lock.the_only_filler():
            removed = zero_fill.leftovers(paths)
            zero_fill.remove_leftovers(removed)
    return {"changed": ended or bool(removed), "ended": ended, "removed": removed}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "str", "default": []},
            "max_bytes": {"type": "int"},
            "keep_free_bytes": {"type": "int"},
            "timeout": {"type": "int", "default": 3600},
            "force": {"type": "bool", "default": False},
            "state": {"type": "str", "choices": ["filled", "absent"], "default": "filled"},
        },
        required_if=[("state", "filled", ["paths", "max_bytes"])],
        supports_check_mode=True,
    )
    try:
        if os.geteuid() != 0:
            raise RefusedError(
                "Only root can fill file systems and keep others from it.",
                remedy="Use become: true.",
            )
        result = _fill(module) if module.params["state"] == "filled" else _end(module)
    except ReportedError as error:
        module.fail_json(**error.result())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
