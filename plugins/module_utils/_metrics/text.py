# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The text format of Prometheus, version 0.0.4, as node_exporter's textfile collector reads it.

Written, and read back as far as it was written by us: the counters of earlier runs are in there
(pure).  Managed hosts have no client library.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import ThinvirtError

#: Values of the labels, in the order of the family's label names.
Labels = tuple[str, ...]
Value = t.Union[int, float]


@dataclasses.dataclass(frozen=True)
class Family:
    """A metric: its name, what it means, and its samples.

    :param kind: ``gauge`` or ``counter``.
    :param labels: names of its labels; every sample has a value for each.
    """

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    samples: dict[Labels, Value] = dataclasses.field(default_factory=dict)

    def with_samples(self, samples: dict[Labels, Value]) -> Family:
        return dataclasses.replace(self, samples=samples)


_SAMPLE = re.compile(
    r"""(?P<name>[a-z_]+)
        (?:\{(?P<labels>(?:[a-z_]+="(?:[^"\\]|\\.)*",?)*)\})?
        [ ](?P<value>-?[0-9][-+.e0-9]*)""",
    re.VERBOSE,
)
_LABEL = re.compile(r'([a-z_]+)="((?:[^"\\]|\\.)*)"')
_ESCAPED = {"\\": "\\\\", '"': '\\"', "\n": "\\n"}
_UNESCAPED = {escaped: plain for plain, escaped in _ESCAPED.items()}


def render(families: t.Iterable[Family]) -> str:
    """The whole file; families without samples are left out.  The same samples, the same text."""
    lines: list[str] = []
    for family in families:
        if family.samples:
            lines += [
                f"# HELP {family.name} {family.help}",
                f"# TYPE {family.name} {family.kind}",
                *(_sample(family, labels) for labels in sorted(family.samples)),
            ]
    return "".join(f"{line}\n" for line in lines)


def label_value(text: str) -> str:
    """Any text as a label's value can be: no code points that UTF-8 does not know."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def read(text: str, families: t.Iterable[Family]) -> list[Family]:
    """These families with the samples that a file has; all others in it are passed over.

    :raises ThinvirtError: a line is none of ours.
    """
    known = {family.name: family for family in families}
    found: dict[str, dict[Labels, Value]] = {name: {} for name in known}
    # Not splitlines(): names may hold what Python, but not the format, takes for an end of line.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line or line.startswith("#"):
            continue
        match = _SAMPLE.fullmatch(line)
        if match is None:
            raise ThinvirtError(f"Line {number} is not one that this module writes.")
        family = known.get(match["name"])
        if family is not None:
            pairs = _LABEL.findall(match["labels"] or "")
            if tuple(name for name, _value in pairs) != family.labels:
                raise ThinvirtError(f"Line {number} has other labels than this module writes.")
            labels = tuple(_unescape(value) for _name, value in pairs)
            found[family.name][labels] = _number(match["value"], number)
    return [family.with_samples(found[name]) for name, family in known.items()]


def _sample(family: Family, labels: Labels) -> str:
    pairs = ",".join(f'{name}="{_escape(value)}"' for name, value in zip(family.labels, labels))
    value = family.samples[labels]
    return f"{family.name}{{{pairs}}} {value}" if pairs else f"{family.name} {value}"


def _escape(value: str) -> str:
    return re.sub(r'[\\"\n]', lambda match: _ESCAPED[match[0]], value)


def _unescape(value: str) -> str:
    return re.sub(r"\\.", lambda match: _UNESCAPED.get(match[0], match[0]), value)


def _number(text: str, line: int) -> Value:
    try:
        return int(text) if re.fullmatch(r"-?[0-9]+", text) else float(text)
    except ValueError as error:
        raise ThinvirtError(f"Line {line} has no number.") from error
