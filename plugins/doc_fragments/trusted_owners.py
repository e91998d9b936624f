# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whom modules that write to images and beside them trust."""

from __future__ import annotations


class ModuleDocFragment:
    """The option of ``trusted_owners_spec()`` in ``module_utils/_spec.py``."""

    DOCUMENTATION = r"""
options:
  trusted_owners:
    description:
      - Users, by name or number, who may exchange names on the path of a file that is written.
      - A path on which somebody else than root, the user who runs the module, or one of these owns
        a folder or may write to one is refused, as C(sshd) does with C(StrictModes), since he
        could have another file take the place of the one that is worked on. Sticky folders such as
        C(/tmp) are fine for files that one of these owns.
    type: list
    elements: str
    default: []
"""

    JOURNALS = r"""
options: {}
notes:
  - What has been begun is written down in C(/var/lib/thinvirt), mode 0700, or for a user other than
    root in C($XDG_STATE_HOME/thinvirt), by default C(~/.local/state/thinvirt). The next run ends or
    undoes what a killed one has left. Nothing that lies beside an image is obeyed.
"""
