# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the attributes of every module mean; each says for itself how far it supports them."""

from __future__ import annotations


class ModuleDocFragment:
    """Descriptions only."""

    DOCUMENTATION = r"""
attributes:
  check_mode:
    description:
      - Can run in check mode and return changed status prediction without modifying target.
  diff_mode:
    description:
      - Will return details on what has changed (or possibly needs changing in check mode), when in
        diff mode.
  idempotent:
    description:
      - When run twice in a row with the same arguments, the second invocation indicates no change.
"""
