# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The inside of a process that runs a module, forked from one that has imported it all already.

Importing takes longer than most modules do: ten times as long as the fork.
"""

from __future__ import annotations

import importlib
import os
import typing as t
from pathlib import Path

from ansible.module_utils.testing import patch_module_args

_MODULES = "ansible_collections.thinvirt.kvm.plugins.modules"
_FOLDER = Path(__file__).parents[1] / "plugins/modules"
#: What the process that all are forked from imports.
IMPORTED = [
    "ansible.module_utils.testing",
    *(f"{_MODULES}.{file.stem}" for file in sorted(_FOLDER.glob("[a-z]*.py"))),
]


def run(
    module: str, given: dict[str, t.Any], env: dict[str, str], folder: str, files: tuple[str, str]
) -> None:
    """Run it as its caller would have, with the caller's environment and folder.

    :param files: what it prints, and what it prints on stderr.
    """
    for number, name in enumerate(("/dev/null", *files)):
        file = os.open(name, os.O_RDWR)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    main = importlib.import_module(f"{_MODULES}.{module}").main
    with patch_module_args(given):
        main()
