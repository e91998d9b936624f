# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: windows_plan
short_description: Decide what the role windows_guest changes in a Windows guest
version_added: 0.2.0
author: thinvirt.kvm contributors (@thinvirt)
description:
  - Compares the state that C(files/state.ps1) of the role C(windows_guest) prints with what is
    wanted. Nothing is done in the guest.
  - It is made for that role; its result may change with any version.
options:
  _input:
    description: What the script printed, a JSON object.
    type: str
    required: true
  domain:
    description: Name of the guest's domain, for the findings.
    type: str
    required: true
  agent:
    description: Whether the guest agent is to be installed and running.
    type: bool
    default: true
  agent_msi:
    description: The agent's installer, if not the one on the virtio-win ISO.
    type: str
    default: ""
  fast_startup_off:
    description: Whether fast startup is to be off.
    type: bool
    default: false
  virtio_win:
    description: V(N) of the oldest release virtio-win 0.1.N that is not worth a finding.
    type: int
    default: 0
"""

EXAMPLES = r"""
- name: See what the role would do with a state that was read by hand
  ansible.builtin.debug:
    msg: "{{ lookup('file', 'state.json') | thinvirt.kvm.windows_plan(domain='desk') }}"
"""

RETURN = r"""
_value:
  description:
    - What differs from what is wanted (C(changes) in words, and a key for each task of the role),
      C(findings), and what was read in lines for people (C(summary)).
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._windows import plan, state


def windows_plan(printed: str, **wanted: t.Any) -> dict[str, t.Any]:
    try:
        return plan.plan(state.parse_state(printed), plan.Wanted(**wanted)).result()
    except ThinvirtError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """Ansible's way to name filters."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"windows_plan": windows_plan}
