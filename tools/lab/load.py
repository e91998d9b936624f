# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A load that runs in a guest, with nothing but Python: it knows what must be on the disk.

``load.py run DATA NOTES`` writes to the folder DATA until the file NOTES/stop is there, and
notes in NOTES, which is on another disk, what was acknowledged.  ``load.py verify DATA NOTES``
prints as JSON what is wrong and how much there was to check.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

BLOCK = 4096
BLOCKS = 8192  # of the file that is written to at random: 32 MiB
BEAT_SECONDS = 0.05


def append(fd: int, line: bytes) -> None:
    """Write a whole line, and have it on the disk."""
    os.write(fd, line)
    os.fdatasync(fd)


def opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)


class Load:
    """Four threads that write as programs do that must not lose anything."""

    def __init__(self, data: Path, notes: Path) -> None:
        self.data = data
        self.notes = notes
        self.errors: list[str] = []

    def run(self) -> None:
        works = (self.beat, self.records, self.blocks, self.commits)
        threads = [threading.Thread(target=self.guarded, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (self.notes / "errors").write_text(json.dumps(self.errors))

    def guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 (whatever it is, the test is to see it)
            self.errors.append(f"{work.__name__}: {error!r}")

    def stopped(self) -> bool:
        return (self.notes / "stop").exists()

    def beat(self) -> None:
        """A heartbeat; the times at which it was on the disk, by the guest's clock."""
        beats, times = opened(self.data / "beats"), opened(self.notes / "beats")
        while not self.stopped():
            begin = time.monotonic()
            append(beats, b"%.3f\n" % begin)
            os.write(times, b"%.4f\n" % time.monotonic())
            time.sleep(max(0.0, BEAT_SECONDS - (time.monotonic() - begin)))

    def records(self) -> None:
        """Numbered lines with a checksum; the last one that was acknowledged is noted."""
        log, note = opened(self.data / "records"), opened(self.notes / "records")
        number = sum(1 for _line in (self.data / "records").open("rb"))
        while not self.stopped():
            body = b"%d %s" % (number, os.urandom(300).hex().encode())
            append(log, body + b" " + hashlib.sha256(body).hexdigest().encode() + b"\n")
            append(note, b"%d\n" % number)
            number += 1
            time.sleep(0.02)

    def blocks(self) -> None:
        """Random blocks of a file; what each is to hold is noted before, and when it does."""
        fd = os.open(self.data / "blocks", os.O_RDWR | os.O_CREAT, 0o644)
        os.truncate(fd, BLOCKS * BLOCK)
        note = opened(self.notes / "blocks")
        while not self.stopped():
            block = random.randrange(BLOCKS)  # noqa: S311
            content = os.urandom(BLOCK)
            checksum = hashlib.sha256(content).hexdigest().encode()
            append(note, b"asked %d %s\n" % (block, checksum))
            os.pwrite(fd, content, block * BLOCK)
            os.fdatasync(fd)
            append(note, b"done %d %s\n" % (block, checksum))

    def commits(self) -> None:
        """Transactions; the last one that was committed is noted."""
        database = sqlite3.connect(self.data / "db", isolation_level=None)
        # FULL does not have a rollback journal's removal on the disk, which is the commit.
        database.execute("PRAGMA synchronous=EXTRA")
        database.execute("CREATE TABLE IF NOT EXISTS t (number INTEGER PRIMARY KEY, text TEXT)")
        (number,) = database.execute("SELECT coalesce(max(number), -1) + 1 FROM t").fetchone()
        note = opened(self.notes / "commits")
        while not self.stopped():
            database.execute("BEGIN")
            database.execute("INSERT INTO t VALUES (?, ?)", (number, "x" * 500))
            database.execute("UPDATE t SET text = ? WHERE number = ?", ("y" * 500, number // 2))
            database.execute("COMMIT")
            append(note, b"%d\n" % number)
            number += 1
            time.sleep(0.02)


def last_number(path: Path) -> int:
    """The last whole line of a note."""
    lines = path.read_bytes().split(b"\n")[:-1]
    return int(lines[-1]) if lines else -1


def verify(data: Path, notes: Path) -> dict[str, object]:
    """What is wrong, and how much there was."""
    wrong: list[str] = []
    errors = notes / "errors"
    if errors.exists():
        wrong += json.loads(errors.read_text())
    counts = {
        "records": verify_records(data, notes, wrong),
        "blocks": verify_blocks(data, notes, wrong),
        "commits": verify_commits(data, notes, wrong),
    }
    return {"wrong": wrong[:10], **counts}


def verify_records(data: Path, notes: Path, wrong: list[str]) -> int:
    lines = (data / "records").read_bytes().split(b"\n")
    acknowledged = last_number(notes / "records")
    for number in range(acknowledged + 1):
        line = lines[number] if number < len(lines) else b""
        body, _blank, checksum = line.rpartition(b" ")
        if hashlib.sha256(body).hexdigest().encode() != checksum:
            wrong.append(f"record {number} of {acknowledged}")
        elif int(body.split(b" ")[0]) != number:
            wrong.append(f"record {number} is another one")
    return acknowledged + 1


def verify_blocks(data: Path, notes: Path, wrong: list[str]) -> int:
    done: dict[int, bytes] = {}
    asked: dict[int, bytes] = {}
    count = 0
    for line in (notes / "blocks").read_bytes().split(b"\n")[:-1]:
        word, block, checksum = line.split(b" ")
        (done if word == b"done" else asked)[int(block)] = checksum
        count += word == b"done"
    with (data / "blocks").open("rb") as file:
        for number, checksum in done.items():
            file.seek(number * BLOCK)
            found = hashlib.sha256(file.read(BLOCK)).hexdigest().encode()
            if found not in (checksum, asked[number]):
                wrong.append(f"block {number}")
    return count


def verify_commits(data: Path, notes: Path, wrong: list[str]) -> int:
    database = sqlite3.connect(data / "db")
    (answer,) = database.execute("PRAGMA integrity_check").fetchone()
    if answer != "ok":
        wrong.append(f"database: {answer}")
    (count, last) = database.execute("SELECT count(*), max(number) FROM t").fetchone()
    acknowledged = last_number(notes / "commits")
    if count != last + 1 or last < acknowledged:
        wrong.append(f"{count} rows to {last}, and commit {acknowledged} was acknowledged")
    return acknowledged + 1


def longest_gap(times: Path, begin: float, end: float) -> float:
    """The longest time between two heartbeats, by the guest's clock, in a span of it."""
    beats = [float(line) for line in times.read_bytes().split(b"\n")[:-1]]
    beats = [beat for beat in beats if begin <= beat <= end]
    return max((b - a for a, b in itertools.pairwise(beats)), default=0.0)


def main() -> None:
    """Entry point."""
    verb, data, notes, *span = sys.argv[1:]
    if verb == "run":
        Load(Path(data), Path(notes)).run()
    elif verb == "beat":
        Load(Path(data), Path(notes)).beat()
    elif verb == "gap":
        print(longest_gap(Path(notes, "beats"), *map(float, span)))
    elif verb == "clock":
        print(time.monotonic())
    else:
        print(json.dumps(verify(Path(data), Path(notes))))


if __name__ == "__main__":
    main()
