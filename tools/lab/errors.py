# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one exception of the lab, and the one way in which it calls programs."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


class LabError(Exception):
    """One sentence for a person: what failed and what to do next."""


def call(
    argv: Sequence[str | Path],
    *,
    timeout: float,
    log: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a program without input and return its standard output.

    :param timeout: seconds until the program is killed.
    :param log: a file that takes both outputs instead (for long steps); "" is returned then.
    :raises LabError: it is missing, failed or took too long; names the command and its stderr.
    """
    shown = shlex.join(map(str, argv))
    try:
        with log.open("ab") if log else contextlib.nullcontext() as sink:
            done = subprocess.run(
                argv,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=sink or subprocess.PIPE,
                stderr=subprocess.STDOUT if sink else subprocess.PIPE,
                timeout=timeout,
                env=env,
            )
    except FileNotFoundError as exc:
        raise LabError(f"{exc.filename} is not installed: run 'make setup'") from exc
    except subprocess.TimeoutExpired as exc:
        raise LabError(f"no end after {timeout:.0f} s: {shown}") from exc
    if done.returncode != 0:
        reason = (done.stderr or b"").decode(errors="replace").strip() or f"see {log}"
        raise LabError(f"rc {done.returncode}: {shown}: {reason}")
    return (done.stdout or b"").decode(errors="replace")
