"""The merge methods on the toy language models: one base, six full fine-tunes, 2,400 held-out items."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import toy_models
from measurement import INFO, Row, compared
from toy_models import EXPERTS, TASKS, Weights, calibration, exact_matches, load, model_of, outcomes, padded

from evomerge.merging import merge_state_dicts
from evomerge.methods import resolve_options, resolve_parameters
from evomerge.recipe import ModelRef, Recipe, Rule
from evomerge.statistics import input_grams, sampled_fisher
from evomerge.training import DamSettings, TrainingInputs, train_dam

TEXTS = 128
FISHER_TEXTS = 64
LAMBDAS = (0.15, 0.25, 0.35, 0.45)
TIES_LAMBDAS = (0.6, 1.0, 1.4, 1.8)
PCB_LAMBDAS = (0.8, 1.2, 1.6)
DAM = DamSettings.model_validate(
    {"batch_size": 16, "epochs": 10, "learning_rate": 0.01, "trainable": ["linear", "bias", "norm", "embedding"]}
)
Outcomes = list[float]


def figures(seed: int) -> dict[str, Outcomes]:
    """For each method, whether each held-out item is right; the seed is of the labels that Fishers draw, and of DAM."""
    base, experts = load("base"), [load(name) for name in EXPERTS]

    def by_lambda(method: str, parameter: str, values: Iterable[float]) -> Weights:
        merges = (merge_state_dicts(method, experts, base, {parameter: value}) for value in values)
        return max(merges, key=lambda merged: _mean(outcomes(merged, "search")))

    merges: dict[str, Callable[[], Weights]] = {
        "the average": lambda: merge_state_dicts("linear", experts),
        "task arithmetic": lambda: by_lambda("task_arithmetic", "weight", LAMBDAS),
        "TIES": lambda: by_lambda("ties", "lambda", TIES_LAMBDAS),
        "PCB": lambda: by_lambda("pcb", "weight", PCB_LAMBDAS),
        "Fisher": lambda: merge_state_dicts("fisher", experts, statistics=_fishers(experts, seed)),
        "RegMean": lambda: merge_state_dicts("regmean", experts, None, {"ridge": 1e-6}, statistics=_grams(experts)),
        "DAM": lambda: _dam(base, experts, seed),
    }
    found = {name: _all(outcomes(make())) for name, make in merges.items()}
    found["each expert on its own task"] = _own(experts)
    found["EMR"] = _own(merge_state_dicts("emr", experts, base, options={"task": task}) for task in range(len(experts)))
    pair = [load(name, toy_models.PAIR) for name in ("first", "second")]
    found["pair, averaged"] = _pair_matches(merge_state_dicts("linear", pair))
    found["pair, OT"] = _pair_matches(merge_state_dicts("ot_fusion", pair))
    return found


def _pair_matches(weights: Weights) -> Outcomes:
    model = model_of(weights, toy_models.PAIR / "first")
    return exact_matches(model, ["toy_shift", "toy_swap"], "held_out")


def _mean(found: dict[str, tuple[float, ...]]) -> float:
    return sum(sum(each) / len(each) for each in found.values()) / len(found)


def _all(found: dict[str, tuple[float, ...]]) -> Outcomes:
    return [value for task in TASKS for value in found[task]]


def _own(models: Iterable[Weights]) -> Outcomes:
    """Outcomes of models that are made for one task each."""
    return [value for task, model in zip(TASKS, models, strict=True) for value in outcomes(model)[task]]


def _grams(experts: Sequence[Weights]) -> list[Weights]:
    found = []
    for task, expert in zip(TASKS, experts, strict=True):
        ids, mask = padded(calibration(task, TEXTS))
        grams = input_grams(model_of(expert), [({"input_ids": ids, "attention_mask": mask.long()}, mask)])
        found.append({name: gram for name, gram in grams.items() if name != "lm_head.weight"})
    return found


def _fishers(experts: Sequence[Weights], seed: int) -> list[Weights]:
    found = []
    for task, expert in zip(TASKS, experts, strict=True):
        texts = [padded([text])[0][0] for text in calibration(task, FISHER_TEXTS)]
        found.append(sampled_fisher(model_of(expert), texts, None, seed))
    return found


def _dam(base: Weights, experts: Sequence[Weights], seed: int) -> Weights:
    """Trained with the settings of the toy search."""
    model = model_of(base)
    live = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name != "lm_head.weight"}
    refs = {name: ModelRef(name, f"models/{name}", fingerprint=name) for name in ("base", *EXPERTS)}
    rule = Rule(
        tensors=tuple(sorted(live)),
        method="linear",
        sources=EXPERTS,
        parameters=resolve_parameters("linear", {}, len(EXPERTS)),
        options=resolve_options("linear", {}),
    )
    recipe = Recipe(
        base=refs["base"], sources=tuple(refs[name] for name in EXPERTS), rules=(rule,), dtype="float32", seed=seed
    )
    with tempfile.TemporaryDirectory() as folder:
        inputs = TrainingInputs(
            model=model,
            live=live,
            weights={"base": base, **dict(zip(EXPERTS, experts, strict=True))},
            texts={name: calibration(task, TEXTS) for name, task in zip(EXPERTS, TASKS, strict=True)},
            initial=recipe,
            seed=seed,
            files=Path(folder),
        )
        for _ in train_dam(inputs, DAM):
            pass
    return {name: tensor.detach().clone() for name, tensor in live.items()}


def claims(found: Sequence[dict[str, Outcomes]]) -> list[Row]:
    """Rows of the table, of one run: the intervals are over items."""
    (figures_of,) = found
    units = f"{len(figures_of['TIES'])} items"
    ordered: list[tuple[str, str, str]] = [
        ("2405.17461", "each expert on its own task", "EMR"),
        *(("2405.17461", "EMR", name) for name in ("RegMean", "DAM")),
        *(("2212.09849", "RegMean", name) for name in ("TIES", "task arithmetic")),
        *(("2410.08371", "DAM", name) for name in ("TIES", "the average")),
        ("2111.09832", "Fisher", "the average"),
        ("2410.02396", "PCB", "TIES"),
        ("2306.01708", "TIES", "task arithmetic"),
        ("2212.04089", "task arithmetic", "the average"),
    ]
    rows = [
        compared(
            f"Toy language models: {first} is above {second}",
            paper,
            (first, second),
            (figures_of[first], figures_of[second]),
            units,
        )
        for paper, first, second in ordered
    ]
    values = (figures_of["pair, OT"], figures_of["pair, averaged"])
    claim = "The pair of models/, transformers with different initial weights, where only MLP units can be aligned"
    row = compared(claim, "1910.05653", ("OT", "the average"), values, f"{len(values[0])} items")
    return [*rows, replace(row, verdict=INFO)]
