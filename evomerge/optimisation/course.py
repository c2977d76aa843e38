"""The course of a training that may be killed at any time: its steps, its checkpoint, what it has taken so far."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from pydantic import BaseModel
from torch import Tensor

from evomerge.errors import MergeError
from evomerge.optimisation.checkpoint import TrainingState, checkpoint_path, load_state, save_state
from evomerge.optimisation.mofo import Mofo
from evomerge.optimisation.student import Student
from evomerge.optimisation.training_inputs import TrainingInputs

Losses = dict[str, float]


class Course:
    """The steps of one training, stored with the state of its optimiser where the inputs have a folder of checkpoints.

    One that was stored before is continued: optimiser, history, tokens and time are as they were.

    Args:
        trainer: its name, with which the file's name begins.
        texts: digest of the texts.
        optimizer: its values are those that are trained.
        began: when the training began, by `time.perf_counter`.

    Attributes:
        history: [losses, others] of every step so far.
        state: what was stored before; None where nothing was.
    """

    def __init__(
        self,
        trainer: str,
        inputs: TrainingInputs,
        settings: BaseModel,
        *,
        texts: str,
        student: Student,
        optimizer: Mofo,
        began: float,
    ) -> None:
        self.history: list[tuple[Losses, Losses]] = []
        self._student = student
        self._optimizer = optimizer
        self._began = began
        self._path = None
        if inputs.checkpoints is not None:
            self._path = checkpoint_path(
                inputs.checkpoints,
                trainer,
                inputs.initial,
                settings,
                texts=texts,
                seed=inputs.seed,
                device=student.device,
            )
        self.state = None if self._path is None else load_state(self._path, student.device)
        if self.state is not None:
            self._continue(self.state)

    @property
    def seconds(self) -> float:
        """Duration so far, including the time before an interruption up to the last checkpoint."""
        return time.perf_counter() - self._began

    @property
    def checkpoints(self) -> tuple[Path, ...]:
        """The file of the last state, where one was stored."""
        return (self._path,) if self._path is not None and self._path.exists() else ()

    def save(
        self, before: Losses, best: Mapping[str, Tensor] | None = None, best_losses: Mapping[str, float] | None = None
    ) -> None:
        """Store the state, where checkpoints are wanted.

        Args:
            before: loss before the training by source.
            best, best_losses: see `TrainingState`.
        """
        if self._path is None:
            return
        state = TrainingState(
            coefficients=self._optimizer.values,
            first=self._optimizer.first,
            second=self._optimizer.second,
            history=self.history,
            before=before,
            forward_tokens=self._student.forward_tokens,
            gradient_tokens=self._student.gradient_tokens,
            seconds=self.seconds,
            best=best or {},
            best_losses=best_losses or {},
        )
        save_state(self._path, state)

    def _continue(self, state: TrainingState) -> None:
        self._began -= state.seconds
        self.history = state.history
        self._student.forward_tokens = state.forward_tokens
        self._student.gradient_tokens = state.gradient_tokens
        self._optimizer.restore(len(state.history), state.coefficients, state.first, state.second)


class SteppedTraining(Protocol):
    """A training by steps."""

    course: Course

    @property
    def ended(self) -> bool:
        """Whether there is no step left to make."""

    def step(self) -> None:
        """Make one step, and add its losses to the history."""

    def save(self) -> None:
        """Store the state."""


def steps_of(training: SteppedTraining, checkpoint_every: int) -> Iterator[tuple[int, Losses, Losses]]:
    """(number, losses, others) of every step: those that were made before are repeated, and the rest is made.

    Args:
        checkpoint_every: steps between two checkpoints; the last one is stored in any case.
    """
    for number, (losses, others) in enumerate(list(training.course.history), start=1):
        yield number, losses, others
    while not training.ended:
        training.step()
        number = len(training.course.history)
        if number % checkpoint_every == 0 or training.ended:
            training.save()
        losses, others = training.course.history[-1]
        yield number, losses, others


def refuse_not_finite(
    number: int, losses: Mapping[str, float], gradients: Iterable[Tensor], *, learning_rate: float
) -> None:
    """Refuse a step whose losses or gradients are not finite: its values would be lost for good.

    Args:
        number: of the step, from 1.
        gradients: all of them, or their norm.

    Raises:
        MergeError: says what to change.
    """
    finite = all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    if not finite or not math.isfinite(sum(losses.values())):
        raise MergeError(
            f"step {number} of the training is not finite (losses {dict(losses)}); use a smaller learning_rate than "
            f"{learning_rate:g}, or the dtype bfloat16 or float32"
        )
