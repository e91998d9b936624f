# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests' specifications in JSON, as Molecule's create hands them to the lab."""

from __future__ import annotations

import json

import pytest
from lab import Disk, GuestSpec, LabError
from lab.__main__ import parse_specs


def test_guests_and_disks():
    text = json.dumps(
        {
            "guests": [
                {"name": "a", "machine": "pc", "disks": [{"target": "vda", "bus": "virtio"}]},
                {"name": "b"},
            ]
        }
    )
    assert parse_specs(text) == [
        GuestSpec("a", machine="pc", disks=(Disk("vda", "virtio"),)),
        GuestSpec("b"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"guests": [{}]}',
        '{"guests": [{"name": "a", "colour": "red"}]}',
        '{"guests": [{"name": "a", "disks": [{"target": "sda", "buss": "scsi"}]}]}',
    ],
)
def test_a_wrong_one_is_refused_in_one_sentence(text):
    with pytest.raises(LabError, match="specification is wrong"):
        parse_specs(text)
