# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The list of mutations fits the product as it is."""

from __future__ import annotations

import functools
import re

import pytest
from mutants.mutation import LISTS, ROOT, Mutation, load

MUTATIONS = load()


@functools.cache
def text_of(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


def test_there_are_many_in_every_area():
    assert len(MUTATIONS) >= 60
    assert len(list(LISTS.iterdir())) == len(list(LISTS.glob("*.toml"))) >= 10


def test_ids_are_unique_and_plain():
    ids = [mutation.id for mutation in MUTATIONS]
    assert len(set(ids)) == len(ids)
    assert [id_ for id_ in ids if not re.fullmatch("[a-z0-9]+(-[a-z0-9]+)+", id_)] == []


def test_each_can_be_applied():
    for mutation in MUTATIONS:
        broken = mutation.applied_to(text_of(mutation.file))
        assert broken != text_of(mutation.file), mutation.id
        assert mutation.file.startswith(("plugins/", "roles/", "playbooks/")), mutation.id


def test_each_says_what_it_breaks_and_names_tests_that_are_there():
    for mutation in MUTATIONS:
        assert mutation.kind, mutation.id
        assert mutation.tests, mutation.id
        for test in mutation.tests:
            file, _colons, name = test.partition("::")
            assert (ROOT / file).is_file(), f"{mutation.id}: {test}"
            assert not name or f"\ndef {name}(" in text_of(file), f"{mutation.id}: {test}"


@pytest.mark.parametrize("text", ["a", "x x"])
def test_a_text_that_is_not_there_just_once_is_an_error(text):
    mutation = Mutation(id="m-1", file="f", old="x", new="y", kind="k", tests=())
    with pytest.raises(ValueError, match="m-1"):
        mutation.applied_to(text)
    assert mutation.applied_to("axb") == "ayb"
