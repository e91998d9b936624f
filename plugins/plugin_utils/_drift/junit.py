# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""An audit in the JUnit format, which CI systems show as tests (pure).

Each host is a test suite, each domain and each disk a test case, and what a run fails for is its
failure.  Only what Jenkins' schema (junit-10.xsd of its xUnit plugin) knows is written; GitLab and
the others read the same.  Made with the standard library: a file of four elements is no reason to
ask for another package on every controller.
"""

from __future__ import annotations

import re
import typing as t
from xml.etree import ElementTree as ET

from ansible_collections.thinvirt.kvm.plugins.plugin_utils._drift.findings import (
    Row,
    failing,
    rows,
)

Entry = t.Mapping[str, t.Any]
#: What XML 1.0 has no way to write, not even escaped; names may hold all of them.
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
#: Of a case that is the domain or the host as a whole, and not one of its disks.
_WHOLE = "configuration"


def text(hosts: t.Mapping[str, t.Any], *, fail_on: str) -> str:
    """The file's content.

    :param hosts: what ``thin_info`` returned, by the names of the hosts.
    :param fail_on: findings from this severity on are failures; the others are told as output.
    :raises ThinvirtError: a result is something else, or there is no such severity.
    """
    root = ET.Element("testsuites", name="thinvirt.kvm.audit")
    for host in sorted(hosts, key=str):
        found = rows({host: hosts[host]})
        root.append(_suite(str(host), hosts[host], found, failing(found, fail_on)))
    for total in ("tests", "failures", "errors"):
        root.set(total, str(sum(int(suite.get(total, "0")) for suite in root)))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _suite(host: str, result: Entry, found: list[Row], failed: list[Row]) -> ET.Element:
    name = _xml(host)
    suite = ET.Element("testsuite", name=name, hostname=name)
    if result.get("taken_at"):
        suite.set("timestamp", _xml(str(result["taken_at"]).removesuffix("Z")))
    for domain, disk in _cases(result):
        about = [row for row in found if (row.domain, row.disk) == (domain, disk)]
        suite.append(_case(host, domain, disk, about, failed))
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("errors", str(len(suite.findall("testcase/error"))))
    suite.set("skipped", "0")
    return suite


def _cases(result: Entry) -> t.Iterator[tuple[str, str]]:
    """Domain and disk of each case; the first is the host itself, with its storage."""
    yield "", ""
    for domain in result.get("domains", ()):
        name = str(domain["name"])
        yield name, ""
        for disk in domain.get("disks", ()):
            yield name, str(disk["target"])


def _case(host: str, domain: str, disk: str, about: list[Row], failed: list[Row]) -> ET.Element:
    classname = ".".join(part for part in (host, domain) if part)
    case = ET.Element("testcase", classname=_xml(classname), name=_xml(disk) or _WHOLE)
    bad = [row for row in about if row in failed]
    if bad:
        # One element: what reads these files shows the first only.
        worst = bad[0]
        kind = "failure" if worst.rank else "error"
        summary = _xml(f"{worst.id}: {worst.reason}")
        failure = ET.SubElement(case, kind, type=_xml(worst.id), message=summary)
        failure.text = "\n".join(_xml(row.line()) for row in bad)
    others = [row for row in about if row not in bad]
    if others:
        ET.SubElement(case, "system-out").text = "\n".join(_xml(row.line()) for row in others)
    return case


def _xml(value: str) -> str:
    """The text with what XML can't hold written as Python would."""
    return _NOT_IN_XML.sub(lambda match: f"\\x{ord(match[0]):02x}", value)
