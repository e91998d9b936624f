# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plots as Vega-Lite specifications: plain data, without a library.

Colours are names of classes, which the page's style sheet colours in light, dark and print
(:mod:`drawing`).
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report.document import Document
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report.units import (
    moment,
    size,
    unit_of,
)

Spec = dict[str, t.Any]

#: More rows make no plot that one can read; the tables have all of them.
MAX_BARS = 25
MAX_TRENDS = 12
MAX_MARKED = 40
_FONT_SIZE = 12
#: In pixels: a row has its name above its bar, so that long names fit on a phone too.
_ROW, _BAR = 46, 16


@dataclasses.dataclass(frozen=True)
class Segment:
    """A part of a bar; its name is also the class that colours it."""

    name: str
    title: str


SEGMENTS = (
    Segment("used", "Allocated and in use"),
    Segment("unknown", "Allocated, use not known"),
    Segment("reclaimable", "Allocated, could come back"),
    Segment("promised", "Promised, not allocated yet"),
)


def parts(row: Document) -> dict[str, int]:
    """The segments of a file system, in bytes.

    What could come back is as estimated or, without an estimate, what is allocated and the guests
    do not use.  Metadata and snapshots can make an image larger than its promise.
    """
    promised, allocated = row["promised_bytes"] or 0, row["allocated_bytes"] or 0
    used, reclaimable = row["guest_used_bytes"], row["reclaimable_bytes"]
    if reclaimable is None and used is not None:
        reclaimable = max(allocated - used, 0)
    back = min(reclaimable or 0, allocated)
    return {
        "used": 0 if reclaimable is None else allocated - back,
        "unknown": allocated if reclaimable is None else 0,
        "reclaimable": back,
        "promised": max(promised - allocated, 0),
    }


@dataclasses.dataclass(frozen=True)
class Bar:
    """A bar of the plot of space.

    :param capacity_bytes: how much there is, of file systems; None if it is not known.
    :param parts: as :func:`parts` makes them.
    """

    label: str
    capacity_bytes: int | None
    parts: t.Mapping[str, int]


def bar_of(label: str, *systems: Document) -> Bar:
    """The bar of a file system, or of all those of a host."""
    of_each = [parts(system) for system in systems]
    capacities = [system["total_bytes"] for system in systems]
    return Bar(
        label=shown(label),
        capacity_bytes=None if None in capacities else sum(capacities),
        parts={segment.name: sum(part[segment.name] for part in of_each) for segment in SEGMENTS},
    )


def space(bars: t.Sequence[Bar], *, width: int) -> Spec:
    """Stacked bars: what is allocated, could come back, and is promised, against the capacity.

    :param bars: at most MAX_BARS, from top to bottom.
    :param width: in pixels.
    """
    largest = max(max(row.capacity_bytes or 0, sum(row.parts.values())) for row in bars)
    unit, factor = unit_of(largest)
    values = [
        {
            "row": index,
            "order": order,
            "segment": segment.name,
            "amount": row.parts[segment.name] / factor,
            "words": f"{row.label}: {segment.title}, {size(row.parts[segment.name])}",
        }
        for index, row in enumerate(bars)
        for order, segment in enumerate(SEGMENTS)
        if row.parts[segment.name]
    ]
    capacities = [
        {
            "row": index,
            "amount": row.capacity_bytes / factor,
            "words": f"{row.label}: capacity {size(row.capacity_bytes)}",
        }
        for index, row in enumerate(bars)
        if row.capacity_bytes
    ]
    labels = [{"row": index, "label": row.label} for index, row in enumerate(bars)]
    y = {
        "field": "row",
        "type": "ordinal",
        "axis": None,
        "scale": {"domain": list(range(len(bars))), "paddingInner": 0, "paddingOuter": 0},
    }
    x = {
        "field": "amount",
        "type": "quantitative",
        "title": unit,
        "axis": {"tickCount": max(width // 120, 3)},
        "scale": {"domainMin": 0},
    }
    return {
        **_frame(width=width, height=_ROW * len(bars)),
        "layer": [
            {
                "data": {"values": values},
                "mark": {"type": "bar", "size": _BAR, "yOffset": 8},
                "encoding": {
                    "y": y,
                    "x": {**x, "stack": "zero"},
                    "order": {"field": "order"},
                    "color": {
                        "field": "segment",
                        "type": "nominal",
                        "legend": None,
                        "scale": {
                            "domain": [segment.name for segment in SEGMENTS],
                            "range": [f"var(--{segment.name})" for segment in SEGMENTS],
                        },
                    },
                    "description": {"field": "words"},
                },
            },
            {
                "data": {"values": capacities},
                "mark": {
                    "type": "tick",
                    "size": _BAR + 8,
                    "thickness": 3,
                    "yOffset": 8,
                    "opacity": 1,
                    "color": "var(--capacity)",
                },
                "encoding": {"y": y, "x": x, "description": {"field": "words"}},
            },
            {
                "data": {"values": labels},
                "mark": {
                    "type": "text",
                    "align": "left",
                    "baseline": "bottom",
                    "x": 0,
                    "yOffset": -5,
                    "limit": width,
                    "fontSize": _FONT_SIZE,
                    "color": "var(--label)",
                },
                "encoding": {"y": y, "text": {"field": "label"}},
            },
        ],
    }


def trend(points: t.Sequence[tuple[str, int]], *, total_bytes: int, width: int) -> Spec:
    """A line of free space over time, from nothing up to the capacity.

    :param points: times in ISO 8601 and free bytes.
    """
    unit, factor = unit_of(total_bytes)
    values = [
        {"at": taken_at, "free": free / factor, "words": f"{moment(taken_at)}: {size(free)} free"}
        for taken_at, free in points
    ]
    # Points tell their value to the mouse; hundreds of them would only thicken the line.
    marked = values if len(values) <= MAX_MARKED else values[-1:]
    encoding = {
        "x": {
            "field": "at",
            "type": "temporal",
            "title": None,
            "scale": {"type": "utc"},
            "axis": {"tickCount": 3, "grid": False, "labelOverlap": True, "labelFlush": True},
        },
        "y": {
            "field": "free",
            "type": "quantitative",
            "title": f"{unit} free",
            "scale": {"domain": [0, total_bytes / factor]},
            "axis": {"tickCount": 3},
            "stack": None,
        },
    }
    return {
        **_frame(width=width, height=96),
        "data": {"values": values},
        "encoding": encoding,
        "layer": [
            {"mark": {"type": "area", "aria": False, "color": "var(--trend-area)"}},
            {
                "mark": {
                    "type": "line",
                    "aria": False,
                    "color": "var(--trend)",
                    "strokeWidth": 2,
                },
            },
            {
                "data": {"values": marked},
                "mark": {"type": "point", "color": "var(--trend)", "filled": True, "size": 30},
                "encoding": {"description": {"field": "words"}},
            },
        ],
    }


def _frame(*, width: int, height: int) -> Spec:
    """What all plots share; the text is measured here and set in the page's own font."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": width,
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "background": None,
        "padding": 2,
        "config": {
            "view": {"stroke": None},
            "axis": {
                "labelFontSize": _FONT_SIZE,
                "titleFontSize": _FONT_SIZE,
                "titleFontWeight": "normal",
                "labelColor": "var(--label)",
                "titleColor": "var(--label)",
                "gridColor": "var(--grid)",
                "domainColor": "var(--grid)",
                "tickColor": "var(--grid)",
            },
        },
    }
