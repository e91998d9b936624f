# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The JSON schema of report.json.

It lies in the collection's docs, where people look for it, and is written beside each report, whose
``$schema`` names it: whoever is given a report has its schema too, and editors find it.
"""

from __future__ import annotations

import os

PATH = os.path.normpath(
    os.path.join(
        os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "docs", "report.schema.json"
    )
)


def text() -> str:
    """The schema as it is in the collection."""
    with open(PATH, encoding="utf-8") as file:
        return file.read()
