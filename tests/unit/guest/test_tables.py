# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""fstab, crypttab, cron's tables, and what systemctl prints, as distributions have them."""

from __future__ import annotations

import pytest
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest import collect, tables
from ansible_collections.thinvirt.kvm.plugins.module_utils._guest.model import Timer

FSTAB = r"""
# /etc/fstab
UUID=5a-1 / ext4 errors=remount-ro 0 1
   /dev/mapper/vg-x  /mnt/a\040b   xfs defaults,X-fstrim.notrim  0  0
LABEL=x /y ext4
broken line
"""


def test_fstab():
    entries = tables.parse_fstab(FSTAB)
    assert [(e.mount_point, e.type, e.notrim) for e in entries] == [
        ("/", "ext4", False),
        ("/mnt/a b", "xfs", True),
        ("/y", "ext4", False),
    ]
    assert entries[0].options == ("errors=remount-ro",)


def test_crypttab():
    text = "# c\na UUID=1 none luks,discard\nb /dev/x /key luks\nc /dev/y\nd /dev/z - discards\nx\n"
    text += "e UUID=2 - nofail,allow-discards\n"  # as systemd has it too
    assert [(e.name, e.discard) for e in tables.parse_crypttab(text)] == [
        ("a", True),
        ("b", False),
        ("c", False),
        ("d", False),
        ("e", True),
    ]


CRONTAB = """\
SHELL=/bin/sh
# 0 3 * * 0 root fstrim -a
0 3 * * 0 root /sbin/fstrim -a >/dev/null 2>&1
5 3 * * 0 root fstrim -a && reboot
#Ansible: thinvirt.kvm trim
12 4 * * 1 PATH=/usr/sbin:/sbin:/usr/bin:/bin fstrim --all
1 1 * * * root /opt/fstrim-report; my_fstrim
"""


def test_crontab():
    jobs = tables.crontab_jobs("/etc/crontab", CRONTAB)
    assert [(job.line, job.removable, job.own) for job in jobs] == [
        (3, True, False),
        (4, False, False),
        (6, True, True),
    ]


@pytest.mark.parametrize(
    ("text", "removable"),
    [
        ("#!/bin/sh\n/sbin/fstrim --all || true\n", True),  # Ubuntu 14.04 to 16.04
        ("#!/bin/sh\nset -e\nfstrim -v /\nexit 0\n", True),
        ("#!/bin/sh\nfstrim -a\nrm -rf /tmp/x\n", False),
        ("#!/bin/sh\nfstrim -a; reboot\n", False),
        ("#!/bin/sh\nfstrim -a $(reboot)\n", False),
        ("#!/bin/sh\nfstrim -av 2>&1 | logger -t fstrim\n", True),
        ("#!/bin/sh\nfstrim -av >/var/log/fstrim.log; PATH=/bin:$PATH\n", True),
        ("#!/bin/sh\nset -e; rm /x\nfstrim -a\n", False),
    ],
)
def test_scripts(text, removable):
    (job,) = tables.script_jobs("/etc/cron.weekly/fstrim", text)
    assert (job.line, job.removable) == (0, removable)


def test_scripts_that_do_not_trim():
    assert tables.script_jobs("x", "#!/bin/sh\n# fstrim\nlogrotate\n") == ()


TIMER = """\
TimersCalendar={ OnCalendar=Mon *-*-* 00:00:00 ; next_elapse=(null) }
RandomizedDelayUSec=1h 40min
LoadState=loaded
ActiveState=active
UnitFileState=enabled
"""
SERVICE = (
    "ExecStart={ path=/sbin/fstrim ; argv[]=/sbin/fstrim --listed-in "
    "/etc/fstab:/proc/self/mountinfo --verbose --quiet-unsupported ; ignore_errors=no ; "
    "start_time=[n/a] ; stop_time=[n/a] ; pid=0 ; code=(null) ; status=0/0 }\n"
)


def test_timer():
    """As systemd 252 of Debian 12 prints it."""
    assert collect.parse_timer(TIMER, SERVICE) == Timer(
        enablement="enabled",
        active=True,
        calendar=("Mon *-*-* 00:00:00",),
        delay_seconds=6000,
        command=(
            (
                "/sbin/fstrim",
                "--listed-in",
                "/etc/fstab:/proc/self/mountinfo",
                "--verbose",
                "--quiet-unsupported",
            ),
        ),
    )


def test_files_that_systemd_has_not_read_yet():
    """Either unit's; as after a run that was ended between the file and the reload."""
    changed, unchanged = "\nNeedDaemonReload=yes\n", "\nNeedDaemonReload=no\n"
    assert collect.parse_timer(TIMER + changed, SERVICE + unchanged).needs_reload
    assert collect.parse_timer(TIMER + unchanged, SERVICE + changed).needs_reload
    assert not collect.parse_timer(TIMER + unchanged, SERVICE + unchanged).needs_reload


@pytest.mark.parametrize(
    ("text", "enablement"),
    [
        ("LoadState=not-found\nActiveState=inactive\nUnitFileState=\n", ""),
        ("LoadState=masked\nActiveState=inactive\nUnitFileState=masked\n", "masked"),
        ("LoadState=loaded\nActiveState=inactive\nUnitFileState=disabled\n", "disabled"),
        ("", ""),
    ],
)
def test_timers_that_do_not_run(text, enablement):
    timer = collect.parse_timer(text, "ExecStart=\n")
    assert (timer.enablement, timer.runs) == (enablement, False)


@pytest.mark.parametrize(
    ("span", "seconds"),
    [("1h 40min", 6000), ("0", 0), ("1d", 86400), ("1w 2d 3s", 777603), ("", None), ("x", None)],
)
def test_spans(span, seconds):
    assert collect.parse_timer(f"RandomizedDelayUSec={span}", "").delay_seconds == seconds
