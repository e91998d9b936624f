# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""ansible-builder takes the definition, and finds what the collection needs.

No image is built: that takes a container engine and what it downloads.
"""

from __future__ import annotations

import subprocess

import pytest
import yaml
from awx_lab import AWX, PROJECT, ROOT


def builder(*argv: object) -> str:
    done = subprocess.run(
        ["ansible-builder", *map(str, argv)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ee") / "context"
    definition = AWX / "execution-environment.yml"
    builder("create", "-f", definition, "-c", folder, "--output-filename", "Containerfile")
    return folder


def test_create_writes_a_context_with_the_collection_in_it(context):
    needs = yaml.safe_load((context / "_build" / "requirements.yml").read_text())
    assert needs == {"collections": [{"name": "thinvirt.kvm"}]}
    text = (context / "Containerfile").read_text()
    assert 'ARG EE_BASE_IMAGE="fedora:' in text
    assert "ansible-galaxy collection install" in text
    # What collections ask for is looked up and installed in the build.
    assert "introspect.py introspect" in text
    assert 'ARG ANSIBLE_INSTALL_REFS="ansible-core>=2.19 ansible-runner"' in text


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("python", {"pypsrp>=0.9.0", "vl-convert-python>=1.9.0"}),
        ("system", {"openssh-clients [platform:rpm]", "openssh-client [platform:dpkg]", "sshpass"}),
    ],
)
def test_introspect_finds_what_the_controller_needs(collections_path, target, found):
    told = yaml.safe_load(builder("introspect", collections_path))
    mark = "  # from collection thinvirt.kvm"
    ours = {line.removesuffix(mark) for line in told[target] if line.endswith(mark)}
    assert ours == found


def test_what_hypervisors_need_is_no_need_of_the_controller():
    text = "".join(path.read_text() for path in (ROOT / "meta").glob("ee-*.txt"))
    for name in ("libvirt", "lxml", "qemu"):
        assert name not in text


def test_the_project_asks_for_the_collection():
    needs = yaml.safe_load((PROJECT / "collections" / "requirements.yml").read_text())
    galaxy = yaml.safe_load((ROOT / "galaxy.yml").read_text())
    name = f"{galaxy['namespace']}.{galaxy['name']}"
    assert [one["name"] for one in needs["collections"]] == [name]
