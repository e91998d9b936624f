# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: thin_junit
short_description: Write an audit as JUnit XML, for CI systems
version_added: 0.1.0
author: thinvirt.kvm contributors (@thinvirt)
description:
  - Takes what M(thinvirt.kvm.thin_info) returned on one or many hosts, and returns the content of a
    file that Jenkins, GitLab and others show as test results.
  - Each host is a test suite, each of its domains and disks a test case. A case fails for findings
    of the severity O(fail_on) or worse; other findings are its output. What could not be read is an
    error.
options:
  _input:
    description:
      - Results of M(thinvirt.kvm.thin_info) by the names of the hosts. A host that could not be
        read has what Ansible returned for it, with C(msg).
    type: dict
    required: true
  fail_on:
    description: The least severity that counts.
    type: str
    choices: [error, warning, never]
    default: warning
seealso:
  - plugin: thinvirt.kvm.thin_drift
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Write the file of one host on the controller
  ansible.builtin.copy:
    dest: "{{ inventory_hostname }}.xml"
    content: "{{ {inventory_hostname: audit} | thinvirt.kvm.thin_junit(fail_on='error') }}"
    mode: "0644"
  delegate_to: localhost
"""

RETURN = r"""
_value:
  description: The content of the file.
  type: str
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._drift import junit


def thin_junit(hosts: t.Mapping[str, t.Any], fail_on: str = "warning") -> str:
    try:
        return junit.text(hosts, fail_on=fail_on)
    except ThinvirtError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """Ansible's way to name filters."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"thin_junit": thin_junit}
