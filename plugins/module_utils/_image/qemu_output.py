# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``qemu-img`` prints, as data (pure); what is not as documented is an error."""

from __future__ import annotations

import dataclasses
import json
import re
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError


@dataclasses.dataclass(frozen=True)
class Bitmap:
    """A persistent dirty bitmap; flags are ``in-use`` and ``auto``."""

    name: str
    granularity_bytes: int
    flags: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Info:
    """What of ``qemu-img info`` is used; the rest comes from our own header reader."""

    format: str
    virtual_size_bytes: int
    bitmaps: tuple[Bitmap, ...]


@dataclasses.dataclass(frozen=True)
class MapEntry:
    """A range of the guest's disk, in bytes.

    :param data: it occupies space in the image.
    :param zero: it reads as zeros.
    :param offset: where it lies in the image file; None when it lies nowhere or is compressed.
    :param depth: 0 for what the image itself says of it, 1 for its backing file, and so on.
    """

    start: int
    length: int
    data: bool
    zero: bool
    offset: int | None
    depth: int = 0


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """What ``qemu-img check`` found.

    :param result: ``clean``, ``leaks`` (space that nothing refers to) or ``corrupt``.
    :param image_end_offset_bytes: where the last used cluster ends in the file.
    :param allocated_clusters: clusters with data of the guest; compressed and fragmented
        ones are among them.
    """

    result: str
    leaks: int
    corruptions: int
    check_errors: int
    image_end_offset_bytes: int
    total_clusters: int
    allocated_clusters: int
    compressed_clusters: int
    fragmented_clusters: int


@dataclasses.dataclass(frozen=True)
class Measure:
    """What a new image would need: for the clusters now allocated, and fully allocated."""

    required_bytes: int
    fully_allocated_bytes: int
    bitmaps_bytes: int


def parse_info(output: bytes) -> Info:
    """Parse what ``info`` prints.

    :raises ThinvirtError: it is not what QEMU documents, as with all parsers here.
    """
    document = _document(output, "info", dict)
    specific = document
    for key in ("format-specific", "data"):
        specific = specific.get(key, {})
        if not isinstance(specific, dict):
            raise _nonsense("info", f"{specific!r} for {key}")
    return Info(
        format=_text(document, "format", "info"),
        virtual_size_bytes=_number(document, "virtual-size", "info"),
        bitmaps=tuple(
            Bitmap(
                name=_text(bitmap, "name", "info"),
                granularity_bytes=_number(bitmap, "granularity", "info"),
                flags=tuple(bitmap.get("flags", ())),
            )
            for bitmap in specific.get("bitmaps", ())
        ),
    )


def parse_map(output: bytes) -> list[MapEntry]:
    """Parse what ``map`` prints."""
    return [
        MapEntry(
            start=_number(entry, "start", "map"),
            length=_number(entry, "length", "map"),
            data=_flag(entry, "data", "map"),
            zero=_flag(entry, "zero", "map"),
            offset=_number(entry, "offset", "map") if "offset" in entry else None,
            depth=_number(entry, "depth", "map"),
        )
        for entry in _document(output, "map", list)
    ]


def parse_check(output: bytes, *, result: str) -> CheckResult:
    """Parse what ``check`` prints; counts of zero are left out there.

    :param result: what the exit status says, a value of :data:`CHECK_RESULTS`.
    """
    document = _document(output, "check", dict)
    return CheckResult(
        result=result,
        leaks=_number(document, "leaks", "check", default=0),
        corruptions=_number(document, "corruptions", "check", default=0),
        check_errors=_number(document, "check-errors", "check"),
        image_end_offset_bytes=_number(document, "image-end-offset", "check", default=0),
        total_clusters=_number(document, "total-clusters", "check", default=0),
        allocated_clusters=_number(document, "allocated-clusters", "check", default=0),
        compressed_clusters=_number(document, "compressed-clusters", "check", default=0),
        fragmented_clusters=_number(document, "fragmented-clusters", "check", default=0),
    )


def parse_measure(output: bytes) -> Measure:
    """Parse what ``measure`` prints."""
    document = _document(output, "measure", dict)
    return Measure(
        required_bytes=_number(document, "required", "measure"),
        fully_allocated_bytes=_number(document, "fully-allocated", "measure"),
        bitmaps_bytes=_number(document, "bitmaps", "measure", default=0),
    )


_Document = t.TypeVar("_Document", "dict[str, t.Any]", "list[t.Any]")


def _document(output: bytes, command: str, kind: type[_Document]) -> _Document:
    try:
        document = json.loads(output)
    except ValueError as error:
        raise _nonsense(command, f"no JSON ({error})") from error
    if not isinstance(document, kind):
        raise _nonsense(command, f"a JSON {type(document).__name__}")
    return document


def _number(
    document: t.Mapping[str, t.Any], key: str, command: str, *, default: int | None = None
) -> int:
    value = document.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _nonsense(command, f"{value!r} for {key}")
    return value


def _text(document: t.Mapping[str, t.Any], key: str, command: str) -> str:
    value = document.get(key)
    if not isinstance(value, str):
        raise _nonsense(command, f"{value!r} for {key}")
    return value


def _flag(document: t.Mapping[str, t.Any], key: str, command: str) -> bool:
    value = document.get(key)
    if not isinstance(value, bool):
        raise _nonsense(command, f"{value!r} for {key}")
    return value


def _nonsense(command: str, what: str) -> ThinvirtError:
    return ThinvirtError(f"What qemu-img {command} printed is not understood: {what}.")


_PERCENT = re.compile(rb"\(([0-9]+(?:\.[0-9]+)?)/100%\)")


def progress_reader(report: t.Callable[[float], None]) -> t.Callable[[bytes], None]:
    """Takes what ``-p`` prints and reports per cent, 0 to 100."""

    def read(piece: bytes) -> None:
        for match in _PERCENT.finditer(piece):
            report(float(match[1]))

    return read
