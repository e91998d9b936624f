# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later

# What it does is in plugins/action/thin_report.py: it runs on the controller.

from __future__ import annotations

DOCUMENTATION = r"""
module: thin_report
short_description: Write a report of a fleet as an HTML page, JSON and CSV
version_added: 0.2.0
author: thinvirt.kvm contributors (@thinvirt)
description:
  - Makes one report of what M(thinvirt.kvm.thin_info) has returned for each host; what is promised,
    allocated and really used, which disks are worth reclaiming first, what was found with its
    remedy, and how free space went since earlier reports.
  - The page is one file that loads nothing. It opens from a folder, in dark and light, on a phone
    and on paper, and its policy forbids the browser any connection. Its tables can be searched and
    sorted.
  - A host that could not be read is named at the top of the page, and its figures are missing from
    the sums. So is one whose result has not the shape that M(thinvirt.kvm.thin_info) gives it.
  - The report has no time but that of the audits. Made anew of the same results it is the same,
    byte by byte, and nothing is written.
  - Runs on the controller, as the user who runs Ansible, and opens no connection to the host of the
    task. Have it run once, not for each host.
extends_documentation_fragment:
  - thinvirt.kvm.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details:
      - Names the files, their sizes and checksums, not their content.
  idempotent:
    support: full
options:
  hosts:
    description:
      - The results of M(thinvirt.kvm.thin_info), by the names of the hosts.
      - A host that could not be reached or audited belongs here as well, with the result that says
        so (C(unreachable) or C(failed), and C(msg)).
    type: dict
    required: true
  dest_dir:
    description:
      - The folder on the controller, absolute. It is made if it is missing; the folder above it has
        to exist.
      - Files in it that the report does not write are left alone, also those of formats that are
        not asked for any more.
    type: path
    required: true
  formats:
    description:
      - V(html) writes C(report.html).
      - V(json) writes C(report.json), and beside it its schema, C(report.schema.json).
      - V(csv) writes C(hosts.csv), C(domains.csv), C(disks.csv), C(file_systems.csv),
        C(pools.csv), C(findings.csv) and C(work.csv). Cells that a spreadsheet would take for a
        formula begin with an apostrophe.
    type: list
    elements: str
    choices: [html, json, csv]
    default: [html, json, csv]
  history:
    description:
      - Earlier C(report.json) files on the controller, or folders with such files in them. Other
        JSON in a folder is passed over, and so is what does not exist. A file that can't be read is
        a warning.
      - A report hands on the history that it was made with, 366 audits of each file system at most.
        So the report that is about to be replaced suffices.
    type: list
    elements: path
    default: []
  work:
    description:
      - What was done on the hosts before; by their names a dictionary that holds the result of
        M(thinvirt.kvm.domain_trim) as C(trim) and that of M(thinvirt.kvm.domain_compact) as
        C(compact), either of which may be missing. Results that failed belong here as well.
      - The report tells what came back, and what failed, why, and the remedy.
    type: dict
    default: {}
    version_added: 0.2.0
  title:
    description:
      - Title of the page.
    type: str
    default: Disk space of KVM guests
  mode:
    description:
      - Mode of the files, an octal number in quotes. A report tells the names of all guests and
        where their disks lie.
      - A folder that is made gets the same, and may be entered by those who may read.
    type: str
    default: "0640"
  owner:
    description:
      - Name of the user that the files are to belong to. By default files that are written belong
        to the user who runs Ansible.
    type: str
  group:
    description:
      - Name of the group that the files are to belong to, with O(mode) those who may read them.
    type: str
requirements:
  - vl-convert-python 1.9 or later on the controller, for V(html)
seealso:
  - module: thinvirt.kvm.thin_info
"""

EXAMPLES = r"""
- name: Audit each host, and go on without those that fail
  thinvirt.kvm.thin_info:
  register: audit
  ignore_errors: true
  ignore_unreachable: true

- name: Write one report of all hosts, with the history of the one that it replaces
  thinvirt.kvm.thin_report:
    hosts: "{{ dict(ansible_play_hosts_all | zip(ansible_play_hosts_all
      | map('extract', hostvars) | map(attribute='audit', default={}))) }}"
    dest_dir: /srv/reports/kvm
    history: [/srv/reports/kvm/report.json]
  run_once: true

- name: Publish the page on a web server that runs on the controller
  thinvirt.kvm.thin_report:
    hosts: "{{ audits }}"
    dest_dir: /var/www/kvm
    formats: html
    title: Disk space, Hamburg
    mode: "0640"
    group: www-data
  run_once: true

- name: Write JSON only, and tell how much could come back
  thinvirt.kvm.thin_report:
    hosts: "{{ audits }}"
    dest_dir: /srv/reports/kvm
    formats: json
  run_once: true
  register: report

- name: Fail if a host could not be read
  ansible.builtin.assert:
    that: report.unread | length == 0
    fail_msg: "Not read: {{ report.unread | map(attribute='host') | join(', ') }}"
  run_once: true
"""

RETURN = r"""
files:
  description: The files of the report.
  returned: success
  type: list
  elements: dict
  contains:
    path:
      description: Its name.
      type: str
      sample: /srv/reports/kvm/report.html
    size_bytes:
      description: Its length.
      type: int
    changed:
      description: Whether it was written, or its owner or mode was changed.
      type: bool
taken_at:
  description: When the last of the hosts was audited; V(null) if none was.
  returned: success
  type: str
  sample: "2026-11-25T04:00:00Z"
summary:
  description:
    - The figures of the whole fleet, as in C(report.json) and its schema, among them C(hosts),
      C(hosts_unread), C(disks), C(disks_broken), C(promised_bytes), C(allocated_bytes),
      C(guest_used_bytes), C(reclaimable_bytes) and C(findings_error), and with O(work)
      C(freed_bytes) and C(work_failed).
  returned: success
  type: dict
unread:
  description: Hosts that could not be read, or not all of them.
  returned: success
  type: list
  elements: dict
  contains:
    host:
      description: Its name.
      type: str
    status:
      description: One of V(unreachable), V(failed) and V(partly).
      type: str
    msg:
      description: Why.
      type: str
"""
