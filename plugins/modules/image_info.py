#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_info
short_description: Tell what disk images promise, occupy and could give back
version_added: 0.1.0
author: thinvirt.kvm contributors (@thinvirt)
description:
  - Inspects qcow2 and raw images, in files and on block devices, as many as wanted in one call,
    without changing anything.
  - Images in use can be inspected too. The tables of one that is written to are left alone.
  - A hostile image, one whose header was written by a guest, is read safely. The module's own
    reader looks at the header first, and C(qemu-img) sees the image only if that is sound, with its
    format named, without its backing file, and with limits to time and memory.
  - A backing file or data file that is not a plain file in the image's own folder or in
    O(allowed_dirs) is refused by name and not opened. An image that names one is reported as an
    error.
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
  paths:
    description:
      - The images; absolute names, or globs such as V(/var/lib/libvirt/images/*.qcow2).
      - A name that does not exist is an error. A glob without a match is a warning.
      - A glob means files, block devices and symlinks; directories, sockets and the like are passed
        over.
      - A name with glob characters in it is taken as it is if it exists.
      - A symlink that leads out of its own folder is refused. Below C(/dev), where logical volumes
        are symlinks, it is followed within C(/dev).
      - A path that is named twice is an error.
      - A name with a comma in it has to be given in a list.
    type: list
    elements: str
    required: true
  format:
    description:
      - The format of all these images. Name it where it is known, for example from the domain's
        XML.
      - With V(auto), a file that begins with qcow2's magic number is taken for qcow2, and any other
        for raw. A container of another format, such as VDI, VMDK or VHDX, is refused.
      - A guest can write anything into its raw disk, a qcow2 header too. With V(auto), what such a
        header says is reported, but no file that it names outside of the allowed folders is
        followed. The image is refused then.
      - With V(raw), the content is not looked at.
    type: str
    choices: [auto, raw, qcow2]
    default: auto
  allowed_dirs:
    description:
      - Folders, with all that is below them, where backing files and data files may lie besides the
        folder of the image itself.
    type: list
    elements: str
    default: []
  timeout:
    description:
      - Seconds for one image.
      - A qcow2 image of 4 TiB with 20,000 scattered clusters takes about ten seconds, most take
        less than 0.1.
    type: int
    default: 120
  check:
    description:
      - Run C(qemu-img check), which reads all tables of a qcow2 image and repairs nothing.
      - It is not run on images that are written to, where it would report false leaks, nor on
        encrypted and raw images.
      - While it reads, and while C(reclaimable_bytes) is measured, QEMU's locks keep a domain from
        starting on that image, usually for some hundredths of a second.
    type: bool
    default: true
requirements:
  - qemu-img 5.2 or later, for qcow2 images
notes:
  - Needs the right to read the images, and root to name the processes that hold them.
  - An image is taken to be in use when QEMU's locks are on it. Programs other than QEMU, and QEMU
    with C(locking=off), take none; network file systems may not show those of other hosts.
seealso:
  - module: thinvirt.kvm.domain_discard
"""

EXAMPLES = r"""
- name: See what the images of a pool occupy, and what a rewrite would save
  thinvirt.kvm.image_info:
    paths: /var/lib/libvirt/images/*.qcow2
  register: pool

- name: Show the images that are worth a rewrite
  ansible.builtin.debug:
    msg: "{{ item.path }}: {{ item.reclaimable_bytes | filesizeformat(true) }}"
  loop: "{{ pool.images }}"
  loop_control:
    label: "{{ item.path }}"
  when: (item.reclaimable_bytes or 0) > 1024 ** 3

- name: Inspect an overlay whose golden image lies elsewhere
  thinvirt.kvm.image_info:
    paths: /var/lib/libvirt/images/web1.qcow2
    allowed_dirs: /srv/golden

- name: Inspect a guest's raw disk, whatever the guest wrote into it
  thinvirt.kvm.image_info:
    paths: /dev/vg0/db1
    format: raw

- name: Look at sizes only, and hold up no domain that starts meanwhile for long
  thinvirt.kvm.image_info:
    paths: /var/lib/libvirt/images/*
    check: false

- name: Fail if an image that no guest uses is damaged
  ansible.builtin.assert:
    that: pool.images | selectattr('check.result', '==', 'corrupt') | length == 0
"""

RETURN = r"""
images:
  description:
    - One entry for each image, in the order of O(paths), those of a glob sorted by name.
    - Also returned when the module fails because of some of them.
  returned: always, unless the parameters are wrong
  type: list
  elements: dict
  contains:
    path:
      description: The name of the image.
      returned: always
      type: str
    error:
      description:
        - Why it could not be inspected. The entry has no other keys then but C(cmd), C(rc) and
          C(stderr).
      returned: when it could not be inspected
      type: str
    cmd:
      description: The command that failed.
      returned: when a program failed
      type: list
      elements: str
    rc:
      description:
        - Its exit status; null when it was ended because it took too long or printed too much.
      returned: when a program failed
      type: int
    stderr:
      description: What it complained, shortened.
      returned: when a program failed
      type: str
    format:
      description: Either V(qcow2) or V(raw).
      returned: success
      type: str
    block_device:
      description: Whether it is a block device instead of a file.
      returned: success
      type: bool
    virtual_size_bytes:
      description: The size of the disk that the guest sees.
      returned: success
      type: int
    allocated_bytes:
      description:
        - Blocks that the file occupies on the host, as C(du) counts; null for a block device.
      returned: success
      type: int
      sample: 523436032
    length_bytes:
      description: The length of the file, as C(ls) shows; the capacity of a block device.
      returned: success
      type: int
      sample: 10739318784
    reclaimable_bytes:
      description:
        - What a rewrite would save at least, estimated without reading the guest's data. Blocks
          that other files share are not counted.
        - For qcow2 it is C(allocated_bytes) less what C(qemu-img measure) requires for a copy with
          the same cluster size. That counts the clusters that are allocated, so this is the space
          of clusters that nothing refers to. Zeros that the guest wrote come on top of it, and
          compression.
        - For a raw file it is the space that is allocated and was never written.
        - Null where nothing was found, as zeros of the guest were not looked for, and where nothing
          can be promised; for an image that is written to, is encrypted, has
          internal snapshots (a rewrite would lose them) or a data file, and for block devices.
      returned: success
      type: int
    holes:
      description: Ranges of the file without data; null for a block device.
      returned: success
      type: dict
      contains:
        count:
          description: The number of holes.
          type: int
        bytes:
          description: Their length together.
          type: int
    file_extents:
      description:
        - The number of pieces that the file system keeps the file in; null where it does not tell.
      returned: success
      type: int
    in_use:
      description:
        - Whether QEMU's locks are on the image; null where the file system has no such locks.
      returned: success
      type: bool
    writer:
      description:
        - Whether one of those who use it may write to it. A shared backing file is in use and not
          written to.
      returned: success
      type: bool
    holders:
      description:
        - The processes that have an image open that is in use, as far as the module may see them.
      returned: success
      type: list
      elements: dict
      contains:
        pid:
          description: The number of the process.
          type: int
        command:
          description: Its name.
          type: str
          sample: qemu-system-x86
        writes:
          description: Whether it has the image open for writing.
          type: bool
    backing_chain:
      description:
        - The backing files, from the image's own downwards. One that is missing or unreadable ends
          the list.
      returned: success
      type: list
      elements: dict
      contains:
        path:
          description: Where it lies.
          type: str
        name:
          description: Its name as it stands in the overlay's header.
          type: str
        declared_format:
          description:
            - The format that the overlay's header names; null when QEMU would probe, which is not
              safe.
          type: str
        format:
          description: The format, as for the image.
          type: str
        virtual_size_bytes:
          description: As for the image.
          type: int
        allocated_bytes:
          description: As for the image.
          type: int
        length_bytes:
          description: As for the image.
          type: int
        error:
          description: Why it could not be read; sizes and C(format) are null then. Otherwise empty.
          type: str
    data_file:
      description: The external data file, which holds the guest's data; null without one.
      returned: success
      type: dict
      contains:
        path:
          description: Where it lies.
          type: str
        allocated_bytes:
          description: As for the image.
          type: int
        length_bytes:
          description: As for the image.
          type: int
    snapshots:
      description: The internal snapshots.
      returned: success
      type: list
      elements: dict
      contains:
        id:
          description: The identifier.
          type: str
        name:
          description: The name.
          type: str
        created:
          description: Seconds since 1970.
          type: int
        vm_state_bytes:
          description: The size of the saved memory.
          type: int
        disk_bytes:
          description: The size of the disk when it was taken; null in old images.
          type: int
    bitmaps:
      description: The persistent dirty bitmaps.
      returned: success
      type: list
      elements: dict
      contains:
        name:
          description: The name.
          type: str
        granularity_bytes:
          description: How much of the disk one bit stands for.
          type: int
        flags:
          description: QEMU's flags, such as V(auto) and V(in-use).
          type: list
          elements: str
    compat:
      description:
        - The version of the format, V(0.10) or V(1.1); null for a raw image, as the following.
      returned: success
      type: str
    cluster_size_bytes:
      description: The size of a cluster.
      returned: success
      type: int
    refcount_bits:
      description: The width of a reference count.
      returned: success
      type: int
    compression_type:
      description: How compressed clusters, if there are any, are compressed; V(zlib) or V(zstd).
      returned: success
      type: str
    features:
      description: The feature bits that are set in the header.
      returned: success
      type: list
      elements: str
      sample: [extended_l2, lazy_refcounts]
    dirty:
      description:
        - Whether the image was not closed properly, or is in use with lazy reference counts.
      returned: success
      type: bool
    corrupt:
      description: Whether QEMU has marked the image as damaged.
      returned: success
      type: bool
    encryption:
      description: Either V(none), V(luks) or the obsolete V(aes).
      returned: success
      type: str
    encrypted:
      description: Whether C(encryption) is not V(none).
      returned: success
      type: bool
    check:
      description: What C(qemu-img check) found; all counts are null when it was skipped.
      returned: success
      type: dict
      contains:
        result:
          description:
            - V(clean), V(leaks) for space that nothing refers to, V(corrupt), or V(skipped).
          type: str
        reason:
          description: Why it was skipped; empty otherwise.
          type: str
        leaks:
          description: Clusters that nothing refers to.
          type: int
        corruptions:
          description: Errors in the tables.
          type: int
        check_errors:
          description: Errors that kept the check itself from looking.
          type: int
        image_end_offset_bytes:
          description: Where the last used cluster ends in the file.
          type: int
    total_clusters:
      description:
        - The clusters of the disk. This and the following are null when the check was skipped.
      returned: success
      type: int
    allocated_clusters:
      description: Clusters with data.
      returned: success
      type: int
    compressed_clusters:
      description: Those that are compressed.
      returned: success
      type: int
    fragmented_clusters:
      description: Those that do not lie behind their predecessor in the file.
      returned: success
      type: int
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.inspect import Options
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.report import (
    expand_paths,
    survey,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._spec import failure_message
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "str", "required": True},
            "format": {"type": "str", "choices": ["auto", "raw", "qcow2"], "default": "auto"},
            "allowed_dirs": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "int", "default": 120},
            "check": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    try:
        options = Options(
            image_format=module.params["format"],
            allowed_dirs=tuple(module.params["allowed_dirs"]),
            timeout=module.params["timeout"],
            check=module.params["check"],
        )
        paths, unmatched = expand_paths(module.params["paths"])
        images, failed = survey(paths, options)
    except ThinvirtError as error:
        module.fail_json(**error.result())
    for pattern in unmatched:
        module.warn(f"Nothing matches {shown(pattern)}.")
    if failed:
        module.fail_json(msg=failure_message("images", failed, of=len(images)), images=images)
    module.exit_json(changed=False, images=images)


if __name__ == "__main__":
    main()
