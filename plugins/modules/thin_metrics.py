#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: thin_metrics
short_description: Have Prometheus know what disks promise, occupy and gave back
version_added: 0.1.0
author: thinvirt.kvm contributors (@thinvirt)
description:
  - Writes a file for the textfile collector of Prometheus' node_exporter, on the hypervisor. It has
    the figures, verdicts and findings of an audit (M(thinvirt.kvm.thin_info)), and what trims and
    compactions freed (M(thinvirt.kvm.domain_trim), M(thinvirt.kvm.domain_compact)).
  - The file is whole at every instant, and readable when it gets its name. On the way there it has
    a name that node_exporter does not read.
  - What earlier trims and compactions freed stays in the file and is added to. Domains that the
    next audit does not have are dropped from it.
  - C(docs/monitoring) of this collection lists the metrics, and has rules for alerts and a
    dashboard for Grafana.
extends_documentation_fragment:
  - thinvirt.kvm.trusted_owners
  - thinvirt.kvm.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: partial
    details:
      - The same O(audit) changes nothing the second time. O(trims) are added to what was freed
        before each time, so give each of them once.
options:
  dest:
    description:
      - The file; an absolute path that ends in C(.prom), in a folder that exists and that
        node_exporter reads. With Debian's packages that is C(/var/lib/prometheus/node-exporter).
      - A file that this module has not written is refused.
    type: path
    required: true
  audit:
    description:
      - What M(thinvirt.kvm.thin_info) returned for all domains of the host. It takes the place of
        the last audit in the file.
      - Also that of a failed call may be given, if it has C(domains). Without it the last audit
        stays as it is.
    type: dict
  trims:
    description:
      - What M(thinvirt.kvm.domain_trim) and M(thinvirt.kvm.domain_compact) returned, one or several
        of them. Failed ones too, since they tell what was freed all the same.
      - Do not give what a task in check mode returned. It freed nothing.
    type: list
    elements: dict
    default: []
  owner:
    description:
      - User that owns the file, by name or number; by default it stays as it is, and a new file
        belongs to who runs the module.
    type: str
  group:
    description: Group of the file, likewise.
    type: str
  mode:
    description: Permissions of the file, an octal number. node_exporter has to be able to read it.
    type: raw
    default: "0644"
seealso:
  - module: thinvirt.kvm.thin_info
  - module: thinvirt.kvm.domain_trim
  - module: thinvirt.kvm.domain_compact
  - name: Metric and label naming
    description: The conventions that the names follow.
    link: https://prometheus.io/docs/practices/naming/
"""

EXAMPLES = r"""
- name: Audit the host
  thinvirt.kvm.thin_info:
  register: audit

- name: Have Prometheus know
  thinvirt.kvm.thin_metrics:
    dest: /var/lib/prometheus/node-exporter/thinvirt.prom
    audit: "{{ audit }}"

- name: Trim
  thinvirt.kvm.domain_trim:
    domains: ['*']
  register: trim

- name: Count what came back, also if some guests could not be trimmed
  thinvirt.kvm.thin_metrics:
    dest: /var/lib/prometheus/node-exporter/thinvirt.prom
    trims: ["{{ trim }}"]
  when: not ansible_check_mode

- name: Let only node_exporter read the names of the domains
  thinvirt.kvm.thin_metrics:
    dest: /var/lib/prometheus/node-exporter/thinvirt.prom
    audit: "{{ audit }}"
    group: prometheus
    mode: "0640"
"""

RETURN = r"""
dest:
  description: The file.
  returned: success
  type: str
  sample: /var/lib/prometheus/node-exporter/thinvirt.prom
samples:
  description: How many samples it has; in check mode, would have.
  returned: success
  type: int
  sample: 73
"""

import os
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.module_utils._metrics import textfile
from ansible_collections.thinvirt.kvm.plugins.module_utils._spec import trusted_owners_spec
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.trust import (
    refuse_exchangeable,
    trust,
)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "dest": {"type": "path", "required": True},
            "audit": {"type": "dict"},
            "trims": {"type": "list", "elements": "dict", "default": []},
            "owner": {"type": "str"},
            "group": {"type": "str"},
            "mode": {"type": "raw", "default": "0644"},
            **trusted_owners_spec(),
        },
        supports_check_mode=True,
    )
    dest = module.params["dest"]
    if not os.path.isabs(dest) or not dest.endswith(".prom"):
        module.fail_json(msg=f"dest must be an absolute path that ends in .prom, not {dest}.")
    try:
        trust(module.params["trusted_owners"])
        refuse_exchangeable(os.path.dirname(dest))
        with textfile.one_at_a_time(os.path.dirname(dest)):
            before = textfile.read_file(dest)
            wanted = textfile.TextFile(
                text=textfile.text_after(
                    dest,
                    before.text if before else "",
                    audit=module.params["audit"],
                    trims=module.params["trims"],
                    now=int(time.time()),
                ),
                attributes=textfile.attributes_after(
                    before,
                    mode=module.params["mode"],
                    owner=module.params["owner"],
                    group=module.params["group"],
                ),
            )
            if wanted != before and not module.check_mode:
                textfile.write_file(dest, wanted)
    except ThinvirtError as error:
        module.fail_json(**error.result())
    module.exit_json(
        changed=wanted != before,
        dest=dest,
        samples=wanted.samples,
        diff=textfile.diff(dest, before, wanted),
    )


if __name__ == "__main__":
    main()
