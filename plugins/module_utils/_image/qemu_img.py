# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``qemu-img``: how it is called (pure), what it prints (pure), and one class that does both.

Images are named by ``json:`` specifications made here, never by bare names, and always with
their format: so no name is misparsed, nothing is probed, no backing file is opened.
"""

from __future__ import annotations

import dataclasses
import json
import time
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    CommandError,
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.process import (
    Completed,
    Runner,
    find_program,
    run,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown

#: Exit statuses of ``qemu-img check`` (qemu-img(1)); 1 is an internal error.
CHECK_RESULTS = {0: "clean", 2: "corrupt", 3: "leaks"}
CHECK_NOT_SUPPORTED = 63


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
    """

    start: int
    length: int
    data: bool
    zero: bool
    offset: int | None


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


@dataclasses.dataclass(frozen=True)
class Storage:
    """Where QEMU finds bytes: an absolute path, and whether a file or a block device is there.

    QEMU wants to be told: its driver ``file`` refuses devices.
    """

    path: str
    block_device: bool = False

    def node(self) -> dict[str, str]:
        return {"driver": "host_device" if self.block_device else "file", "filename": self.path}


def image_spec(storage: Storage, image_format: str, *, data_file: Storage | None = None) -> str:
    """Name an image to QEMU so that it opens this one file and nothing else.

    :param image_format: ``qcow2`` or ``raw``; never probed.
    :param data_file: the external data file, checked before; whatever the header names is
        overridden.
    :raises RefusedError: the name is not UTF-8, which JSON can't express.
    """
    node: dict[str, t.Any] = {
        "driver": image_format,
        "file": storage.node(),
    }
    if image_format == "qcow2":
        node["backing"] = None
    if data_file is not None:
        node["data-file"] = data_file.node()
    try:
        json.dumps(node, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise RefusedError(
            f"The name {shown(storage.path)} is not valid UTF-8; QEMU cannot be given it safely.",
            remedy="Rename the file.",
        ) from error
    return f"json:{json.dumps(node)}"


def info_argv(program: str, spec: str, *, force_share: bool) -> list[str]:
    """``qemu-img info``; with ``force_share`` also of an image that a guest writes to."""
    return [program, "info", "--output=json", *(["-U"] if force_share else []), spec]


def map_argv(program: str, spec: str) -> list[str]:
    """``qemu-img map`` of an image that nobody writes to."""
    return [program, "map", "--output=json", spec]


def check_argv(program: str, spec: str) -> list[str]:
    """``qemu-img check`` without repair, of an image that nobody writes to."""
    return [program, "check", "--output=json", spec]


def measure_argv(
    program: str, spec: str, *, target_format: str, options: t.Mapping[str, str]
) -> list[str]:
    """``qemu-img measure``: the size of a copy in another format or with other options."""
    listed = ",".join(f"{name}={value}" for name, value in sorted(options.items()))
    return [
        *(program, "measure", "--output=json"),
        *("-O", target_format),
        *(("-o", listed) if listed else ()),
        spec,
    ]


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


class QemuImg:
    """Calls of ``qemu-img`` that share one time limit.

    :param timeout: seconds for all calls together.
    :param runner: starts the program; another one in tests.
    :raises RequirementError: from the first call on, when there is no ``qemu-img``.
    """

    def __init__(self, *, timeout: float, runner: Runner = run, program: str = "") -> None:
        self._deadline = time.monotonic() + timeout
        self._runner = runner
        self._program = program

    def info(self, spec: str, *, force_share: bool) -> Info:
        argv = info_argv(self._path(), spec, force_share=force_share)
        return parse_info(self._output(argv))

    def map(self, spec: str) -> list[MapEntry]:
        return parse_map(self._output(map_argv(self._path(), spec)))

    def check(self, spec: str) -> CheckResult:
        argv = check_argv(self._path(), spec)
        completed = self._run(argv)
        if completed.rc not in CHECK_RESULTS:
            raise _failed(argv, completed)
        return parse_check(completed.stdout, result=CHECK_RESULTS[completed.rc])

    def measure(self, spec: str, *, target_format: str, options: t.Mapping[str, str]) -> Measure:
        argv = measure_argv(self._path(), spec, target_format=target_format, options=options)
        return parse_measure(self._output(argv))

    def _path(self) -> str:
        if not self._program:
            self._program = find_program("qemu-img", package="qemu-utils (qemu-img on Red Hat)")
        return self._program

    def _run(self, argv: t.Sequence[str]) -> Completed:
        return self._runner(argv, timeout=max(0.1, self._deadline - time.monotonic()))

    def _output(self, argv: t.Sequence[str]) -> bytes:
        completed = self._run(argv)
        if completed.rc != 0:
            raise _failed(argv, completed)
        return completed.stdout


def _failed(argv: t.Sequence[str], completed: Completed) -> CommandError:
    reason = "does not support checks of this format"
    if completed.rc != CHECK_NOT_SUPPORTED:
        complaint = completed.stderr.strip().splitlines()
        last = shown(complaint[-1]) if complaint else "it printed nothing"
        reason = f"failed with status {completed.rc}: {last}"
    message = f"qemu-img {argv[1]} {reason}."
    return CommandError(message, argv=argv, rc=completed.rc, stderr=completed.stderr)
