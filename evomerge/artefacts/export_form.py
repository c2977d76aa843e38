"""Config and weights of an export agree: the class that the config names finds all of its tensors in the files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from evomerge.checkpoints.architecture import Architecture, lacking_in
from evomerge.checkpoints.source import Source


@dataclass(frozen=True, kw_only=True)
class ExportForm:
    """A config, and the names under which tensors are written so that its class loads them.

    Attributes:
        config: the base's; where the base itself is incomplete, naming the class of its language model.
        names: name in the catalogue -> names in the files.
        copied: stored tensors of the base that are written unchanged, under the same names.
    """

    base: Source
    config: Mapping[str, Any]
    names: Mapping[str, tuple[str, ...]]
    copied: tuple[str, ...]

    def files_of(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors by their names in the files, one after another, and then those that are copied."""
        for name, tensor in tensors:
            for stored in self.names[name]:
                yield stored, tensor
            del tensor  # written: gone before the next is made
        yield from ((name, self.base.weights.tensors[name]) for name in self.copied)


def export_form(base: Source) -> ExportForm:
    """The parts of an export of merges into the base.

    That is what the base consists of. Where the class that its config names would lack tensors even so, because the
    base's own files do, the config of the export names the class of the language model.
    """
    once = {name: (base.stored_names[name],) for name in base.catalogue.names}
    architecture, named = base.architecture, _named_class(base)
    if architecture is None or named in (None, architecture.name):
        return ExportForm(base=base, config=base.config, names=once, copied=base.unused)
    for names in (once, _all_names(base, architecture)):
        stored = [*(each for group in names.values() for each in group), *base.unused]
        # None where the class cannot be built here, which is no fault of the files.
        if not lacking_in(named, base.directory, base.weights.header, stored, remote_code=base.remote_code):
            return ExportForm(base=base, config=base.config, names=names, copied=base.unused)
    return ExportForm(
        base=base, config={**base.config, "architectures": [architecture.name]}, names=once, copied=base.unused
    )


def _named_class(base: Source) -> str | None:
    names = base.config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None


def _all_names(base: Source, architecture: Architecture) -> dict[str, tuple[str, ...]]:
    """Name -> every name under which the base's files hold it: what the language model ties, another class may not."""
    leaders = {live: name for name, live in base.live_names.items()}
    groups: dict[str, list[str]] = {name: [base.stored_names[name]] for name in base.catalogue.names}
    for stored, live in sorted(architecture.live_names.items()):
        if stored not in groups[leaders[live]]:
            groups[leaders[live]].append(stored)
    return {name: tuple(group) for name, group in groups.items()}
