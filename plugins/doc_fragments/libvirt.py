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
