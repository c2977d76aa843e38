"""Gain of a search in spaces of other merges over the best of these merges, on the toy models.

`python benchmarks/merge_spaces.py --baselines uniform-soup,ties,learned --spaces baselines-global,baselines-per-block`

The baselines are made once. Every space is then searched by cma from the best of them, with each seed and each length
of the first steps; the table has the best candidate's score on the search items and on the held-out ones, less those of
the best baseline.
"""

from __future__ import annotations

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TQDM_DISABLE": "1"}  # read when they are imported

import argparse
import json
import logging
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machine
import optuna
import torch
from optuna.trial import Trial
from toy_example import TOY

from evomerge.evaluation import ItemBlock
from evomerge.jobs import Score, Scored
from evomerge.opening.inputs import Inputs, open_inputs
from evomerge.packs.items import Part
from evomerge.recipe import Recipe
from evomerge.recipe_spaces.recipe_space import RecipeSpace
from evomerge.samplers import build_sampler
from evomerge.search.run import run_search
from evomerge.spec import SearchSpec, read_spec, resolve
from evomerge.storage.attributes import TELL
from evomerge.study.study_ingredients import read_ingredients
from evomerge.worker import Worker

BATCH_SIZE = 1024


class Toy:
    """Scores of merges of the toy models, each scored once; on the search items, on a part of them: one of `share`."""

    def __init__(self, spec: SearchSpec, share: int) -> None:
        self._blocks = {"search": ItemBlock("search", 0, 1, of=share), "held_out": ItemBlock("held_out")}
        self._worker = Worker(open_inputs(spec).setup(None))
        self._scores: dict[tuple[str, Part], float] = {}

    def score(self, recipe: Recipe, part: Part) -> float:
        key = (recipe.digest, part)
        if key not in self._scores:
            outcome = self._worker.run(Score(key="", recipe=recipe, items=self._blocks[part], batch_size=BATCH_SIZE))
            if not isinstance(outcome.result, Scored):
                raise SystemExit(f"a merge of the toy models cannot be scored: {outcome.result}")
            self._scores[key] = statistics.fmean(task.value for task in outcome.result.scores.tasks.values())
        return self._scores[key]


def spec_of(space: str, baselines: Sequence[Any], folder: Path) -> SearchSpec:
    """The toy search in another space, its study in a folder."""
    read = read_spec(TOY).model_dump(mode="json", by_alias=True)
    content = {**read, "space": space, "baselines": baselines, "storage": f"sqlite:///{folder}/study.db"}
    return resolve(SearchSpec.model_validate(content), TOY.parent)


def chosen(names: Sequence[str]) -> list[Any]:
    """The baselines of the toy search by name, with their settings there; others with their defaults."""
    known = {each.name: each for each in read_spec(TOY).chosen_baselines}
    return [{"name": name, **(known[name].settings if name in known else {})} for name in names]


def made(spec: SearchSpec) -> dict[str, Recipe]:
    """The baselines of a search of a few trials, the best first."""
    study = run_search(spec.model_copy(update={"budget": spec.budget.model_copy(update={"trials": 1})}), ray="none")
    stored = read_ingredients(study)
    assert stored is not None  # the space is made of them
    return dict(stored.recipes)


def searched(toy: Toy, inputs: Inputs, recipes: dict[str, Recipe], seed: int, trials: int, step: float) -> Recipe:
    """The best merge that cma finds from the best of the merges."""
    space = inputs.space
    assert isinstance(space, RecipeSpace)
    space = space.with_recipes({label: recipe for label, recipe in recipes.items() if label in space.labels})
    sampler = build_sampler("cma", {}, seed=seed, space=space, workers=2, first_step=step)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for point in space.initial:
        study.enqueue_trial(dict(point))
    told = 0

    def objective(trial: Trial) -> float:
        nonlocal told
        params = {
            name: trial.suggest_float(name, each.low, each.high)  # type: ignore[attr-defined]
            for name, each in space.distributions.items()
        }
        value = toy.score(space.decode(params), "search")
        trial.set_user_attr(TELL, told)
        told += 1
        return value

    study.optimize(objective, n_trials=trials)
    return space.decode(study.best_params)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baselines", default="uniform-soup,greedy-soup,task-arithmetic,ties,dare-ties,dam")
    parser.add_argument("--spaces", default="baselines-global,baselines-per-block")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=int, default=1, help="candidates are scored on one of so many search items")
    parser.add_argument("--steps", default="", help="first steps as shares of the usual ones; the space's own if empty")
    parser.add_argument("--folder", type=Path, help="of the study with the baselines, which is kept")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names = chosen(arguments.baselines.split(","))
    folder = arguments.folder or Path(tempfile.mkdtemp())
    source = spec_of("baselines-global", names, folder.resolve())
    recipes = made(source)
    toy, rows = Toy(source, arguments.share), []
    best = next(iter(recipes.values()))
    base = {part: toy.score(best, part) for part in ("search", "held_out")}
    for label, recipe in recipes.items():
        print(f"{label}: search {toy.score(recipe, 'search'):.4f}, held-out {toy.score(recipe, 'held_out'):.4f}")
    for name in arguments.spaces.split(","):
        inputs = open_inputs(spec_of(name, names, folder.resolve()))
        for step in [float(each) for each in arguments.steps.split(",") if each] or [inputs.space.first_step]:
            found = [searched(toy, inputs, recipes, seed, arguments.trials, step) for seed in range(arguments.seeds)]
            gains = {part: [toy.score(each, part) - base[part] for each in found] for part in ("search", "held_out")}
            rows.append({"space": name, "dimensions": inputs.space.dimensions, "step": step, "gains": gains})
            means = ", ".join(f"{part} {statistics.fmean(each):+.4f}" for part, each in gains.items())
            print(f"{name} ({inputs.space.dimensions} dimensions), first step {step:g}: {means} ({gains['held_out']})")
    if arguments.json:
        print(json.dumps({"machine": machine.describe(), "base": base, "rows": rows}))


if __name__ == "__main__":
    main()
