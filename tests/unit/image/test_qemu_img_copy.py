# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How qemu-img is told to copy and to compare, to the letter, and how its progress is read."""

from __future__ import annotations

import json
import os

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import CommandError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import (
    qemu_argv,
    qemu_img,
    qemu_output,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.process import Completed
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.qemu_argv import Copy, Storage
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.sparsify import (
    sparsify,
    sparsify_argv,
)

CONVERT = ["/q", "convert", "-p", "-t", "writeback", "-O"]


@pytest.mark.parametrize(
    ("copy", "expected"),
    [
        (Copy("raw"), [*CONVERT, "raw", "S", "/t"]),
        (
            Copy("qcow2", {"compat": "1.1", "cluster_size": "65536"}, bitmaps=True),
            [*CONVERT, "qcow2", "-o", "cluster_size=65536,compat=1.1", "--bitmaps", "S", "/t"],
        ),
        (
            Copy("qcow2", {"compression_type": "zstd"}, compressed=True),
            [*CONVERT, "qcow2", "-o", "compression_type=zstd", "-c", "S", "/t"],
        ),
        (Copy("raw", sparse=False), [*CONVERT, "raw", "-S", "0", "S", "/t"]),
    ],
)
def test_convert(copy, expected):
    assert qemu_argv.convert_argv("/q", "S", "/t", copy=copy) == expected


def test_compare_and_the_size_of_nothing():
    assert qemu_argv.compare_argv("/q", "S", "T") == ["/q", "compare", "-p", "S", "T"]
    assert qemu_argv.measure_argv(
        "/q", "--size", "7", target_format="qcow2", options={"a": "b"}
    ) == [*("/q", "measure", "--output=json", "-O", "qcow2", "-o", "a=b", "--size", "7")]
    assert qemu_argv.measure_argv("/q", "S", target_format="raw", options={}, force_share=True) == [
        "/q",
        "measure",
        "--output=json",
        "-U",
        "-O",
        "raw",
        "S",
    ]


def test_a_chain_is_named_link_by_link():
    below = [(Storage("/m"), "qcow2"), (Storage("/dev/b", block_device=True), "raw")]
    spec = qemu_argv.image_spec(Storage("/proc/self/fd/7"), "qcow2", backing=below)
    assert json.loads(spec.removeprefix("json:")) == {
        "driver": "qcow2",
        "file": {"driver": "file", "filename": "/proc/self/fd/7"},
        "backing": {
            "driver": "qcow2",
            "file": {"driver": "file", "filename": "/m"},
            "backing": {"driver": "raw", "file": {"driver": "host_device", "filename": "/dev/b"}},
        },
    }


def test_a_chain_that_ends_is_cut_off():
    spec = qemu_argv.image_spec(Storage("/a"), "qcow2", backing=[(Storage("/b"), "qcow2")])
    assert json.loads(spec.removeprefix("json:"))["backing"]["backing"] is None


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([b"    (0.00/100%)\r", b"    (12.50/100%)\r    (13/100%)\r"], [0.0, 12.5, 13.0]),
        ([b"", b"Images are identical.\n"], []),
        ([b"    (1", b"2.50/100%)"], []),  # cut in two: the next one comes soon
        ([b"(nan/100%)(-1/100%)(1e3/100%)(/100%)(1.2.3/100%)(5/100)"], []),
        ([b"(" + b"9" * 400 + b"/100%)"], [float("inf")]),
    ],
)
def test_progress(pieces, expected):
    seen: list[float] = []
    read = qemu_output.progress_reader(seen.append)
    for piece in pieces:
        read(piece)
    assert seen == expected


class Script:
    """A runner that prints, and answers as told; and remembers how it was called."""

    def __init__(self, rc: int, *, stdout: bytes = b"", stderr: str = "") -> None:
        self.answer = Completed(rc, stdout, stderr)
        self.argv: list[str] = []
        self.more: dict = {}

    def __call__(self, argv, *, timeout, **more):
        assert 0 < timeout <= 10
        self.argv, self.more = list(argv), more
        if "on_output" in more:
            more["on_output"](b"(42/100%)")
        return self.answer


def tool(script: Script) -> qemu_img.QemuImg:
    return qemu_img.QemuImg(timeout=10, runner=script, program="/q")


def test_convert_passes_files_on_and_tells_how_far_it_is():
    script, seen, watched = Script(0), [], []
    tool(script).convert(
        "S",
        "/t",
        copy=Copy("raw"),
        pass_fds=(3, 4),
        report=seen.append,
        watch=lambda: watched.append(1),
    )
    assert script.argv == [*CONVERT, "raw", "S", "/t"]
    assert script.more["pass_fds"] == (3, 4)
    assert seen == [42.0]
    assert watched == [1]


@pytest.mark.parametrize(("rc", "same"), [(0, True), (1, False)])
def test_compare_tells_like_from_unlike(rc, same):
    script, seen = Script(rc), []
    assert tool(script).compare("S", "T", pass_fds=(3,), report=seen.append) is same
    assert script.argv == ["/q", "compare", "-p", "S", "T"]
    assert seen == [42.0]


def test_what_watches_the_tool_watches_copies_and_comparisons():
    watched = []
    tool = qemu_img.QemuImg(
        timeout=10, watch=lambda: watched.append(1), runner=Script(0), program="/q"
    )
    tool.convert("S", "/t", copy=Copy("raw"), pass_fds=(), report=lambda _percent: None)
    assert watched == [1]
    tool.compare("S", "T", pass_fds=(), report=lambda _percent: None)
    assert watched == [1, 1]


@pytest.mark.parametrize("rc", [2, 3, 4, 127, -9, -11])
def test_a_comparison_that_failed_is_neither(rc):
    with pytest.raises(CommandError, match=f"qemu-img compare failed with status {rc}: no"):
        tool(Script(rc, stderr="no\n")).compare("S", "T", pass_fds=(), report=lambda _percent: None)


@pytest.mark.parametrize("rc", [1, 127, -9])
def test_a_copy_that_failed(rc):
    with pytest.raises(CommandError, match=f"qemu-img convert failed with status {rc}"):
        tool(Script(rc)).convert(
            "S", "/t", copy=Copy("raw"), pass_fds=(), report=lambda _percent: None
        )


def test_the_size_of_tables():
    script = Script(0, stdout=b'{"required": 5, "fully-allocated": 9}')
    measured = tool(script).measure_empty(1 << 30, target_format="qcow2", options={})
    assert measured.required_bytes == 5
    assert script.argv == ["/q", "measure", "--output=json", "-O", "qcow2", "--size", "1073741824"]


# virt-sparsify


def test_sparsify_names_the_format_and_never_a_relative_path():
    assert sparsify_argv("/v", "/x", "raw") == [
        *("/v", "--in-place", "--quiet", "--format", "raw", "/x")
    ]


@pytest.fixture
def installed(monkeypatch):
    name = "ansible_collections.thinvirt.kvm.plugins.module_utils._image.sparsify.find_program"
    monkeypatch.setattr(name, lambda program, **_more: f"/usr/bin/{program}")


#: As virt-sparsify 1.48 complains, whatever the reason.
NO_APPLIANCE = """virt-sparsify: error: no appliance

If reporting bugs, run virt-sparsify with debugging enabled and include the
complete output:

  virt-sparsify -v -x [...]
"""


@pytest.mark.usefixtures("installed")
def test_sparsify_is_told_how_to_work_by_variables_of_libguestfs_alone(monkeypatch):
    monkeypatch.setenv("LIBGUESTFS_BACKEND", "direct")
    monkeypatch.setenv("LD_PRELOAD", "/evil.so")
    script = Script(0)
    sparsify("/x", "qcow2", 10, script, fd=9)
    name = f"/proc/{os.getpid()}/fd/9"
    assert script.argv == sparsify_argv("/usr/bin/virt-sparsify", name, "qcow2")
    assert {k: v for k, v in script.more["env"].items() if k.startswith("LIBGUESTFS")} == {
        "LIBGUESTFS_BACKEND": "direct"
    }
    assert "LD_PRELOAD" not in script.more["env"]
    assert script.more["max_memory_bytes"] > 4 << 30


@pytest.mark.usefixtures("installed")
def test_sparsify_that_failed_says_what_became_of_the_image():
    with pytest.raises(CommandError, match=r"status 1: no\\x1b\..*trimmed until then is trimmed"):
        sparsify("/x", "qcow2", 10, Script(1, stderr="hm\nno\x1b\n"), fd=9)
    with pytest.raises(CommandError, match="status 1: it printed nothing"):
        sparsify("/x", "qcow2", 10, Script(1), fd=9)
    with pytest.raises(CommandError, match="status 1: virt-sparsify: error: no appliance\\. What"):
        sparsify("/x", "qcow2", 10, Script(1, stderr=NO_APPLIANCE), fd=9)
