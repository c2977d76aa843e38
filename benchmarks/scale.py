"""What one candidate costs as sources, parameters, items and workers grow: one of them at a time, around a middle.

`python benchmarks/scale.py [--json] [--runs 5] [--workers 2]`

A candidate is what a worker does for one job of a search, as in candidate.py: params drawn at random (seeded) from the
space ties-per-block, WeightBank.materialize into the live model, and scores of the tasks toy_pick (log-likelihoods) and
toy_shift (texts of seven tokens). Models are randomly initialised Llamas, sources in bfloat16, the live model in
float32, one thread. Compiling, sorting magnitudes, finding the batch size and preparing the items come before and do
not count.

Values: `sources`, the experts that are merged, beside the base; `parameters`, of one model, counted, of which the
vocabulary is a fifth at every size; `items`, those that are scored, of each of the two tasks; `workers`, processes that
do candidates of the middle at the same time, each with its own live model, over the same files. What is not varied is
at the middle: 4 sources, 25 million parameters, 50 items, one worker.

Columns, from medians of the runs. All values take turns, so the middle is measured once and stands in three rows; the
workers come after, and take turns of their own.

- `merge s`, seconds in WeightBank.materialize; `whole s`, from receiving the job to the outcome; `scoring s`, the whole
  without the merge. With several workers these are seconds in one of them.
- `per second`: candidates per second, of all workers together. A turn ends when the last worker has done its two.
- `merge ×`, `scoring ×`, `whole ×`: seconds over those of the smallest value.
- `of linear`: `whole ×` divided by value over smallest value. 1 is a cost that grows as the value does; below 1 it
  grows less. For workers, `per second` over that of one worker, divided by the number of workers: 1 is all that can be
  had, and what is missing is what they take from each other.

`ratio` is what a candidate costs with twice the parameters, over what it costs: 2 to the power that leads from the
smallest size to the largest.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import multiprocessing
import os
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import yaml
from candidate import _recipe  # before other libraries: it sets the environment that they read
from machine import interleaved, progress, report
from made_up_models import SIZES, save_model

from evomerge import load_spec
from evomerge.evaluation import ItemBlock, load_pack
from evomerge.jobs import FindBatchSize, Found, Score, Scored
from evomerge.opening.inputs import open_inputs
from evomerge.worker import Worker

TASKS = ("toy_pick", "toy_shift")
TURN = 2  # candidates that each worker does while the others do theirs
MOST_WORKERS = 8  # without --workers, however many cores there are

# Layers, width, width of the mlp, vocabulary.
SHAPES = {"5m": (9, 192, 512, 5_700), "25m": (11, 384, 1024, 14_400), "100m": (12, 768, 2048, 32_000)}
SIZES |= {
    name: {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
    }
    for name, (layers, width, inner, vocabulary) in SHAPES.items()
}


@dataclass(frozen=True)
class Case:
    """What a candidate is made of."""

    sources: int = 4
    size: str = "25m"
    items: int = 50


MIDDLE = Case()
FACTORS = {
    "sources": [replace(MIDDLE, sources=sources) for sources in (2, 4, 8)],
    "parameters": [replace(MIDDLE, size=size) for size in SHAPES],
    "items": [replace(MIDDLE, items=items) for items in (25, 50, 200)],
}


def main() -> None:
    given = _arguments()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        rows = _costs(Path(folder), given.runs)
        rows += _throughput(Path(folder), given.runs, _counts(given.workers))
    document = {"benchmark": "scale", "runs": given.runs, "middle": vars(MIDDLE), "ratio": _doubled(rows)}
    report(document, rows, given.json)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output, no table")
    parser.add_argument("--runs", type=int, default=5, help="runs per value, of which the median counts (default 5)")
    most = min(os.cpu_count() or 1, MOST_WORKERS)
    parser.add_argument("--workers", type=int, default=most, help=f"the most workers (default {most}: by the cores)")
    return parser.parse_args()


class Side:
    """A worker that does candidates of one case, and the seconds that they took."""

    def __init__(self, spec: Path, seed: int = 3) -> None:
        self._inputs = open_inputs(load_spec(spec))
        self._worker = Worker(self._inputs.setup(None))
        self._rng = random.Random(seed)
        self.parameters = self._inputs.catalogue.parameters
        found = self._worker.run(FindBatchSize("batch size", self._recipe())).result
        if not isinstance(found, Found):
            sys.exit(f"no batch size was found: {found}")
        self._batch_size = found.batch_size
        self._wait_for_kernels()
        self.candidate()  # prepares the items
        self.seconds: list[dict[str, float]] = []

    def candidate(self) -> dict[str, float]:
        """Seconds of one candidate."""
        job = Score(key="candidate", recipe=self._recipe(), items=ItemBlock("search"), batch_size=self._batch_size)
        outcome = self._worker.run(job)
        if not isinstance(outcome.result, Scored):
            sys.exit(f"a candidate failed: {outcome.result}")
        merge, whole = outcome.seconds["merge"], outcome.seconds["total"]
        return {"merge": merge, "scoring": whole - merge, "whole": whole}

    def measure(self) -> None:
        """One candidate, of which the seconds are kept."""
        self.seconds.append(self.candidate())

    def _recipe(self) -> Any:
        return _recipe(self._inputs, self._rng)

    def _wait_for_kernels(self) -> None:
        """Until a kernel is compiled, which happens in the background, merging is slower."""
        while (compiling := self._worker.bank._kernels._compiling) is not None:
            compiling[1].wait()
            self._worker.bank.materialize(self._recipe())


def _costs(folder: Path, runs: int) -> list[dict[str, Any]]:
    """The rows of all that is varied within one worker."""
    sides: dict[Case, Side] = {}
    for case in dict.fromkeys(case for cases in FACTORS.values() for case in cases):
        progress(f"preparing {_in_words(case)}")
        with _quiet():
            sides[case] = Side(_spec(case, folder))
    progress(f"{runs} candidates of each")
    interleaved({_in_words(case): side.measure for case, side in sides.items()}, runs)
    rows = []
    for factor, cases in FACTORS.items():
        values = [sides[case].parameters if factor == "parameters" else getattr(case, factor) for case in cases]
        medians = [_medians(sides[case].seconds) for case in cases]
        rates = [1 / each["whole"] for each in medians]
        rows += _rows(factor, values, medians, rates)
    return rows


def _throughput(folder: Path, runs: int, counts: Sequence[int]) -> list[dict[str, Any]]:
    """The rows of workers: the same processes do their candidates one alone, and beside each other."""
    progress(f"starting {counts[-1]} workers")
    with _workers(_spec(MIDDLE, folder), counts[-1]) as workers:
        done: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
        turns: dict[str, Callable[[], object]] = {
            str(count): partial(_turn, workers[:count], done[count]) for count in counts
        }
        progress(f"{runs} turns of {TURN} candidates each")
        seconds = interleaved(turns, runs)
    medians = [_medians(done[count]) for count in counts]
    rates = [count * TURN / seconds[str(count)] for count in counts]
    rows = _rows("workers", counts, medians, rates)
    for row in rows:
        row["of linear"] = row["per second"] / rates[0] / row["value"]
    return rows


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of the libraries, which come while something is prepared."""
    with Path(os.devnull).open("w") as null, redirect_stderr(null):
        yield


def _counts(most: int) -> list[int]:
    """1, 2, 4 and so on, up to the most."""
    return [2**power for power in range(most.bit_length())]


@contextmanager
def _workers(spec: Path, count: int) -> Iterator[list[Connection]]:
    """Processes that do as many candidates as they are told to, all prepared."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(count)]
    processes = [context.Process(target=_work, args=(theirs, spec, seed)) for seed, (_, theirs) in enumerate(pipes)]
    for process, (_, theirs) in zip(processes, pipes, strict=True):
        process.start()
        theirs.close()  # so that a process that ends is noticed
    ours = [connection for connection, _ in pipes]
    try:
        _turn(ours, [])
        yield ours
    finally:
        for connection in ours:
            connection.close()
        for process in processes:
            process.join()


def _work(connection: Connection, spec: Path, seed: int) -> None:
    """One process: does candidates whenever it is told how many, until nobody can tell it any more."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with _quiet():
        side = Side(spec, seed)
    try:
        while True:
            connection.send([side.candidate() for _ in range(connection.recv())])
    except (EOFError, BrokenPipeError):
        return


def _turn(workers: Sequence[Connection], done: list[dict[str, float]]) -> None:
    """Let each worker do its candidates, and wait for the last."""
    for worker in workers:
        worker.send(TURN)
    for worker in workers:
        done += worker.recv()


def _rows(
    varies: str, values: Sequence[int], medians: Sequence[Mapping[str, float]], rates: Sequence[float]
) -> list[dict[str, Any]]:
    """One row per value, the smallest first."""
    rows = []
    for value, median, rate in zip(values, medians, rates, strict=True):
        grown = {phase: median[phase] / medians[0][phase] for phase in median}
        rows.append(
            {
                "varies": varies,
                "value": value,
                **{f"{phase} s": each for phase, each in median.items()},
                "per second": rate,
                **{f"{phase} ×": each for phase, each in grown.items()},
                "of linear": grown["whole"] / (value / values[0]),
            }
        )
    return rows


def _medians(seconds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {phase: statistics.median(each[phase] for each in seconds) for phase in seconds[0]}


def _doubled(rows: Sequence[Mapping[str, Any]]) -> float:
    """What twice the parameters cost."""
    smallest, *_, largest = (row for row in rows if row["varies"] == "parameters")
    exponent = math.log(largest["whole ×"]) / math.log(largest["value"] / smallest["value"])
    return float(2**exponent)


def _spec(case: Case, folder: Path) -> Path:
    """The spec file of a search; models and items are made where they are not there yet."""
    names = ["base", *(f"expert{number}" for number in range(case.sources))]
    spec = {
        "name": "scale",
        "sources": [{"name": name, "location": str(_model(folder, case.size, name))} for name in names],
        "space": "ties-per-block",
        "evaluator": str(_pack(folder / f"items{case.items}", case.items)),
        "sampler": {"name": "cma"},
        "budget": {"trials": 1},
        "dtype": "float32",
        "seed": 1,
    }
    path = folder / f"{case.sources}-{case.size}-{case.items}.yaml"
    path.write_text(yaml.safe_dump(spec), encoding="utf-8")
    return path


def _model(folder: Path, size: str, name: str) -> Path:
    path = folder / size / name
    if not path.exists():
        seed = 0 if name == "base" else 1 + int(name.removeprefix("expert"))
        save_model(path, size, seed=seed, dtype=torch.bfloat16)
    return path


def _pack(folder: Path, items: int) -> Path:
    """The toy pack with two of its tasks, and the first items of each for the search, whatever they were for."""
    if folder.exists():
        return folder
    shutil.copytree(load_pack("toy-skills").folder, folder)
    path = folder / "evaluator.yaml"
    evaluator = yaml.safe_load(path.read_text(encoding="utf-8"))
    evaluator["tasks"] = [task for task in evaluator["tasks"] if task["task"] in TASKS]
    path.write_text(yaml.safe_dump(evaluator), encoding="utf-8")
    for task in TASKS:
        file = folder / "items" / f"{task}.jsonl"
        documents = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for number, document in enumerate(documents):
            document["part"] = "search" if number < items else "held_out"
        file.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
    return folder


def _in_words(case: Case) -> str:
    return f"{case.sources} sources of {case.size}, {case.items} items"


if __name__ == "__main__":
    main()
