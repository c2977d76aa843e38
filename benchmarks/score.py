"""Scoring one candidate: our engine against lm-eval on the same items, batch size and threads.

`python benchmarks/score.py [--json] [--runs 5] [--items 24]`

Cases: `toy`, the toy models' own evaluator, 200 items of each of its tasks; `few-shot`, a made-up multiple-choice task
with 5 examples (the first of their file, the same for all items) and four options of several tokens; `drawn`, the same
with other examples for every item, as lm-eval draws them by default.

Sides, taken in turns: `engine`, HarnessEvaluator.score; `simple_evaluate`, lm_eval.simple_evaluate with loaded task
objects of a manager with include_defaults=False, and bootstrap_iters=0; `evaluate`, lm_eval.evaluate on the same
objects, which spares it what simple_evaluate does around it. All give the same scores, or the benchmark fails. A ratio
is the median of the other side's seconds, divided by the engine's.

Distinct tokens are those of one prefix tree over all requests of the block, items and tasks together; forwarded tokens
are all positions that go through the model, padding among them. Both are of the log-likelihoods: what is generated
depends on the candidate.
"""

from __future__ import annotations

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TQDM_DISABLE": "1"}  # read when they are imported

import argparse
import contextlib
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lm_eval
import torch
from few_shot_pack import write_pack
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from machine import describe, in_words
from made_up_models import TOY, make_model, toy_tokenizer
from transformers import AutoModelForCausalLM

from evomerge.evaluation import Candidate, ItemBlock, Pack, load_pack
from evomerge.evaluation.lm_eval.harness_evaluator import HarnessEvaluator
from evomerge.recipe import Recipe

SEARCH = ItemBlock("search")
SHOTS = 5
CASES = ["toy", "few-shot", "drawn"]


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as null, contextlib.redirect_stderr(null):
        cases = {
            name: _compare(*_case(name, Path(folder), arguments), arguments.runs)
            for name in CASES
            if name in arguments.cases
        }
    document = {
        "schema": 1,
        "benchmark": "score",
        "machine": describe(),
        "ratio": next(iter(cases.values()))["ratio"],
        "cases": cases,
    }
    print(json.dumps(document) if arguments.json else _table(document))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--items", type=int, default=24, help="of the made-up cases (default 24)")
    parser.add_argument("--size", choices=("toy", "100m"), default="toy", help="of the model of the made-up cases")
    parser.add_argument(
        "--cases", nargs="+", choices=("toy", "few-shot", "drawn"), default=["toy", "few-shot", "drawn"]
    )
    return parser.parse_args()


def _case(name: str, folder: Path, arguments: argparse.Namespace) -> tuple[Pack, Any]:
    if name == "toy":
        model = AutoModelForCausalLM.from_pretrained(TOY, dtype=torch.float32).eval()
        return load_pack("toy-skills"), model
    sampler = "first_n" if name == "few-shot" else "default"
    pack = write_pack(folder / name, items=arguments.items, shots=SHOTS, sampler=sampler)
    return load_pack(pack), make_model(arguments.size)


def _compare(pack: Pack, model: Any, runs: int) -> dict[str, Any]:
    """Seconds of every side, and the tokens."""
    evaluator = HarnessEvaluator(pack, toy_tokenizer(), seed=1)
    candidate = Candidate(key="benchmark", params={}, recipe=Recipe.__new__(Recipe), model=lambda: model)
    ours = evaluator.score(candidate, SEARCH)
    ids = {task: sorted(items) for task, items in evaluator.split.items(SEARCH).items()}
    lm = HFLM(
        pretrained=model,
        tokenizer=toy_tokenizer(),
        batch_size=evaluator.batch_size,
        max_length=pack.max_length,
        softmax_dtype="float32",
    )
    with contextlib.chdir(pack.folder):
        manager = TaskManager(include_path=str(pack.tasks_path), include_defaults=False)
        tasks = _tasks(pack, manager)
        sides: dict[str, Callable[[], Any]] = {
            "engine": lambda: evaluator.score(candidate, SEARCH),
            "simple_evaluate": lambda: lm_eval.simple_evaluate(
                model=lm,
                tasks=list(tasks.values()),
                task_manager=manager,  # without it lm-eval indexes all of its own tasks
                samples=ids,
                bootstrap_iters=0,
                fewshot_random_seed=evaluator.fewshot_seed,
            ),
            "evaluate": lambda: lm_eval.evaluate(lm, tasks, samples=ids, bootstrap_iters=0),
        }
        theirs = sides["simple_evaluate"]()["results"]
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(runs):
            for side, run in sides.items():
                started = time.perf_counter()
                run()
                seconds[side].append(time.perf_counter() - started)
    values = {task: scores.value for task, scores in ours.tasks.items()}
    _check_same(values, {task: _value(theirs[task], scores.metric) for task, scores in ours.tasks.items()})
    prepared = evaluator.prepared(SEARCH)
    medians = {side: statistics.median(each) for side, each in seconds.items()}
    return {
        "seconds": medians,
        "ratio": medians["simple_evaluate"] / medians["engine"],
        "ratio_evaluate": medians["evaluate"] / medians["engine"],
        "fastest": {side: min(each) for side, each in seconds.items()},
        "runs": runs,
        "items": {task: len(items) for task, items in ids.items()},
        "batch_size": evaluator.batch_size,
        "tokens": {
            "forwarded": prepared.scored.tokens,
            "distinct": prepared.scored.distinct,
            "ratio": prepared.scored.tokens / max(1, prepared.scored.distinct),
            "with_texts": prepared.tokens,
        },
    }


def _tasks(pack: Pack, manager: TaskManager) -> dict[str, Any]:
    """The pack's task objects as lm-eval itself loads them, with the pack's number of examples."""
    tasks: dict[str, Any] = manager.load([entry.task for entry in pack.tasks])["tasks"]
    for entry in pack.tasks:
        if entry.num_fewshot is not None:
            tasks[entry.task].set_config("num_fewshot", entry.num_fewshot)
    return tasks


def _value(results: Mapping[str, Any], metric: str) -> float:
    return float(next(value for name, value in results.items() if name.split(",")[0] == metric))


def _check_same(ours: Mapping[str, float], theirs: Mapping[str, float]) -> None:
    if any(abs(value - theirs[task]) > 1e-6 for task, value in ours.items()):
        sys.exit(f"the engine's scores are not lm-eval's: {ours} against {theirs}")


def _table(document: Mapping[str, Any]) -> str:
    lines = [
        f"{'case':<10}{'engine':>10}{'simple_evaluate':>17}{'evaluate':>11}{'ratio':>8}{'forwarded / distinct':>28}"
    ]
    for name, case in document["cases"].items():
        seconds, tokens = case["seconds"], case["tokens"]
        shared = f"{tokens['forwarded']:,} / {tokens['distinct']:,} = {tokens['ratio']:.2f}"
        lines.append(
            f"{name:<10}{seconds['engine']:>8.2f} s{seconds['simple_evaluate']:>15.2f} s{seconds['evaluate']:>9.2f} s"
            f"{case['ratio']:>8.1f}{shared:>28}"
        )
    return "\n".join([*lines, in_words(document["machine"])])


if __name__ == "__main__":
    main()
