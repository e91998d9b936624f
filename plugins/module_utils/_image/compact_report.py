# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compact many images in one call, and what is told about each."""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact import (
    Obstacles,
    Outcome,
    compact,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.compact_policy import Request
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.progress import progress_logger
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.replace import Stages
from ansible_collections.thinvirt.kvm.plugins.module_utils._plan import Change, diff
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import (
    encodable,
    shown,
)

Result = dict[str, t.Any]
Outcomes = list[tuple[str, t.Union[Outcome, ThinvirtError]]]


def compact_all(
    paths: t.Iterable[str],
    request: Request,
    *,
    obstacles: Obstacles,
    check_mode: bool,
    log: t.Callable[[str], None],
) -> Outcomes:
    """Compact images one after the other; what goes wrong with one does not stop the others.

    :param log: takes a line now and then while a long stage runs.
    :raises StoppedError: a signal asked to end; the image at work is as it was.
    """
    outcomes: Outcomes = []
    for path in paths:
        try:
            stages = Stages(report=progress_logger(path, log))
            outcome = compact(
                path, request, obstacles=obstacles, check_mode=check_mode, stages=stages
            )
            outcomes.append((path, outcome))
        except ThinvirtError as error:
            outcomes.append((path, error))
    return outcomes


def result(outcomes: Outcomes, *, check_mode: bool) -> Result:
    """The module's answer: ``changed``, ``diff``, ``freed_bytes``, ``summary`` and ``images``."""
    good = [outcome for _path, outcome in outcomes if isinstance(outcome, Outcome)]
    return {
        "changed": any(outcome.changed for outcome in good),
        "freed_bytes": sum(outcome.freed_bytes for outcome in good if outcome.changed),
        "summary": [
            f"{shown(path)}: {line(outcome, check_mode=check_mode)}" for path, outcome in outcomes
        ],
        "images": [entry(path, outcome) for path, outcome in outcomes],
        "diff": diff(change for o in good for change in changes(encodable(o.path), o)),
    }


def changes(subject: str, outcome: Outcome) -> list[Change]:
    """The sizes of an image that change, for the diff."""
    if not outcome.changed:
        return []
    before, after = dataclasses.asdict(outcome.before), dataclasses.asdict(outcome.after)
    return [
        Change(subject, name, before[name], after[name])
        for name in before
        if before[name] != after[name]
    ]


def entry(path: str, outcome: Outcome | ThinvirtError) -> Result:
    """The entry of one image, as RETURN of ``image_compact`` documents it."""
    if isinstance(outcome, ThinvirtError):
        return {"path": encodable(path), "error": outcome.result()}
    return {
        "path": encodable(path),
        "changed": outcome.changed,
        "method": outcome.method,
        "reason": outcome.reason,
        "before": dataclasses.asdict(outcome.before),
        "after": dataclasses.asdict(outcome.after),
        "freed_bytes": outcome.freed_bytes,
        "free_before_bytes": outcome.free_before_bytes,
        "free_after_bytes": outcome.free_after_bytes,
        "reclaimable_bytes": outcome.reclaimable_bytes,
        "recovered": outcome.recovered,
        "kept": encodable(outcome.kept),
        **({"moved_to": encodable(outcome.moved_to)} if outcome.moved_to else {}),
        "compared": outcome.compared,
        "seconds": {stage: round(took, 2) for stage, took in outcome.seconds.items()},
        "moved_bytes": dict(outcome.moved_bytes),
    }


def line(outcome: Outcome | ThinvirtError, *, check_mode: bool) -> str:
    """What became of an image, for people."""
    if isinstance(outcome, ThinvirtError):
        return f"failed. {outcome}"
    if not outcome.changed:
        return f"left as it is. {outcome.reason}"
    size, more = abs(outcome.freed_bytes) / 2**20, outcome.freed_bytes < 0
    done = "more to be taken" if more else "to be freed"
    freed = f"{size:.1f} MiB {done if check_mode else done.replace('to be ', '')}"
    where = f" Moved to {shown(outcome.moved_to)}." if outcome.moved_to else ""
    return f"{outcome.method}, {freed}. {outcome.reason}{where}"
