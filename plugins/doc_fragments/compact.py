# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation that the modules share which compact images."""

from __future__ import annotations


class ModuleDocFragment:
    """The options of ``compact_spec()`` in ``module_utils/_spec.py``."""

    DOCUMENTATION = r"""
options:
  method:
    description:
      - V(punch) turns zeros into holes in place, in raw and qcow2 files, and blocks that are
        allocated and were never written. The content is the same at every instant, nothing is
        copied, no space is needed, and snapshots, bitmaps, the backing chain and all features stay.
        So it is allowed where V(rewrite) is refused.
      - V(rewrite) makes a verified copy beside the image and gives it the name. It also drops
        clusters that nothing refers to, shortens the file and defragments it, and keeps all
        features. It needs space for the copy.
      - V(trim) has C(virt-sparsify --in-place) trim the file systems in the image. It frees what is
        not zeros too, has no way back, and so needs O(accept_no_rollback).
      - V(auto) punches if the zeros are worth it, otherwise rewrites if that is worth it and
        allowed. If the image is to get another form, such as another compression, it only rewrites.
    type: str
    choices: [auto, punch, rewrite, trim]
    default: auto
  min_reclaim_bytes:
    description:
      - Do something from so many bytes on. An image is left alone when it could give back less than
        this and less than O(min_reclaim_percent).
    type: int
    default: 1073741824
  min_reclaim_percent:
    description: Do something from this share of the allocated bytes on.
    type: int
    default: 10
  min_free_bytes:
    description: What a copy must leave free on the file system.
    type: int
    default: 1073741824
  cluster_size_bytes:
    description: Cluster size of the rewritten image; by default as it is.
    type: int
  compression:
    description:
      - Compression of the rewritten image; by default as it is. Compressed clusters are read only
        as a whole, and a guest that writes to them writes new ones.
      - An image whose data can't be compressed by as much as is worth it is left as it is.
    type: str
    choices: [none, zlib, zstd]
  preallocation:
    description:
      - Preallocation of the rewritten image. By default it is sparse, and an image that was
        preallocated on purpose is refused. V(off) consents to make it sparse.
    type: str
    choices: ["off", metadata, falloc, full]
  flatten:
    description: Take the backing files into the rewritten image, instead of refusing an overlay.
    type: bool
    default: false
  allowed_dirs:
    description:
      - Folders, with all that is below them, where backing files may lie besides the folder of the
        image itself, for O(flatten).
    type: list
    elements: str
    default: []
  keep_original:
    description:
      - Keep the original beside a rewritten image, as C(NAME.thinvirt-original). If there is one
        already, the image is refused.
    type: bool
    default: false
  force:
    description:
      - Rewrite the image even if that gives nothing back, to have a file in many pieces written
        anew. What must not be rewritten is refused all the same. Every run rewrites it again.
      - Not with O(method=punch) and O(method=trim).
    type: bool
    default: false
  accept_no_rollback:
    description: Consent to O(method=trim), which changes the file systems in the image in place.
    type: bool
    default: false
  accept_unsharing:
    description:
      - Consent to rewrite an image that shares blocks with other files, by reflinks or by snapshots
        of the file system, even though the host is fuller afterwards. The copy shares nothing.
      - Otherwise such an image is refused, with what that would cost. V(punch) leaves it shared and
        frees only what nobody else has.
    type: bool
    default: false
    version_added: 0.1.0
  timeout:
    description: Seconds for one image.
    type: int
    default: 21600
"""
