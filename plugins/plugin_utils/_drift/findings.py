# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an audit of many hosts found that a run is to fail for (pure).

Findings of hosts are foreign text: they come out on one line, and sure to be printable.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.module_utils._findings import SEVERITIES
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown

Entry = t.Mapping[str, t.Any]
NEVER = "never"
#: What a finding may be that a run fails for, and ``never``.
CHOICES = ("error", "warning", NEVER)


@dataclasses.dataclass(frozen=True, order=True)
class Row:
    """A finding of a fleet.

    :param rank: 0 for the worst; what could not be read comes before all findings.
    :param id: a finding's stable id; ``host-not-read`` or ``domain-not-read`` for what we know
        nothing of.
    """

    rank: int
    host: str
    domain: str
    disk: str
    id: str
    severity: str
    reason: str
    remedy: str

    @property
    def where(self) -> str:
        return "/".join(part for part in (self.host, self.domain, self.disk) if part)

    def line(self) -> str:
        """For people."""
        text = f"{self.where}: {self.severity} {self.id}. {self.reason} {self.remedy}"
        # Answers of hosts may hold code points that UTF-8 does not know.
        return shown(text.rstrip().encode("utf-8", "backslashreplace").decode("utf-8"))


def rows(hosts: t.Mapping[str, t.Any]) -> list[Row]:
    """All findings of all hosts, the worst first.

    :param hosts: what ``thin_info`` returned, by the names of the hosts.
    :raises ThinvirtError: a result is something else.
    """
    found: set[Row] = set()
    for host, result in hosts.items():
        try:
            found.update(_of_host(str(host), result))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ThinvirtError(
                f"The result of {shown(str(host))} is not one of thinvirt.kvm.thin_info: {error!r}."
            ) from error
    return sorted(found)


def failing(rows: t.Iterable[Row], fail_on: str) -> list[Row]:
    """Those that a run fails for.

    What could not be read is among them in any case: it may have everything wrong with it.

    :param fail_on: one of :data:`CHOICES`.
    :raises ThinvirtError: it is none.
    """
    if fail_on not in CHOICES:
        raise ThinvirtError(f"fail_on must be one of {', '.join(CHOICES)}, not {shown(fail_on)}.")
    worst = 0 if fail_on == NEVER else _rank(fail_on)
    return [row for row in rows if row.rank <= worst]


def _rank(severity: str) -> int:
    return len(SEVERITIES) - SEVERITIES.index(severity)


def _of_host(host: str, result: Entry) -> t.Iterator[Row]:
    if "domains" not in result:
        yield _not_read(host, "", result.get("msg") or "It was not audited.")
        return
    errors = [domain for domain in result["domains"] if "error" in domain]
    for domain in errors:
        yield _not_read(host, domain["name"], domain["error"]["msg"])
    if result.get("failed") and not errors:
        yield _not_read(host, "", result["msg"])
    # Those of domains stand in both places, in results that have the second.
    everywhere = [
        *result.get("findings", ()),
        *(finding for domain in result["domains"] for finding in domain.get("findings", ())),
    ]
    for finding in everywhere:
        severity = finding["severity"]
        about = {key: str(finding[key]) for key in ("domain", "disk", "id", "reason", "remedy")}
        yield Row(rank=_rank(severity), host=host, severity=severity, **about)


def _not_read(host: str, domain: str, reason: str) -> Row:
    return Row(
        rank=0,
        host=host,
        domain=domain,
        disk="",
        id="domain-not-read" if domain else "host-not-read",
        severity="error",
        reason=str(reason),
        remedy="",
    )
