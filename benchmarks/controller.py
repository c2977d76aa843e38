"""What the controller costs per trial, and how long a killed search takes to go on, by the number of trials before.

    python benchmarks/controller.py [--trials 0 100 1000 10000] [--json]

A search space of 30 parameters, the cma sampler, SQLite and a journal on this disk. *Per trial* is everything that the
controller does for one: ask, note the attempt, store scores with the outcomes of 1,200 items as Parquet, tell. *Resume*
is opening the study, counting its trials and replaying them into the sampler, up to the first proposal. The trials
before are written straight into the storage, with the attributes that a search gives them. Medians of 15 trials and of
3 resumptions. The ratio is per trial after the most trials / after the fewest.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import optuna
from machine import describe
from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage, _CachedStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import insert

from evomerge.catalogue import build_catalogue
from evomerge.evaluation.scores import Scores, TaskScores
from evomerge.jobs import Cost, Outcome, Scored
from evomerge.objective import Assessment
from evomerge.recipe import ModelRef
from evomerge.samplers import build_sampler
from evomerge.spaces.bound import BoundSpace, bind
from evomerge.spaces.space import load_space
from evomerge.storage import attributes
from evomerge.storage.opening import open_storage, release
from evomerge.study.search_study import SearchStudy

SCHEMA = 1
TASKS, ITEMS = 6, 200
EXPERTS, LAYERS = 10, 6  # with blocks of two layers: 30 parameters
MEASURED, RESUMED = 15, 3

_Attribute = models.TrialUserAttributeModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[0, 100, 1000, 10000], help="trials before")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="evomerge-controller-") as folder:
        rows = [
            _measure(Path(folder), scheme, before) for before in arguments.trials for scheme in ("sqlite", "journal")
        ]
    sqlite = [row["per_trial_seconds"] for row in rows if row["storage"] == "sqlite"]
    document = {
        "schema": SCHEMA,
        "benchmark": "controller",
        "machine": describe(),
        "dimensions": _space().dimensions,
        "rows": rows,
        "ratio": sqlite[-1] / sqlite[0],
    }
    print(json.dumps(document, indent=2) if arguments.json else _table(document))


def _measure(folder: Path, scheme: str, before: int) -> dict[str, Any]:
    url = f"{scheme}:///{folder / f'{before}.{scheme}'}"
    _populate(url, before)
    resumed = [_resume(url, folder) for _ in range(RESUMED)]
    with _opened(url, folder) as search:
        _one_trial(search)  # replays what is there, once
        seconds = [_one_trial(search) for _ in range(MEASURED)]
    return {
        "storage": scheme,
        "trials_before": before,
        "per_trial_seconds": statistics.median(seconds),
        "resume_seconds": statistics.median(resumed),
    }


def _one_trial(search: SearchStudy) -> float:
    outcome = Outcome(
        key="key",
        attempt=1,
        result=Scored(_scores()),
        seconds={"merge": 0.1, "total": 1.0},
        worker="worker-0",
        cost=Cost(candidates=1, items=1_200, forward_tokens=10_000, seconds=1.0),
    )
    started = time.perf_counter()
    proposal = search.ask()
    search.begin(proposal)
    search.tell(proposal, outcome, Assessment(value=random.Random(proposal.number).random(), stderr=0.01))
    return time.perf_counter() - started


def _resume(url: str, folder: Path) -> float:
    started = time.perf_counter()
    with _opened(url, folder) as search:
        search.recover()
        search.ask()
        return time.perf_counter() - started


@contextmanager
def _opened(url: str, folder: Path) -> Iterator[SearchStudy]:
    storage, space = open_storage(url, single_writer=True), _space()
    try:
        sampler = build_sampler("cma", {"popsize": 14}, seed=1, space=space, workers=1)
        study = optuna.create_study(
            storage=storage, study_name="sim", direction="maximize", sampler=sampler, load_if_exists=True
        )
        yield SearchStudy(study, storage, space, artifacts=folder / "artifacts")
    finally:
        release(storage)


def _populate(url: str, count: int) -> None:
    """Finished trials as a search leaves them. Into a database row by row: Optuna would take an hour for 10,000."""
    storage = open_storage(url)
    try:
        study = optuna.create_study(storage=storage, study_name="sim", direction="maximize", load_if_exists=True)
        trials = [_finished_trial(number) for number in range(count)]
        if isinstance(storage, _CachedStorage):
            _insert(storage._backend, study._study_id, trials)
        else:
            for trial in trials:
                study.add_trial(trial)
    finally:
        release(storage)


def _finished_trial(number: int) -> FrozenTrial:
    luck = random.Random(number)
    distributions = _space().distributions
    params = {name: luck.uniform(each.low, each.high) for name, each in distributions.items()}
    return create_trial(
        state=TrialState.COMPLETE,
        value=-sum(value**2 for value in params.values()),
        params=params,
        distributions=dict(distributions),
        user_attrs={
            attributes.TELL: number,
            attributes.ATTEMPT: 1,
            attributes.RECIPE: f"{number:064x}",
            attributes.SECONDS: {"merge": 0.1, "total": 1.0},
            attributes.WORKER: {"name": "worker-0", "attempt": 1},
            attributes.COST: {"candidates": 1, "forward_tokens": 10_000, "seconds": 1.0},
            attributes.SCORES: {"objective_stderr": 0.01, "tasks": {}},
        },
    )


def _insert(backend: RDBStorage, study_id: int, trials: Sequence[FrozenTrial]) -> None:
    rows: dict[Any, list[dict[str, Any]]] = {
        table: [] for table in (models.TrialModel, models.TrialValueModel, models.TrialParamModel, _Attribute)
    }
    for number, trial in enumerate(trials):
        row = {"trial_id": number + 1}
        times = {"datetime_start": trial.datetime_start, "datetime_complete": trial.datetime_complete}
        rows[models.TrialModel].append({**row, "number": number, "study_id": study_id, "state": trial.state, **times})
        finite = models.TrialValueModel.TrialValueType.FINITE
        rows[models.TrialValueModel].append({**row, "objective": 0, "value": trial.value, "value_type": finite})
        for name, distribution in trial.distributions.items():
            text = distribution_to_json(distribution)
            param = {"param_name": name, "param_value": trial.params[name], "distribution_json": text}
            rows[models.TrialParamModel].append({**row, **param})
        for key, value in trial.user_attrs.items():
            rows[_Attribute].append({**row, "key": key, "value_json": json.dumps(value)})
    with backend.engine.begin() as connection:
        for table, content in rows.items():
            if content:
                connection.execute(insert(table), content)


@cache
def _space() -> BoundSpace:
    tensors = {f"model.layers.{layer}.mlp.up_proj.weight": ((4, 4), "float32") for layer in range(LAYERS)}
    experts = [ModelRef(f"expert-{number}", "none") for number in range(EXPERTS)]
    space = load_space("task-arithmetic-per-block", Path())
    return bind(space, build_catalogue(tensors), ModelRef("base", "none"), experts, dtype="float32", seed=1)


def _scores() -> Scores:
    outcomes = tuple(float(item % 2) for item in range(ITEMS))
    task = TaskScores(
        metric="acc",
        higher_is_better=True,
        items=tuple(range(ITEMS)),
        outcomes=outcomes,
        value=0.5,
        stderr=0.035,
        aggregate="mean",
    )
    return Scores({f"task_{number}": task for number in range(TASKS)}, {"forward": 0.9}, 10_000)


def _table(document: dict[str, Any]) -> str:
    lines = ["| storage | trials before | per trial | resume |", "|---|---|---|---|"]
    lines += [
        f"| {row['storage']} | {row['trials_before']:,} | {1000 * row['per_trial_seconds']:.0f} ms "
        f"| {row['resume_seconds']:.2f} s |"
        for row in document["rows"]
    ]
    return "\n".join([*lines, "", f"{document['dimensions']} parameters; {document['machine']['processor']}"])


if __name__ == "__main__":
    main()
