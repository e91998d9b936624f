# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: thin_earlier
short_description: Read from earlier reports how much file systems had free
version_added: 0.1.0
author: thinvirt.kvm contributors (@thinvirt)
description:
  - Reads C(report.json) files of M(thinvirt.kvm.thin_report) on the controller, for the option
    C(earlier) of M(thinvirt.kvm.thin_info), which foretells from it when a file system will be
    full.
  - What does not exist is passed over. What can't be read is a warning.
options:
  _terms:
    description: The reports, or folders with such files, of which the newest are read.
    type: list
    elements: str
    required: true
  newest:
    description:
      - How many files of a folder are read, those that come last by their names. A report has the
        figures of earlier ones in it, so a few suffice.
    type: int
    default: 3
"""

EXAMPLES = r"""
- name: Audit, and see when it will be full
  thinvirt.kvm.thin_info:
    earlier: "{{ earlier[inventory_hostname] | default([]) }}"
  vars:
    earlier: "{{ lookup('thinvirt.kvm.thin_earlier', '/srv/reports/kvm') }}"
"""

RETURN = r"""
_raw:
  description:
    - One dictionary, from the names of the hosts to their figures, the oldest first.
  type: list
  elements: dict
"""

import typing as t

from ansible.plugins.lookup import LookupBase
from ansible.utils.display import Display
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._drift import earlier, old_reports


class LookupModule(LookupBase):  # type: ignore[misc] # ansible-core has no types
    """Ansible's name for a lookup."""

    def run(
        self, terms: list[str], variables: t.Any | None = None, **kwargs: t.Any
    ) -> list[dict[str, list[dict[str, t.Any]]]]:
        self.set_options(var_options=variables, direct=kwargs)
        reports, unreadable = old_reports.read(terms, newest=self.get_option("newest"))
        for line in unreadable:
            Display().warning(line)
        return [earlier.by_host(reports)]
