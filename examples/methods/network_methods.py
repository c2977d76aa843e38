"""All merge methods on the zoo of networks: whose merge is best on all tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from measurement import Row, compared, equal, interval
from network_zoo import Weights, Zoo, accuracy, logits, new_network, train_zoo
from torch import Tensor

from evomerge.merging import merge_state_dicts
from evomerge.optimisation.mofo import Mofo, clip_gradients
from evomerge.statistics import exact_fisher, input_grams
from evomerge.training.adamerging import entropy_loss, train_coefficients
from evomerge.training.dam import kl_loss, merged_weight, similarity

LAMBDAS = tuple(round(0.05 * step, 2) for step in range(1, 21))
TIES_LAMBDAS = tuple(round(0.1 * step, 1) for step in range(3, 26))
PCB_LAMBDAS = tuple(round(0.25 * step, 2) for step in range(1, 13))
FISHER_EXAMPLES = 100
RIDGE = 1e-6  # a unit may be silent for all sources
ADA_STEPS = 300
DAM_STEPS = 125

NAMES = {
    "individual": "each expert on its own task",
    "emr": "EMR",
    "regmean": "RegMean",
    "adamerging": "layer-wise AdaMerging",
    "adamerging_task": "task-wise AdaMerging",
    "dam": "DAM",
    "fisher": "Fisher",
    "pcb": "PCB",
    "ties": "TIES",
    "dare_ties": "DARE-TIES",
    "ta": "task arithmetic",
    "ta_untuned": "task arithmetic at 0.3",
    "opcm": "OPCM",
    "average": "the average",
    "base": "the base",
}


def figures(seed: int) -> dict[str, float]:
    """Mean accuracy over the tasks, by method. Coefficients that need data see the calibration images alone."""
    zoo = train_zoo(seed)
    base, experts = zoo.base, zoo.experts
    merges = {
        "average": merge_state_dicts("linear", experts),
        "ta": best(zoo, (_by_lambda("task_arithmetic", zoo, "weight", value) for value in LAMBDAS)),
        "ta_untuned": _by_lambda("task_arithmetic", zoo, "weight", 0.3),
        "ties": best(zoo, (_by_lambda("ties", zoo, "lambda", value) for value in TIES_LAMBDAS)),
        "dare_ties": best(zoo, (_by_lambda("dare_ties", zoo, "lambda", value) for value in TIES_LAMBDAS)),
        "pcb": best(zoo, (_by_lambda("pcb", zoo, "weight", value) for value in PCB_LAMBDAS)),
        "opcm": merge_state_dicts("opcm", experts, base),
        "fisher": merge_state_dicts("fisher", experts, statistics=_fishers(zoo)),
        "regmean": merge_state_dicts("regmean", experts, None, {"ridge": RIDGE}, statistics=_grams(zoo)),
        "adamerging": adamerging(zoo, "tensor"),
        "adamerging_task": adamerging(zoo, "task"),
        "dam": dam(zoo),
        "base": base,
    }
    found = {name: zoo.mean_accuracy(merged) for name, merged in merges.items()}
    for_task = [merge_state_dicts("emr", experts, base, options={"task": task}) for task in range(len(experts))]
    found["emr"] = _own_accuracy(zoo, for_task)
    found["individual"] = _own_accuracy(zoo, experts)
    return found


def best(zoo: Zoo, merges: Iterable[Weights]) -> Weights:
    """The merge that is best on the calibration images."""
    return max(merges, key=lambda merged: zoo.mean_accuracy(merged, part="calibration"))


def _by_lambda(method: str, zoo: Zoo, parameter: str, value: float) -> Weights:
    return merge_state_dicts(method, zoo.experts, zoo.base, {parameter: value})


def _own_accuracy(zoo: Zoo, models: Sequence[Weights]) -> float:
    """Mean accuracy of models that are made for one task each."""
    return sum(accuracy(model, task) for model, task in zip(models, zoo.test, strict=True)) / len(models)


def _fishers(zoo: Zoo) -> list[Weights]:
    return [
        exact_fisher(_network(expert), list(task.images[:FISHER_EXAMPLES]))
        for expert, task in zip(zoo.experts, zoo.calibration, strict=True)
    ]


def _grams(zoo: Zoo) -> list[Weights]:
    return [
        input_grams(_network(expert), [(task.images, None)])
        for expert, task in zip(zoo.experts, zoo.calibration, strict=True)
    ]


def _network(weights: Weights) -> torch.nn.Module:
    network = new_network(0)
    network.load_state_dict(weights)
    return network


def adamerging(zoo: Zoo, granularity: str) -> Weights:
    """Coefficients by the entropy of the predictions for the calibration images of all tasks, without their labels."""

    def loss(merged: Weights) -> Tensor:
        return torch.stack([entropy_loss(logits(merged, task.images)) for task in zoo.calibration]).sum()

    steps = list(train_coefficients(zoo.base, zoo.task_vectors, loss, granularity=granularity, steps=ADA_STEPS))
    learnt = steps[-1].coefficients
    return {
        name: tensor
        + sum(
            factor * vector[name]
            for factor, vector in zip(learnt.get(name, learnt.get("all")).clamp(0, 1), zoo.task_vectors, strict=True)
        )
        for name, tensor in zoo.base.items()
    }


def dam(zoo: Zoo) -> Weights:
    """One coefficient per source and input column, by the divergence from each source on its own calibration images.

    The settings are those of the toy search: MoFO, learning rate 0.01, batches of 16, ten passes.
    """
    count = len(zoo.experts)
    generator = torch.Generator().manual_seed(0)
    sizes = {name: tensor.shape[1:] for name, tensor in zoo.base.items()}
    values = {name: torch.full((count, *size), 1 / count, requires_grad=True) for name, size in sizes.items()}
    optimizer = Mofo(values, learning_rate=0.01, alpha=0.3, weight_decay=0.01)
    for _ in range(DAM_STEPS):
        merged = _dam_merge(zoo.experts, values)
        loss = similarity([values[name] for name, size in sizes.items() if size])
        for expert, task in zip(zoo.experts, zoo.calibration, strict=True):
            images = task.draw(16, generator).images[:, None]
            mask = torch.ones(images.shape[:2])
            loss = loss + kl_loss(logits(merged, images), logits(expert, images), mask)
        found = torch.autograd.grad(loss, list(values.values()))
        gradients = dict(zip(values, found, strict=True))
        clip_gradients(gradients, 1.0)
        with torch.no_grad():
            optimizer.step(gradients)
    return {name: tensor.detach() for name, tensor in _dam_merge(zoo.experts, values).items()}


def _dam_merge(experts: Sequence[Weights], values: Weights) -> Weights:
    return {name: merged_weight([expert[name] for expert in experts], values[name]) for name in values}


def claims(found: Sequence[dict[str, float]]) -> list[Row]:
    """Rows of the table."""
    units = f"{len(found)} zoos"
    column = {name: [each[name] for each in found] for name in NAMES}

    def above(claim: str, paper: str, first: str, second: str) -> Row:
        return compared(claim, paper, (NAMES[first], NAMES[second]), (column[first], column[second]), units)

    published: list[tuple[str, str, str, str]] = [
        ("Individuals are above EMR", "2405.17461", "individual", "emr"),
        *((f"EMR is above {NAMES[name]}", "2405.17461", "emr", name) for name in ("regmean", "adamerging", "dam")),
        *((f"RegMean is above {NAMES[name]}", "2212.09849", "regmean", name) for name in ("fisher", "ties", "ta")),
        ("Layer-wise AdaMerging is above TIES", "2310.02575", "adamerging", "ties"),
        ("Layer-wise AdaMerging is above task-wise", "2310.02575", "adamerging", "adamerging_task"),
        *((f"DAM is above {NAMES[name]}", "2410.08371", "dam", name) for name in ("ties", "average")),
        ("Fisher is above the average", "2111.09832", "fisher", "average"),
        ("PCB is above TIES", "2410.02396", "pcb", "ties"),
        ("TIES is above task arithmetic", "2306.01708", "ties", "ta"),
        ("Task arithmetic is above the average", "2212.04089", "ta", "average"),
    ]
    rows = [above(*each) for each in published]
    close = (column["adamerging_task"], column["ta"])
    names = (NAMES["adamerging_task"], NAMES["ta"])
    rows.append(equal("Task-wise AdaMerging is close to task arithmetic", "2310.02575", names, close, units, 0.02))
    return rows


def accuracies(found: Sequence[dict[str, float]]) -> list[tuple[str, str]]:
    """(method, mean accuracy with its interval), the best first."""
    intervals = {name: interval([each[name] for each in found]) for name in NAMES}
    return [(NAMES[name], each.text()) for name, each in sorted(intervals.items(), key=lambda item: -item[1].mean)]
