# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for the Python of a Linux guest of a distribution that these tests can't boot.

Ansible calls it as ``ansible_python_interpreter`` with a module that it has packed.  It notes the
module's name and arguments, runs nothing, and answers what a test has prepared.  So a test with it
shows what the role asks of which guest, **never that such a guest does it**.
"""

from __future__ import annotations

import ast
import json
import shlex
import sys
from pathlib import Path
from typing import Any

#: Arguments of a module that somebody set; not those that Ansible adds.
Call = tuple[str, dict[str, Any]]


class Guest:
    """One such guest: what it answers, and afterwards what it was asked.

    :param answers: results of modules by their short names, each the same always, or a list of
        which each call takes the next one, the last ones the last; the others have changed
        something.
    """

    def __init__(self, folder: Path, answers: dict[str, Any]) -> None:
        folder.mkdir()
        self._calls = folder / "calls"
        (folder / "answers.json").write_text(json.dumps(answers))
        argv = shlex.join([sys.executable, __file__, str(folder)])
        self.python = folder / "python"
        self.python.write_text(f'#!/bin/sh\nexec {argv} "$@"\n')
        self.python.chmod(0o755)

    @property
    def calls(self) -> list[Call]:
        """Names and arguments of the modules that were run, in their order."""
        return [(name, arguments) for name, arguments, _check in self._noted()]

    @property
    def done(self) -> list[str]:
        """Names of the modules that were run otherwise than in check mode."""
        return [name for name, _arguments, check in self._noted() if not check]

    def _noted(self) -> list[tuple[str, dict[str, Any], bool]]:
        lines = self._calls.read_text().splitlines() if self._calls.exists() else []
        return [tuple(json.loads(line)) for line in lines]


def main() -> None:
    folder, packed = Path(sys.argv[1]), Path(sys.argv[2])
    name, given = _module(ast.parse(packed.read_text()))
    arguments = {key: value for key, value in given.items() if key[0] != "_"}
    with (folder / "calls").open("a+") as file:
        file.write(json.dumps([name, arguments, given["_ansible_check_mode"]]) + "\n")
        file.seek(0)
        calls = [json.loads(line)[0] for line in file]
    answer = json.loads((folder / "answers.json").read_text()).get(name, {"changed": True})
    if isinstance(answer, list):
        answer = answer[min(calls.count(name), len(answer)) - 1]
    print(json.dumps(answer))


def _module(tree: ast.Module) -> Call:
    """From the one call that ansible-core writes at the end of what it packs."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "_ansiballz_main":
            given = {word.arg: word.value for word in node.keywords}
            name = ast.literal_eval(given["module_fqn"]).rpartition(".")[2]
            params = json.loads(ast.literal_eval(given["params"]))["ANSIBLE_MODULE_ARGS"]
            return name, params
    raise SystemExit("this is not how ansible-core packs a module any more")


if __name__ == "__main__":
    main()
