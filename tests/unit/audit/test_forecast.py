# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Days until full, from what was free before."""

from __future__ import annotations

import datetime
import random
import statistics

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._audit.forecast import (
    History,
    Report,
    days_until_full,
    parse_reports,
    parse_time,
    written,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError

NOW = datetime.datetime(2026, 11, 25, 4, tzinfo=datetime.UTC)
GIB = 1 << 30


def at(day):
    """That many days ago."""
    return NOW - datetime.timedelta(days=day)


@pytest.mark.parametrize(
    ("free", "days"),
    [
        ({2: 30, 1: 20, 0: 10}, 1.0),
        ({20: 30, 10: 20, 0: 10}, 10.0),
        ({4: 30, 1: 15, 0: 10}, 2.0),
        # one that falls off the line is weighed, not followed
        ({4: 50, 3: 40, 2: 10, 1: 20, 0: 10}, 1.0),
        ({2: 2, 1: 1, 0: 0}, 0.0),
        # nothing shrinks
        ({2: 10, 1: 10, 0: 10}, None),
        ({2: 10, 1: 20, 0: 30}, None),
        # extended in between: the line goes up
        ({3: 30, 2: 20, 1: 90, 0: 80}, None),
        # nothing can be told
        ({}, None),
        ({0: 10}, None),
        ({9: 90, 0: 10}, None),
        ({0.9: 30, 0.5: 20, 0: 10}, None),
        # not within ten years
        ({2: 10.002, 1: 10.001, 0: 10}, None),
    ],
)
def test_days_until_full(free, days):
    points = [(at(day), int(gib * GIB)) for day, gib in free.items()]
    assert days_until_full(points) == days
    assert days_until_full(points[::-1]) == days


def test_it_is_the_line_that_the_standard_library_draws():
    chance = random.Random(1)  # noqa: S311
    free = [500 * GIB - day * GIB - chance.randrange(GIB) for day in range(60)]
    line = statistics.linear_regression(range(60), free)
    points = [(at(59 - day), bytes_) for day, bytes_ in enumerate(free)]
    assert days_until_full(points) == pytest.approx(free[-1] / -line.slope, abs=0.06)


def test_the_same_report_twice_is_one_point():
    points = [(at(2), 30), (at(2), 30), (NOW, 10)]
    assert days_until_full(points) is None


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-11-25T04:00:00Z", NOW),
        ("2026-11-25T05:00:00+01:00", NOW),
        ("2026-11-25T04:00:00", NOW),
        ("2026-11-25", NOW.replace(hour=0)),
        ("yesterday", None),
        ("", None),
        (5, None),
        (None, None),
    ],
)
def test_times(text, time):
    assert parse_time(text) == time


def test_a_time_is_written_as_it_is_read():
    assert written(NOW) == "2026-11-25T04:00:00Z"
    zone = datetime.timezone(datetime.timedelta(hours=5, minutes=30))
    assert parse_time(written(NOW.astimezone(zone))) == NOW


def test_whole_results_are_taken_for_reports():
    system = {"mount_point": "/srv", "free_bytes": 7, "type": "ext4", "disks": 3}
    whole = {
        "taken_at": "2026-11-25T04:00:00Z",
        "changed": False,
        "domains": [{}],
        "file_systems": [system],
        "pools": [{"name": "ceph", "free_bytes": "8", "mount_point": None}],
    }
    assert parse_reports([whole]) == (Report(NOW, {"/srv": 7}, {"ceph": 8}),)
    assert parse_reports([{"taken_at": "2026-11-25T04:00:00Z"}]) == (Report(NOW, {}, {}),)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"taken_at": None}, "no taken_at"),
        ({"taken_at": "soon"}, "no taken_at"),
        ({"file_systems": {}}, "file_systems without mount_point and free_bytes"),
        ({"file_systems": ["/"]}, "without mount_point"),
        ({"file_systems": [{"mount_point": "/"}]}, "free_bytes"),
        ({"file_systems": [{"mount_point": 1, "free_bytes": 1}]}, "mount_point"),
        ({"file_systems": [{"mount_point": "/", "free_bytes": -1}]}, "free_bytes"),
        ({"file_systems": [{"mount_point": "/", "free_bytes": None}]}, "free_bytes"),
        ({"file_systems": [{"mount_point": "/", "free_bytes": float("inf")}]}, "free_bytes"),
        ({"pools": [{"free_bytes": 1}]}, "pools without name"),
    ],
)
def test_what_is_no_report_is_named_by_its_number(changes, words):
    good = {"taken_at": "2026-11-25T04:00:00Z"}
    with pytest.raises(RefusedError) as caught:
        parse_reports([good, good | changes])
    assert words in str(caught.value)
    assert "Report 2 in earlier" in str(caught.value)


def test_what_is_no_mapping_is_no_report():
    with pytest.raises(RefusedError, match="Report 1 in earlier"):
        parse_reports(["2026-11-25"])


def test_a_history_looks_for_what_is_meant():
    reports = tuple(
        Report(at(day), {"/srv": day * GIB, "/other": 0}, {"ceph": 2 * day * GIB + 2 * GIB})
        for day in (2, 1)
    )
    history = History(NOW, reports)
    assert history.of_file_system("/srv", 0) == 0.0
    assert history.of_file_system("/gone", 5) is None
    assert history.of_pool("ceph", 2 * GIB) == 1.0
    assert history.of_pool("/srv", 2 * GIB) is None


def test_reports_of_a_clock_that_was_ahead_do_not_count():
    ahead = (Report(at(-1), {"/": 1}, {}), Report(NOW, {"/": 99}, {}), Report(at(2), {"/": 30}, {}))
    assert History(NOW, ahead).of_file_system("/", 10) is None
    assert History(NOW, (*ahead, Report(at(1), {"/": 20}, {}))).of_file_system("/", 10) == 1.0
