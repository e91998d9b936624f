# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How qemu-img is called, to the letter, and how its answers are understood."""

from __future__ import annotations

import json

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import (
    CommandError,
    RefusedError,
    ThinvirtError,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image import (
    qemu_argv,
    qemu_img,
    qemu_output,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.process import Completed

SPEC = (
    'json:{"driver": "qcow2", "file": {"driver": "file", "filename": "/a.qcow2"}, "backing": null}'
)


def test_specification_of_a_qcow2_image_cuts_its_backing_file_off():
    assert qemu_argv.image_spec(qemu_argv.Storage("/a.qcow2"), "qcow2") == SPEC


@pytest.mark.parametrize(
    "path", ["/-x", "/a:b", "/json:{}", '/a,b"c\\', "/line\nbreak", "/é", "/nbd://host"]
)
def test_specification_holds_any_name(path):
    spec = qemu_argv.image_spec(qemu_argv.Storage(path), "raw")
    assert json.loads(spec.removeprefix("json:")) == {
        "driver": "raw",
        "file": {"driver": "file", "filename": path},
    }


def test_specification_names_the_data_file():
    image, data_file = qemu_argv.Storage("/dev/a", block_device=True), qemu_argv.Storage("/b:c")
    document = json.loads(qemu_argv.image_spec(image, "qcow2", data_file=data_file)[5:])
    assert document["file"] == {"driver": "host_device", "filename": "/dev/a"}
    assert document["data-file"] == {"driver": "file", "filename": "/b:c"}


def test_specification_of_a_name_that_json_cannot_hold():
    with pytest.raises(RefusedError, match=r"\\\\xff is not valid UTF-8"):
        qemu_argv.image_spec(qemu_argv.Storage("/a\udcff"), "raw")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (
            qemu_argv.info_argv("/q", "S", force_share=False),
            ["/q", "info", "--output=json", "S"],
        ),
        (
            qemu_argv.info_argv("/q", "S", force_share=True),
            ["/q", "info", "--output=json", "-U", "S"],
        ),
        (qemu_argv.map_argv("/q", "S"), ["/q", "map", "--output=json", "S"]),
        (qemu_argv.check_argv("/q", "S"), ["/q", "check", "--output=json", "S"]),
        (
            qemu_argv.measure_argv("/q", "S", target_format="raw", options={}),
            ["/q", "measure", "--output=json", "-O", "raw", "S"],
        ),
        (
            qemu_argv.measure_argv("/q", "S", target_format="qcow2", options={"b": "2", "a": "1"}),
            ["/q", "measure", "--output=json", "-O", "qcow2", "-o", "a=1,b=2", "S"],
        ),
    ],
)
def test_command_lines(argv, expected):
    assert argv == expected


def test_info():
    bitmap = {"name": "b0", "granularity": 65536, "flags": ["auto"]}
    document = {
        "format": "qcow2",
        "virtual-size": 5,
        "format-specific": {"type": "qcow2", "data": {"bitmaps": [bitmap]}},
    }
    assert qemu_output.parse_info(json.dumps(document).encode()) == qemu_output.Info(
        "qcow2", 5, (qemu_output.Bitmap("b0", 65536, ("auto",)),)
    )
    assert qemu_output.parse_info(b'{"format": "raw", "virtual-size": 5}').bitmaps == ()


def test_map_of_old_and_new_versions():
    output = b"""[
        {"start": 0, "length": 4, "depth": 0, "zero": false, "data": true, "offset": 7},
        {"start": 4, "length": 4, "depth": 0, "present": true, "zero": false, "data": true,
         "compressed": true},
        {"start": 8, "length": 4, "depth": 1, "present": false, "zero": true, "data": false}]"""
    assert qemu_output.parse_map(output) == [
        qemu_output.MapEntry(0, 4, data=True, zero=False, offset=7),
        qemu_output.MapEntry(4, 4, data=True, zero=False, offset=None),
        qemu_output.MapEntry(8, 4, data=False, zero=True, offset=None, depth=1),
    ]


def test_check_leaves_zeros_out():
    output = b'{"image-end-offset": 9, "total-clusters": 3, "check-errors": 0, "format": "qcow2"}'
    assert qemu_output.parse_check(output, result="clean") == qemu_output.CheckResult(
        result="clean",
        leaks=0,
        corruptions=0,
        check_errors=0,
        image_end_offset_bytes=9,
        total_clusters=3,
        allocated_clusters=0,
        compressed_clusters=0,
        fragmented_clusters=0,
    )


def test_measure():
    output = b'{"required": 1, "fully-allocated": 2}'
    assert qemu_output.parse_measure(output) == qemu_output.Measure(1, 2, 0)


@pytest.mark.parametrize(
    "output",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b'{"required": "1", "fully-allocated": 2}',
        b'{"required": true, "fully-allocated": 2}',
        b'{"required": -1, "fully-allocated": 2}',
        b'{"required": 1.0, "fully-allocated": 2}',
        b'{"required": 1}\xff',
    ],
)
def test_nonsense_is_an_error(output):
    with pytest.raises(ThinvirtError, match="qemu-img measure printed is not understood"):
        qemu_output.parse_measure(output)


@pytest.mark.parametrize("specific", ["[]", "{}", '{"data": 5}', '{"data": {"bitmaps": [{}]}}'])
def test_odd_answers_of_info(specific):
    output = f'{{"format": "qcow2", "virtual-size": 5, "format-specific": {specific}}}'
    if specific == "{}":
        assert qemu_output.parse_info(output.encode()).bitmaps == ()
    else:
        with pytest.raises(ThinvirtError, match="qemu-img info printed is not understood"):
            qemu_output.parse_info(output.encode())


class Script:
    """A runner that answers as told and remembers what was asked."""

    def __init__(self, rc: int, stdout: bytes = b"", stderr: str = "") -> None:
        self.answer = Completed(rc, stdout, stderr)
        self.calls: list[list[str]] = []

    def __call__(self, argv, *, timeout):
        assert 0 < timeout <= 10
        self.calls.append(list(argv))
        return self.answer


def tool(script: Script) -> qemu_img.QemuImg:
    return qemu_img.QemuImg(timeout=10, runner=script, program="/q")


@pytest.mark.parametrize(("rc", "result"), [(0, "clean"), (2, "corrupt"), (3, "leaks")])
def test_exit_statuses_of_check(rc, result):
    script = Script(rc, b'{"check-errors": 0, "leaks": 4}')
    assert tool(script).check("S").result == result
    assert script.calls == [["/q", "check", "--output=json", "S"]]


@pytest.mark.parametrize(
    ("rc", "says"),
    [
        (1, "qemu-img check failed with status 1: qemu-img: no."),
        (63, "qemu-img check does not support checks of this format."),
        (-9, "qemu-img check failed with status -9: qemu-img: no."),
    ],
)
def test_failures_of_check(rc, says):
    with pytest.raises(CommandError) as caught:
        tool(Script(rc, b"{}", "warning\nqemu-img: no\n")).check("S")
    assert caught.value.message == says
    assert caught.value.result()["cmd"] == ["/q", "check", "--output=json", "S"]
    assert caught.value.result()["rc"] == rc
    assert caught.value.result()["stderr"] == "warning\nqemu-img: no\n"


def test_failures_of_the_others():
    for call in (
        lambda t: t.info("S", force_share=False),
        lambda t: t.map("S"),
        lambda t: t.measure("S", target_format="raw", options={}),
    ):
        with pytest.raises(CommandError, match="failed with status 1: it printed nothing"):
            call(tool(Script(1)))
