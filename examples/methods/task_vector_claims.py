"""Task arithmetic's response to lambda, DARE on one expert, and soups with a bad ingredient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from measurement import FAILS, HOLDS, OPEN, Row, above, between, compared, equal, interval
from network_zoo import Weights, Zoo, accuracy, fit, logits, train_zoo
from scipy import stats

from evomerge.merging import merge_state_dicts

LAMBDAS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
DROP_RATES = (0.5, 0.8, 0.9, 0.95, 0.99)
MASKS = 5
SOUP_RATES = (2e-4, 5e-4, 1e-3, 2e-3)
BAD_RATE = 0.05


def figures(seed: int) -> dict[str, float]:
    """Accuracies by name, of one zoo."""
    zoo = train_zoo(seed)
    found = {f"lambda {value}": zoo.mean_accuracy(_added(zoo, value)) for value in LAMBDAS}
    return {**found, **_dare(zoo), **_soups(zoo, seed)}


def _added(zoo: Zoo, value: float) -> Weights:
    return merge_state_dicts("task_arithmetic", zoo.experts, zoo.base, {"weight": value})


def _dare(zoo: Zoo) -> dict[str, float]:
    """One expert whose task vector loses elements: accuracy on its task, and variance of its logits over the masks."""
    expert, task = zoo.experts[0], zoo.test[0]
    found = {"expert": accuracy(expert, task)}
    for rate in DROP_RATES:
        masked = [_dropped(zoo, rate, mask) for mask in range(MASKS)]
        found[f"dare {rate}"] = float(np.mean([accuracy(each, task) for each in masked]))
        outputs = torch.stack([logits(each, task.images).detach() for each in masked])
        found[f"variance {rate}"] = float(outputs.var(0).mean())
    found["drop only 0.9"] = accuracy(_dropped(zoo, 0.9, 0, {"rescale": "none"}), task)
    found["base"] = accuracy(zoo.base, task)
    pruned = merge_state_dicts("ties", [expert], zoo.base, {"density": 0.1, "lambda": 1.0})
    found["magnitude 0.9"] = accuracy(pruned, task)
    return found


def _dropped(zoo: Zoo, rate: float, mask: int, options: dict[str, str] | None = None) -> Weights:
    parameters = {"drop_rate": rate, "weight": 1.0}
    return merge_state_dicts("dare_linear", [zoo.experts[0]], zoo.base, parameters, options or {}, seed=mask)


def _soups(zoo: Zoo, seed: int) -> dict[str, float]:
    """Fine-tunes of one task with several learning rates, and one whose learning rate was far too high."""
    training, chosen_by, test = zoo.training[0], zoo.calibration[0], zoo.test[0]
    rates = (*SOUP_RATES, BAD_RATE)
    models = [
        fit(zoo.base, [training], steps=150, learning_rate=rate, seed=100 * seed + number)
        for number, rate in enumerate(rates)
    ]
    ranked = sorted(models, key=lambda model: accuracy(model, chosen_by), reverse=True)
    soup = ranked[:1]
    for model in ranked[1:]:
        candidate = merge_state_dicts("linear", [*soup, model])
        if accuracy(candidate, chosen_by) > accuracy(merge_state_dicts("linear", soup), chosen_by):
            soup.append(model)
    greedy = merge_state_dicts("linear", soup)
    return {
        "best single, chosen": accuracy(ranked[0], chosen_by),
        "greedy, chosen": accuracy(greedy, chosen_by),
        "best single": accuracy(ranked[0], test),
        "greedy": accuracy(greedy, test),
        "uniform": accuracy(merge_state_dicts("linear", models), test),
        "uniform without the bad one": accuracy(merge_state_dicts("linear", models[:-1]), test),
    }


def claims(found: Sequence[dict[str, float]]) -> list[Row]:
    """Rows of the table."""
    units = f"{len(found)} zoos"
    column = {name: [each[name] for each in found] for name in found[0]}

    def over(claim: str, paper: str, first: str, second: str) -> Row:
        return compared(claim, paper, (first, second), (column[first], column[second]), units)

    return [
        _inverted_u(column, units),
        over("The sum of all task vectors (lambda 1) is below lambda 0.3", "2212.04089", "lambda 0.3", "lambda 1.0"),
        equal(
            "DARE keeps the accuracy of an expert at p = 0.9",
            "2311.03099",
            ("p = 0.9", "the expert"),
            (column["dare 0.9"], column["expert"]),
            units,
        ),
        over("Dropping without rescaling loses accuracy at p = 0.9", "2311.03099", "expert", "drop only 0.9"),
        over("Magnitude pruning at 0.9 is worse than DARE", "2311.03099", "dare 0.9", "magnitude 0.9"),
        _variance(column, units),
        _greedy_where_chosen(column, units),
        over("A greedy soup is above the best single model on other items", "2203.05482", "greedy", "best single"),
        over("A uniform soup with a bad ingredient loses", "2203.05482", "best single", "uniform"),
    ]


def _inverted_u(column: dict[str, list[float]], units: str) -> Row:
    """The best lambda of the mean curve is neither end, and better than both."""
    means = {value: interval(column[f"lambda {value}"]).mean for value in LAMBDAS}
    best = max(means, key=means.__getitem__)
    ends = [interval(_differences(column, f"lambda {best}", f"lambda {end}")) for end in (LAMBDAS[0], LAMBDAS[-1])]
    verdicts = {above(each) for each in ends}
    inside = best not in (LAMBDAS[0], LAMBDAS[-1])
    verdict = HOLDS if verdicts == {HOLDS} and inside else FAILS if FAILS in verdicts or not inside else OPEN
    curve = ", ".join(f"{value:g}: {100 * mean:.1f}" for value, mean in means.items())
    measured = f"{curve}; best {best:g}, above the ends by {ends[0].text()} and {ends[1].text()}"
    return Row(
        claim="Task arithmetic's accuracy over lambda is an inverted U",
        paper="2212.04089",
        measured=measured,
        units=units,
        verdict=verdict,
    )


def _variance(column: dict[str, list[float]], units: str) -> Row:
    """The slope of log variance over log p / (1 - p), which should be 1."""
    odds = np.log([rate / (1 - rate) for rate in DROP_RATES])
    slopes = [
        float(stats.linregress(odds, np.log([column[f"variance {rate}"][at] for rate in DROP_RATES])).slope)
        for at in range(len(column["expert"]))
    ]
    slope = interval(slopes)
    return Row(
        claim="DARE's variance over masks grows as p / (1 - p) (exponent 0.8 to 1.2)",
        paper="2311.03099",
        measured=f"exponent {slope.text(1.0, 2)} of the variance of the logits",
        units=units,
        verdict=between(slope, 0.8, 1.2),
    )


def _greedy_where_chosen(column: dict[str, list[float]], units: str) -> Row:
    gains = _differences(column, "greedy, chosen", "best single, chosen")
    return Row(
        claim="A greedy soup is not below the best single model on the items that chose it (by construction)",
        paper="2203.05482",
        measured=f"smallest gain {100 * min(gains):.1f}, mean {interval(gains).text()}",
        units=units,
        verdict=HOLDS if min(gains) >= 0 else FAILS,
    )


def _differences(column: dict[str, list[float]], first: str, second: str) -> list[float]:
    return [one - other for one, other in zip(column[first], column[second], strict=True)]
