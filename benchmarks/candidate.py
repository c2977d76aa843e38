"""A whole candidate, split by phase: what is neither the merge pass nor a model forward is overhead.

`python benchmarks/candidate.py [--json] [--runs 5] [--sizes toy 100m]`

A worker does jobs as in a search, one after the other, each with params drawn at random (seeded) from the space.
Phases: `merge`, WeightBank.materialize; `forward`, the calls of the live model; `overhead`, everything else from
receiving the job to the outcome: stop strings, decoding, filters, metrics, aggregates. The ratio is the median share of
overhead.

`toy` is examples/toy as it is: 200 items of every task. `100m` has a randomly initialised base and four experts, the
space ties-per-block, and the tasks toy_pick (log-likelihoods) and toy_shift (texts) of the same evaluator.
"""

from __future__ import annotations

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TQDM_DISABLE": "1"}  # read when they are imported

import argparse
import contextlib
import json
import logging
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from machine import describe, in_words
from made_up_models import save_model
from optuna.distributions import BaseDistribution, FloatDistribution
from toy_example import toy_search

from evomerge import load_spec
from evomerge.evaluation import ItemBlock, load_pack
from evomerge.jobs import FindBatchSize, Found, Score, Scored
from evomerge.opening.inputs import Inputs, open_inputs
from evomerge.spec import SearchSpec
from evomerge.worker import Worker

SIZES = ["toy", "100m"]
EXPERTS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as null, contextlib.redirect_stderr(null):
        cases = {size: _measure(_spec(size, Path(folder)), arguments.runs) for size in arguments.sizes}
    document = {
        "schema": 1,
        "benchmark": "candidate",
        "machine": describe(),
        "ratio": next(iter(cases.values()))["ratio"],
        "cases": cases,
    }
    print(json.dumps(document) if arguments.json else _table(document))


def _spec(size: str, folder: Path) -> SearchSpec:
    """A search with models of this size."""
    if size == "toy":
        return toy_search()
    names = ["base", *(f"expert{number}" for number in range(EXPERTS))]
    for seed, name in enumerate(names):
        save_model(folder / name, size, seed=seed, dtype=torch.bfloat16)
    pack = load_pack("toy-skills").folder
    shutil.copytree(pack, folder / "pack")
    evaluator = yaml.safe_load((folder / "pack" / "evaluator.yaml").read_text(encoding="utf-8"))
    evaluator["tasks"] = [task for task in evaluator["tasks"] if task["task"] in ("toy_pick", "toy_shift")]
    (folder / "pack" / "evaluator.yaml").write_text(yaml.safe_dump(evaluator), encoding="utf-8")
    spec = {
        "name": "candidate-100m",
        "sources": [{"name": name, "location": str(folder / name)} for name in names],
        "space": "ties-per-block",
        "evaluator": str(folder / "pack"),
        "sampler": {"name": "cma"},
        "budget": {"trials": 1},
        "dtype": "float32",
        "seed": 1,
    }
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(spec), encoding="utf-8")
    return load_spec(path)


def _measure(spec: SearchSpec, runs: int) -> dict[str, Any]:
    inputs = open_inputs(spec)
    worker = Worker(inputs.setup(None))
    rng = random.Random(3)
    found = worker.run(FindBatchSize("batch size", _recipe(inputs, rng))).result
    batch_size = found.batch_size if isinstance(found, Found) else None
    phases: dict[str, list[float]] = {}
    items: dict[str, int] = {}
    with _timed_forwards(worker.bank.materialize(_recipe(inputs, rng))) as forwards:
        for run in range(runs + 1):
            forwards.clear()
            job = Score(key=str(run), recipe=_recipe(inputs, rng), items=ItemBlock("search"), batch_size=batch_size)
            outcome = worker.run(job)
            if not isinstance(outcome.result, Scored):
                sys.exit(f"a candidate failed: {outcome.result}")
            if run == 0:  # prepares the block
                continue
            total, merge, forward = outcome.seconds["total"], outcome.seconds["merge"], sum(forwards)
            measured = {"total": total, "merge": merge, "forward": forward, "overhead": total - merge - forward}
            measured |= {"share": measured["overhead"] / total, "metrics": outcome.seconds["metrics"]}
            for phase, value in measured.items():
                phases.setdefault(phase, []).append(value)
            items = {task: len(scores.items) for task, scores in outcome.result.scores.tasks.items()}
    medians = {phase: statistics.median(values) for phase, values in phases.items()}
    return {"ratio": medians.pop("share"), "seconds": medians, "runs": runs, "items": items, "batch_size": batch_size}


def _recipe(inputs: Inputs, rng: random.Random) -> Any:
    space = inputs.space
    return space.decode({name: _draw(each, rng) for name, each in space.distributions.items()})


def _draw(distribution: BaseDistribution, rng: random.Random) -> Any:
    if isinstance(distribution, FloatDistribution):
        return rng.uniform(distribution.low, distribution.high)
    return rng.choice(getattr(distribution, "choices", None) or [getattr(distribution, "low", None)])


@contextlib.contextmanager
def _timed_forwards(model: Any) -> Any:
    """Seconds of every call of the model while it is open."""
    seconds: list[float] = []
    started: list[float] = []
    handles = [
        model.register_forward_pre_hook(lambda *_: started.append(time.perf_counter())),
        model.register_forward_hook(lambda *_: seconds.append(time.perf_counter() - started.pop())),
    ]
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


def _table(document: Mapping[str, Any]) -> str:
    lines = [
        f"{'size':<8}{'total':>10}{'merge':>10}{'forward':>10}{'overhead':>11}{'metrics':>10}{'overhead share':>17}"
    ]
    for name, case in document["cases"].items():
        seconds = case["seconds"]
        lines.append(
            f"{name:<8}{seconds['total']:>8.2f} s{seconds['merge']:>8.2f} s{seconds['forward']:>8.2f} s"
            f"{seconds['overhead']:>9.3f} s{seconds['metrics']:>8.3f} s{case['ratio']:>17.1%}"
        )
    return "\n".join([*lines, in_words(document["machine"])])


if __name__ == "__main__":
    main()
