# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may use whom among the packages of module_utils, and who may import libvirt."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

UTILS = Path(__file__).parents[2] / "plugins/module_utils"
PREFIX = "ansible_collections.thinvirt.kvm.plugins.module_utils."
#: A package, and the others that it imports from.
LAYERS = {
    "_storage": set(),
    "_image": {"_storage"},
    "_domain": {"_image", "_storage"},
    "_discard": {"_domain", "_storage"},
    "_live": {"_domain", "_image", "_storage"},
    "_compaction": {"_live", "_discard", "_domain", "_image"},
    "_hardware": {"_domain", "_image", "_storage"},
    "_backup": {"_domain", "_image", "_storage"},
    "_audit": {"_discard", "_domain", "_image", "_storage"},
    "_guest": {"_image", "_storage"},
    "_metrics": {"_storage"},
}
CALLS = ("backup_calls", "host_calls", "record_calls", "start_calls")
WITH_LIBVIRT = {f"{name}.py" for name in ("connection", "blockjob", *CALLS)}


def imported(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_every_package_has_its_layer():
    assert set(LAYERS) == {init.parent.name for init in UTILS.glob("*/__init__.py")}


@pytest.mark.parametrize("package", LAYERS)
def test_a_package_uses_the_layers_below_it_and_no_other(package):
    used = {
        name.removeprefix(PREFIX).partition(".")[0]
        for file in (UTILS / package).rglob("*.py")
        for name in imported(file)
        if name.startswith(PREFIX)
    }
    assert used & set(LAYERS) - {package} == LAYERS[package]


def test_libvirt_is_imported_in_one_place():
    found = {
        file.relative_to(UTILS).as_posix()
        for file in UTILS.rglob("*.py")
        for name in imported(file)
        if name.partition(".")[0] in {"libvirt", "libvirt_qemu"}
    }
    assert found == {f"_domain/{name}" for name in WITH_LIBVIRT}
