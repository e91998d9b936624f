# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests of several layers need."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import typing as t
from pathlib import Path

import module_process

_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(module_process.IMPORTED)

#: A prefix: root that has to heed the modes of files, as others have to.  Another user might not
#: even get to the checkout.
WITHOUT_OVERRIDE = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")

#: Holds guest_exec, by which Ansible reaches a guest's agent in less time.
CONNECTIONS = Path(__file__).with_name("plugins") / "connection"

_RUN = """
import importlib, json, sys
from ansible.module_utils.testing import patch_module_args
module = importlib.import_module("ansible_collections.thinvirt.kvm.plugins.modules." + sys.argv[1])
with patch_module_args(json.load(sys.stdin)):
    module.main()
"""


def run_module(
    module: str,
    *,
    check: bool = False,
    patience: int = 120,
    prefix: t.Sequence[str] = (),
    **arguments: t.Any,
) -> dict[str, t.Any]:
    """Run a module of this collection in a process of its own; what it returns.

    :param patience: seconds; the module may have a ``timeout`` of its own.
    :param prefix: a command that runs it, such as setpriv with its options.
    The result has ``failed`` in every case.  A traceback, or a word on stderr, fails the test.
    """
    given = {**arguments, "_ansible_check_mode": check, "_ansible_diff": True}
    return module_result(module, given, patience=patience, prefix=prefix)


def module_result(
    module: str, given: dict[str, t.Any], *, patience: int = 120, prefix: t.Sequence[str] = ()
) -> dict[str, t.Any]:
    """As :func:`run_module`, with the arguments as Ansible would give them."""
    if prefix:
        argv = [*prefix, sys.executable, "-c", _RUN, module]
        code, out, err = _run(argv, given, patience)
    else:
        code, out, err = _run_forked(module, given, patience)
    assert err == ""
    result = json.loads(out)
    assert (code != 0) is result.setdefault("failed", False)
    return t.cast("dict[str, t.Any]", result)


def _run(argv: list[str], given: dict[str, t.Any], patience: int) -> tuple[int, str, str]:
    process = subprocess.run(
        argv,
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=patience,
        check=False,
    )
    return process.returncode, process.stdout, process.stderr


def _run_forked(module: str, given: dict[str, t.Any], patience: int) -> tuple[int, str, str]:
    given = json.loads(json.dumps(given))  # as it comes from Ansible: text, numbers, lists
    with (
        tempfile.NamedTemporaryFile("r", encoding="utf-8") as out,
        tempfile.NamedTemporaryFile("r", encoding="utf-8") as err,
    ):
        arguments = (module, given, dict(os.environ), os.getcwd(), (out.name, err.name))
        process = _FORKED.Process(target=module_process.run, args=arguments)
        process.start()
        process.join(patience)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(module, patience)
        return process.exitcode, out.read(), err.read()


def run_playbook(
    folder: Path,
    playbook: str | Path,
    inventory: dict[str, t.Any],
    *options: str,
    callback: str = "ansible.builtin.default",
    patience: int = 120,
) -> subprocess.CompletedProcess[str]:
    """Run a playbook, by its name or its file, with this inventory; the folder is for its files.

    :param callback: how Ansible prints what it does; ``ansible.posix.json`` for programs.
    :param patience: seconds.
    """
    (folder / "inventory.json").write_text(json.dumps(inventory))
    settings = {
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_STDOUT_CALLBACK": callback,
        "ANSIBLE_CONNECTION_PLUGINS": str(CONNECTIONS),
    }
    return subprocess.run(
        ["ansible-playbook", "-i", "inventory.json", *options, playbook],
        cwd=folder,
        env=os.environ | settings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=patience,
        check=False,
    )


def assert_explains(result: dict[str, t.Any], *words: str) -> None:
    """It failed in a way that a person can act on: these words, no traceback."""
    assert result["failed"]
    assert "Traceback" not in json.dumps(result)
    for word in words:
        assert word in result["msg"], result["msg"]
