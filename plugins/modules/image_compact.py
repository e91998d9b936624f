#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_compact
short_description: Make disk images small that nobody uses
version_added: 0.1.0
author: thinvirt.kvm contributors (@thinvirt)
description:
  - Gives back the space of images that are not in use, by the method that risks and moves least,
    and only when it is worth it.
  - The name of an image is, at every instant, a whole image with the right content. What a killed
    run has left is ended or undone by the next one on the same image.
  - An image that is in use, or that something else depends on, is refused with the reason and the
    remedy, and nothing is changed.
  - C(freed_bytes) is allocated blocks on the host that no other file shares, before and after.
    It is negative where the host is fuller than before, as with O(keep_original).
extends_documentation_fragment:
  - thinvirt.kvm.libvirt
  - thinvirt.kvm.compact
  - thinvirt.kvm.trusted_owners
  - thinvirt.kvm.trusted_owners.journals
  - thinvirt.kvm.attributes
attributes:
  check_mode:
    support: full
    details:
      - The prediction comes from reading the image. A copy that turns out to save less than was
        estimated is dropped by a real run.
      - What O(method=trim) would free can't be told without doing it.
  diff_mode:
    support: full
  idempotent:
    support: full
    details:
      - Not with O(force).
options:
  uri:
    description:
      - URI of the libvirt daemon, which is asked who uses the images.
      - Empty on a host without libvirt. Then only the images themselves are asked; QEMU's locks and
        the headers of the images beside them.
  paths:
    description:
      - The images; absolute names, or globs such as V(/var/lib/libvirt/images/*.qcow2).
      - As in M(thinvirt.kvm.image_info).
    type: list
    elements: str
    required: true
  format:
    description:
      - The format of all these images, where it is known.
      - With V(auto), a file that begins with qcow2's magic number is taken for qcow2, and any other
        for raw. A container of another format, such as VDI, VMDK or VHDX, is refused.
    type: str
    choices: [auto, raw, qcow2]
    default: auto
requirements:
  - qemu-img 5.2 or later
  - virt-sparsify (guestfs-tools), for O(method=trim)
notes:
  - Raw images whose zeros were preallocated with C(preallocation=full) can't be told from those
    that a guest has filled with zeros. Leave them out of O(paths).
  - An image is in use when QEMU's locks are on it, or when the kernel grants no lease on it, since
    anybody may write to it; by a descriptor, a mapping or a loop device, by whatever name.
  - Whoever comes to write to an image while the module works, such as a domain that starts, waits
    for about a second and is let in. The module gives up and says so, and nothing was changed.
  - Some file systems have no leases (NFS, CIFS, FUSE). Then processes and loop devices of this host
    are looked at, only what heeds QEMU's locks is kept out, and C(reason) says so.
seealso:
  - module: thinvirt.kvm.domain_compact
  - module: thinvirt.kvm.image_info
"""

EXAMPLES = r"""
- name: Compact what is worth it in a pool
  thinvirt.kvm.image_compact:
    paths: /var/lib/libvirt/images/*.qcow2

- name: See what that would give back
  thinvirt.kvm.image_compact:
    paths: /var/lib/libvirt/images/*.qcow2
  check_mode: true

- name: Turn zeros into holes in an image with snapshots, however few they are
  thinvirt.kvm.image_compact:
    paths: /var/lib/libvirt/images/db1.qcow2
    method: punch
    min_reclaim_bytes: 0

- name: Compress the image of a template, and keep the original for now
  thinvirt.kvm.image_compact:
    paths: /srv/templates/debian12.qcow2
    method: rewrite
    compression: zstd
    keep_original: true

- name: Free the deleted files of a Windows guest that cannot trim by itself
  thinvirt.kvm.image_compact:
    paths: /var/lib/libvirt/images/old-windows.qcow2
    method: trim
    accept_no_rollback: true
"""

RETURN = r"""
freed_bytes:
  description: What the host gained in all, in bytes of allocated blocks; in check mode, would gain.
  returned: always
  type: int
  sample: 1610612736
summary:
  description: One line per image, for people.
  returned: always
  type: list
  elements: str
  sample:
    - "/srv/web1.qcow2: punch, 1536.0 MiB freed. 1610612736 bytes were zeros: no copy is needed to
      give them back."
images:
  description: One entry for each image, in the order of O(paths).
  returned: always, unless the parameters are wrong
  type: list
  elements: dict
  contains:
    path:
      description: The name of the image.
      type: str
    changed:
      description: Whether it was (in check mode, would be) made smaller.
      type: bool
      returned: success
    method:
      description: What was done; V(punch), V(rewrite), V(trim) or V(none).
      type: str
      returned: success
    reason:
      description: Why that was done, or why nothing was.
      type: str
      returned: success
    before:
      description:
        - Sizes before; C(virtual_size_bytes), C(allocated_bytes), C(length_bytes), and
          C(shared_bytes), what of the allocated ones other files have too.
      type: dict
      returned: success
      sample: {virtual_size_bytes: 10737418240, allocated_bytes: 2414870528,
               length_bytes: 2415329280, shared_bytes: 0}
    after:
      description: The same after; in check mode an estimate.
      type: dict
      returned: success
    freed_bytes:
      description:
        - Blocks that the host got back; those that other files share are not counted, and an
          original that is kept is. Negative where the host is fuller than before.
        - On btrfs, which frees an extent only as a whole, no more than C(free_after_bytes) less
          C(free_before_bytes).
      type: int
      returned: success
    free_before_bytes:
      description:
        - What was free on the file system before, as a second witness; everybody else who writes to
          it changes it as well. V(null) in check mode.
      type: int
      returned: success
      sample: 41943040000
    free_after_bytes:
      description: The same afterwards.
      type: int
      returned: success
      sample: 43553652736
    reclaimable_bytes:
      description:
        - What was found that could come back, also when it was too little to do something; V(null)
          where only a copy would tell. What a rewrite saved, once it is done.
      type: int
      returned: success
    recovered:
      description: What a killed run had left, and what was done about it; empty if nothing.
      type: str
      returned: success
    kept:
      description: Where the original is, if it was kept; empty otherwise.
      type: str
      returned: success
    compared:
      description: Whether the whole content of the copy was compared with the original.
      type: bool
      returned: success
    moved_bytes:
      description: Bytes by stage, where they are known; C(copy) is what the copy has in blocks.
      type: dict
      returned: success
      sample: {copy: 769720320}
    seconds:
      description: Time by stage.
      type: dict
      returned: success
      sample: {copy: 1.9, flush: 0.4, check: 0.1, compare: 0.8, swap: 0.1}
    error:
      description: Why it was not compacted.
      type: dict
      returned: on failure of this image
      contains:
        msg:
          description: What happened and what to do, in a sentence or two.
          type: str
        cmd:
          description: The command that failed, if one did.
          type: list
          elements: str
        rc:
          description: Its exit status.
          type: int
        stderr:
          description: What it complained, shortened.
          type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.usage import users_at
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    ReportedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import compact_policy
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact import Outcome
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact_report import (
    compact_all,
    result,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.report import expand_paths
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import signals_raise
from ansible_collections.thinvirt.kvm.plugins.module_utils._spec import (
    compact_spec,
    failure_message,
    trusted_owners_spec,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.trust import trust


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "uri": {"type": "str", "default": "qemu:///system"},
            "paths": {"type": "list", "elements": "str", "required": True},
            "format": {"type": "str", "choices": ["auto", "raw", "qcow2"], "default": "auto"},
            **compact_spec(),
            **trusted_owners_spec(),
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        trust(params["trusted_owners"])
        request = compact_policy.request_of(params, image_format=params["format"])
        paths, unmatched = expand_paths(params["paths"])
        with signals_raise(), users_at(params["uri"]) as users:
            outcomes = compact_all(
                paths,
                request,
                obstacles=users.obstacles,
                check_mode=module.check_mode,
                log=module.log,
            )
            if not module.check_mode:
                users.refresh_pools(o.path for _p, o in outcomes if isinstance(o, Outcome))
    except ReportedError as error:
        module.fail_json(**error.result())
    for pattern in unmatched:
        module.warn(f"Nothing matches {shown(pattern)}.")
    answer = result(outcomes, check_mode=module.check_mode)
    failed = [(shown(path), o) for path, o in outcomes if isinstance(o, ThinvirtError)]
    if failed:
        module.fail_json(msg=failure_message("images", failed, of=len(outcomes)), **answer)
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
