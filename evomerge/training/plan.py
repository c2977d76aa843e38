"""What a training will read, known before it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evomerge.evaluation.evaluator import CalibrationText
from evomerge.training.calibration import Calibration
from evomerge.training.settings import DamSettings


@dataclass(frozen=True)
class PlannedTokens:
    """Steps of a training, and the tokens that it reads with and without gradients, padding excluded."""

    steps: int
    gradient_tokens: int
    forward_tokens: int


def planned_tokens(texts: Mapping[str, Sequence[CalibrationText]], settings: DamSettings, seed: int) -> PlannedTokens:
    """Count what `train_dam` will read: student and teachers at every step, both at the two measurements.

    Raises:
        InvalidInput: no texts, or fewer than a batch needs.
    """
    calibration = Calibration(texts, settings, seed)
    lengths = {name: [len(text.tokens) for text in given] for name, given in calibration.texts.items()}
    read = sum(
        lengths[name][index]
        for number in range(calibration.steps)
        for name, chosen in calibration.step(number).items()
        for index in chosen
    )
    measured = sum(sum(each[: settings.measured_items]) for each in lengths.values())
    taught = read if settings.teacher == "live" else sum(sum(each) for each in lengths.values())
    return PlannedTokens(calibration.steps, read, taught + 4 * measured)
