"""The course of the trainer `learned`: coefficients by Adam, stopped by items that are not trained on."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from evomerge.errors import InvalidInput, unknown_name
from evomerge.learned.kept_best import OF, KeptBest
from evomerge.learned.learned_settings import LearnedSettings
from evomerge.learned.learning_items import LearningItems
from evomerge.learned.losses import item_losses
from evomerge.learned.vector_coefficients import CoefficientGradients, initial_vector_coefficients
from evomerge.optimisation.coefficients import roles_of
from evomerge.optimisation.course import Course, refuse_not_finite, steps_of
from evomerge.optimisation.mofo import Mofo
from evomerge.optimisation.student import Student
from evomerge.optimisation.training_inputs import TrainingInputs
from evomerge.recipe import Recipe

PENALTY = "penalty"


@dataclass(frozen=True, kw_only=True)
class LearnedStep:
    """Losses of one step.

    Attributes:
        step: from 1.
        steps: the most that the training may have.
        losses: source -> its loss on its items of this step, before the step.
        others: the penalty before the step, and the latest loss on the items kept for stopping, in all and of every
            source, where there are any.
    """

    step: int
    steps: int
    losses: Mapping[str, float]
    others: Mapping[str, float]

    @property
    def reported(self) -> dict[str, float]:
        """All losses by name, those on the items kept for stopping as one."""
        return {**self.losses, **{name: loss for name, loss in self.others.items() if not name.startswith(OF)}}


@dataclass(frozen=True, kw_only=True)
class LearnedResult:
    """The result of a training.

    Attributes:
        recipe: the merge; coefficients per column are in the folder of files.
        before, after: source -> its loss on the items kept for stopping, or without any on its first ones, of the merge
            at the start and of the result.
        forward_tokens, gradient_tokens: tokens read without and with gradients, padding excluded.
        steps: number of steps made.
        best_step: the step whose coefficients are the result; 0 is the start.
        seconds: duration, including the time before an interruption up to the last checkpoint.
        checkpoints: files of no use once the result is stored; empty where none were written.
    """

    recipe: Recipe
    before: Mapping[str, float]
    after: Mapping[str, float]
    forward_tokens: int
    gradient_tokens: int
    steps: int
    best_step: int
    seconds: float
    checkpoints: tuple[Path, ...]


def train_learned(inputs: TrainingInputs, settings: LearnedSettings) -> Generator[LearnedStep, None, LearnedResult]:
    """Learn the coefficients of task vectors, or of what a basis makes of them, by gradient.

    There is no autograd graph through the merge: dL/dc_i is the product of dL/dW and v_i, summed over the tensors or
    columns that share c_i, and taken as soon as dL/dW is computed. In memory are the sources once, the live model, and
    the coefficients with their moments.

    With items kept for stopping the result is the best by the loss on these, the start included. Who owns the live
    model and when, and what a folder of checkpoints does, is as in `train_dam`.

    Yields:
        A `LearnedStep` after each step.

    Raises:
        InvalidInput: texts or an initial recipe that cannot be trained with.
        MergeError: a loss or a gradient is not finite.
    """
    experts = [source.name for source in inputs.initial.sources if source.name != inputs.initial.base.name]
    if not experts:
        raise InvalidInput("what is learned are weights of task vectors, and there is no source beside the base")
    for kind, names in (("source with calibration texts", inputs.texts), ("source", settings.task_weights)):
        for name in names:
            if name not in experts:
                raise unknown_name(kind, name, experts)
    training = _LearnedTraining(inputs, settings)
    for number, losses, others in steps_of(training, settings.checkpoint_every):
        yield LearnedStep(step=number, steps=settings.steps, losses=losses, others=others)
    return training.finish()


class _LearnedTraining:
    """The state of one training: coefficients and optimiser, with the student.

    Attributes:
        course: [losses, others] of every step so far, see `LearnedStep`.
    """

    def __init__(self, inputs: TrainingInputs, settings: LearnedSettings) -> None:
        began = time.perf_counter()
        self._inputs = inputs
        self._settings = settings
        self._items = LearningItems(inputs.texts, settings, inputs.seed)
        self._weights = source_shares(self._items.learned, settings.task_weights)
        self._student = Student(inputs.model, inputs.live, inputs.weights, inputs.initial)
        roles = roles_of(inputs.model, {name: inputs.live[name] for name in self._student.names})
        self._coefficients = initial_vector_coefficients(
            inputs.initial, roles, settings, files=inputs.files, device=self._student.device
        )
        self._start = _copies(self._coefficients.values)
        self._optimizer = Mofo(self._coefficients.values, learning_rate=settings.rate, alpha=None, weight_decay=0.0)
        texts = self._items.digest()
        self.course = Course(
            "learned", inputs, settings, texts=texts, student=self._student, optimizer=self._optimizer, began=began
        )
        self._coefficients.set_in(self._student)
        self._best = KeptBest(
            self._items,
            settings,
            self._weights,
            rule=settings,
            student=self._student,
            course=self.course,
            copies=lambda: _copies(self._coefficients.values),
        )

    @property
    def ended(self) -> bool:
        """Whether there is no step left, or the patience is over."""
        return self._best.ended

    def step(self) -> None:
        """Make one step; the history gets its losses before it, and the other ones."""
        number = len(self.course.history) + 1
        gradients = CoefficientGradients(self._coefficients, self._student)
        with self._student.streamed_gradients(self._student.names, gradients.take):
            losses = item_losses(
                self._items.step(number - 1),
                student=self._student,
                settings=self._settings,
                weights=self._weights,
                gradients=True,
            )
        slopes = {key: total.float() for key, total in gradients.totals.items()}
        penalty = self._add_penalty(slopes)
        refuse_not_finite(number, losses, slopes.values(), learning_rate=self._settings.rate)
        self._optimizer.step(slopes)
        self._coefficients.set_in(self._student)
        others = {PENALTY: penalty} if self._settings.penalty else {}
        self.course.history.append((losses, others | self._best.note(number)))

    def save(self) -> None:
        """Store the state, where checkpoints are wanted."""
        self.course.save(self._best.before, self._best.values, self._best.losses)

    def finish(self) -> LearnedResult:
        """Leave the result in the live model, and store its recipe."""
        if self._best.is_kept:
            for key, value in self._coefficients.values.items():
                value.copy_(self._best.values[key])
            self._coefficients.set_in(self._student)
        after = self._best.losses if self._best.is_kept else self._best.measured()
        self._student.write()
        return LearnedResult(
            recipe=self._coefficients.recipe(self._inputs.initial, self._inputs.files),
            before=self._best.before,
            after=after,
            forward_tokens=self._student.forward_tokens,
            gradient_tokens=self._student.gradient_tokens,
            steps=len(self.course.history),
            best_step=self._best.step,
            seconds=self.course.seconds,
            checkpoints=self.course.checkpoints,
        )

    def _add_penalty(self, slopes: Mapping[str, Tensor]) -> float:
        """The penalty on the distance from the start; its slope is added in place."""
        factor = self._settings.penalty
        if not factor:
            return 0.0
        count = sum(value[0].numel() for value in self._start.values())
        total = 0.0
        for key, value in self._coefficients.values.items():
            distance = value - self._start[key]
            slopes[key].add_(distance, alpha=2 * factor / count)
            total += float(distance.double().square().sum())
        return factor * total / count


def source_shares(texts: Mapping[str, object], weights: Mapping[str, float]) -> dict[str, float]:
    """Source -> factor of its loss; they sum to 1."""
    total = math.fsum(weights.get(source, 1.0) for source in texts)
    return {source: weights.get(source, 1.0) / total for source in texts}


def _copies(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in values.items()}
