#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_convert
short_description: Copy disk images elsewhere, small, verified, and only when they have changed
version_added: 0.1.0
author: thinvirt.kvm contributors (@thinvirt)
description:
  - Copies an image that is not in use to another name and form, for backup or for a change of
    format. By default the copy is sparse and compressed.
  - The copy gets its name only after its whole content was compared with the image and is on the
    disk. A copy that was there before keeps the name until then.
  - A note beside the copy, C(COPY.thinvirt.json), says of what it is a copy. As long as the image
    and the options are the same, a second run copies nothing.
  - The copy is whole. Backing files and an external data file are taken in. Internal snapshots and
    bitmaps of the image are not in the copy.
  - With O(paths) and O(dest_dir), many images are copied in one call, each to a new version when it
    has changed, and O(keep) versions stay.
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
    details:
      - Not with O(force), and not for a block device, which does not tell whether it was written
        to.
options:
  src:
    description: The image to copy; an absolute path.
    type: path
  dest:
    description:
      - The name of the copy; an absolute path in a folder that exists.
      - A file that this module did not make, or that was changed since, is refused unless O(force).
    type: path
  paths:
    description:
      - The images to copy, instead of O(src); absolute names, or globs.
    type: list
    elements: str
  dest_dir:
    description:
      - The folder for the copies of O(paths). They are called C(NAME-TIME.FORMAT), such as
        C(web1-20261124T204455Z.qcow2), where NAME is that of the image without its extension,
        or as O(names) says.
    type: path
  names:
    description:
      - How the copies of an image are called, by its path, where its own name would not do, such as
        C(/vms/web1/disk.qcow2) and C(/vms/web2/disk.qcow2).
      - With another name, versions under an earlier one are no longer counted, nor removed.
    type: dict
    default: {}
  keep:
    description:
      - How many versions of each image stay in O(dest_dir); V(0) for all.
      - Only versions are removed that this module has made of the same image, and that nobody has
        changed since.
    type: int
    default: 0
  src_format:
    description:
      - The format of the images, where it is known.
      - With V(auto), a file that begins with qcow2's magic number is taken for qcow2, and any other
        for raw.
      - The guest of a raw disk can write that number. With V(auto), an image that names a backing
        or data file is therefore refused, as is a container of another format, such as VDI, VMDK
        or VHDX.
    type: str
    choices: [auto, raw, qcow2]
    default: auto
  format:
    description: The format of the copies.
    type: str
    choices: [qcow2, raw]
    default: qcow2
  compression:
    description:
      - How the clusters of a qcow2 copy are compressed.
      - By default V(zstd) where QEMU has it (from 5.1 on, and if it was built with it), otherwise
        V(zlib); V(none) with O(preallocation).
    type: str
    choices: [none, zlib, zstd]
  cluster_size_bytes:
    description:
      - Cluster size of a qcow2 copy. By default 2 MiB if it is compressed, which suits archives,
        otherwise 64 KiB.
    type: int
  preallocation:
    description: Preallocation of the copy; not with O(compression).
    type: str
    choices: ["off", metadata, falloc, full]
    default: "off"
  sparse:
    description: Leave out zeros. With V(false) they are written.
    type: bool
    default: true
  allowed_dirs:
    description:
      - Folders, with all that is below them, where backing and data files may lie besides the
        folder of the image itself.
    type: list
    elements: str
    default: []
  min_free_bytes:
    description:
      - What the copy must leave free on its file system. It is watched while the copy is written.
    type: int
    default: 1073741824
  force:
    description: Copy even if the copy is up to date, and over a file that this module did not make.
    type: bool
    default: false
  timeout:
    description: Seconds for one image.
    type: int
    default: 21600
extends_documentation_fragment:
  - ansible.builtin.files
  - thinvirt.kvm.trusted_owners
  - thinvirt.kvm.trusted_owners.journals
  - thinvirt.kvm.attributes
requirements:
  - qemu-img 5.2 or later
notes:
  - Owner, group and mode of the copy are those of the image unless they are given.
seealso:
  - module: thinvirt.kvm.image_compact
"""

EXAMPLES = r"""
- name: Keep a small copy of a template
  thinvirt.kvm.image_convert:
    src: /var/lib/libvirt/images/debian12.qcow2
    dest: /srv/archive/debian12.qcow2
    mode: "0640"

- name: Back up the images of a pool whose domains are shut off, and keep the last four versions
  thinvirt.kvm.image_convert:
    paths: /var/lib/libvirt/images/*.qcow2
    dest_dir: /srv/backup
    keep: 4

- name: Copy images that are all called disk.qcow2
  thinvirt.kvm.image_convert:
    paths: [/vms/web1/disk.qcow2, /vms/web2/disk.qcow2]
    dest_dir: /srv/backup
    names:
      /vms/web1/disk.qcow2: web1
      /vms/web2/disk.qcow2: web2

- name: Make a raw, preallocated disk for a database from an overlay and its golden image
  thinvirt.kvm.image_convert:
    src: /var/lib/libvirt/images/db1.qcow2
    dest: /srv/fast/db1.raw
    format: raw
    preallocation: falloc
    allowed_dirs: [/srv/golden]
"""

RETURN = r"""
summary:
  description: One line per image, for people.
  returned: always
  type: list
  elements: str
  sample: ["/srv/web1.qcow2: copied to /backup/web1.qcow2, 325.1 MiB. There was no copy."]
images:
  description: One entry for each image, in the order in which they were named.
  returned: always, unless the parameters are wrong
  type: list
  elements: dict
  contains:
    src:
      description: The image.
      type: str
    dest:
      description: The copy.
      type: str
      returned: success
    changed:
      description: Whether it was (in check mode, would be) copied, or old versions removed.
      type: bool
      returned: success
    reason:
      description: Why it was copied, or why not.
      type: str
      returned: success
    virtual_size_bytes:
      description: The size of the disk that the guest sees.
      type: int
      returned: success
    source:
      description: What the image takes, without its backing files.
      type: dict
      returned: success
      sample: {allocated_bytes: 523436032, length_bytes: 10739318784}
    target:
      description: What the copy takes; V(null) if it is only to be made (check mode).
      type: dict
      returned: success
      sample: {allocated_bytes: 340787200, length_bytes: 341180416}
    options:
      description: What the copy was made with; V(null) if it is only to be made (check mode).
      type: dict
      returned: success
      sample: {format: qcow2, compression_type: zstd, cluster_size: "2097152", sparse: true}
    compared:
      description: Whether the whole content was compared with the image in this run.
      type: bool
      returned: success
    recovered:
      description: What a killed run had left, and what was done about it; empty if nothing.
      type: str
      returned: success
    removed:
      description: Old versions that were (in check mode, would be) removed.
      type: list
      elements: str
      returned: success
    seconds:
      description: Time by stage.
      type: dict
      returned: success
    error:
      description: Why it was not copied.
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

import os
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ReportedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import convert, versions
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.inspect import Options
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.report import expand_paths
from ansible_collections.thinvirt.kvm.plugins.module_utils._signals import signals_raise
from ansible_collections.thinvirt.kvm.plugins.module_utils._spec import (
    failure_message,
    trusted_owners_spec,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import encodable, shown
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.trust import trust


def _request(params: dict[str, t.Any]) -> convert.Request:
    """The request that the parameters mean; folders and time limit as for an inspection."""
    options = Options(
        image_format=params["src_format"],
        allowed_dirs=tuple(params["allowed_dirs"]),
        timeout=params["timeout"],
    )
    same = (
        *("src_format", "format", "compression", "cluster_size_bytes", "preallocation"),
        *("sparse", "force", "min_free_bytes", "timeout"),
    )
    return convert.Request(
        allowed_dirs=options.allowed_dirs, **{name: params[name] for name in same}
    )


def _copy(module: AnsibleModule) -> list[versions.Copied]:
    params = module.params
    request = _request(params)
    common: dict[str, t.Any] = {"check_mode": module.check_mode, "log": module.log}
    if params["src"]:
        return [versions.copy_one(params["src"], params["dest"], request, **common)]
    paths, unmatched = expand_paths(params["paths"])
    for pattern in unmatched:
        module.warn(f"Nothing matches {shown(pattern)}.")
    folder = convert.checked_folder(params["dest_dir"])
    names = {str(path): str(name) for path, name in params["names"].items()}
    return versions.copy_versions(
        paths, folder, request, keep=params["keep"], names=names, **common
    )


def _set_attributes(module: AnsibleModule, dest: str, answer: dict[str, t.Any]) -> None:
    """Give a copy the owner, group and mode that were asked for; in check mode, tell."""
    diff: dict[str, t.Any] = {}
    attributes = module.load_file_common_arguments({**module.params, "path": dest}, path=dest)
    changed = module.set_fs_attributes_if_different(attributes, False, diff=diff)
    answer["changed"] = answer["changed"] or changed
    for side in diff.keys() & {"before", "after"}:
        answer["diff"][side].setdefault("attributes", {})[encodable(dest)] = diff[side]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "src": {"type": "path"},
            "dest": {"type": "path"},
            "paths": {"type": "list", "elements": "str"},
            "dest_dir": {"type": "path"},
            "names": {"type": "dict", "default": {}},
            "keep": {"type": "int", "default": 0},
            "src_format": {"type": "str", "choices": ["auto", "raw", "qcow2"], "default": "auto"},
            "format": {"type": "str", "choices": ["qcow2", "raw"], "default": "qcow2"},
            "compression": {"type": "str", "choices": ["none", "zlib", "zstd"]},
            "cluster_size_bytes": {"type": "int"},
            "preallocation": {
                "type": "str",
                "choices": ["off", "metadata", "falloc", "full"],
                "default": "off",
            },
            "sparse": {"type": "bool", "default": True},
            "allowed_dirs": {"type": "list", "elements": "str", "default": []},
            "min_free_bytes": {"type": "int", "default": 1 << 30},
            "force": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 21600},
            **trusted_owners_spec(),
        },
        add_file_common_args=True,
        mutually_exclusive=[("src", "paths"), ("dest", "dest_dir")],
        required_one_of=[("src", "paths")],
        required_together=[("src", "dest"), ("paths", "dest_dir")],
        supports_check_mode=True,
    )
    if module.params["keep"] < 0:
        module.fail_json(msg="keep must be at least 0.")
    try:
        trust(module.params["trusted_owners"])
        with signals_raise():
            copies = _copy(module)
    except ReportedError as error:
        module.fail_json(**error.result())
    answer = versions.result(copies, check_mode=module.check_mode)
    for copied in copies:
        if copied.outcome is not None and os.path.exists(copied.outcome.dest):
            _set_attributes(module, copied.outcome.dest, answer)
    failed = [(shown(copied.src), copied.error) for copied in copies if copied.error]
    if failed:
        module.fail_json(msg=failure_message("images", failed, of=len(copies)), **answer)
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
