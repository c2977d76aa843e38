"""Experts that arrive one after the other: OPCM against adding with a fixed factor and against the running average."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
from measurement import Interval, Row, between, compared, interval
from network_zoo import Weights, Zoo, accuracy, train_zoo
from scipy import stats

from evomerge.merging import merge_state_dicts
from evomerge.merging.opcm import OpcmState, opcm_first, opcm_next

TASKS = 8
ORDERS = 5
FACTOR = 0.3


def figures(seed: int) -> dict[str, float]:
    """Mean accuracy over the tasks that have arrived, after two and after all, as a mean over orders of arrival."""
    zoo = train_zoo(seed, tasks=TASKS)
    found: dict[str, list[float]] = {}
    factors = []
    for order in _orders(seed):
        for place, state in enumerate(_states(zoo, order), start=1):
            if place in (2, TASKS):
                arrived = order[:place]
                experts = [zoo.experts[task] for task in arrived]
                merges = {
                    "OPCM": _merged(zoo, state),
                    "continual task arithmetic": merge_state_dicts(
                        "task_arithmetic", experts, zoo.base, {"weight": FACTOR}
                    ),
                    "running average": merge_state_dicts("linear", experts),
                }
                for name, merged in merges.items():
                    found.setdefault(f"{name} {place}", []).append(_seen_accuracy(zoo, merged, arrived))
            if place > 1:
                factors.append((math.log(place), math.log(state.factor)))
    means = {name: float(np.mean(values)) for name, values in found.items()}
    means["spread"] = float(np.std(found[f"OPCM {TASKS}"], ddof=1))
    means["exponent"] = float(stats.linregress(*zip(*factors, strict=True)).slope)
    return means


def _orders(seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [rng.sample(range(TASKS), TASKS) for _ in range(ORDERS)]


def _states(zoo: Zoo, order: Sequence[int]) -> list[OpcmState]:
    states = [opcm_first(zoo.base, zoo.experts[order[0]])]
    for task in order[1:]:
        states.append(opcm_next(states[-1], zoo.base, zoo.experts[task]))
    return states


def _merged(zoo: Zoo, state: OpcmState) -> Weights:
    return {name: tensor + state.task_vector[name] for name, tensor in zoo.base.items()}


def _seen_accuracy(zoo: Zoo, merged: Weights, arrived: Sequence[int]) -> float:
    return sum(accuracy(merged, zoo.test[task]) for task in arrived) / len(arrived)


def claims(found: Sequence[dict[str, float]]) -> list[Row]:
    """Rows of the table."""
    units = f"{len(found)} zoos × {ORDERS} orders"
    column = {name: [each[name] for each in found] for name in found[0]}
    others = ("continual task arithmetic", "running average")
    rows = [
        compared(
            f"OPCM is above the {other} after {TASKS} arrivals" if "average" in other else f"OPCM is above {other}",
            "2501.09522",
            ("OPCM", other),
            (column[f"OPCM {TASKS}"], column[f"{other} {TASKS}"]),
            units,
        )
        for other in others
    ]
    lost = {
        name: [one - other for one, other in zip(column[f"{name} 2"], column[f"{name} {TASKS}"], strict=True)]
        for name in ("OPCM", others[0])
    }
    rows.append(
        compared(
            f"From 2 to {TASKS} arrivals OPCM loses less than {others[0]}",
            "2501.09522",
            (f"loss of {others[0]}", "of OPCM"),
            (lost[others[0]], lost["OPCM"]),
            units,
        )
    )
    spread, exponent = interval(column["spread"]), interval(column["exponent"])
    rows.append(_bounded("OPCM hardly depends on the order (deviation below 1 point)", spread, -1, 0.01, units, 100.0))
    rows.append(
        _bounded("OPCM's lambda grows as the square root of t (exponent 0.4 to 0.6)", exponent, 0.4, 0.6, units)
    )
    return rows


def _bounded(claim: str, found: Interval, low: float, high: float, units: str, scale: float = 1.0) -> Row:
    measured = found.text(scale, 2)
    return Row(claim=claim, paper="2501.09522", measured=measured, units=units, verdict=between(found, low, high))
