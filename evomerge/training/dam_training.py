"""The training of DAM: coefficients with which one merge predicts like each source on that source's texts."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from evomerge.elementwise.column_linear import NONLINEARITIES
from evomerge.errors import unknown_name
from evomerge.optimisation.batches import CalibrationBatches
from evomerge.optimisation.coefficients import initial_coefficients, roles_of
from evomerge.optimisation.course import Course, refuse_not_finite, steps_of
from evomerge.optimisation.gradients import factor_gradients
from evomerge.optimisation.mofo import Mofo, clip_gradients
from evomerge.optimisation.student import Student
from evomerge.optimisation.training_inputs import TrainingInputs
from evomerge.recipe import Recipe
from evomerge.training.dam_losses import backward_losses, divergences
from evomerge.training.dam_penalties import add_penalties, dam_penalties
from evomerge.training.dam_settings import DamSettings
from evomerge.training.teacher import Teachers


@dataclass(frozen=True, kw_only=True)
class DamStep:
    """Losses of one step.

    Attributes:
        step: from 1.
        steps: of the whole training.
        losses: source -> its weighted loss on its texts of this step, before the step.
        penalties: name of a loss on the coefficients -> its weighted value, before the step.
    """

    step: int
    steps: int
    losses: Mapping[str, float]
    penalties: Mapping[str, float]

    @property
    def reported(self) -> dict[str, float]:
        """Losses and penalties by name."""
        return {**self.losses, **{f"{name} penalty": value for name, value in self.penalties.items()}}


@dataclass(frozen=True, kw_only=True)
class DamResult:
    """The result of a training.

    Attributes:
        recipe: the merge; its coefficients are in the folder of files.
        before, after: source -> T² · KL per counted token on its first texts, of the uniform average of the recipe's
            sources (base excluded) and of the result.
        forward_tokens, gradient_tokens: tokens read without and with gradients, padding excluded.
        steps: number of steps.
        seconds: duration, including the time before an interruption up to the last checkpoint.
        checkpoints: files of no use once the result is stored; empty where none were written.
    """

    recipe: Recipe
    before: Mapping[str, float]
    after: Mapping[str, float]
    forward_tokens: int
    gradient_tokens: int
    steps: int
    seconds: float
    checkpoints: tuple[Path, ...]


def train_dam(inputs: TrainingInputs, settings: DamSettings) -> Generator[DamStep, None, DamResult]:
    """Train the coefficients of `column_linear`: DAM, arXiv 2410.08371.

    Each step compares the merge with every source on texts of that source, and moves the coefficients. There is no
    autograd graph through the merge: dL/dc_i is taken from dL/dW as soon as it is computed, and dL/dW is freed. In
    memory are the sources once, the live model, and gradients of coefficients.

    After the last step, and whenever a step is yielded, the live model belongs to the caller again; it needs no
    gradients, its mode is never changed, and no global random generator is used. At the end it holds the result, bit
    for bit as the recipe gives it.

    Args:
        inputs: their initial recipe has rules with linear, task_arithmetic or column_linear. With a folder of
            checkpoints the same call resumes from the last one with the same numbers; the steps before it are yielded
            again, not computed.

    Yields:
        A `DamStep` after each step.

    Raises:
        InvalidInput: texts or an initial recipe that cannot be trained with.
        MergeError: a loss is not finite.
    """
    for name in inputs.texts:
        if name not in inputs.weights:
            raise unknown_name("source with calibration texts", name, inputs.weights)
    training = _Training(inputs, settings)
    steps = training.calibration.steps
    for number, losses, penalties in steps_of(training, settings.checkpoint_every):
        yield DamStep(step=number, steps=steps, losses=losses, penalties=penalties)
    return training.finish()


class _Training:
    """The state of one training: coefficients and optimiser, with the student and the teachers.

    Attributes:
        course: losses and penalties of every step so far.
    """

    def __init__(self, inputs: TrainingInputs, settings: DamSettings) -> None:
        began = time.perf_counter()
        self._inputs = inputs
        self._settings = settings
        self.calibration = CalibrationBatches(inputs.texts, settings, inputs.seed)
        self._student = Student(inputs.model, inputs.live, inputs.weights, inputs.initial)
        self._teachers = Teachers(self._student, self.calibration, settings)
        roles = roles_of(inputs.model, {name: inputs.live[name] for name in self._student.names})
        self._coefficients = initial_coefficients(
            inputs.initial,
            roles,
            include_base=settings.include_base,
            uniform=settings.start == "uniform",
            trainable=settings.trainable,
            phi=settings.phi,
            files=inputs.files,
            device=self._student.device,
        )
        self._trained = {name: self._coefficients.values[name] for name in self._coefficients.trainable}
        self._sources = [inputs.weights[name] for name in self._coefficients.sources]
        self._penalties = dam_penalties(
            settings.losses, roles, self._coefficients, weights=inputs.weights, base=inputs.initial.base.name
        )
        self._optimizer = Mofo(
            self._trained,
            learning_rate=settings.learning_rate,
            alpha=settings.alpha if settings.optimizer == "mofo" else None,
            weight_decay=settings.decay,
        )
        texts = self.calibration.digest()
        self.course = Course(
            "dam", inputs, settings, texts=texts, student=self._student, optimizer=self._optimizer, began=began
        )
        if self.course.state is None:
            base = inputs.initial.base.name
            self._student.set_average([source.name for source in inputs.initial.sources if source.name != base])
            self._before = self._divergences()
        else:
            self._before = self.course.state.before
        self._student.set_merge(self._coefficients)

    @property
    def ended(self) -> bool:
        """Whether there is no step left."""
        return len(self.course.history) == self.calibration.steps

    def step(self) -> None:
        """Make one step; the history gets its losses and penalties before it."""
        number = len(self.course.history) + 1
        chosen = self.calibration.step(number - 1)
        factors = {name: torch.zeros_like(value) for name, value in self._trained.items()}

        def take(name: str, gradient: Tensor) -> None:
            weights = [source[name] for source in self._sources]
            factors[name] += factor_gradients(gradient, weights, factors[name].shape[1:])

        with self._student.streamed_gradients(self._trained, take):
            losses = backward_losses(
                chosen,
                calibration=self.calibration,
                student=self._student,
                teachers=self._teachers,
                settings=self._settings,
            )
        self._teachers.forget(number - 1)
        slope = NONLINEARITIES[self._coefficients.phi].slope
        gradients = {name: factors[name] * slope(value) for name, value in self._trained.items()}  # dL/df · phi'(c)
        penalties = add_penalties(gradients, self._penalties, self._trained)
        norm = clip_gradients(gradients, self._settings.clip)
        refuse_not_finite(number, losses, [norm], learning_rate=self._settings.learning_rate)
        self._optimizer.step(gradients)
        self._student.set_merge(self._coefficients, changed=self._trained)
        self.course.history.append((losses, penalties))

    def save(self) -> None:
        """Store the state, where checkpoints are wanted."""
        self.course.save(self._before)

    def finish(self) -> DamResult:
        """Measure the result, leave it in the live model, and store its recipe."""
        after = self._divergences()
        self._student.write()
        return DamResult(
            recipe=self._coefficients.recipe(self._inputs.initial, self._inputs.files),
            before=self._before,
            after=after,
            forward_tokens=self._student.forward_tokens,
            gradient_tokens=self._student.gradient_tokens,
            steps=len(self.course.history),
            seconds=self.course.seconds,
            checkpoints=self.course.checkpoints,
        )

    def _divergences(self) -> dict[str, float]:
        return divergences(self.calibration, self._student, self._settings.temperature)
