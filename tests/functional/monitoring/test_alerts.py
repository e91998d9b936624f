# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The alert rules that ship, in Prometheus' own unit tests of rules (promtool).

Each alert: when it comes and not before, with which words, and that a neighbour which is well has
none.  The time that the tests begin at is 0.
"""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest
import yaml

RULES = Path(__file__).parents[3] / "docs" / "monitoring" / "alerts.yml"
DAY = 86400
DEFINED = {
    rule["alert"]: rule
    for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One alert.

    :param series: what was scraped; a dictionary from series to :func:`hours`.
    :param after: hours after which it fires, and had not an hour before.
    :param labels: besides ``severity`` and ``instance``.
    :param summary: what it says then.
    """

    alert: str
    series: dict[str, str]
    after: int
    labels: dict[str, str]
    summary: str


def hours(*steps: tuple[float, int], each: float = 0) -> str:
    """Values that hold for so many hours, one after the other, scraped every five minutes.

    :param each: what the last one gains with every hour.
    """
    *flat, (last, length) = steps
    held = [f"{value}+0x{12 * span - 1}" for value, span in flat]
    return " ".join([*held, f"{last}{each / 12:+}x{12 * length}"])


SRV = 'instance="h1",mountpoint="/srv"'
ROOT = 'instance="h1",mountpoint="/"'
LVM = 'instance="h1",pool="lvm"'
FILES = 'instance="h1",pool="files"'
CASES = [
    Case(
        "ThinvirtFileSystemFillsUp",
        {
            f"thinvirt_filesystem_until_full_seconds{{{SRV}}}": hours((8 * DAY, 5), (6 * DAY, 20)),
            f"thinvirt_filesystem_until_full_seconds{{{ROOT}}}": hours((7 * DAY, 40)),
        },
        6,
        {"mountpoint": "/srv"},
        "/srv on h1 will be full in 6d 0h 0m 0s",
    ),
    Case(
        "ThinvirtFileSystemFullToday",
        {
            f"node_filesystem_avail_bytes{{{SRV}}}": hours((2400, 6), (2400, 40), each=-100),
            'node_filesystem_avail_bytes{instance="h1",mountpoint="/home"}': hours(
                (2400, 40), each=-100
            ),
            f"node_filesystem_avail_bytes{{{ROOT}}}": hours((2400, 40), each=-10),
            f"thinvirt_filesystem_promised_bytes{{{SRV}}}": hours((1, 40)),
            f"thinvirt_filesystem_promised_bytes{{{ROOT}}}": hours((1, 40)),
        },
        11,
        {"mountpoint": "/srv"},
        "/srv on h1 will be full within a day",
    ),
    Case(
        "ThinvirtOvercommitted",
        {
            f"thinvirt_filesystem_overcommit_ratio{{{SRV}}}": hours((2, 5), (2.5, 20)),
            f"thinvirt_filesystem_overcommit_ratio{{{ROOT}}}": hours((2, 40)),
        },
        6,
        {"mountpoint": "/srv"},
        "/srv on h1 is promised 2.5 times",
    ),
    Case(
        "ThinvirtOvercommittedAndNearlyFull",
        {
            f"thinvirt_filesystem_overcommit_ratio{{{SRV}}}": hours((1.5, 40)),
            f"thinvirt_filesystem_avail_bytes{{{SRV}}}": hours((10, 5), (9, 20)),
            f"thinvirt_filesystem_size_bytes{{{SRV}}}": hours((100, 40)),
            f"thinvirt_filesystem_overcommit_ratio{{{ROOT}}}": hours((1, 40)),
            f"thinvirt_filesystem_avail_bytes{{{ROOT}}}": hours((1, 40)),
            f"thinvirt_filesystem_size_bytes{{{ROOT}}}": hours((100, 40)),
        },
        6,
        {"mountpoint": "/srv"},
        "/srv on h1 has less than 10 % left, and is promised more",
    ),
    Case(
        "ThinvirtPoolFillsUp",
        {
            f"thinvirt_pool_until_full_seconds{{{LVM}}}": hours((8 * DAY, 5), (6 * DAY, 20)),
            f"thinvirt_pool_until_full_seconds{{{FILES}}}": hours((DAY, 40)),
            f'thinvirt_pool_info{{{LVM},type="logical"}}': hours((1, 40)),
            f'thinvirt_pool_info{{{FILES},type="dir",mountpoint="/srv"}}': hours((1, 40)),
        },
        6,
        {"pool": "lvm"},
        "Storage pool lvm on h1 will be full in 6d 0h 0m 0s",
    ),
    Case(
        "ThinvirtPoolOvercommitted",
        {
            f"thinvirt_pool_overcommit_ratio{{{LVM}}}": hours((2, 5), (2.5, 20)),
            f"thinvirt_pool_overcommit_ratio{{{FILES}}}": hours((3, 40)),
            f'thinvirt_pool_info{{{LVM},type="logical"}}': hours((1, 40)),
            f'thinvirt_pool_info{{{FILES},type="dir",mountpoint="/srv"}}': hours((1, 40)),
        },
        6,
        {"pool": "lvm"},
        "Storage pool lvm on h1 is promised 2.5 times",
    ),
    Case(
        "ThinvirtDiscardBroken",
        {
            f'thinvirt_disk_discard_verdict{{instance="h1",domain="web1",disk="{disk}",'
            f'verdict="{verdict}"}}': values
            for disk, verdict, values in (
                ("vda", "broken", hours((0, 5), (1, 20))),
                ("vda", "works", hours((1, 5), (0, 20))),
                ("vdb", "broken", hours((0, 40))),
                ("vdb", "unknown", hours((1, 40))),
            )
        },
        6,
        {"domain": "web1", "disk": "vda", "verdict": "broken"},
        "web1/vda on h1 keeps what its guest discards",
    ),
    Case(
        "ThinvirtNotTrimmed",
        {
            'thinvirt_domain_last_trim_timestamp_seconds{instance="h1",domain="on"}': hours(
                (0, 400)
            ),
            'thinvirt_domain_last_trim_timestamp_seconds{instance="h1",domain="off"}': hours(
                (0, 400)
            ),
            'thinvirt_domain_running{instance="h1",domain="on"}': hours((1, 400)),
            'thinvirt_domain_running{instance="h1",domain="off"}': hours((0, 400)),
        },
        14 * 24 + 2,
        {"domain": "on"},
        "on on h1 was not trimmed for 14d 2h 0m 0s",
    ),
    Case(
        "ThinvirtDomainNotRead",
        {
            'thinvirt_domain_audit_success{instance="h1",domain="web1"}': hours((1, 5), (0, 20)),
            'thinvirt_domain_audit_success{instance="h1",domain="web2"}': hours((1, 40)),
        },
        6,
        {"domain": "web1"},
        "web1 on h1 could not be audited",
    ),
    Case(
        "ThinvirtAuditStale",
        {'thinvirt_audit_timestamp_seconds{instance="h1"}': hours((0, 100))},
        2 * 24 + 2,
        {},
        "h1 was not audited for 2d 2h 0m 0s",
    ),
]


def promtool(*argv):
    return subprocess.run(
        ["promtool", *argv], capture_output=True, text=True, timeout=120, check=False
    )


def test_the_rules_are_valid():
    checked = promtool("check", "rules", str(RULES))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(DEFINED)} rules found" in checked.stdout


def test_every_rule_has_a_case():
    assert sorted(case.alert for case in CASES) == sorted(DEFINED)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_it_comes_when_it_is_time(case, tmp_path):
    rule = DEFINED[case.alert]
    fired = {
        "exp_labels": {**case.labels, "instance": "h1", **rule["labels"]},
        "exp_annotations": {**rule["annotations"], "summary": case.summary},
    }
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "10m",
        "tests": [
            {
                "interval": "5m",
                "input_series": [
                    {"series": series, "values": values} for series, values in case.series.items()
                ],
                "alert_rule_test": [
                    {"alertname": case.alert, "eval_time": f"{case.after - 1}h"},
                    {
                        "alertname": case.alert,
                        "eval_time": f"{case.after}h",
                        "exp_alerts": [fired],
                    },
                ],
            }
        ],
    }
    path = tmp_path / "test.yml"
    path.write_text(yaml.safe_dump(test), encoding="utf-8")
    ran = promtool("test", "rules", str(path))
    assert ran.returncode == 0, ran.stdout + ran.stderr
