#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: domain_compact
short_description: Make the disks of domains small
version_added: 0.1.0
author: thinvirt.kvm contributors (@thinvirt)
description:
  - Compacts the disks of the chosen domains as M(thinvirt.kvm.image_compact) does, many
    domains in one call. Domains whose images lie on different file systems are worked on side by
    side, those on the same one in turn, unless O(parallel) says otherwise.
  - Domains that are shut off are compacted. Running ones are left alone, unless O(power=live) or
    O(power=cycle).
  - With O(power=live), the disks of running guests are compacted under them, without downtime. The
    guest writes to an overlay for a while, so that its image does not change and can be copied and
    compared like one that nobody uses; the copy gets the image's name, and what the guest has
    written meanwhile is moved into it. In the end there is one file under the old name, and the
    domain's configuration is as it was.
  - Whatever fails, the guest goes on with all its writes, on its original or on the copy. If this
    task, libvirtd, QEMU or the host dies meanwhile, the disk is an overlay with an image below it,
    whole and bootable, and the next run of this module on the domain, with any O(power), makes one
    file of them again.
  - Other programs may be at work on the domain all the while. If one of them takes a snapshot or a
    checkpoint, saves the guest or begins a job on the disk, the run on that disk gives way. No job
    of others is ended, and no file is removed that QEMU, a definition, a saved state, a snapshot or
    a checkpoint names. When they are done, O(state=recovered) makes one file of the disk.
  - A domain has one run of this module, or of M(thinvirt.kvm.domain_backup), at a time; a second
    one is refused at once.
  - With O(power=cycle), a running guest is shut down in order if something is worth it, compacted,
    started again and waited for. A guest that ran before runs afterwards, whatever happens to this
    task. If it is killed, the next run starts the guest.
extends_documentation_fragment:
  - thinvirt.kvm.libvirt
  - thinvirt.kvm.libvirt.domains_required
  - thinvirt.kvm.compact
  - thinvirt.kvm.trusted_owners
  - thinvirt.kvm.trusted_owners.journals
  - thinvirt.kvm.attributes
attributes:
  check_mode:
    support: full
    details:
      - The prediction comes from reading the images. A copy that turns out to save less than was
        estimated is dropped by a real run.
  diff_mode:
    support: full
  idempotent:
    support: full
    details:
      - Not with O(force).
      - With O(power=cycle) a guest that writes zeros or deletes snapshots between two runs makes
        both change. So does one that deletes files and is asked to trim, with O(power=live).
      - With O(power=live), O(compression=none) and V(zlib) are no reason to make a copy by
        themselves; what a running guest's image has is not known before.
options:
  disks:
    description:
      - Targets such as V(vda), or globs such as V(sd*). By default every disk that the guest writes
        and that is in a file of this host.
      - A target that none of the chosen domains has is an error.
    type: list
    elements: str
    default: []
  power:
    description:
      - V(keep) leaves running domains alone.
      - V(cycle) shuts a running guest down through its agent or ACPI, never by force, and starts it
        again.
      - V(live) compacts the disks while the guest goes on, by O(method=rewrite), with all its
        options. It is refused for domains with snapshots or checkpoints, or with a backup or a
        migration at work, and for disks that are shared, read-only, encrypted, on a network or a
        block device, or plugged in for this run only, or that have a block job at work, a backing
        chain (unless O(flatten)), internal snapshots or dirty bitmaps. It needs libvirt 7.0 and
        QEMU 5.2.
      - While V(live) is at work, the guest's writes since its beginning take space as well, up to
        three times. When the file system comes near O(min_free_bytes), the copy is given up and
        the guest goes back to its original.
    type: str
    choices: [keep, cycle, live]
    default: keep
  state:
    description:
      - V(compacted) compacts what is worth it.
      - V(recovered) only ends or undoes what killed runs with O(power=live) have left of the
        domains' disks.
    type: str
    choices: [compacted, recovered]
    default: compacted
  trim:
    description:
      - Have the guest trim its file systems first, with O(power=live), so that dead blocks go
        before they are copied. A guest that can't is compacted nevertheless, and C(reason) says so.
    type: bool
    default: true
  bandwidth_bytes:
    description:
      - Bytes a second that each copy of O(power=live) may move; 0 for as many as can be.
      - What the guest writes meanwhile is moved faster if it would not come to an end otherwise.
    type: int
    default: 0
  accept_transient:
    description:
      - Consent to O(power=live) for domains that have no configuration. If the host fails
        meanwhile, nothing but the files' names tells that the last writes are in an overlay.
    type: bool
    default: false
  dest_dir:
    description:
      - Put the new images into this folder, whatever that saves. It has to exist. To move a disk
        into a storage pool, name the pool's folder; pools are refreshed in the end.
      - The domain's configuration names the new image afterwards, and nothing else of it changes.
        The original goes when the domain is on the new one, unless O(keep_original), which leaves
        it where it is. An image that lies in this folder already is compacted there.
      - Only with O(method=auto) or V(rewrite). Domains that run are left alone, unless
        O(power=live) or O(power=cycle).
    type: path
  shutdown_timeout:
    description:
      - Seconds that a guest may take to power off, and again to come back, with O(power=cycle).
    type: int
    default: 300
  parallel:
    description:
      - How many domains with images on one file system are worked on at the same time.
      - Each copy needs its space meanwhile, and disks that turn get slower. No more than 5 domains
        are worked on at once in all.
    type: int
    default: 1
notes:
  - How far it is goes to the host's log (syslog, journal) from time to time, with the stage, its
    per cent and its bytes.
  - With O(power=live), C(stall_seconds) is an upper limit; how long exactly the guest's requests
    waited while QEMU exchanged the file, it does not tell.
  - A block job of libvirt switches a running guest some milliseconds before libvirt writes down to
    which file. A host that loses its power just then starts the guest from before them. This is so
    with every block job, also those of O(power=live).
  - If a guest ended just then, what the two files hold tells in most cases which one is to be gone
    on with. Where it does not, O(state=recovered) refuses, changes nothing, and says how to choose.
  - A guest that has not powered off within O(shutdown_timeout) may do so later. It has a note in
    its metadata, and the next run of this module or of M(thinvirt.kvm.domain_discard) starts it
    if it has shut down within five minutes of that time. Whoever shuts it down just then removes
    the note, or finds it started.
  - A note is heeded for 24 hours, and not at all once somebody has started the guest or turned it
    off by force since. The log of the domain's QEMU tells, so it can only be told in part where
    that cannot be read.
seealso:
  - module: thinvirt.kvm.image_compact
  - module: thinvirt.kvm.domain_trim
"""

EXAMPLES = r"""
- name: Compact all domains that are shut off, where it is worth it
  thinvirt.kvm.domain_compact:
    domains: ['*']

- name: Compact two guests tonight, with a short time off each
  thinvirt.kvm.domain_compact:
    domains: [mail, files]
    power: cycle
    shutdown_timeout: 600

- name: Compact all running guests at night, with half of what the storage can do
  thinvirt.kvm.domain_compact:
    domains: ['*']
    power: live
    bandwidth_bytes: 104857600
    timeout: 7200

- name: Compress a running archive server's data disk
  thinvirt.kvm.domain_compact:
    domains: [archive]
    disks: [vdb]
    power: live
    compression: zstd

- name: Move a running guest's disks to faster storage, compacted
  thinvirt.kvm.domain_compact:
    domains: [db1]
    power: live
    dest_dir: /srv/nvme/images

- name: Make one file again of whatever a crash of the host has left
  thinvirt.kvm.domain_compact:
    domains: ['*']
    state: recovered

- name: See what compacting the test machines would give back
  thinvirt.kvm.domain_compact:
    domains: ['test-*']
    power: cycle
  check_mode: true

- name: Shorten and defragment one data disk that gives back at least 5 %
  thinvirt.kvm.domain_compact:
    domains: [db1]
    disks: [vdb]
    method: rewrite
    min_reclaim_percent: 5
"""

RETURN = r"""
freed_bytes:
  description: What the host gained in all, in bytes of allocated blocks; in check mode, would gain.
  returned: always
  type: int
  sample: 1610612736
summary:
  description: One line per disk, and per domain that was skipped or failed, for people.
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
      description: One of V(done), V(skipped) and V(failed).
      type: str
    reason:
      description: Why a domain was skipped, or left running; empty otherwise.
      type: str
    changed:
      description:
        - Whether a disk was (in check mode, would be) made smaller, or the guest restarted.
      type: bool
    freed_bytes:
      description: What this domain gave back, in bytes, by its trim and by the compaction.
      type: int
    trimmed_bytes:
      description: What the guest's trim gave back first, in bytes.
      type: int
      returned: with O(power=live), when the guest was trimmed
    downtime_seconds:
      description: Time from the request to power off until the guest was back.
      type: float
      returned: when the guest was restarted
    recovered:
      description:
        - What killed runs had left of this domain's disks or of its power state, and whether it was
          finished or undone; empty if nothing.
      type: str
    disks:
      description:
        - The disks that were looked at. Besides C(target), each entry is as C(images) of
          M(thinvirt.kvm.image_compact).
      type: list
      elements: dict
      contains:
        target:
          description: Name of the disk in the domain.
          type: str
          sample: vda
        path:
          description: Its image, as it was called before.
          type: str
        moved_to:
          description: Its new image.
          type: str
          returned: with O(dest_dir), when it was moved
        changed:
          description: Whether it was (in check mode, would be) made smaller.
          type: bool
          returned: success
        method:
          description: What was done; V(punch), V(rewrite), V(trim), V(live) or V(none).
          type: str
          returned: success
        reason:
          description: Why that was done, or why nothing was.
          type: str
          returned: success
        moved_bytes:
          description:
            - Bytes by stage, where they are known; C(copy) is what the copy has in blocks,
              C(mirror) and C(commit) what QEMU has moved.
          type: dict
          returned: success
        seconds:
          description:
            - Seconds by stage; C(mirror) is the copy of the overlay onto the new image, C(commit)
              the way back from it.
          type: dict
          returned: success
        stall_seconds:
          description:
            - An upper limit for the longest time that the guest's requests waited; the duration of
              the longest call that switched the disk to another file.
          type: float
          returned: with O(power=live), when it was begun
        overlay_bytes:
          description: What the guest wrote while its image was copied, in allocated bytes.
          type: int
          returned: with O(power=live), when it was begun
        freed_bytes:
          description:
            - Blocks that the host got back; those that other files share are not counted, and an
              original that is kept is. Negative where the host is fuller than before.
          type: int
          returned: success
        free_before_bytes:
          description:
            - What was free on the file system of the new image before, as a second witness;
              everybody else who writes to it changes it as well. V(null) in check mode.
          type: int
          returned: success
        free_after_bytes:
          description: The same afterwards.
          type: int
          returned: success
        error:
          description: Why it was not compacted.
          type: dict
          returned: on failure of this disk
    error:
      description: Why this domain could not be worked on.
      type: dict
      returned: on failure of this domain
      contains:
        msg:
          description: What happened and what to do, in a sentence or two.
          type: str
"""

from dataclasses import replace

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.thinvirt.kvm.plugins.module_utils._compaction import (
    report as compact_report,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._compaction.compact import Compactor
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.connection import Hypervisor
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.select import refuse_duplicates
from ansible_collections.thinvirt.kvm.plugins.module_utils._domain.turns import MAX_WORKERS
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ReportedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import compact_policy
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.convert import checked_folder
from ansible_collections.thinvirt.kvm.plugins.module_utils._live.policy import (
    refuse_live_wishes,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import signals_raise
from ansible_collections.thinvirt.kvm.plugins.module_utils._spec import (
    compact_spec,
    failure_message,
    libvirt_spec,
    trusted_owners_spec,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.trust import trust


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **libvirt_spec(domains_required=True),
            "disks": {"type": "list", "elements": "str", "default": []},
            "power": {"type": "str", "choices": ["keep", "cycle", "live"], "default": "keep"},
            "state": {
                "type": "str",
                "choices": ["compacted", "recovered"],
                "default": "compacted",
            },
            "trim": {"type": "bool", "default": True},
            "accept_transient": {"type": "bool", "default": False},
            "bandwidth_bytes": {"type": "int", "default": 0},
            "dest_dir": {"type": "path"},
            "shutdown_timeout": {"type": "int", "default": 300},
            "parallel": {"type": "int", "default": 1},
            **compact_spec(),
            **trusted_owners_spec(),
        },
        supports_check_mode=True,
    )
    params = module.params
    if not 1 <= params["parallel"] <= MAX_WORKERS:
        module.fail_json(msg=f"parallel must be between 1 and {MAX_WORKERS}.")
    try:
        trust(params["trusted_owners"])
        refuse_duplicates("disks", params["disks"])
        refuse_live_wishes(params)
        folder = checked_folder(params["dest_dir"]) if params["dest_dir"] else ""
        request = replace(compact_policy.request_of(params, image_format="auto"), dest_dir=folder)
        with signals_raise(), Hypervisor(params["uri"], local_only=True) as hypervisor:
            compactor = Compactor(
                hypervisor=hypervisor,
                request=request,
                disks=params["disks"],
                power=params["power"],
                shutdown_timeout=params["shutdown_timeout"],
                parallel=params["parallel"],
                check_mode=module.check_mode,
                log=module.log,
                only_recover=params["state"] == "recovered",
                trim=params["trim"],
                accept_transient=params["accept_transient"],
                bandwidth_bytes=params["bandwidth_bytes"],
            )
            outcomes = compactor.domains(params["domains"])
            if not module.check_mode:
                hypervisor.refresh_pools(
                    path for o in outcomes for disk in o.disks for path in disk.paths()
                )
    except ReportedError as error:
        module.fail_json(**error.result())
    answer = compact_report.result(outcomes, check_mode=module.check_mode)
    failed = [(outcome.guest.name, error) for outcome in outcomes for error in outcome.errors()]
    if failed:
        module.fail_json(msg=failure_message("domains", failed, of=len(outcomes)), **answer)
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
