# SPDX-FileCopyrightText: 2026 thinvirt.kvm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a compaction that a domain's configuration knows of, by what they are to it."""

from __future__ import annotations

import dataclasses
import os

from ansible_collections.thinvirt.kvm.plugins.module_utils._errors import RefusedError
from ansible_collections.thinvirt.kvm.plugins.module_utils._image.journal import (
    Live,
    Record,
    is_temp_name,
    overlaid,
)
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.durable import sync_folder
from ansible_collections.thinvirt.kvm.plugins.module_utils._storage.paths import shown


@dataclasses.dataclass(frozen=True)
class Files:
    """Paths; empty for what a run does not have, or not yet.

    :param base: the image.
    :param new: where the copy is in the end: it gets the image's name, or one in another folder.
    :param overlay: lies on ``base``; beside it.
    :param second: lies on ``new``; beside it.
    :param temp: the copy, before it has its name; beside ``new``.
    :param kept: another name of an original that has lost its own; beside ``base``.
    """

    base: str
    new: str
    overlay: str = ""
    second: str = ""
    temp: str = ""
    kept: str = ""

    @classmethod
    def of(cls, base: str, record: Record) -> Files:
        """Where the files of a run on the image ``base`` are.

        :raises RefusedError: its journal is none of such a run.
        """
        live = live_of(record, base)
        new = live.dest or base
        here, there = os.path.dirname(base), os.path.dirname(new)

        def path(folder: str, name: str) -> str:
            return os.path.join(folder, name) if name else ""

        return cls(
            base=base,
            new=new,
            overlay=path(here, live.overlay),
            second=path(there, live.second),
            temp=path(there, record.temp),
            kept=path(here, record.kept),
        )

    @property
    def moves(self) -> bool:
        """The copy goes to another folder."""
        return self.new != self.base

    @property
    def folders(self) -> list[str]:
        """Each of them once."""
        return list(dict.fromkeys((os.path.dirname(self.base), os.path.dirname(self.new))))

    def below(self, overlay: str) -> str:
        """The file that an overlay lies on."""
        return self.base if overlay == self.overlay else self.new

    def by_role(self) -> dict[str, str]:
        """Those that a domain can be on, symlinks resolved, as ``live_policy.top_of`` has them."""
        names = {"base": self.base, "overlay": self.overlay, "second": self.second}
        if self.moves:
            names["new"] = self.new
        return {role: os.path.realpath(path) if path else "" for role, path in names.items()}

    def refuse_foreign_names(self, record: Record) -> None:
        """The journal's names are removed in the end: only such as a run makes may be.

        :raises RefusedError: one is none of those.
        """
        overlays = [path for path in (self.overlay, self.second) if path]
        temps = [(self.temp, self.new)] if self.temp else []
        if self.kept and not record.keep_original:
            temps.append((self.kept, self.base))
        if all(overlaid(path) == self.below(path) for path in overlays) and all(
            os.path.dirname(path) == os.path.dirname(image)
            and is_temp_name(os.path.basename(path), image)
            for path, image in temps
        ):
            return
        raise RefusedError(
            f"The journal of {shown(self.base)} names files that are none of its own; nothing was "
            "changed.",
            remedy="Look at the files beside it, and remove the journal.",
        )

    def sync_folders(self) -> None:
        """What has which name is on the disk."""
        for folder in self.folders:
            sync_folder(folder)


def live_of(record: Record, path: str) -> Live:
    """What a journal says of a domain.

    :raises RefusedError: nothing: it is of another kind of run.
    """
    if record.live is None:
        raise RefusedError(
            f"The journal of {shown(path)} is none of a live compaction; nothing was changed.",
            remedy="Shut the domain down, and have thinvirt.kvm.image_compact end or undo it.",
        )
    return record.live
