"""Modality experts merged into one tower: shared against unshared initial weights, and what predicts the loss."""

from __future__ import annotations

from collections.abc import Sequence

import digits
import numpy as np
import torch
from measurement import HOLDS, Row, above, between, compared, interval
from modality_model import EXPERTS, PATTERNS, ModalityModel, correct
from scipy import stats
from torch import Tensor
from train_modality_experts import EXPERT_STEPS, SEED_STEPS, train_models

from evomerge.catalogue.expert_names import find_experts
from evomerge.merging.distances import cosine, l2, ssd, tssd
from evomerge.merging.experts import merge_experts
from evomerge.statistics import input_grams

PAPER = "2304.14933"
METRICS = {"TSSD": tssd, "SSD": ssd, "cosine": cosine, "L2": l2}
SEED_LENGTHS = (0, 50, 100)  # besides SEED_STEPS: towers that had hardly begun when their experts parted
Weights = dict[str, Tensor]


def figures(seed: int) -> dict[str, float]:
    """Accuracies before and after each merge, and for the models of all kinds distances with the loss of accuracy."""
    images, test = digits.load()
    trained = train_models(seed)
    found: dict[str, float] = {}
    models = {"shared": trained["shared"], "unshared": trained["unshared"]}
    for kind, model in models.items():
        found[f"{kind}, before"] = _accuracy(model, test)
        for method in ("interpolation", "arithmetic", "regmean"):
            tower = _merged(model, method, trained["seed"].state_dict(), images)
            found[f"{kind}, {method}"] = _accuracy(tower, test)
    for steps in SEED_LENGTHS:
        models[f"seed of {steps} steps"] = train_models(seed, steps, EXPERT_STEPS + SEED_STEPS - steps)["shared"]
    for kind, model in models.items():
        vision, language = _pair(model.state_dict())
        for name, metric in METRICS.items():
            found[f"{name} of {kind}"] = metric(vision, language)
        loss = _accuracy(model, test) - _accuracy(_merged(model, "interpolation", {}, images), test)
        found[f"loss of {kind}"] = loss
    return found


def _accuracy(model: ModalityModel, test: digits.Digits) -> float:
    return float(correct(model, test).double().mean())


def _merged(model: ModalityModel, method: str, seed: Weights, images: digits.Digits) -> ModalityModel:
    tensors = model.state_dict()
    needs = {}
    if method == "arithmetic":
        needs = {"seed": seed}
    if method == "regmean":
        generator = torch.Generator().manual_seed(5)
        inputs = {"images": images.images, "texts": digits.misspelt(images.labels, generator)}
        needs = {"statistics": input_grams(model, [(inputs, None)]), "parameters": {"scaling": 0.9}}
    tower = ModalityModel(shared=True, seed=0)
    tower.load_state_dict(merge_experts(tensors, PATTERNS, EXPERTS, method, **needs))
    return tower


def _pair(tensors: Weights) -> tuple[Weights, Weights]:
    """The vision and the language expert, by shared names."""
    shared = find_experts(tensors, PATTERNS, EXPERTS)
    return tuple({name: tensors[copies[at]] for name, copies in shared.items()} for at in (0, 1))


def claims(found: Sequence[dict[str, float]]) -> list[Row]:
    """Rows of the table."""
    units = f"{len(found)} seeds"
    column = {name: [each[name] for each in found] for name in found[0]}
    losses = {
        kind: interval(_differences(column[f"{kind}, before"], column[f"{kind}, interpolation"]))
        for kind in ("shared", "unshared")
    }
    names = ("unshared seed", "shared seed")
    both = [
        _differences(column[f"{kind}, before"], column[f"{kind}, interpolation"]) for kind in ("unshared", "shared")
    ]
    methods = {name: interval(column[f"shared, {name}"]) for name in ("interpolation", "arithmetic", "regmean")}
    spans = [
        max(each[f"shared, {name}"] for name in methods) - min(each[f"shared, {name}"] for name in methods)
        for each in found
    ]
    span = interval(spans)
    return [
        compared(
            "Merging experts loses more accuracy without a shared seed than with one", PAPER, names, tuple(both), units
        ),
        Row(
            claim="Experts of a shared seed merge (they lose less than 5 points)",
            paper=PAPER,
            measured=f"loss {losses['shared'].text()}",
            units=units,
            verdict=between(losses["shared"], -1.0, 0.05),
        ),
        Row(
            claim="Experts of different seeds do not merge (they lose more than 20 points)",
            paper=PAPER,
            measured=f"loss {losses['unshared'].text()}",
            units=units,
            verdict=above(losses["unshared"], 0.2),
        ),
        Row(
            claim="Interpolation, arithmetic and RegMean are close (best and worst within 3 points)",
            paper=PAPER,
            measured="; ".join(f"{name} {each.text()}" for name, each in methods.items()) + f"; apart by {span.text()}",
            units=units,
            verdict=between(span, -1.0, 0.03),
        ),
        *_predictors(found, units),
    ]


def _predictors(found: Sequence[dict[str, float]], units: str) -> list[Row]:
    """Rank correlation between distance and loss over the models of a seed, as a mean over seeds."""
    kinds = [name.removeprefix("loss of ") for name in found[0] if name.startswith("loss of ")]
    correlations = {
        metric: [
            float(stats.spearmanr([each[f"{metric} of {kind}"] for kind in kinds], _losses(each, kinds)).statistic)
            for each in found
        ]
        for metric in METRICS
    }
    intervals = {metric: interval(values) for metric, values in correlations.items()}
    text = "; ".join(f"{metric} {each.text(1.0, 2)}" for metric, each in intervals.items())
    tssd_leads = [
        interval(_differences(correlations["TSSD"], correlations[metric])) for metric in METRICS if metric != "TSSD"
    ]
    verdicts = [above(each) for each in tssd_leads]
    best = HOLDS if set(verdicts) == {HOLDS} else next(each for each in verdicts if each != HOLDS)
    models = f"{units} × {len(kinds)} models"
    return [
        Row(
            claim="TSSD between vision and language experts rank-correlates with the loss",
            paper=PAPER,
            measured=f"Spearman's rho {intervals['TSSD'].text(1.0, 2)}",
            units=models,
            verdict=above(intervals["TSSD"]),
        ),
        Row(
            claim="TSSD is the best predictor of the four distances",
            paper=PAPER,
            measured=text,
            units=models,
            verdict=best,
        ),
    ]


def _losses(found: dict[str, float], kinds: Sequence[str]) -> list[float]:
    return [found[f"loss of {kind}"] for kind in kinds]


def _differences(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [float(each) for each in np.subtract(first, second)]
