# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Draws a Vega-Lite specification as SVG for the page.

Vega-Lite, by vl-convert: it draws here and not in the browser, so that the page needs no script
for its plots, prints them, shows them on a phone at once, and stays small (a plotting library in
the page has 1 to 4 MB); the same data give the same bytes.
"""

from __future__ import annotations

import re
import typing as t
import xml.etree.ElementTree as ET

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    RequirementError,
    ThinvirtError,
)

try:
    import vl_convert
except ImportError:
    vl_convert = None  # type: ignore[assignment]

#: Another version of Vega-Lite may draw other bytes; vl-convert has this one among others.
VEGA_LITE = "5.20"
REQUIREMENT = "vl-convert-python"

# Whatever else Vega should draw one day is left out, above all what runs or loads something.
_ELEMENTS = ("svg", "g", "path", "line", "rect", "text")
_ATTRIBUTES = (
    "d", "font-size", "height", "opacity", "stroke-width", "text-anchor", "transform", "viewBox",
    "width", "x", "x1", "x2", "y", "y1", "y2",
)  # fmt: skip
_COLOUR = re.compile(r"var\(--([a-z-]+)\)")


def draw(spec: t.Mapping[str, t.Any], *, title: str) -> str:
    """The plot as an ``svg`` element without a script, style or colour of its own.

    Fills and strokes become classes, as the page has two sets of colours. To a screen reader it is
    one image: its figures stand in a table of the page.

    :param title: what it shows, for those who do not see it.
    :raises RequirementError: vl-convert is missing.
    :raises ThinvirtError: it does not draw this.
    """
    if vl_convert is None:
        raise RequirementError(
            f"The Python of the controller has no {REQUIREMENT}, which draws the plots of the "
            "page; nothing was written.",
            remedy=f"Install it with 'pip install {REQUIREMENT}', or leave html out of formats.",
        )
    try:
        drawn = vl_convert.vegalite_to_svg(dict(spec), vl_version=VEGA_LITE, allowed_base_urls=[])
        return clean(drawn, title=title)
    except (ValueError, ET.ParseError) as error:
        raise ThinvirtError(
            f"{REQUIREMENT} did not draw '{title}': {str(error)[:500]}",
            remedy="Install another version of it, or leave html out of formats.",
        ) from error


def clean(svg: str, *, title: str) -> str:
    """The same picture with nothing but shapes and text.

    :raises ET.ParseError: it is no XML.
    """
    source = ET.fromstring(svg)  # noqa: S314 - made by Vega, which writes no entities
    target = ET.Element("svg", {"role": "img", "aria-label": title, "class": "plot"})
    for name in ("viewBox", "width", "height"):
        target.set(name, source.get(name, ""))
    _copy(source, target)
    return ET.tostring(target, encoding="unicode")


def _copy(source: ET.Element, target: ET.Element) -> None:
    for child in source:
        tag = child.tag.rpartition("}")[2]
        if tag not in _ELEMENTS or _invisible(tag, child):
            continue
        copy = ET.SubElement(target, tag, _attributes(child))
        copy.text = child.text
        words = child.get("aria-label")
        if words and tag == "path":
            ET.SubElement(copy, "title").text = words  # what browsers show under the mouse
        _copy(child, copy)
        if tag == "g" and len(copy) == 0:
            target.remove(copy)


def _invisible(tag: str, element: ET.Element) -> bool:
    if element.get("display") == "none":
        return True
    return tag == "path" and element.get("class") in ("background", "foreground")


def _attributes(element: ET.Element) -> dict[str, str]:
    kept = {name: value for name, value in element.attrib.items() if name in _ATTRIBUTES}
    classes = [
        f"{paint}-{colour[1]}"
        for paint in ("fill", "stroke")
        if (colour := _COLOUR.fullmatch(element.get(paint, "")))
    ]
    if classes:
        kept["class"] = " ".join(classes)
    elif "fill" in element.attrib or "stroke" in element.attrib:
        kept.update({k: "none" for k in ("fill", "stroke") if element.get(k) == "none"})
    return kept
