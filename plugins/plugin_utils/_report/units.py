# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes, times and shares as people read them."""

from __future__ import annotations

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
#: In the place of a figure that nobody knows.
UNKNOWN = "\u2013"


def unit_of(largest: int) -> tuple[str, int]:
    """The unit in which this number of bytes has one to four digits, and its bytes."""
    power = min(max(largest.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    return _UNITS[power], 1 << (10 * power)


def size(count: int | None) -> str:
    """``1.5 GiB``; a dash for None."""
    if count is None:
        return UNKNOWN
    unit, factor = unit_of(count)
    if unit == "bytes":
        return f"{count} bytes"
    return f"{count / factor:,.{1 if count < 100 * factor else 0}f} {unit}"


def moment(taken_at: str | None) -> str:
    """``2026-11-25 04:00 UTC``, from ISO 8601; a dash for None."""
    return f"{taken_at[:10]} {taken_at[11:16]} UTC" if taken_at else UNKNOWN


def days(count: float | None) -> str:
    """``12 days``; a dash for None."""
    if count is None:
        return UNKNOWN
    if count >= 3650:
        return "> 10 years"
    whole = round(count)
    return "< 1 day" if count < 1 else f"{whole} day{'' if whole == 1 else 's'}"


def ratio(value: float | None) -> str:
    """``2.40 x``, as for overcommitment; a dash for None."""
    return UNKNOWN if value is None else f"{value:.2f} ×"  # noqa: RUF001 - a times sign it is


def share(part: int | None, whole: int | None) -> str:
    """``12 %``; a dash if it is not known."""
    return f"{100 * part / whole:.0f} %" if part is not None and whole else UNKNOWN


def plural(count: int, one: str, many: str = "") -> str:
    """``1 disk``, ``2 disks``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
