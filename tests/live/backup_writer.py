# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs in a guest: writes all the while, over two disks, so that a torn copy can be told.

``write``: record N goes to /a/records and is on the disk before it goes to /b/records; each has a
checksum.  On every tenth a row is committed to a SQLite database in /a, and is told as committed in
/run/committed only then.  ``check``: what /a and /b hold, as JSON; an error if it is not whole.
"""

import hashlib
import json
import os
import sqlite3
import sys

PAYLOAD = 400


def record(number: int) -> bytes:
    payload = hashlib.sha256(b"%d" % number).hexdigest() * (PAYLOAD // 64)
    return b"%d %s\n" % (number, payload.encode())


def last_record(path: str) -> int:
    """Number of the last whole record; every one before it must be right."""
    number = 0
    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            number += 1
            if line != record(number):
                raise SystemExit(f"{path}: record {number} is wrong")
    return number


def take_up(disk: int, path: str, upto: int) -> int:
    """Go on where a loss of power has ended it: no half record, and none that others have."""
    number = last_record(path)
    os.ftruncate(disk, sum(len(record(n)) for n in range(1, number + 1)))
    for missing in range(number + 1, upto + 1):
        os.write(disk, record(missing))
    os.fsync(disk)
    return max(number, upto)


def commit(database: sqlite3.Connection, number: int) -> None:
    values = (number, os.urandom(2000))
    database.execute("insert or ignore into t values (?, ?)", values)
    with open("/run/committed.new", "w") as file:
        file.write(str(number))
    os.rename("/run/committed.new", "/run/committed")


def write() -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    disks = [os.open(f"/{disk}/records", flags, 0o600) for disk in "ab"]
    number = take_up(disks[0], "/a/records", 0)
    take_up(disks[1], "/b/records", number)
    database = sqlite3.connect("/a/db", isolation_level=None)
    database.execute("pragma synchronous=extra")
    database.execute("create table if not exists t (n integer primary key, text blob)")
    if number >= 10:
        commit(database, number // 10 * 10)
    while True:
        number += 1
        for disk in disks:
            os.write(disk, record(number))
            os.fsync(disk)
        if number % 10 == 0:
            commit(database, number)


def check() -> None:
    database = sqlite3.connect("/a/db")
    (verdict,) = database.execute("pragma integrity_check").fetchone()
    (committed,) = database.execute("select max(n) from t").fetchone()
    (count,) = database.execute("select count(*) from t").fetchone()
    found = {"a": last_record("/a/records"), "b": last_record("/b/records")}
    print(json.dumps({**found, "database": verdict, "committed": committed, "count": count}))


{"write": write, "check": check}[sys.argv[1]]()
