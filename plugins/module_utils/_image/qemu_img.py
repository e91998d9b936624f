# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``qemu-img`` as an object: one method a subcommand, one time limit for all."""

from __future__ import annotations

import os
import re
import time
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import CommandError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.process import (
    Completed,
    Runner,
    find_program,
    run,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_argv import (
    Copy,
    check_argv,
    commit_argv,
    compare_argv,
    convert_argv,
    info_argv,
    map_argv,
    measure_argv,
    overlay_argv,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_output import (
    CheckResult,
    Info,
    MapEntry,
    Measure,
    parse_check,
    parse_info,
    parse_map,
    parse_measure,
    progress_reader,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown

#: Exit statuses of ``qemu-img check`` (qemu-img(1)); 1 is an internal error.
CHECK_RESULTS = {0: "clean", 2: "corrupt", 3: "leaks"}
CHECK_NOT_SUPPORTED = 63
#: As an open file stands in a specification.
_OPEN_FILE = re.compile(r'"/proc/self/fd/([0-9]+)"')


class QemuImg:
    """Calls of ``qemu-img`` that share one time limit.

    :param timeout: seconds for all calls together.
    :param watch: called at least every second while images are copied or compared; what it raises
        ends that.
    :param runner: starts the program; another one in tests.
    :raises RequirementError: from the first call on, when there is no ``qemu-img``.
    """

    def __init__(
        self,
        *,
        timeout: float,
        watch: t.Callable[[], None] = lambda: None,
        runner: Runner = run,
        program: str = "",
    ) -> None:
        self._deadline = time.monotonic() + timeout
        self._watch = watch
        self._runner = runner
        self._program = program

    def info(self, spec: str, *, force_share: bool, pass_fds: t.Sequence[int] = ()) -> Info:
        argv = info_argv(self._path(), spec, force_share=force_share)
        return parse_info(self._output(argv, pass_fds))

    def map(self, spec: str) -> list[MapEntry]:
        return parse_map(self._output(map_argv(self._path(), spec)))

    def check(self, spec: str, *, pass_fds: t.Sequence[int] = ()) -> CheckResult:
        argv = check_argv(self._path(), spec)
        completed = self._run(argv, pass_fds=pass_fds)
        if completed.rc not in CHECK_RESULTS:
            raise _failed(argv, completed)
        return parse_check(completed.stdout, result=CHECK_RESULTS[completed.rc])

    def measure(
        self,
        spec: str,
        *,
        target_format: str,
        options: t.Mapping[str, str],
        pass_fds: t.Sequence[int] = (),
        force_share: bool = False,
    ) -> Measure:
        argv = measure_argv(
            self._path(),
            spec,
            target_format=target_format,
            options=options,
            force_share=force_share,
        )
        return parse_measure(self._output(argv, pass_fds))

    def measure_empty(
        self, size_bytes: int, *, target_format: str, options: t.Mapping[str, str]
    ) -> Measure:
        """The size of an image without data: of its tables alone."""
        size = ("--size", str(size_bytes))
        argv = measure_argv(self._path(), *size, target_format=target_format, options=options)
        return parse_measure(self._output(argv))

    def convert(
        self,
        spec: str,
        target: str,
        *,
        copy: Copy,
        pass_fds: t.Sequence[int],
        report: t.Callable[[float], None],
        watch: t.Callable[[], None] = lambda: None,
    ) -> None:
        """Copy an image; the data is on the disk only after an fsync of the target.

        :param watch: called at least every second; what it raises ends the copy.
        :raises CommandError: it failed; the target holds part of a copy then.
        """
        argv = convert_argv(self._path(), spec, target, copy=copy)
        follow = _watching(report, self._watch, watch)
        completed = self._run(argv, pass_fds=pass_fds, on_output=follow)
        if completed.rc != 0:
            raise _failed(argv, completed)

    def knows_compression(self, name: str) -> bool:
        """Whether this QEMU was built with a compression type; tried on a file in memory."""
        fd = os.memfd_create("thinvirt-trial")
        try:
            argv = [self._path(), "create", "-q", "-f", "qcow2", "-o", f"compression_type={name}"]
            argv += [f"/proc/self/fd/{fd}", "65536"]
            return self._run(argv, pass_fds=(fd,)).rc == 0
        finally:
            os.close(fd)

    def compare(
        self,
        spec: str,
        other: str,
        *,
        pass_fds: t.Sequence[int],
        report: t.Callable[[float], None],
        watch: t.Callable[[], None] = lambda: None,
    ) -> bool:
        """Whether two images have the same content.

        :param watch: called at least every second; what it raises ends the comparison.
        :raises CommandError: one can't be read.
        """
        argv = compare_argv(self._path(), spec, other)
        follow = _watching(report, self._watch, watch)
        completed = self._run(argv, pass_fds=pass_fds, on_output=follow)
        if completed.rc not in (0, 1):
            raise _failed(argv, completed)
        return completed.rc == 0

    def create_overlay(
        self, fd: int, *, size_bytes: int, backing: str, backing_format: str
    ) -> None:
        """Make an empty overlay in an open file.

        :raises CommandError: it can't be made.
        """
        argv = overlay_argv(
            self._path(),
            f"/proc/self/fd/{fd}",
            size_bytes=size_bytes,
            backing=backing,
            backing_format=backing_format,
        )
        self._output(argv, (fd,))

    def commit(self, spec: str) -> None:
        """Write what is in an overlay into the image below it; both must be out of use.

        :raises CommandError: it failed; the overlay with what is below it has the content still.
        """
        self._output(commit_argv(self._path(), spec))

    def _path(self) -> str:
        if not self._program:
            self._program = find_program("qemu-img", package="qemu-utils (qemu-img on Red Hat)")
        return self._program

    def _run(
        self, argv: t.Sequence[str], *, pass_fds: t.Sequence[int] = (), **more: t.Any
    ) -> Completed:
        """Open files that a specification names are passed on, besides those that are given."""
        named = (int(fd) for word in argv[2:] for fd in _OPEN_FILE.findall(word))
        fds = tuple(dict.fromkeys((*pass_fds, *named)))
        given = {**more, **({"pass_fds": fds} if fds else {})}
        return self._runner(argv, timeout=max(0.1, self._deadline - time.monotonic()), **given)

    def _output(self, argv: t.Sequence[str], pass_fds: t.Sequence[int] = ()) -> bytes:
        completed = self._run(argv, pass_fds=pass_fds)
        if completed.rc != 0:
            raise _failed(argv, completed)
        return completed.stdout


def _watching(
    report: t.Callable[[float], None], *watches: t.Callable[[], None]
) -> t.Callable[[bytes], None]:
    read = progress_reader(report)

    def follow(piece: bytes) -> None:
        read(piece)
        for watch in watches:
            watch()

    return follow


def _failed(argv: t.Sequence[str], completed: Completed) -> CommandError:
    reason = "does not support checks of this format"
    if completed.rc != CHECK_NOT_SUPPORTED:
        complaint = completed.stderr.strip().splitlines()
        last = shown(complaint[-1]) if complaint else "it printed nothing"
        reason = f"failed with status {completed.rc}: {last}"
    message = f"qemu-img {argv[1]} {reason}."
    return CommandError(message, argv=argv, rc=completed.rc, stderr=completed.stderr)
