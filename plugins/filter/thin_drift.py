# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: thin_drift
short_description: Name what a check of hosts is to fail for, the worst first
version_added: 0.1.0
author: thinvirt.kvm contributors (@thinvirt)
description:
  - Takes what M(thinvirt.kvm.thin_info) returned on one or many hosts, and returns the findings
    that are bad enough.
  - Hosts and domains that could not be read come first, and are there whatever O(fail_on) says,
    since everything may be wrong with them.
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
  - plugin: thinvirt.kvm.thin_junit
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Fail a check of one host, with a line for each reason
  ansible.builtin.assert:
    that: drift | length == 0
    fail_msg: "{{ drift | map(attribute='line') | join('\n') }}"
  vars:
    drift: "{{ {inventory_hostname: audit} | thinvirt.kvm.thin_drift(fail_on='error') }}"
"""

RETURN = r"""
_value:
  description:
    - A dictionary for each finding, with C(host), C(domain), C(disk), C(id), C(severity),
      C(reason), C(remedy), and C(line) for people, which has all of them and is printable.
    - C(id) is C(host-not-read) or C(domain-not-read) for what could not be read.
  type: list
  elements: dict
"""

import dataclasses
import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._drift import findings


def thin_drift(hosts: t.Mapping[str, t.Any], fail_on: str = "warning") -> list[dict[str, t.Any]]:
    try:
        failing = findings.failing(findings.rows(hosts), fail_on)
    except ThinvirtError as error:
        raise AnsibleFilterError(str(error)) from error
    return [{**dataclasses.asdict(row), "line": row.line()} for row in failing]


class FilterModule:
    """Ansible's way to name filters."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"thin_drift": thin_drift}
