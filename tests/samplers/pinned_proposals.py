"""The first proposals of every sampler for fixed seeds and results, as data in tests/assets/proposals.json.

A study stores no state of its sampler: it is rebuilt from the results. So a sampler that proposes otherwise than it did
when a study was begun goes on with that study as another search. `test_pinned_proposals.py` compares.

Run by hand, this writes the file again, for when other proposals are meant:

    python tests/samplers/pinned_proposals.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from evomerge.samplers import build_sampler
from evomerge.samplers.reference_points import ReferencePoint, write_reference_points
from evomerge.storage.attributes import COMPANION, TELL
from evomerge.testing.sampler_contract import CATEGORIES, CONDITIONAL, NUMBERS, Params, Space, ask, box, loss

FILE = Path(__file__).parent.parent / "assets" / "proposals.json"
COUNT = 20
MIXED = Space(
    {
        "method": CategoricalDistribution(("linear", "ties", "dare")),
        "normalise": CategoricalDistribution((True, False)),
        "weight": FloatDistribution(0.0, 1.0),
        "scale": FloatDistribution(1e-3, 10.0, log=True),
        "steps": IntDistribution(0, 15),
    },
    {"method": "linear", "normalise": True, "weight": 0.5, "scale": 0.1, "steps": 7},
)
SPACES = {
    "box": box(3),
    "numbers": NUMBERS,
    "categories": CATEGORIES,
    "conditional": CONDITIONAL,
    "mixed": MIXED,
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One sequence of proposals.

    Attributes:
        workers: candidates that are scored at a time; with more than one, results come out of order, one in six
            candidates fails and one in five is dropped early.
        ties: results are coarse, and a companion value ranks those that are equal.
    """

    sampler: str
    space: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 11
    workers: int = 1
    objectives: int = 1
    constrained: bool = False
    ties: bool = False

    @property
    def rounding(self) -> float:
        """Share by which a float may differ on another machine.

        Libraries choose instructions by the processor, so that exp, log and sums of products differ in the last bits.
        Fitting the model of gp ends in an iterative optimiser, which amplifies that.
        """
        return 1e-4 if self.sampler == "gp" else 1e-9


_TPE = {"n_startup_trials": 4}
_GP = {"n_startup_trials": 5}
_SLOW_GP = {"n_startup_trials": 12}  # it takes a third of a second to model several functions
_FOREST = {"n_startup_trials": 6}
_NSGA = {"population_size": 4}
_CMA = {"popsize": 5, "mean_every": 7}
_CATCMA = {"popsize": 5}

# Seeds and population sizes are such that rounding is not amplified, seen with the kernels of OpenBLAS for three
# generations of processors. catcma with fewer parents than numbers has eigenvalues that are equal but for rounding: its
# steps then depend on the processor.
CASES: Mapping[str, Case] = {
    "random, categories": Case(sampler="random", space="categories"),
    "random, conditional": Case(sampler="random", space="conditional"),
    "random, 3 workers": Case(sampler="random", space="numbers", workers=3),
    "random, constrained": Case(sampler="random", space="box", constrained=True),
    "qmc, categories": Case(sampler="qmc", space="categories"),
    "qmc, conditional": Case(sampler="qmc", space="conditional"),
    "qmc, 3 workers": Case(sampler="qmc", space="numbers", workers=3),
    "tpe, defaults": Case(sampler="tpe", space="numbers"),
    "tpe, categories": Case(sampler="tpe", space="categories", settings=_TPE),
    "tpe, conditional": Case(sampler="tpe", space="conditional", settings=_TPE),
    "tpe, 3 workers": Case(sampler="tpe", space="mixed", settings=_TPE, workers=3),
    "tpe, 3 objectives": Case(sampler="tpe", space="conditional", settings=_TPE, objectives=3),
    "tpe, 3 objectives, constrained": Case(sampler="tpe", space="box", settings=_TPE, objectives=3, constrained=True),
    "forest, defaults": Case(sampler="forest", space="numbers"),
    "forest, categories": Case(sampler="forest", space="categories", settings=_FOREST),
    "forest, conditional": Case(sampler="forest", space="conditional", settings=_FOREST),
    "forest, 3 workers": Case(sampler="forest", space="mixed", settings=_FOREST, workers=3),
    "gp, box": Case(sampler="gp", space="box", settings=_GP, seed=2),
    "gp, categories": Case(sampler="gp", space="categories", settings=_GP),
    "gp, constrained": Case(sampler="gp", space="box", settings=_SLOW_GP, seed=3, constrained=True),
    "gp, 2 objectives": Case(sampler="gp", space="box", settings=_SLOW_GP, objectives=2),
    "nsgaii, defaults": Case(sampler="nsgaii", space="numbers"),
    "nsgaii, categories": Case(sampler="nsgaii", space="categories", settings=_NSGA),
    "nsgaii, conditional": Case(sampler="nsgaii", space="conditional", settings=_NSGA),
    "nsgaii, 3 workers": Case(sampler="nsgaii", space="mixed", settings=_NSGA, workers=3),
    "nsgaii, 3 objectives, constrained": Case(
        sampler="nsgaii", space="box", settings=_NSGA, objectives=3, constrained=True
    ),
    "nsgaiii, categories": Case(sampler="nsgaiii", space="categories", settings=_NSGA),
    "nsgaiii, 3 objectives": Case(
        sampler="nsgaiii", space="conditional", settings={**_NSGA, "dividing_parameter": 4}, objectives=3
    ),
    "nsgaiii, 3 objectives, constrained": Case(
        sampler="nsgaiii", space="box", settings=_NSGA, objectives=3, constrained=True
    ),
    "cma, defaults": Case(sampler="cma", space="numbers"),
    "cma, numbers": Case(sampler="cma", space="numbers", settings=_CMA),
    "cma, 3 workers": Case(sampler="cma", space="numbers", settings=_CMA, workers=3),
    "cma, generations": Case(sampler="cma", space="box", settings={"popsize": 5, "generation_mode": "sync"}),
    "cma, ties": Case(sampler="cma", space="box", settings=_CMA, ties=True),
    "cma, 3 objectives": Case(sampler="cma", space="numbers", settings={"popsize": 4}, objectives=3),
    "cma, 3 objectives, 3 workers": Case(sampler="cma", space="box", settings={"popsize": 4}, objectives=3, workers=3),
    "catcma, defaults": Case(sampler="catcma", space="mixed"),
    "catcma, categories": Case(sampler="catcma", space="categories", settings={"popsize": 14}),
    "catcma, conditional": Case(sampler="catcma", space="conditional", settings=_CATCMA),
    "catcma, 3 workers": Case(sampler="catcma", space="mixed", settings=_CATCMA, workers=3),
}


def propose(case: Case, count: int = COUNT) -> list[Params]:
    """The first proposals, each result being told as the case says."""
    study = _new_study(case)
    running: list[optuna.Trial] = []
    params: list[Params] = []
    for number in range(count):
        running.append(ask(study, SPACES[case.space]))
        params.append(running[-1].params)
        if len(running) == case.workers:
            _tell(study, running.pop(number % len(running)), number, case)
    return params


def _new_study(case: Case) -> optuna.Study:
    space = SPACES[case.space]
    sampler = build_sampler(
        case.sampler,
        case.settings,
        seed=case.seed,
        space=space,
        workers=case.workers,
        directions=case.objectives,
        constraints=_limits if case.constrained else None,
        tie_breaker=COMPANION if case.ties else None,
    )
    study = optuna.create_study(directions=["maximize"] * case.objectives, sampler=sampler)
    if case.sampler == "cma" and case.objectives > 1:
        centre = dict(space.centre)
        write_reference_points(
            study, [ReferencePoint((0.1,) * case.objectives), ReferencePoint(results(centre, case.objectives), centre)]
        )
    return study


def results(params: Mapping[str, Any], objectives: int) -> tuple[float, ...]:
    """One number per objective, each best at another place: sums and products only, so that every machine agrees."""
    return tuple(
        -loss({**params, "shift": 0.3 + 0.2 * number}) * (1 + number) + _tilt(params, number)
        for number in range(objectives)
    )


def _tilt(params: Mapping[str, Any], number: int) -> float:
    values = [float(value) for value in params.values() if isinstance(value, int | float)]
    return 0.5 * number * values[number % len(values)]


def _limits(trial: FrozenTrial) -> Sequence[float]:
    """Met where the first coordinate is at least 0.6."""
    return (0.6 - trial.params["x00"], -1.0)


def _tell(study: optuna.Study, trial: optuna.Trial, position: int, case: Case) -> None:
    values = results(trial.params, case.objectives)
    trial.set_user_attr(TELL, position)
    if case.ties:
        trial.set_user_attr(COMPANION, values[0])
        values = (round(values[0]),)
    if case.workers > 1 and trial.number % 6 == 4:
        study.tell(trial, state=TrialState.FAIL)
    elif case.workers > 1 and trial.number % 5 == 3 and case.objectives == 1:
        trial.report(values[0], 1)
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, values)


def rows(case: Case, proposals: Sequence[Params]) -> list[list[Any]]:
    """The proposals as rows in the order of the space's parameters; None for a parameter that does not exist."""
    return [[params.get(name) for name in SPACES[case.space].distributions] for params in proposals]


def write(file: Path = FILE) -> None:
    """Write what every case proposes, one row a line."""
    blocks = []
    for name, case in CASES.items():
        lines = ",\n".join(f"  {json.dumps(row)}" for row in rows(case, propose(case)))
        blocks.append(f"{json.dumps(name)}: [\n{lines}\n ]")
    file.write_text("{\n " + ",\n ".join(blocks) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    write()
