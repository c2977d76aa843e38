"""Trainers by name: each turns a recipe and texts of its sources into a trained merge."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from evomerge.errors import unknown_name
from evomerge.evaluation.evaluator import CalibrationText
from evomerge.learned.fine_tuning import fine_tune
from evomerge.learned.fine_tuning_settings import FineTuneSettings
from evomerge.learned.granularity_choice import CHOICE, choose_and_learn, planned_choice
from evomerge.learned.learned_settings import LearnedSettings
from evomerge.learned.learned_training import train_learned
from evomerge.learned.learning_items import planned_learning
from evomerge.optimisation import batches
from evomerge.optimisation.batches import PlannedTokens
from evomerge.optimisation.training_inputs import TrainingInputs
from evomerge.recipe import Recipe
from evomerge.training.adamerging_settings import AdaSettings
from evomerge.training.adamerging_training import train_adamerging
from evomerge.training.dam_settings import DamSettings
from evomerge.training.dam_training import train_dam


class TrainingStep(Protocol):
    """A step of a training, as a person follows it."""

    @property
    def step(self) -> int:
        """Its number, from 1."""

    @property
    def steps(self) -> int:
        """The steps of the whole training."""

    @property
    def reported(self) -> Mapping[str, float]:
        """Losses by name, before the step."""


class TrainedMerge(Protocol):
    """The end of a training."""

    @property
    def recipe(self) -> Recipe:
        """The merge; its files are in the folder that the inputs name."""

    @property
    def before(self) -> Mapping[str, float]:
        """Source -> loss before, on the texts of the source: of the uniform average, or of the merge at the start."""

    @property
    def after(self) -> Mapping[str, float]:
        """Source -> the same loss of the trained merge."""

    @property
    def forward_tokens(self) -> int:
        """Tokens read without gradients, padding excluded."""

    @property
    def gradient_tokens(self) -> int:
        """Tokens read with gradients, padding excluded."""

    @property
    def seconds(self) -> float:
        """Duration, including the time before an interruption."""

    @property
    def checkpoints(self) -> tuple[Path, ...]:
        """Files of no use once the result is stored."""


class Trainer(Protocol):
    """Trains a merge in the live model.

    A trainer yields a step whenever the live model belongs to the caller again, and leaves its result in that model,
    bit for bit as the recipe rebuilds it. It draws from no global generator. The same inputs give the same recipe; with
    a folder of checkpoints also after a kill: the steps before it are then yielded again, not computed.
    """

    def __call__(
        self, inputs: TrainingInputs, settings: Mapping[str, Any]
    ) -> Generator[TrainingStep, None, TrainedMerge]:
        """Train; `settings` are the trainer's, as plain data."""


def _dam(inputs: TrainingInputs, settings: Mapping[str, Any]) -> Generator[TrainingStep, None, TrainedMerge]:
    return train_dam(inputs, DamSettings.model_validate(dict(settings)))


def _adamerging(inputs: TrainingInputs, settings: Mapping[str, Any]) -> Generator[TrainingStep, None, TrainedMerge]:
    return train_adamerging(inputs, AdaSettings.model_validate(dict(settings)))


def _learned(inputs: TrainingInputs, settings: Mapping[str, Any]) -> Generator[TrainingStep, None, TrainedMerge]:
    chosen = LearnedSettings.model_validate(dict(settings))
    return choose_and_learn(inputs, chosen) if chosen.granularity == "chosen" else train_learned(inputs, chosen)


def _fine_tune(inputs: TrainingInputs, settings: Mapping[str, Any]) -> Generator[TrainingStep, None, TrainedMerge]:
    return fine_tune(inputs, FineTuneSettings.model_validate(dict(settings)))


TRAINERS: Final[dict[str, Trainer]] = {
    "dam": _dam,
    "adamerging": _adamerging,
    "learned": _learned,
    "fine-tune": _fine_tune,
}
SETTINGS: Final[dict[str, type[DamSettings] | type[AdaSettings] | type[LearnedSettings] | type[FineTuneSettings]]] = {
    "dam": DamSettings,
    "adamerging": AdaSettings,
    "learned": LearnedSettings,
    "fine-tune": FineTuneSettings,
}


def planned_tokens(
    trainer: str, texts: Mapping[str, Sequence[CalibrationText]], settings: Mapping[str, Any], seed: int
) -> PlannedTokens:
    """The steps that a training has at most, and the tokens that it reads in them.

    Raises:
        InvalidInput: there is no such trainer, or the texts cannot be trained on.
    """
    find_trainer(trainer)
    given = SETTINGS[trainer].model_validate(dict(settings))
    if isinstance(given, FineTuneSettings):
        return planned_learning(texts, given.learning, seed)
    if isinstance(given, LearnedSettings):
        planned = planned_choice if given.granularity == "chosen" else planned_learning
        return planned(texts, given, seed)
    return batches.planned_tokens(texts, given, seed)


def find_trainer(name: str) -> Trainer:
    """The trainer of that name.

    Raises:
        InvalidInput: there is none.
    """
    if name not in TRAINERS:
        raise unknown_name("trainer", name, TRAINERS)
    return TRAINERS[name]


def may_be_checkpoint(name: str, trainer: str) -> bool:
    """Whether a file of that name may be a checkpoint of a training by this trainer: its name begins with it."""
    kinds = (trainer, CHOICE) if trainer == "learned" else (trainer,)
    return name.startswith(tuple(f"{kind}-" for kind in kinds))
