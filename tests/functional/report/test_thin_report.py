# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""thin_report in a play: what it writes, when it writes, and what it refuses."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import fleet
import jsonschema
import pytest
from support import assert_explains, run_playbook

ROOT = Path(__file__).resolve().parents[3]
FILES = [
    "disks.csv",
    "domains.csv",
    "file_systems.csv",
    "findings.csv",
    "hosts.csv",
    "pools.csv",
    "report.html",
    "report.json",
    "report.schema.json",
    "work.csv",
]
# From a file, as from a module, they are no templates; from a variable in a play they would be.
HOSTS = "{{ lookup('ansible.builtin.file', playbook_dir ~ '/answers-%d.json') | from_json }}"


def play(folder: Path, *tasks: dict) -> list[dict]:
    """Run these tasks of thin_report one after the other, whatever fails; their results.

    :param tasks: arguments; ``answers`` are those of the fleet, ``check`` is for check mode.
    """
    steps = []
    for number, arguments in enumerate(tasks):
        options = dict(arguments)
        answers = options.pop("answers", None) or fleet.small()
        (folder / f"answers-{number}.json").write_text(json.dumps(answers))
        steps.append(
            {
                "name": "Report",
                "check_mode": options.pop("check", False),
                "ignore_errors": True,
                "thinvirt.kvm.thin_report": {"hosts": HOSTS % number, **options},
            }
        )
    (folder / "play.yml").write_text(
        json.dumps([{"hosts": "all", "gather_facts": False, "tasks": steps}])
    )
    # A host that nobody reaches: there is no connection to be made.
    inventory = {"all": {"hosts": {"nowhere.invalid": {"ansible_host": "192.0.2.1"}}}}
    done = run_playbook(
        folder, "play.yml", inventory, "--diff", callback="ansible.posix.json", patience=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return [
        task["hosts"]["nowhere.invalid"] for task in json.loads(done.stdout)["plays"][0]["tasks"]
    ]


def shape(path: Path) -> tuple[int, int, bytes]:
    """What a second writing would change, though the content were the same."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, path.read_bytes()


def test_what_is_written_and_that_it_is_written_once(tmp_path) -> None:
    dest = tmp_path / "out"
    wanted = {"dest_dir": str(dest), "history": [str(dest / "report.json")]}
    told, first = play(tmp_path, {**wanted, "check": True}, wanted)
    assert sorted(os.listdir(dest)) == FILES
    # Check mode tells the same, diff included, before anything is there.
    for key in ("changed", "files", "diff", "summary", "unread", "taken_at"):
        assert told[key] == first[key]
    assert first["changed"]
    assert [(host["host"][:4], host["status"]) for host in first["unread"]] == [
        ("kvm3", "partly"),
        ("kvm4", "unreachable"),
        ("kvm5", "failed"),
    ]
    assert all(stat.S_IMODE((dest / name).stat().st_mode) == 0o640 for name in FILES)
    assert stat.S_IMODE(dest.stat().st_mode) == 0o750
    sizes = {entry["path"]: entry["size_bytes"] for entry in first["files"]}
    assert sizes == {str(dest / name): (dest / name).stat().st_size for name in FILES}
    # A report is too long for a diff.
    assert len(json.dumps(first["diff"])) < 4000

    report = json.loads((dest / "report.json").read_text())
    jsonschema.validate(report, json.loads((dest / report["$schema"]).read_text()))
    assert {domain["domain"] for domain in report["domains"]} > set(fleet.HOSTILE)

    before = {name: shape(dest / name) for name in FILES}
    again, in_check_mode = play(tmp_path, wanted, {**wanted, "check": True})
    assert not again["changed"]
    assert not in_check_mode["changed"]
    assert again["diff"] == {"after": {}, "before": {}}
    assert {name: shape(dest / name) for name in FILES} == before


def test_only_what_differs_is_written(tmp_path) -> None:
    dest = tmp_path / "out"
    wanted = {"dest_dir": str(dest)}
    play(tmp_path, wanted)
    before = {name: shape(dest / name) for name in FILES}
    answers = fleet.small()
    answers["kvm4.example.com"]["msg"] = "Now it is another reason."
    (again,) = play(tmp_path, {**wanted, "answers": answers})
    changed = {Path(entry["path"]).name for entry in again["files"] if entry["changed"]}
    assert changed == {"hosts.csv", "report.html", "report.json"}
    assert {name for name in FILES if shape(dest / name) != before[name]} == changed


def test_history_comes_from_the_report_that_is_replaced(tmp_path) -> None:
    dest = tmp_path / "out"
    wanted = {"dest_dir": str(dest), "formats": ["json", "html"], "history": [str(dest)]}
    days = [fleet.fleet(hosts=1, disks=2) for _day in range(3)]
    for day, answers in zip((23, 24, 25), days, strict=True):
        answers["kvm0.example.com"]["taken_at"] = f"2026-11-{day}T04:00:00Z"
    results = play(tmp_path, *({**wanted, "answers": answers} for answers in days))
    assert not any("warnings" in result for result in results)
    report = json.loads((dest / "report.json").read_text())
    assert [point["taken_at"][8:10] for point in report["history"]] == ["23", "24"]
    assert "Free space over time" in (dest / "report.html").read_text()


def test_formats_modes_and_files_of_others(tmp_path) -> None:
    dest = tmp_path / "out"
    dest.mkdir()
    dest.chmod(0o755)
    (dest / "note.txt").write_text("mine")
    (dest / "report.html").symlink_to(tmp_path / "elsewhere")
    csv = {"dest_dir": str(dest), "formats": ["csv"], "mode": "0600"}
    first, wider, again, link = play(
        tmp_path,
        csv,
        {**csv, "mode": "0644"},
        {**csv, "mode": "0644"},
        {"dest_dir": str(dest), "formats": ["html"]},
    )
    assert first["changed"]
    assert sorted(os.listdir(dest)) == sorted(
        [name for name in FILES if name.endswith("csv")] + ["note.txt", "report.html"]
    )
    assert set(wider["diff"]["after"][str(dest / "disks.csv")].items()) == {("mode", "0644")}
    assert not again["changed"]
    assert stat.S_IMODE((dest / "disks.csv").stat().st_mode) == 0o644
    assert stat.S_IMODE(dest.stat().st_mode) == 0o755
    # A symlink might lead anywhere.
    assert_explains(link, "report.html")
    assert not (tmp_path / "elsewhere").exists()
    assert (dest / "note.txt").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_owner_and_group(tmp_path) -> None:
    dest = tmp_path / "out"
    wanted = {"dest_dir": str(dest), "formats": ["csv"], "owner": "nobody", "group": "daemon"}
    first, again = play(tmp_path, wanted, wanted)
    assert first["changed"]
    assert not again["changed"]
    said = subprocess.run(
        ["stat", "-c", "%U:%G", dest, dest / "disks.csv"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.split() == ["nobody:daemon"] * 2


def test_what_is_refused_and_changes_nothing(tmp_path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "taken" / "report.json").mkdir(parents=True)
    dest = str(tmp_path / "out")
    results = play(
        tmp_path,
        {"dest_dir": "out"},
        {"dest_dir": str(tmp_path / "a" / "b")},
        {"dest_dir": str(tmp_path / "file")},
        {"dest_dir": dest, "mode": "u=rw"},
        {"dest_dir": dest, "mode": "4755"},
        {"dest_dir": dest, "owner": "no-such-user"},
        {"dest_dir": dest, "group": "no-such-group"},
        {"dest_dir": dest, "formats": ["pdf"]},
        {"dest_dir": str(tmp_path / "taken")},
        {"dest_dir": dest, "hosts": ["kvm1"]},
    )
    words = [
        ("not absolute",),
        (str(tmp_path / "a"), "Make"),
        ("file is no folder",),
        ("u=rw", "octal"),
        ("4755", "octal"),
        ("no-such-user",),
        ("no-such-group",),
        ("formats", "pdf"),
        ("report.json", "no plain file"),
        ("dict",),
    ]
    for result, expected in zip(results, words, strict=True):
        assert_explains(result, *expected)
    assert not Path(dest).exists()
    assert os.listdir(tmp_path / "taken") == ["report.json"]


def test_a_history_that_is_none_is_a_warning(tmp_path) -> None:
    (tmp_path / "old.json").write_text("{}")
    (result,) = play(
        tmp_path,
        {
            "dest_dir": str(tmp_path / "out"),
            "formats": ["json"],
            "history": [str(tmp_path / "old.json"), str(tmp_path / "none.json")],
        },
    )
    assert result["changed"]
    assert len(result["warnings"]) == 1
    assert "old.json is not a report" in result["warnings"][0]


def test_without_the_plots_library_it_says_so(tmp_path, monkeypatch) -> None:
    (tmp_path / "vl_convert.py").write_text("raise ImportError('gone')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ['PYTHONPATH']}")
    page, others = play(
        tmp_path,
        {"dest_dir": str(tmp_path / "out")},
        {"dest_dir": str(tmp_path / "out"), "formats": ["json", "csv"]},
    )
    assert_explains(page, "vl-convert-python", "pip install", "nothing was written")
    assert others["changed"]
    assert not (tmp_path / "out" / "report.html").exists()


def test_the_schema_is_in_the_built_collection(tmp_path) -> None:
    """What is not Python is easily left out of a build."""
    subprocess.run(
        ["ansible-galaxy", "collection", "build", "--output-path", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    listed = subprocess.run(["tar", "-tzf", archive], check=True, capture_output=True, text=True)
    assert {
        "docs/report.schema.json",
        "plugins/plugin_utils/_report/web/report.css",
        "plugins/plugin_utils/_report/web/report.html.j2",
        "plugins/plugin_utils/_report/web/report.js",
    } < set(listed.stdout.split())
