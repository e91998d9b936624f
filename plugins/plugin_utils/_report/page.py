# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""report.html: one file that loads nothing.

The template escapes whatever it shows.  The style sheet, the script and the plots, which are our
own, are the only markup that is set in as it is; the page's policy allows the browser no other
script or style, and no address at all.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import os
import typing as t

import jinja2
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report import (
    charts,
    drawing,
    tables,
    units,
)
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report.document import Document
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report.model import VERDICTS
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report.work import STATUSES
from markupsafe import Markup

_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "web")
_WORTH_ROWS = 10
#: Plots have their text in pixels: they are drawn for desks, for tablets and paper, and for phones.
_WIDTHS = {"wide": 1180, "middle": 620, "narrow": 320}
_TREND_WIDTH = 310
_ESTIMATES = {
    "guest": "what the guest uses",
    "measure": "qemu-img measure",
    "zeros": "zeros and holes",
    "": "not told",
}
_ACTIONS = {
    "guest": "Have the guest trim: thinvirt.kvm.domain_trim, or the playbook reclaim.",
    "measure": "Compact it: thinvirt.kvm.domain_compact.",
    "zeros": "Punch its zeros: thinvirt.kvm.domain_compact with method punch.",
    "": "Trim, then compact it: the playbook thinvirt.kvm.reclaim.",
}


def html(document: Document) -> str:
    """The page for a document; the same bytes for the same document.

    :raises ThinvirtError: a plot can't be drawn.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        shown=shown, size=units.size, moment=units.moment, share=units.share, plural=units.plural
    )
    style, script = _part("report.css"), _part("report.js")
    return environment.get_template("report.html.j2").render(
        report=document,
        style=Markup(style),  # noqa: S704 - a file of ours
        script=Markup(script),  # noqa: S704 - a file of ours
        policy="; ".join(
            [
                "default-src 'none'",
                f"style-src '{_digest(style)}'",
                f"script-src '{_digest(script)}'",
                "img-src data:",
                "base-uri 'none'",
                "form-action 'none'",
            ]
        ),
        unread=[host for host in document["hosts"] if host["status"] != "read"],
        unread_domains=[domain for domain in document["domains"] if domain["error"]],
        plots=_space_plots(document),
        segments=charts.SEGMENTS,
        overcommit=_overcommit(document["summary"]),
        trends=_trends(document),
        worth=_worth(document),
        work=tables.make(
            "work-table",
            "What was done, what failed first",
            tables.WORK,
            document["work"],
            choices=("status", STATUSES),
        ),
        findings=tables.make(
            "findings-table",
            "Findings, the worst first",
            tables.FINDINGS,
            document["findings"],
            choices=("severity", ("error", "warning", "info")),
        ),
        disks=tables.make(
            "disks-table",
            "All disks",
            tables.DISKS,
            document["disks"],
            choices=("verdict", VERDICTS),
        ),
        file_systems=tables.make(
            "file-systems-table",
            "File systems that hold images, the fullest first",
            tables.FILE_SYSTEMS,
            document["file_systems"],
        ),
        pools=tables.make("pools-table", "Storage pools", tables.POOLS, document["pools"]),
        hosts=tables.make("hosts-table", "Hosts", tables.HOSTS, document["hosts"]),
    )


def _part(name: str) -> str:
    with open(os.path.join(_FOLDER, name), encoding="utf-8") as file:
        return file.read()


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _overcommit(sums: Document) -> str:
    room = (sums["allocated_bytes"] or 0) + (sums["free_bytes"] or 0)
    promised = sums["promised_bytes"]
    return units.ratio(promised / room) if room and promised is not None else ""


def _worth(document: Document) -> tables.Table:
    """The disks to begin with."""
    disks = itertools.islice(
        (disk for disk in document["disks"] if disk["reclaimable_bytes"]), _WORTH_ROWS
    )
    rows = [
        {
            **disk,
            "estimate": _ESTIMATES.get(disk["reclaimable_estimate"], disk["reclaimable_estimate"]),
            "action": _action(disk),
        }
        for disk in disks
    ]
    return tables.make("worth-table", "Disks worth reclaiming first", tables.WORTH, rows)


def _action(disk: Document) -> str:
    """What to do with a disk: first mend it, if its discards go nowhere."""
    action = _ACTIONS.get(disk["reclaimable_estimate"], _ACTIONS[""])
    if disk["verdict"] == "broken" and disk["remedy"]:
        return f"{disk['remedy']} Then: {action}"
    return action


def _space_plots(document: Document) -> list[dict[str, t.Any]]:
    """Hosts, if they have several file systems, and file systems; each for desks and for phones."""
    systems = document["file_systems"]
    of_host: dict[str, list[Document]] = {}
    for system in systems:
        of_host.setdefault(system["host"], []).append(system)
    plots = []
    if len(of_host) < len(systems):
        bars = [charts.bar_of(host, *of_host[host]) for host in sorted(of_host)]
        plots.append(_space_plot("Hosts", "hosts", bars))
    if systems:
        bars = [charts.bar_of(f"{row['host']}  {row['mount_point']}", row) for row in systems]
        plots.append(_space_plot("File systems", "file-systems", bars))
    return plots


def _space_plot(heading: str, section: str, bars: list[charts.Bar]) -> dict[str, t.Any]:
    title = f"{heading}: space promised and allocated, and capacity; the figures are in the table"
    return {
        "heading": heading,
        "section": section,
        "left_out": max(len(bars) - charts.MAX_BARS, 0),
        **{
            name: _drawn(charts.space(bars[: charts.MAX_BARS], width=width), title)
            for name, width in _WIDTHS.items()
        },
    }


def _trends(document: Document) -> dict[str, t.Any]:
    """Free space over time, of those file systems that an earlier report has as well."""
    earlier: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for point in document["history"]:
        key = (point["host"], point["mount_point"])
        earlier.setdefault(key, []).append((point["taken_at"], point["free_bytes"]))
    wanted = [
        system
        for system in document["file_systems"]
        if (system["host"], system["mount_point"]) in earlier
        and None not in (system["taken_at"], system["free_bytes"])
        and system["total_bytes"]
    ]
    soonest = sorted(
        wanted,
        key=lambda system: (system["days_until_full"] is None, system["days_until_full"] or 0),
    )
    return {
        "plots": [
            _trend(system, earlier[system["host"], system["mount_point"]])
            for system in soonest[: charts.MAX_TRENDS]
        ],
        "left_out": max(len(soonest) - charts.MAX_TRENDS, 0),
    }


def _trend(system: Document, earlier: list[tuple[str, int]]) -> dict[str, t.Any]:
    points = [*earlier, (system["taken_at"], system["free_bytes"])]
    first = points[0]
    name = f"{shown(system['host'])} {shown(system['mount_point'])}"
    words = (
        f"{units.size(first[1])} free on {units.moment(first[0])}, "
        f"{units.size(system['free_bytes'])} on {units.moment(system['taken_at'])}"
    )
    return {
        "host": system["host"],
        "mount_point": system["mount_point"],
        "free": units.size(system["free_bytes"]),
        "total": units.size(system["total_bytes"]),
        "full": units.days(system["days_until_full"])
        if system["days_until_full"] is not None
        else "",
        "svg": _drawn(
            charts.trend(points, total_bytes=system["total_bytes"], width=_TREND_WIDTH),
            f"{name}: {words}",
        ),
    }


def _drawn(spec: charts.Spec, title: str) -> Markup:
    return Markup(drawing.draw(spec, title=title))  # noqa: S704 - shapes and escaped text only
