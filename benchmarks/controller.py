"""What the controller costs per trial, and how long a killed search takes to go on, by the number of trials before.

    python benchmarks/controller.py [--trials 0 100 1000 10000] [--server URL] [--json]

A search space of 30 parameters, the cma sampler, SQLite and a journal on this disk, PostgreSQL in a server of its own
where it is installed, and a database on a server if one is given. *Per trial* is all that the controller does for
one: ask with its first attempt, store the outcomes of 1,200 items as Parquet, tell. *Resume* is opening the study,
counting its trials and replaying them into the sampler, up to the first proposal; *replay* is the sampler's part of it.
Each by the clock, and in seconds of this process on a CPU. The trials before have the attributes that a search gives
them. Medians of 15 trials and of 3 resumptions. The ratio is per trial after the most trials / after the fewest.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import optuna
import pytest
from machine import describe
from optuna.trial import FrozenTrial, TrialState, create_trial

from evomerge.catalogue import build_catalogue
from evomerge.evaluation.scores import Scores, TaskScores
from evomerge.jobs import Cost, Outcome, Scored
from evomerge.objective import Assessment
from evomerge.recipe import ModelRef
from evomerge.samplers import build_sampler
from evomerge.samplers.base import sampler_of
from evomerge.spaces.bound import BoundSpace, bind
from evomerge.spaces.space_files import load_space
from evomerge.storage import attributes
from evomerge.storage.opening import in_transaction, open_storage, release
from evomerge.study.search_study import SearchStudy

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from servers import postgres_server

SCHEMA = 3
TASKS, ITEMS = 6, 200
EXPERTS, LAYERS = 10, 6  # with blocks of two layers: 30 parameters
MEASURED, RESUMED = 15, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[0, 100, 1000, 10000], help="trials before")
    parser.add_argument("--server", help="also measure on this database; studies named controller-… are made there")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="evomerge-controller-") as folder, _postgresql() as servers:
        files = {scheme: f"{scheme}:///{folder}/study.{scheme}" for scheme in ("sqlite", "journal")}
        urls = {**files, **servers, **({} if arguments.server is None else {"server": arguments.server})}
        rows = [
            _measure(Path(folder), storage, url, before) for before in arguments.trials for storage, url in urls.items()
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


@contextmanager
def _postgresql() -> Iterator[dict[str, str]]:
    """The URL of a PostgreSQL server that ends with the block; none where it is not installed."""
    with ExitStack() as stack:
        try:
            urls = {"postgresql": stack.enter_context(postgres_server()).url}
        except pytest.skip.Exception:
            urls = {}
        yield urls


def _measure(folder: Path, storage: str, url: str, before: int) -> dict[str, Any]:
    name = f"controller-{os.getpid()}-{before}"
    _populate(url, name, before)
    resumed = [_timed(_resume, url, name, folder) for _ in range(RESUMED)]
    with _opened(url, name, folder) as search:
        replayed = _timed(sampler_of(search.study).mean, search.study)
        _one_trial(search)
        told = [_timed(_one_trial, search) for _ in range(MEASURED)]
    return {
        "storage": storage,
        "trials_before": before,
        "per_trial_seconds": statistics.median(each.wall for each in told),
        "per_trial_cpu_seconds": statistics.median(each.cpu for each in told),
        "resume_seconds": statistics.median(each.wall for each in resumed),
        "resume_cpu_seconds": statistics.median(each.cpu for each in resumed),
        "replay_cpu_seconds": replayed.cpu,
    }


@dataclass(frozen=True)
class Times:
    """Seconds by the clock, and of this process on a CPU."""

    wall: float
    cpu: float


def _timed(call: Callable[..., object], *arguments: object) -> Times:
    wall, cpu = time.perf_counter(), time.process_time()
    call(*arguments)
    return Times(time.perf_counter() - wall, time.process_time() - cpu)


def _one_trial(search: SearchStudy) -> None:
    outcome = Outcome(
        key="key",
        attempt=1,
        result=Scored(_scores()),
        seconds={"merge": 0.1, "total": 1.0},
        worker="worker-0",
        cost=Cost(candidates=1, items=1_200, forward_tokens=10_000, seconds=1.0),
    )
    proposal = search.ask()
    search.begin(proposal)
    search.tell(proposal, outcome, Assessment(value=random.Random(proposal.number).random(), stderr=0.01))


def _resume(url: str, name: str, folder: Path) -> None:
    with _opened(url, name, folder) as search:
        search.recover()
        search.ask()


@contextmanager
def _opened(url: str, name: str, folder: Path) -> Iterator[SearchStudy]:
    storage, space = open_storage(url, single_writer=True), _space()
    try:
        sampler = build_sampler("cma", {"popsize": 14}, seed=1, space=space, workers=1)
        study = optuna.create_study(
            storage=storage, study_name=name, direction="maximize", sampler=sampler, load_if_exists=True
        )
        yield SearchStudy(study, storage, space, artifacts=folder / "artifacts")
    finally:
        release(storage)


def _populate(url: str, name: str, count: int) -> None:
    """Finished trials as a search leaves them."""
    storage = open_storage(url, single_writer=True)
    try:
        study = optuna.create_study(storage=storage, study_name=name, direction="maximize")
        in_transaction(storage, lambda: [study.add_trial(_finished_trial(number)) for number in range(count)])
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
    lines = ["| storage | trials before | per trial | CPU | resume | CPU | replay |", "|---|---|---|---|---|---|---|"]
    lines += [
        f"| {row['storage']} | {row['trials_before']:,} | {1000 * row['per_trial_seconds']:.0f} ms "
        f"| {1000 * row['per_trial_cpu_seconds']:.1f} ms | {row['resume_seconds']:.2f} s "
        f"| {row['resume_cpu_seconds']:.2f} s | {row['replay_cpu_seconds']:.2f} s |"
        for row in document["rows"]
    ]
    return "\n".join([*lines, "", f"{document['dimensions']} parameters; {document['machine']['processor']}"])


if __name__ == "__main__":
    main()
