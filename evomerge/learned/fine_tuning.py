"""The course of the trainer `fine-tune`: all weights of a merge, by AdamW, stopped by items that are not trained on."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from evomerge.checkpoints.recipe_files import store_tensors
from evomerge.errors import InvalidInput, MergeError, unknown_name
from evomerge.learned.fine_tuning_settings import FineTuneSettings
from evomerge.learned.learned_training import STOP_LOSS, LearnedResult, LearnedStep, source_shares
from evomerge.learned.learning_items import LearningItems
from evomerge.learned.losses import item_losses
from evomerge.optimisation.checkpoint import TrainingState, checkpoint_path, load_state, save_state
from evomerge.optimisation.gradients import stream_gradients
from evomerge.optimisation.mofo import Mofo, clip_gradients
from evomerge.optimisation.student import Student
from evomerge.optimisation.training_inputs import TrainingInputs
from evomerge.recipe import Recipe, Rule

FILE_ROLE = "weights"


def fine_tune(inputs: TrainingInputs, settings: FineTuneSettings) -> Generator[LearnedStep, None, LearnedResult]:
    """Train all weights of a merge on the right answers of the sources' items, with AdamW (arXiv 1711.05101).

    It is no merge of its sources any more: the result is a recipe with a file of weights, in the dtype of the merge.
    In memory are the weights, their gradients and moments in float32, the best weights so far, and the live model. Who
    owns the live model and when, and what a folder of checkpoints does, is as in `train_dam`.

    Args:
        inputs: their initial recipe has no files.

    Yields:
        A `LearnedStep` after each step.

    Raises:
        InvalidInput: texts or an initial recipe that cannot be trained with.
        MergeError: a loss or a gradient is not finite.
    """
    experts = [source.name for source in inputs.initial.sources if source.name != inputs.initial.base.name]
    for name in inputs.texts:
        if name not in experts:
            raise unknown_name("source with calibration texts", name, experts)
    if inputs.initial.files:
        raise InvalidInput("a training of all weights starts from a merge without files, such as a soup")
    training = _FineTuning(inputs, settings)
    for number, (losses, others) in enumerate(training.history, start=1):
        yield LearnedStep(step=number, steps=settings.steps, losses=losses, others=others)
    while not training.ended:
        losses, others = training.step()
        number = len(training.history)
        if number % settings.checkpoint_every == 0 or training.ended:
            training.save()
        yield LearnedStep(step=number, steps=settings.steps, losses=losses, others=others)
    return training.finish()


class _FineTuning:
    """The state of one training: weights, optimiser and history, with the student.

    Attributes:
        history: [losses, others] of every step so far, see `LearnedStep`.
    """

    def __init__(self, inputs: TrainingInputs, settings: FineTuneSettings) -> None:
        self._began = time.perf_counter()
        self._inputs = inputs
        self._settings = settings
        self._learning = settings.learning
        self._items = LearningItems(inputs.texts, self._learning, inputs.seed)
        self._shares = source_shares(self._items.learned, settings.task_weights)
        self.history: list[tuple[dict[str, float], dict[str, float]]] = []
        self._student = Student(inputs.model, inputs.live, inputs.weights, inputs.initial)
        self._student.set_rules(inputs.initial.rules)
        self._student.write()
        self._tensors = {name: self._student.live[name] for name in self._student.names}
        self._values = {name: _wide(tensor) for name, tensor in self._tensors.items()}
        self._optimizer = Mofo(
            self._values, learning_rate=settings.learning_rate, alpha=None, weight_decay=settings.weight_decay
        )  # AdamW
        self._path = self._checkpoint_path()
        state = None if self._path is None else load_state(self._path, self._student.device)
        if state is not None:
            self._restore(state)
            return
        self._before = self._best_losses = self._measured()
        self._latest = self._total(self._before)
        self._best = self._copies()

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
        if not self._items.stop:
            return len(self.history)
        curve = [self._total(self._before), *(others[STOP_LOSS] for _, others in self.history)]
        return curve.index(min(curve))

    def step(self) -> tuple[dict[str, float], dict[str, float]]:
        """Make one step; return its losses before it, and the latest loss on the items kept for stopping."""
        number = len(self.history) + 1
        gradients = {name: torch.zeros_like(value) for name, value in self._values.items()}

        def take(name: str, gradient: Tensor) -> None:
            gradients[name] += gradient

        with torch.enable_grad(), stream_gradients(self._tensors, take):
            losses = item_losses(
                self._items.step(number - 1),
                student=self._student,
                settings=self._learning,
                weights=self._shares,
                gradients=True,
            )
        norm = clip_gradients(gradients, self._settings.clip)
        if not torch.isfinite(norm) or not math.isfinite(sum(losses.values())):
            raise MergeError(
                f"step {number} of the training is not finite (losses {losses}); use a smaller learning_rate than "
                f"{self._settings.learning_rate:g}, or the dtype bfloat16 or float32"
            )
        self._optimizer.step(gradients)
        self._write(self._values)
        others: dict[str, float] = {}
        self.history.append((losses, others))
        if self._items.stop:
            others[STOP_LOSS] = self._stop_loss(number)
        return losses, others

    def save(self) -> None:
        """Store the state, where checkpoints are wanted."""
        if self._path is not None:
            state = TrainingState(
                coefficients=self._values,
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
        """Measure the result, leave it in the live model, and store its recipe."""
        if self._items.stop:
            self._write(self._best)
            after = self._best_losses
        else:
            after = self._measured()
        return LearnedResult(
            recipe=self._recipe(),
            before=self._before,
            after=after,
            forward_tokens=self._student.forward_tokens,
            gradient_tokens=self._student.gradient_tokens,
            steps=len(self.history),
            best_step=self.best_step,
            seconds=self._seconds,
            checkpoint=self._path if self._path is not None and self._path.exists() else None,
        )

    def _recipe(self) -> Recipe:
        """The recipe of the weights that are in the live model."""
        initial = self._inputs.initial
        stacked = {name: self._rounded(tensor)[None] for name, tensor in self._tensors.items()}
        digest = store_tensors(self._inputs.files, stacked, {"sources": json.dumps([initial.base.name])})
        rule = Rule(tensors=tuple(sorted(stacked)), method="stored", sources=(initial.base.name,))
        return replace(initial, rules=(rule,), files={FILE_ROLE: digest})

    def _stop_loss(self, number: int) -> float:
        """The latest loss on the items kept for stopping; where it is measured and the least, the weights are kept."""
        if self._learning.is_measured(number):
            losses = self._measured()
            self._latest = self._total(losses)
            if self._latest < self._total(self._best_losses):
                self._best, self._best_losses = self._copies(), losses
        return self._latest

    def _measured(self) -> dict[str, float]:
        return item_losses(self._items.measured, student=self._student, settings=self._learning, weights=self._shares)

    def _total(self, losses: Mapping[str, float]) -> float:
        return math.fsum(self._shares[source] * loss for source, loss in losses.items())

    def _write(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                self._tensors[name].copy_(self._rounded(value))

    def _rounded(self, value: Tensor) -> Tensor:
        """In the dtype of the merge, which the live model may hold in a wider one."""
        return value.detach().to(getattr(torch, self._inputs.initial.dtype))

    def _copies(self) -> dict[str, Tensor]:
        """The weights of the moment; none are kept where the last ones are the result."""
        if not self._items.stop:
            return {}
        return {name: self._rounded(value).clone() for name, value in self._values.items()}

    @property
    def _seconds(self) -> float:
        return time.perf_counter() - self._began

    def _checkpoint_path(self) -> Path | None:
        if self._inputs.checkpoints is None:
            return None
        return checkpoint_path(
            self._inputs.checkpoints,
            "fine-tune",
            self._inputs.initial,
            self._settings,
            texts=self._items.digest(),
            seed=self._inputs.seed,
            device=self._student.device,
        )

    def _restore(self, state: TrainingState) -> None:
        self._began -= state.seconds
        self.history = state.history
        self._before, self._best, self._best_losses = state.before, dict(state.best), dict(state.best_losses)
        self._student.forward_tokens = state.forward_tokens
        self._student.gradient_tokens = state.gradient_tokens
        self._optimizer.restore(len(state.history), state.coefficients, state.first, state.second)
        self._latest = self.history[-1][1].get(STOP_LOSS, math.nan) if self.history else self._total(self._before)
        self._write(self._values)


def _wide(tensor: Tensor) -> Tensor:
    """A copy in float32, or in float64 where the tensor is."""
    return tensor.detach().to(torch.float64 if tensor.dtype == torch.float64 else torch.float32, copy=True)
