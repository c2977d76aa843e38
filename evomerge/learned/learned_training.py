"""The course of the trainer `learned`: coefficients by Adam, stopped by items that are not trained on."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from evomerge.errors import InvalidInput, MergeError, unknown_name
from evomerge.learned.learned_settings import LearnedSettings
from evomerge.learned.learning_items import LearningItems
from evomerge.learned.losses import item_losses
from evomerge.learned.vector_coefficients import CoefficientGradients, initial_vector_coefficients
from evomerge.optimisation.checkpoint import TrainingState, checkpoint_path, load_state, save_state
from evomerge.optimisation.coefficients import roles_of
from evomerge.optimisation.gradients import stream_gradients
from evomerge.optimisation.mofo import Mofo
from evomerge.optimisation.student import Student
from evomerge.optimisation.training_inputs import TrainingInputs
from evomerge.recipe import Recipe

PENALTY = "penalty"
STOP_LOSS = "stop loss"
_OF = f"{STOP_LOSS} of "


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
        return {**self.losses, **{name: loss for name, loss in self.others.items() if not name.startswith(_OF)}}


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
        checkpoint: the file of the last state, which may now be deleted; None where none was stored.
    """

    recipe: Recipe
    before: Mapping[str, float]
    after: Mapping[str, float]
    forward_tokens: int
    gradient_tokens: int
    steps: int
    best_step: int
    seconds: float
    checkpoint: Path | None


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
    for number, (losses, others) in enumerate(training.history, start=1):
        yield LearnedStep(step=number, steps=settings.steps, losses=losses, others=others)
    while not training.ended:
        losses, others = training.step()
        number = len(training.history)
        if number % settings.checkpoint_every == 0 or training.ended:
            training.save()
        yield LearnedStep(step=number, steps=settings.steps, losses=losses, others=others)
    return training.finish()


class _LearnedTraining:
    """The state of one training: coefficients, optimiser and history, with the student.

    Attributes:
        history: [losses, others] of every step so far, see `LearnedStep`.
    """

    def __init__(self, inputs: TrainingInputs, settings: LearnedSettings) -> None:
        self._began = time.perf_counter()
        self._inputs = inputs
        self._settings = settings
        self._items = LearningItems(inputs.texts, settings, inputs.seed)
        self._weights = source_shares(self._items.learned, settings.task_weights)
        self.history: list[tuple[dict[str, float], dict[str, float]]] = []
        self._student = Student(inputs.model, inputs.live, inputs.weights, inputs.initial)
        roles = roles_of(inputs.model, {name: inputs.live[name] for name in self._student.names})
        self._coefficients = initial_vector_coefficients(
            inputs.initial, roles, settings, files=inputs.files, device=self._student.device
        )
        self._start = _copies(self._coefficients.values)
        self._optimizer = Mofo(self._coefficients.values, learning_rate=settings.rate, alpha=None, weight_decay=0.0)
        self._path = self._checkpoint_path()
        state = None if self._path is None else load_state(self._path, self._student.device)
        if state is not None:
            self._restore(state)
        self._coefficients.set_in(self._student)
        if state is None:
            self._before = self._best_losses = self._measured()
            self._best: Mapping[str, Tensor] = self._start
        self._latest: Mapping[str, float] = stop_losses(self.history[-1][1]) if self.history else self._before

    @property
    def ended(self) -> bool:
        """Whether there is no step left, or the patience is over."""
        made, settings = len(self.history), self._settings
        if made == settings.steps:
            return True
        return bool(self._items.stop) and made - self.best_step >= settings.patience * settings.stop_every

    @property
    def best_step(self) -> int:
        """The step with the least loss on the items kept for stopping; 0 is the start, the last one without any."""
        return self._curve.index(min(self._curve)) if self._items.stop else len(self.history)

    @property
    def _curve(self) -> list[float]:
        """The latest loss on the items kept for stopping after each step, the start first."""
        return [self._total(self._before), *(others[STOP_LOSS] for _, others in self.history if STOP_LOSS in others)]

    def step(self) -> tuple[dict[str, float], dict[str, float]]:
        """Make one step; return its losses before it, and the other ones."""
        number = len(self.history) + 1
        gradients = CoefficientGradients(self._coefficients, self._student)
        parameters = {name: self._student.live[name] for name in self._student.names}
        with torch.enable_grad(), stream_gradients(parameters, gradients.take):
            losses = item_losses(
                self._items.step(number - 1),
                student=self._student,
                settings=self._settings,
                weights=self._weights,
                gradients=True,
            )
        slopes = {key: total.float() for key, total in gradients.totals.items()}
        penalty = self._add_penalty(slopes)
        finite = all(bool(torch.isfinite(slope).all()) for slope in slopes.values())
        if not finite or not math.isfinite(sum(losses.values())):
            raise MergeError(
                f"step {number} of the training is not finite (losses {losses}); use a smaller learning_rate than "
                f"{self._settings.rate:g}, or the dtype bfloat16 or float32"
            )
        self._optimizer.step(slopes)
        self._coefficients.set_in(self._student)
        others = {PENALTY: penalty} if self._settings.penalty else {}
        self.history.append((losses, others))
        if self._items.stop:
            losses_to_stop = self._losses_to_stop(number)
            others[STOP_LOSS] = self._total(losses_to_stop)
            others |= {f"{_OF}{source}": loss for source, loss in losses_to_stop.items()}
        return losses, others

    def _losses_to_stop(self, number: int) -> Mapping[str, float]:
        """The latest losses on the items kept for stopping; where they are measured and the least, the merge is kept.

        Returns:
            Source -> loss.
        """
        if self._settings.is_measured(number):
            self._latest = self._measured()
            if self._total(self._latest) < self._total(self._best_losses):
                self._best, self._best_losses = _copies(self._coefficients.values), self._latest
        return self._latest

    def save(self) -> None:
        """Store the state, where checkpoints are wanted."""
        if self._path is not None:
            state = TrainingState(
                coefficients=self._coefficients.values,
                first=self._optimizer.first,
                second=self._optimizer.second,
                history=self.history,
                before=self._before,
                forward_tokens=self._student.forward_tokens,
                gradient_tokens=self._student.gradient_tokens,
                seconds=self._seconds,
                best=self._best,
                best_losses=self._best_losses,
            )
            save_state(self._path, state)

    def finish(self) -> LearnedResult:
        """Leave the result in the live model, and store its recipe."""
        if self._items.stop:
            for key, value in self._coefficients.values.items():
                value.copy_(self._best[key])
            self._coefficients.set_in(self._student)
        after = self._best_losses if self._items.stop else self._measured()
        self._student.write()
        return LearnedResult(
            recipe=self._coefficients.recipe(self._inputs.initial, self._inputs.files),
            before=self._before,
            after=after,
            forward_tokens=self._student.forward_tokens,
            gradient_tokens=self._student.gradient_tokens,
            steps=len(self.history),
            best_step=self.best_step,
            seconds=self._seconds,
            checkpoint=self._path if self._path is not None and self._path.exists() else None,
        )

    def _measured(self) -> dict[str, float]:
        return item_losses(self._items.measured, student=self._student, settings=self._settings, weights=self._weights)

    def _total(self, losses: Mapping[str, float]) -> float:
        return math.fsum(self._weights[source] * loss for source, loss in losses.items())

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

    @property
    def _seconds(self) -> float:
        return time.perf_counter() - self._began

    def _checkpoint_path(self) -> Path | None:
        if self._inputs.checkpoints is None:
            return None
        return checkpoint_path(
            self._inputs.checkpoints,
            "learned",
            self._inputs.initial,
            self._settings,
            texts=self._items.digest(),
            seed=self._inputs.seed,
            device=self._student.device,
        )

    def _restore(self, state: TrainingState) -> None:
        self._began -= state.seconds
        self.history = state.history
        self._before = state.before
        self._best, self._best_losses = state.best, dict(state.best_losses)
        self._student.forward_tokens = state.forward_tokens
        self._student.gradient_tokens = state.gradient_tokens
        self._optimizer.restore(len(state.history), state.coefficients, state.first, state.second)


def source_shares(texts: Mapping[str, object], weights: Mapping[str, float]) -> dict[str, float]:
    """Source -> factor of its loss; they sum to 1."""
    total = math.fsum(weights.get(source, 1.0) for source in texts)
    return {source: weights.get(source, 1.0) / total for source in texts}


def stop_losses(others: Mapping[str, float]) -> dict[str, float]:
    """Source -> the latest loss on its items kept for stopping, of the other losses of a step."""
    return {name.removeprefix(_OF): loss for name, loss in others.items() if name.startswith(_OF)}


def _copies(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in values.items()}
