# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A private copy of the checkout, in which the product is broken and tested."""

from __future__ import annotations

import ast
import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .mutation import ROOT, Mutation

TREE = ROOT / ".cache" / "mutants" / "tree"
#: The environment is that of the copy, not of who calls us.
_PYTEST = '. tools/env.sh; exec pytest -q --tb=no -rfE --no-header "$@"'
_GRACE_SECONDS = 60


@dataclass(frozen=True)
class Run:
    """How the tests went.

    :param code: pytest's exit status; None if the time was up.
    :param red: the tests that failed, in their order.
    """

    code: int | None
    red: tuple[str, ...]
    output: str
    seconds: float


class Tree:
    """The copy.

    :param base: a commit to copy; empty for what lies in the checkout.
    """

    def __init__(self, base: str = "") -> None:
        shutil.rmtree(TREE, ignore_errors=True)
        TREE.mkdir(parents=True)
        # git checks the owner in vain: root may well test a user's checkout.
        git = ["git", "-c", "safe.directory=*", "-C", str(ROOT)]
        if base:
            archive = subprocess.run([*git, "archive", base], stdout=subprocess.PIPE, check=True)
            subprocess.run(["tar", "-xf", "-", "-C", TREE], input=archive.stdout, check=True)
        else:
            listed = [*git, "ls-files", "-co", "-z", "--exclude-standard"]
            names = subprocess.run(listed, stdout=subprocess.PIPE, text=True, check=True).stdout
            for name in filter(None, names.split("\0")):
                if os.path.lexists(ROOT / name):
                    (TREE / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / name, TREE / name, follow_symlinks=False)
        (TREE / ".venv").symlink_to(ROOT / ".venv")
        collections = TREE / ".cache" / "ansible_collections"
        (collections / "thinvirt").mkdir(parents=True)
        (collections / "thinvirt" / "kvm").symlink_to("../../..")
        for namespace in (ROOT / ".cache" / "ansible_collections").iterdir():
            if namespace.name != "thinvirt":
                (collections / namespace.name).symlink_to(namespace)
        self._now = int(time.time())

    def has(self, test: str) -> bool:
        """Whether a test is there."""
        file, _colons, name = test.partition("::")
        path = TREE / file
        return path.exists() and (not name or f"\ndef {name}(" in path.read_text(encoding="utf-8"))

    @contextlib.contextmanager
    def broken(self, mutation: Mutation) -> Iterator[None]:
        """Break it meanwhile.

        :raises ValueError: the text that is to go is not there.
        """
        path = TREE / mutation.file
        whole = path.read_text(encoding="utf-8") if path.exists() else ""
        broken = mutation.applied_to(whole)
        if path.suffix == ".py":
            ast.parse(broken, mutation.id)  # what is no Python turns every test red
        self._write(path, broken)
        try:
            yield
        finally:
            self._write(path, whole)

    def _write(self, path: Path, text: str) -> None:
        """With a time of its own: bytecode is believed if size and second are the same."""
        path.write_text(text, encoding="utf-8")
        self._now += 1
        os.utime(path, (self._now, self._now))

    def test(self, tests: Sequence[str], *options: str, timeout: float | None = None) -> Run:
        """Run these tests in the copy."""
        begin = time.monotonic()
        with subprocess.Popen(
            ["bash", "-c", _PYTEST, "pytest", *options, *tests],
            cwd=TREE,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            code: int | None
            try:
                output, _none = process.communicate(timeout=timeout)
                code = process.returncode
            except BaseException as error:
                output, code = _ended(process), None
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
        red = tuple(
            line.split(" ", 1)[1].partition(" - ")[0]
            for line in output.splitlines()
            if line.startswith(("FAILED ", "ERROR "))
        )
        return Run(code, red, output, time.monotonic() - begin)


def _ended(process: subprocess.Popen[str]) -> str:
    """End pytest, and all that it has begun; by force if its fixtures hang as well."""
    process.terminate()
    try:
        return process.communicate(timeout=_GRACE_SECONDS)[0]
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()[0]
