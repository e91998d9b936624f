# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The CSV files, the sizes, the plots' data, and what is left of Vega's SVG."""

from __future__ import annotations

import csv
import io
import re
import xml.etree.ElementTree as ET

import fleet
import pytest
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report import (
    charts,
    csv_files,
    document,
    drawing,
    page,
    units,
)
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report.model import HistoryPoint
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report.reading import read_fleet
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report.work import read_work
from fleet import GIB


def build(answers, history=(), work=None):
    return document.build(
        read_fleet(answers), title="Report", history=history, work=read_work(work or {})
    )


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


def system(**given):
    return {
        "promised_bytes": 100,
        "allocated_bytes": 60,
        "guest_used_bytes": None,
        "reclaimable_bytes": None,
        "total_bytes": 200,
        **given,
    }


def test_csv_has_all_rows_and_reads_back() -> None:
    report = build(fleet.small())
    texts = csv_files.texts(report)
    assert sorted(texts) == [
        "disks.csv",
        "domains.csv",
        "file_systems.csv",
        "findings.csv",
        "hosts.csv",
        "pools.csv",
        "work.csv",
    ]
    for name, text in texts.items():
        assert len(rows_of(text)) == len(report[name.removesuffix(".csv")])
    first, last = (rows_of(texts["disks.csv"])[index] for index in (0, -1))
    assert first["reclaimable_bytes"] == str(report["disks"][0]["reclaimable_bytes"])
    assert last["reclaimable_bytes"] == ""
    assert rows_of(texts["hosts.csv"])[3]["status"] == "unreachable"
    assert rows_of(texts["domains.csv"])[0]["active"] == "true"


def test_csv_without_rows_has_its_header() -> None:
    texts = csv_files.texts(build({}))
    assert texts["findings.csv"] == "host,domain,disk,severity,id,reason,remedy\r\n"


@pytest.mark.parametrize(
    "name",
    ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", "＝1", "＠x"],  # noqa: RUF001
)
def test_csv_holds_no_formula(name: str) -> None:
    answer = fleet.answer(fleet.domain(name, fleet.disk(2, target=name, path=name)))
    work = {name: {"trim": {"failed": True, "msg": name}}}
    texts = csv_files.texts(build({name: answer}, work=work))
    for text in texts.values():
        rows = list(csv.reader(io.StringIO(text, newline="")))
        cells = [cell for row in rows for cell in row]
        assert not [cell for cell in cells if re.match(r"\s*[=+\-@＝＋－＠]", cell)]  # noqa: RUF001
        assert f"'{name}" in cells


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "\u2013"),
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (1536 << 20, "1.5 GiB"),
        (100 << 30, "100 GiB"),
        (1023 << 30, "1,023 GiB"),
        (1 << 40, "1.0 TiB"),
        (5 << 60, "5.0 EiB"),
    ],
)
def test_sizes(count, text) -> None:
    assert units.size(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "\u2013"),
        (0.0, "< 1 day"),
        (1.2, "1 day"),
        (12.4, "12 days"),
        (9999.0, "> 10 years"),
    ],
)
def test_days(count, text) -> None:
    assert units.days(count) == text


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({}, (0, 60, 0, 40)),
        ({"guest_used_bytes": 45}, (45, 0, 15, 40)),
        ({"guest_used_bytes": 70}, (60, 0, 0, 40)),
        ({"reclaimable_bytes": 10}, (50, 0, 10, 40)),
        ({"reclaimable_bytes": 10, "guest_used_bytes": 45}, (50, 0, 10, 40)),
        ({"reclaimable_bytes": 90}, (0, 0, 60, 40)),
        ({"reclaimable_bytes": 0}, (60, 0, 0, 40)),
        ({"allocated_bytes": 130}, (0, 130, 0, 0)),
        ({"allocated_bytes": None, "promised_bytes": None}, (0, 0, 0, 0)),
    ],
)
def test_the_parts_of_a_bar(given, parts) -> None:
    assert tuple(charts.parts(system(**given)).values()) == parts


def test_a_hosts_bar_is_the_sum_of_its_file_systems() -> None:
    total = charts.bar_of("kvm1", system(), system(reclaimable_bytes=10))
    assert total.capacity_bytes == 400
    assert total.parts == {"used": 50, "unknown": 60, "reclaimable": 10, "promised": 80}
    assert charts.bar_of("kvm1", system(), system(total_bytes=None)).capacity_bytes is None


def test_bars_are_as_long_as_their_figures() -> None:
    bars = [charts.bar_of("kvm1", system(reclaimable_bytes=15))]
    svg = ET.fromstring(drawing.draw(charts.space(bars, width=500), title="x"))
    widths = {
        path.get("class"): float(re.search(r"h([\d.]+)v", path.get("d"))[1])
        for path in svg.iter("path")
        if path.find("title") is not None and "capacity" not in path.get("class")
    }
    scale = widths["fill-used"] / 45
    assert widths["fill-reclaimable"] == pytest.approx(15 * scale)
    assert widths["fill-promised"] == pytest.approx(40 * scale)
    titles = [title.text for title in svg.iter("title")]
    assert "kvm1: Allocated, could come back, 15 bytes" in titles
    assert "kvm1: capacity 200 bytes" in titles


def test_vega_draws_the_same_bytes_again_and_no_colours_of_its_own() -> None:
    bars = [charts.bar_of(f"kvm{number}", system()) for number in range(charts.MAX_BARS)]
    spec = charts.space(bars, width=800)
    svg = drawing.draw(spec, title="x")
    assert drawing.draw(spec, title="x") == svg
    assert not re.search(r"#[0-9a-f]{3,6}|style=|rgb|href|font-family", svg)
    assert len(re.findall(">kvm[0-9]+<", svg)) == charts.MAX_BARS


def test_only_shapes_and_text_are_left_of_an_svg() -> None:
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:x="http://www.w3.org/1999/xlink"'
        ' viewBox="0 0 1 1" onload="a()"><script>a()</script><style>*{}</style>'
        '<a x:href="javascript:a()"><text>link</text></a><image x:href="//host/x"/>'
        "<foreignObject><b/></foreignObject><animate/>"
        '<g onclick="a()" style="fill:url(//host)"><text fill="var(--label)">&lt;b&gt;</text></g>'
        '<path d="M0,0" fill="url(//host)" aria-label="&lt;i&gt;"/></svg>'
    )
    assert drawing.clean(svg, title='"><script>') == (
        '<svg role="img" aria-label="&quot;&gt;&lt;script&gt;" class="plot" viewBox="0 0 1 1"'
        ' width="" height=""><g><text class="fill-label">&lt;b&gt;</text></g>'
        '<path d="M0,0"><title>&lt;i&gt;</title></path></svg>'
    )


def test_a_trend_ends_with_this_report() -> None:
    points = [("2026-11-01T04:00:00Z", 8 * GIB), ("2026-11-25T04:00:00Z", 2 * GIB)]
    svg = ET.fromstring(
        drawing.draw(charts.trend(points, total_bytes=10 * GIB, width=300), title="x")
    )
    titles = [title.text for title in svg.iter("title")]
    assert titles == [
        "2026-11-01 04:00 UTC: 8.0 GiB free",
        "2026-11-25 04:00 UTC: 2.0 GiB free",
    ]
    line = next(path for path in svg.iter("path") if path.get("class") == "stroke-trend")
    heights = [float(y) for y in re.findall(r",([\d.]+)", line.get("d"))]
    # Downwards by 6 of 10 GiB of the plot's height.
    assert heights[-1] - heights[0] == pytest.approx(0.6 * 96, abs=1)


def test_the_page_has_no_clock() -> None:
    history = [HistoryPoint("2026-11-24T04:00:00Z", "kvm1.example.com", "/srv/images", 5, 10)]
    report = build(fleet.small(), history)
    assert page.html(report) == page.html(report)


def test_no_host_at_all_is_a_page_too() -> None:
    for answers in ({}, {"kvm1": {"unreachable": True}}):
        assert "</html>" in page.html(build(answers))
