# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real images by QEMU's own tools, and the module run in a process of its own."""

from __future__ import annotations

import subprocess

from support import module_result


def run(*argv: object, rc: int = 0, timeout: float = 120) -> str:
    """Run a program that must end with that status; what it printed."""
    process = subprocess.run(
        list(map(str, argv)), capture_output=True, text=True, timeout=timeout, check=False
    )
    assert process.returncode == rc, process.stdout + process.stderr
    return process.stdout


def create(path, size="64M", *, backing=None, file_format="qcow2", **options) -> str:
    """``qemu-img create``; the path."""
    argv = ["qemu-img", "create", "-q", "-f", file_format]
    for name, value in options.items():
        argv += ["-o", f"{name.replace('__', '.')}={value}"]
    if backing is not None:
        argv += ["-b", backing, "-F", "qcow2", "-u"]
    run(*argv, path, size)
    return str(path)


def qemu_io(path, *commands: str) -> None:
    """Write to an image as a guest would."""
    options = [part for command in commands for part in ("-c", command)]
    run("qemu-io", "-d", "unmap", "-f", "qcow2", *options, path)


def image_info(*paths: object, prefix=(), check_mode=False, patience=60, **parameters) -> dict:
    """What the module returns; a traceback or a word on stderr fails the test."""
    given = {"paths": list(map(str, paths)), "_ansible_check_mode": check_mode, **parameters}
    result = module_result("image_info", given, patience=patience, prefix=prefix)
    assert not result.get("changed")
    return result


def info_of(path: object, **parameters) -> dict:
    """The entry of one good image."""
    result = image_info(path, **parameters)
    assert not result.get("failed"), result
    (entry,) = result["images"]
    return entry


def error_of(path: object, **parameters) -> str:
    """The error of one bad image: one line, and nothing else in its entry."""
    result = image_info(path, **parameters)
    assert result["failed"]
    (entry,) = result["images"]
    assert set(entry) <= {"path", "error", "cmd", "rc", "stderr"}
    assert entry["error"] in result["msg"]
    assert "\n" not in entry["error"]
    return entry["error"]
