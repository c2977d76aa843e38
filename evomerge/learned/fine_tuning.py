"""The course of the trainer `fine-tune`: all weights of a merge, by AdamW, stopped by items that are not trained on."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from evomerge.checkpoints.recipe_files import store_tensors
from evomerge.errors import InvalidInput, unknown_name
from evomerge.learned.fine_tuning_settings import FineTuneSettings
from evomerge.learned.kept_best import KeptBest
from evomerge.learned.learned_training import LearnedResult, LearnedStep, source_shares
from evomerge.learned.learning_items import LearningItems
from evomerge.learned.losses import item_losses
from evomerge.optimisation.course import Course, refuse_not_finite, steps_of
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
    for number, losses, others in steps_of(training, settings.checkpoint_every):
        yield LearnedStep(step=number, steps=settings.steps, losses=losses, others=others)
    return training.finish()


class _FineTuning:
    """The state of one training: weights and optimiser, with the student.

    Attributes:
        course: [losses, others] of every step so far, see `LearnedStep`.
    """

    def __init__(self, inputs: TrainingInputs, settings: FineTuneSettings) -> None:
        began = time.perf_counter()
        self._inputs = inputs
        self._settings = settings
        self._learning = settings.learning
        self._items = LearningItems(inputs.texts, self._learning, inputs.seed)
        self._shares = source_shares(self._items.learned, settings.task_weights)
        self._student = Student(inputs.model, inputs.live, inputs.weights, inputs.initial)
        self._student.set_rules(inputs.initial.rules)
        self._student.write()
        self._tensors = {name: self._student.live[name] for name in self._student.names}
        self._values = {name: _wide(tensor) for name, tensor in self._tensors.items()}
        self._optimizer = Mofo(
            self._values, learning_rate=settings.learning_rate, alpha=None, weight_decay=settings.weight_decay
        )  # AdamW
        texts = self._items.digest()
        self.course = Course(
            "fine-tune", inputs, settings, texts=texts, student=self._student, optimizer=self._optimizer, began=began
        )
        if self.course.state is not None:
            self._write(self._values)
        self._best = KeptBest(
            self._items,
            self._learning,
            self._shares,
            rule=settings,
            student=self._student,
            course=self.course,
            copies=lambda: {name: self._rounded(value).clone() for name, value in self._values.items()},
        )

    @property
    def ended(self) -> bool:
        """Whether there is no step left, or the patience is over."""
        return self._best.ended

    def step(self) -> None:
        """Make one step; the history gets its losses before it, and the latest on the items kept for stopping."""
        number = len(self.course.history) + 1
        gradients = {name: torch.zeros_like(value) for name, value in self._values.items()}

        def take(name: str, gradient: Tensor) -> None:
            gradients[name] += gradient

        with torch.enable_grad(), stream_gradients(self._student.live, self._student.names, take):
            losses = item_losses(
                self._items.step(number - 1),
                student=self._student,
                settings=self._learning,
                weights=self._shares,
                gradients=True,
            )
        norm = clip_gradients(gradients, self._settings.clip)
        refuse_not_finite(number, losses, [norm], learning_rate=self._settings.learning_rate)
        self._optimizer.step(gradients)
        self._write(self._values)
        self.course.history.append((losses, self._best.note(number)))

    def save(self) -> None:
        """Store the state, where checkpoints are wanted."""
        self.course.save(self._best.before, self._best.values, self._best.losses)

    def finish(self) -> LearnedResult:
        """Measure the result, leave it in the live model, and store its recipe."""
        if self._best.is_kept:
            self._write(self._best.values)
        after = self._best.losses if self._best.is_kept else self._best.measured()
        return LearnedResult(
            recipe=self._recipe(),
            before=self._best.before,
            after=after,
            forward_tokens=self._student.forward_tokens,
            gradient_tokens=self._student.gradient_tokens,
            steps=len(self.course.history),
            best_step=self._best.step,
            seconds=self.course.seconds,
            checkpoints=self.course.checkpoints,
        )

    def _recipe(self) -> Recipe:
        """The recipe of the weights that are in the live model."""
        initial = self._inputs.initial
        stacked = {name: self._rounded(tensor)[None] for name, tensor in self._tensors.items()}
        digest = store_tensors(self._inputs.files, stacked, {"sources": json.dumps([initial.base.name])})
        rule = Rule(tensors=tuple(sorted(stacked)), method="stored", sources=(initial.base.name,))
        return replace(initial, rules=(rule,), files={FILE_ROLE: digest})

    def _write(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                self._tensors[name].copy_(self._rounded(value))

    def _rounded(self, value: Tensor) -> Tensor:
        """In the dtype of the merge, which the live model may hold in a wider one."""
        return value.detach().to(getattr(torch, self._inputs.initial.dtype))


def _wide(tensor: Tensor) -> Tensor:
    """A copy in float32, or in float64 where the tensor is."""
    return tensor.detach().to(torch.float64 if tensor.dtype == torch.float64 else torch.float32, copy=True)
