"""Two networks from different initial weights, and two fine-tunes of one: OT fusion against averaging."""

from __future__ import annotations

from collections.abc import Sequence

import digits
import torch
from digits import Digits
from measurement import Row, above, between, compared, equal, interval
from network_zoo import INPUTS, PIXELS, Weights, accuracy, fit, new_network

from evomerge.merging import merge_state_dicts

CHANCE = 0.1
STEPS = 400
FURTHER_STEPS = 100
ACTIVATION_SAMPLES = 200
LAYERS = ("0", "2", "4")


def figures(seed: int) -> dict[str, float]:
    """Accuracies by name, of one pair of each kind."""
    training, test = _inputs(seed)
    first, second = (
        fit(dict(new_network(start).state_dict()), [training], steps=STEPS, learning_rate=1e-3, seed=start)
        for start in (1000 + seed, 2000 + seed)
    )
    fused = merge_state_dicts("ot_fusion", [first, second])
    statistics = [_activations(each, training.images[:ACTIVATION_SAMPLES]) for each in (first, second)]
    by_activations = merge_state_dicts("ot_fusion", [first, second], options={"mode": "acts"}, statistics=statistics)
    tuned = fit(fused, [training], steps=FURTHER_STEPS, learning_rate=1e-3, seed=seed)
    further = [fit(each, [training], steps=FURTHER_STEPS, learning_rate=1e-3, seed=seed) for each in (first, second)]
    twins = [fit(first, [training], steps=FURTHER_STEPS, learning_rate=1e-3, seed=3000 + seed + at) for at in (0, 1)]
    return {
        "parent": max(accuracy(first, test), accuracy(second, test)),
        "average": accuracy(merge_state_dicts("linear", [first, second]), test),
        "OT": accuracy(fused, test),
        "OT by activations": accuracy(by_activations, test),
        "OT, trained further": accuracy(tuned, test),
        "parent, trained further": max(accuracy(each, test) for each in further),
        "twins, average": accuracy(merge_state_dicts("linear", twins), test),
        "twins, OT": accuracy(merge_state_dicts("ot_fusion", twins), test),
    }


def _inputs(seed: int) -> tuple[Digits, Digits]:
    """The digits in a random subspace of the inputs, as in the zoo."""
    frame = torch.linalg.qr(torch.randn(INPUTS, PIXELS, generator=torch.Generator().manual_seed(seed)))[0]
    training, test = digits.load()
    return Digits(training.images @ frame.T, training.labels), Digits(test.images @ frame.T, test.labels)


def _activations(weights: Weights, images: torch.Tensor) -> Weights:
    """Outputs of every layer before its non-linearity."""
    found = {}
    hidden = images
    for layer in LAYERS:
        hidden = torch.nn.functional.linear(hidden, weights[f"{layer}.weight"], weights[f"{layer}.bias"])
        found[f"{layer}.weight"] = hidden
        hidden = hidden.relu()
    return found


def claims(found: Sequence[dict[str, float]]) -> list[Row]:
    """Rows of the table."""
    paper, units = "1910.05653", f"{len(found)} pairs"
    column = {name: [each[name] for each in found] for name in found[0]}

    def over(claim: str, first: str, second: str) -> Row:
        return compared(claim, paper, (first, second), (column[first], column[second]), units)

    average = interval([value - CHANCE for value in column["average"]])
    recovered = interval(
        [
            (fused - mean) / (parent - mean)
            for fused, mean, parent in zip(column["OT"], column["average"], column["parent"], strict=True)
        ]
    )
    return [
        over("Independent initial weights: OT is above averaging", "OT", "average"),
        Row(
            claim="… averaging is near chance (less than 20 points above)",
            paper=paper,
            measured=f"average {100 * interval(column['average']).mean:.1f}: above chance by {average.text()}",
            units=units,
            verdict=between(average, -1.0, 0.2),
        ),
        Row(
            claim="… OT recovers more than half of what averaging loses",
            paper=paper,
            measured=f"{recovered.text()} % of the loss",
            units=units,
            verdict=above(recovered, 0.5),
        ),
        over("… OT by activations is above averaging", "OT by activations", "average"),
        over("… trained further, the OT fusion is above both parents", "OT, trained further", "parent"),
        over("… and above both parents trained as much further", "OT, trained further", "parent, trained further"),
        equal(
            "Two fine-tunes of one base: OT equals averaging",
            paper,
            ("OT", "average"),
            (column["twins, OT"], column["twins, average"]),
            units,
        ),
    ]
