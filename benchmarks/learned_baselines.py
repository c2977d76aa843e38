"""Held-out quality of merges that are learned from calibration items, by the number of labels, on the toy models.

    python benchmarks/learned_baselines.py [--seeds 5] [--cases all none 8 16 32] [--baselines learned ...] [--json]

A case is the number of labelled items of each skill that are learned from (`all` is 128), or `none`: as many items
without labels, from the predictions of the experts. The seed draws the items and their order. Each training is the job
that a search sends to its worker, with the default settings of the baseline. `start` is the merge that the learned ones
begin with, `uniform-soup` that of `fine-tune` and DAM.

*Search* and *held-out* are means over the seeds, *sd* is the standard deviation of the latter; *forwards* is the cost
in forward passes of one item, a backward pass counted as two. Nothing is chosen on the search items here: they are as
new to the merges as the held-out ones.
"""

from __future__ import annotations

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TQDM_DISABLE": "1"}  # read when they are imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import logging
import math
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from machine import progress, report
from toy_example import TOY

from evomerge import load_spec
from evomerge.baselines.baseline_plans import Ingredients, TrainingRequest, plan_of
from evomerge.baselines.planned_training import facts_of
from evomerge.evaluation import ItemBlock
from evomerge.jobs import Cost, Outcome, Score, Scored, Train, Trained
from evomerge.objective import Objective
from evomerge.opening.inputs import Inputs, open_inputs
from evomerge.packs.items import Part
from evomerge.recipe import Recipe
from evomerge.spec import BaselineSpec, SearchSpec
from evomerge.worker import Worker

BASELINES: Final = ("learned", "learned-tensor", "learned-column", "fine-tune", "dam")
UNLABELLED: Final = ("learned", "learned-tensor", "learned-column", "dam")
BATCH_SIZE: Final = 1024


class Bench:
    """The toy models with a seed and a number of calibration items for each skill."""

    def __init__(self, seed: int, items: int, folder: Path) -> None:
        self.items = items
        self._inputs = open_inputs(_spec(seed, items, folder))
        self._worker = Worker(self._inputs.setup())
        self._given = _ingredients(self._inputs)

    @property
    def start(self) -> Recipe:
        """The merge that the learned ones begin with."""
        return self._given.recipe("task_arithmetic", {"weight": 1 / math.sqrt(len(self._given.experts))}, {})

    @property
    def soup(self) -> Recipe:
        return self._given.soup(self._given.experts)

    def train(self, baseline: BaselineSpec) -> tuple[Recipe, Cost, int]:
        """The merge that the plan of a baseline has trained, its cost, and the number of steps."""
        (request,) = next(plan_of(baseline, self._given))
        assert isinstance(request, TrainingRequest)  # these baselines ask for nothing else
        job = Train(
            key=baseline.name,
            recipe=request.recipe,
            settings=request.settings,
            calibration=request.calibration,
            trainer=request.trainer,
        )
        *steps, outcome = self._worker.events(job)
        if not isinstance(outcome, Outcome) or not isinstance(outcome.result, Trained):
            raise SystemExit(f"{baseline.name} cannot be trained: {outcome}")
        return outcome.result.recipe, outcome.cost, len(steps)

    def score(self, recipe: Recipe, part: Part) -> tuple[float, Cost]:
        """The mean score over the skills, and the cost of scoring."""
        outcome = self._worker.run(Score(key="", recipe=recipe, items=ItemBlock(part), batch_size=BATCH_SIZE))
        if not isinstance(outcome.result, Scored):
            raise SystemExit(f"a merge of the toy models cannot be scored: {outcome.result}")
        return statistics.fmean(task.value for task in outcome.result.scores.tasks.values()), outcome.cost


def _spec(seed: int, items: int, folder: Path) -> SearchSpec:
    spec = load_spec(TOY)
    sources = tuple(
        source.model_copy(
            update={"calibration": source.calibration and source.calibration.model_copy(update={"items": items})}
        )
        for source in spec.sources
    )
    return spec.model_copy(update={"seed": seed, "sources": sources, "artifacts": str(folder)})


def _ingredients(inputs: Inputs) -> Ingredients:
    return Ingredients(
        spec=inputs.spec,
        base=inputs.base.ref,
        experts=tuple(expert.ref for expert in inputs.experts),
        catalogue=inputs.catalogue,
        objective=Objective(aggregate="weighted_mean", weights=inputs.evaluator.weights),
        references={},
        facts=facts_of(inputs),
    )


def rows_of(case: str, seed: int, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One row for each merge of a case."""
    items = 128 if case in {"all", "none"} else int(case)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(seed, items, Path(folder))
        for name in ("uniform-soup", "start", *names):
            progress(f"{case} labels, seed {seed}: {name}")
            if name in {"uniform-soup", "start"}:
                recipe, cost, steps = bench.soup if name == "uniform-soup" else bench.start, Cost(), 0
            else:
                recipe, cost, steps = bench.train(BaselineSpec(name=name, **_settings(name, case, items)))
            search, scoring = bench.score(recipe, "search")
            yield {
                "labels": case,
                "seed": seed,
                "merge": name,
                "search": search,
                "held-out": bench.score(recipe, "held_out")[0],
                "forwards": cost.forwards(scoring),
                "steps": steps,
                "seconds": cost.seconds,
                "method": recipe.rules[0].method,
            }


def _settings(name: str, case: str, items: int) -> dict[str, Any]:
    if name == "dam":  # as in the toy search, with as many texts as there are
        trainable = ["linear", "bias", "norm", "embedding"]
        return {"batch_size": min(16, items), "epochs": 10, "learning_rate": 0.01, "trainable": trainable}
    return {"loss": {"experts": 1}} if case == "none" else {}


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the seeds, with their spread."""
    found = []
    for labels, merge in dict.fromkeys((row["labels"], row["merge"]) for row in rows):
        same = [row for row in rows if (row["labels"], row["merge"]) == (labels, merge)]
        held_out = [row["held-out"] for row in same]
        found.append(
            {
                "labels": labels,
                "merge": merge,
                "search": statistics.fmean(row["search"] for row in same),
                "held-out": statistics.fmean(held_out),
                "sd": statistics.stdev(held_out) if len(held_out) > 1 else 0.0,
                "forwards": round(statistics.fmean(row["forwards"] for row in same)),
                "steps": round(statistics.fmean(row["steps"] for row in same)),
                "seconds": statistics.fmean(row["seconds"] for row in same),
                "methods": ", ".join(sorted({row["method"] for row in same})),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 1 on")
    parser.add_argument("--cases", nargs="+", default=["all", "none", "8", "16", "32"])
    parser.add_argument("--baselines", nargs="+", default=BASELINES, choices=BASELINES)
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    rows = [
        row
        for case in given.cases
        for seed in range(1, given.seeds + 1)
        for row in rows_of(case, seed, [name for name in given.baselines if case != "none" or name in UNLABELLED])
    ]
    report({"benchmark": "learned_baselines", "seeds": given.seeds, "runs": rows}, table(rows), given.json)


if __name__ == "__main__":
    main()
