# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m mutants``, called by make: which of the mutations do the tests notice?

The exit status is 1 if one was not noticed.
"""

from __future__ import annotations

import argparse
import collections
import fnmatch
import sys
import time

from .mutation import Mutation, load
from .tree import Tree

#: For the tests of one mutation; a loop that never ends is noticed as well.
_TIMEOUT_SECONDS = 180


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mutants", description=__doc__)
    parser.add_argument("--only", default="*", metavar="GLOB", help="mutations by their ids")
    parser.add_argument(
        "--base", default="", metavar="REF", help="break and test this commit, not the checkout"
    )
    given = parser.parse_args()
    mutations = [each for each in load() if fnmatch.fnmatch(each.id, given.only)]
    tree, where = Tree(given.base), given.base or "the checkout"
    tests = list(dict.fromkeys(test for each in mutations for test in each.tests))
    for test in (test for test in tests if not tree.has(test)):
        print(f"{where} has no {test}: left out")
    begin = time.monotonic()
    if not _green(tree, [test for test in tests if tree.has(test)]):
        return 1
    results = collections.Counter(_tried(tree, each, where) for each in mutations)
    print(
        f"{len(mutations)} mutations: "
        + ", ".join(f"{count} {result}" for result, count in sorted(results.items()))
        + f" ({(time.monotonic() - begin) / 60:.0f} min)"
    )
    return 1 if results["survived"] else 0


def _green(tree: Tree, tests: list[str]) -> bool:
    """Whether the tests pass on what is not broken: otherwise red says nothing."""
    if not tests:
        print("There is nothing to be tested.")
        return False
    print(
        f"==> The tests of all mutations, with nothing broken ({len(tests)} files or parts)",
        flush=True,
    )
    whole = tree.test(tests)
    if whole.code:
        print("\n".join(whole.red) or whole.output)
        print("These are red with nothing broken: mend that first.")
        return False
    print(f"==> Green ({whole.seconds:.0f} s); now one mutation at a time", flush=True)
    return True


def _tried(tree: Tree, mutation: Mutation, where: str) -> str:
    """What became of one mutation, after a line about it."""
    name = f"{mutation.id} {mutation.kind}"
    tests = [test for test in mutation.tests if tree.has(test)]
    try:
        with tree.broken(mutation):
            run = tree.test(tests, "-x", timeout=_TIMEOUT_SECONDS) if tests else None
    except ValueError as error:
        print(f"left out {name}: {error}, in {where}", flush=True)
        return "left out"
    if run is None or run.code == 0:
        print(f"SURVIVED {name}{'' if run else ': none of its tests is there'}", flush=True)
        return "survived"
    if run.code not in (1, None):
        raise SystemExit(f"{run.output}\n{name}: pytest ended with {run.code}")
    first = run.red[0] if run.code else f"the time was up ({_TIMEOUT_SECONDS} s)"
    print(f"killed {name}: {first} ({run.seconds:.0f} s)", flush=True)
    return "killed"


if __name__ == "__main__":
    sys.exit(main())
