"""Prints the bytes that a bank takes more after 8 other merges were sources of a merge, and those of 8 by prediction.

The arguments are the number of merges that memory is planned for and, for merges that workers share, the folder of
their files.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import torch

from evomerge.bank import WeightBank
from evomerge.bank.memory import memory_need
from evomerge.bank.shared_tensors import SharedTensors
from evomerge.checkpoints import open_source
from evomerge.methods import resolve_options
from evomerge.recipe import ModelRef, Recipe, Rule

TOY = Path(__file__).parent.parent.parent / "examples" / "toy" / "models"
EXPERTS = ("reverse", "sort")
MERGES = 8


def main(planned: int, folder: Path | None) -> None:
    base = open_source(ModelRef("base", str(TOY / "base")))
    experts = [open_source(ModelRef(name, str(TOY / name)), like=base) for name in EXPERTS]
    bank = WeightBank(
        base,
        experts,
        dtype=torch.float32,
        device=torch.device("cpu"),
        ingredients=planned,
        shared=None if folder is None else SharedTensors("run", folder),
    )

    def recipe_of(method: str, sources: tuple[str, ...], weight: float, **settings: object) -> Recipe:
        rule = Rule(
            tensors=tuple(entry.name for entry in base.catalogue.mergeable),
            method=method,
            sources=sources,
            parameters={"weight": (weight,) * len(sources)},
            options=resolve_options(method, {}),
        )
        refs = tuple(expert.ref for expert in experts)
        return Recipe(base=base.ref, sources=refs, rules=(rule,), dtype="float32", **settings)  # type: ignore[arg-type]

    def held_after(first: int) -> int:
        """Bytes of this process after a merge of other merges than before."""
        made = {
            f"merge {place}": recipe_of("task_arithmetic", EXPERTS, 0.01 * (1 + place))
            for place in range(first, first + MERGES)
        }
        bank.materialize(recipe_of("linear", tuple(made), 1.0, ingredients=made))
        gc.collect()
        return _anonymous()

    before = held_after(0)
    print(held_after(MERGES) - before)
    with_merges = memory_need(base.catalogue, 3, "float32", ingredients=MERGES)
    print(with_merges.ingredients)


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
