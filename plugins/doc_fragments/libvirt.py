# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation that the libvirt modules share."""

from __future__ import annotations


class ModuleDocFragment:
    """The options of ``module_utils/_spec.py``."""

    DOCUMENTATION = r"""
options:
  uri:
    description:
      - URI of the libvirt daemon.
      - The module runs on the hypervisor itself, so this is a local URI.
        One that leads to another machine is refused where image files have to be read.
    type: str
    default: qemu:///system
requirements:
  - libvirt 7.0 or later and QEMU 5.2 or later
  - python3-libvirt
  - python3-lxml
"""

    DOMAINS_REQUIRED = r"""
options:
  domains:
    description:
      - The domains to work on; names, globs such as V(web*), or UUIDs.
      - A name or UUID that does not exist is an error, a glob may match nothing.
    type: list
    elements: str
    required: true
"""

    DOMAINS_DEFAULT_ALL = r"""
options:
  domains:
    description:
      - The domains to look at; names, globs such as V(web*), or UUIDs.
      - A name or UUID that does not exist is an error, a glob may match nothing.
    type: list
    elements: str
    default: ['*']
"""

    STATE_DIR = r"""
options:
  state_dir:
    description:
      - Folder on the hypervisor where old configurations are kept; an absolute path. It is made
        when it is needed, for its owner alone.
      - The configuration is kept as C(virsh dumpxml --inactive --security-info) prints it,
        passwords included, in files of mode 0600. The last one of each module and domain stays
        there until it is restored, or the next one takes its place. They may be removed by hand,
        the C(.json) file with them.
    type: path
    default: /var/lib/thinvirt
  force:
    description:
      - With O(state=restored), bring the old configuration back even if the domain's configuration
        was changed again since; that change is lost then.
    type: bool
    default: false
"""
