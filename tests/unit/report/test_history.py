# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Earlier reports as history: merged, capped, and whatever files there are."""

from __future__ import annotations

import json
import os

import fleet
import pytest
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report import document, history
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report.model import HistoryPoint
from ansible_collections.thinvirt.kvm.plugins.plugin_utils._report.reading import read_fleet


def at(day, *, free=5, host="kvm1", mount_point="/srv/images"):
    return HistoryPoint(f"2026-{day}T04:00:00Z", host, mount_point, free, 10)


def systems(taken_at):
    answer = fleet.answer(fleet.domain("web", fleet.disk(0)), taken_at=taken_at)
    return read_fleet({"kvm1": answer}).file_systems


def report_of(day, *earlier):
    answers = {"kvm1": fleet.answer(fleet.domain("web", fleet.disk(0)))}
    answers["kvm1"]["taken_at"] = f"2026-{day}T04:00:00Z"
    read = read_fleet(answers)
    points = history.merge(earlier, read.file_systems)
    return document.to_json(document.build(read, title="x", history=points))


def days(points):
    return [point.taken_at[5:10] for point in points]


def test_points_come_in_order_and_once() -> None:
    points = [at("11-03"), at("11-01"), at("11-03"), at("11-02", host="kvm9")]
    assert days(history.merge(points, systems("2026-11-25T04:00:00Z"))) == [
        "11-01",
        "11-02",
        "11-03",
    ]


def test_the_report_itself_and_the_future_are_left_out() -> None:
    points = [at("11-24"), at("11-25"), at("11-26"), at("11-26", host="kvm9")]
    merged = history.merge(points, systems("2026-11-25T04:00:00Z"))
    assert [(point.host, point.taken_at[5:10]) for point in merged] == [
        ("kvm1", "11-24"),
        ("kvm9", "11-26"),
    ]


def test_the_newest_points_of_each_file_system_are_kept(monkeypatch) -> None:
    monkeypatch.setattr(history, "MAX_POINTS", 2)
    points = [at(f"11-0{day}", mount_point=name) for day in range(1, 6) for name in ("/a", "/b")]
    assert days(history.merge(points, ())) == ["11-04", "11-04", "11-05", "11-05"]


def test_a_report_hands_its_history_on(tmp_path) -> None:
    path = tmp_path / "report.json"
    path.write_text(report_of("11-01"))
    for day in ("11-02", "11-03"):
        path.write_text(report_of(day, *history.read([str(path)])[0]))
    points, warnings = history.read([str(path)])
    assert sorted(days(points)) == ["11-01", "11-02", "11-03"]
    assert warnings == []
    # Made again with itself at hand it is the same.
    assert report_of("11-03", *points) == path.read_text()


def test_a_folder_holds_reports_and_other_json(tmp_path) -> None:
    (tmp_path / "a.json").write_text(report_of("11-01"))
    (tmp_path / "b.json").write_text(report_of("11-02"))
    (tmp_path / "other.json").write_text('{"kind": "something else"}')
    (tmp_path / "report.txt").write_text("x")
    points, warnings = history.read([str(tmp_path)])
    assert days(points) == ["11-01", "11-02"]
    assert warnings == []


def test_what_does_not_exist_is_no_history_yet(tmp_path) -> None:
    assert history.read([str(tmp_path / "a"), str(tmp_path / "b" / "c.json")]) == ([], [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a report"),
        ("[1]", "is not a dictionary"),
        ("{}", "another kind"),
        ("[" * 100_000, "not a report"),
        (b"\xff\xfe", "not a report"),
        (json.dumps({"kind": document.KIND, "history": [{"host": "x"}]}), "no time or no free"),
        (json.dumps({"kind": document.KIND, "history": 3}), "history is not a list"),
    ],
)
def test_a_file_that_is_no_report_is_a_warning(tmp_path, text, words) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    good = tmp_path / "good.json"
    good.write_text(report_of("11-01"))
    points, warnings = history.read([str(path), str(good)])
    assert days(points) == ["11-01"]
    assert len(warnings) == 1
    assert words in warnings[0]
    assert str(path) in warnings[0]


def test_a_damaged_report_in_a_folder_keeps_no_other_out(tmp_path) -> None:
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text(report_of("11-02"))
    points, warnings = history.read([str(tmp_path)])
    assert days(points) == ["11-02"]
    assert "a.json" in warnings[0]


def test_a_fifo_does_not_hold_the_run_up(tmp_path) -> None:
    os.mkfifo(tmp_path / "fifo.json")
    points, warnings = history.read([str(tmp_path / "fifo.json")])
    assert points == []
    assert "no plain file" in warnings[0]
