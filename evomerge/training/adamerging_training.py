"""The training of AdaMerging on a live model: coefficients with which one merge is sure of its predictions."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from evomerge.elementwise.elected_arithmetic import ElectedVectors
from evomerge.errors import InvalidInput, unknown_name
from evomerge.messages import some
from evomerge.optimisation.batches import CalibrationBatches
from evomerge.optimisation.course import Course, refuse_not_finite, steps_of
from evomerge.optimisation.gradients import stream_gradients, vector_gradients
from evomerge.optimisation.mofo import Mofo
from evomerge.optimisation.student import Student
from evomerge.optimisation.training_inputs import TrainingInputs
from evomerge.recipe import Recipe
from evomerge.tensors.rule_tensors import RuleTensors
from evomerge.training.adamerging_settings import AdaSettings
from evomerge.training.entropies import backward_entropies, entropies
from evomerge.training.task_weights import initial_task_weights


@dataclass(frozen=True, kw_only=True)
class EntropyStep:
    """Entropies of one step.

    Attributes:
        step: from 1.
        steps: of the whole training.
        losses: source -> mean entropy of the predictions on its texts of this step, before the step, in nats.
    """

    step: int
    steps: int
    losses: Mapping[str, float]

    @property
    def reported(self) -> Mapping[str, float]:
        """The entropies by source."""
        return self.losses


@dataclass(frozen=True, kw_only=True)
class AdaResult:
    """The result of a training.

    Attributes:
        recipe: the merge, with a rule for each set of weights.
        before, after: source -> mean entropy of the predictions on its first texts, of the merge that the training
            began with and of the result. One that falls to nearly 0 while scores fall too has collapsed.
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


def train_adamerging(inputs: TrainingInputs, settings: AdaSettings) -> Generator[EntropyStep, None, AdaResult]:
    """Train the weights of task vectors by the entropy of predictions: AdaMerging, arXiv 2310.02575.

    The answers of texts are never a target. There is no autograd graph through the merge: dL/dlambda_i is the product
    of dL/dW and tau_i, taken as soon as dL/dW is computed. In memory are the sources once and the live model.

    Who owns the live model and when, and what a folder of checkpoints does, is as in `train_dam`.

    Args:
        inputs: every source of their initial recipe has texts.

    Yields:
        An `EntropyStep` after each step.

    Raises:
        InvalidInput: texts or an initial recipe that cannot be trained with.
        MergeError: an entropy or a gradient is not finite.
    """
    experts = [source.name for source in inputs.initial.sources if source.name != inputs.initial.base.name]
    for name in inputs.texts:
        if name not in experts:
            raise unknown_name("source with calibration texts", name, experts)
    if without := [name for name in experts if not inputs.texts.get(name)]:
        raise InvalidInput(f"AdaMerging needs texts of every source, and there are none of {some(without, 5)}")
    training = _EntropyTraining(inputs, settings)
    for number, losses, _ in steps_of(training, settings.checkpoint_every):
        yield EntropyStep(step=number, steps=settings.steps, losses=losses)
    return training.finish()


class _EntropyTraining:
    """The state of one training: coefficients and optimiser, with the student.

    Attributes:
        course: the entropies of every step so far, by source.
    """

    def __init__(self, inputs: TrainingInputs, settings: AdaSettings) -> None:
        began = time.perf_counter()
        self._inputs = inputs
        self._settings = settings
        self._calibration = CalibrationBatches(inputs.texts, settings, inputs.seed)
        self._student = Student(inputs.model, inputs.live, inputs.weights, inputs.initial)
        self._weights = initial_task_weights(inputs.initial, self._student.names, settings)
        self._group_of = {name: group for group, names in self._weights.groups.items() for name in names}
        self._optimizer = Mofo(
            self._weights.values, learning_rate=settings.learning_rate, alpha=None, weight_decay=0.0
        )  # Adam
        texts = self._calibration.digest()
        self.course = Course(
            "adamerging", inputs, settings, texts=texts, student=self._student, optimizer=self._optimizer, began=began
        )
        self._rules = self._weights.rules()
        self._student.set_rules(self._rules)
        state = self.course.state
        self._before = entropies(self._calibration, self._student) if state is None else state.before

    @property
    def ended(self) -> bool:
        """Whether there is no step left."""
        return len(self.course.history) == self._settings.steps

    def step(self) -> None:
        """Make one step; the history gets the entropies before it."""
        number = len(self.course.history) + 1
        first = (number - 1) * self._settings.batches
        batches = [self._calibration.step(first + place) for place in range(self._settings.batches)]
        rules = {name: self._student.tensors(rule, [name]) for rule in self._rules for name in rule.tensors}
        totals = {name: torch.zeros(len(self._weights.sources), dtype=torch.float64) for name in self._weights.groups}

        def take(name: str, gradient: Tensor) -> None:
            totals[self._group_of[name]] += vector_gradients(gradient, self._vectors(rules[name]))

        with torch.enable_grad(), stream_gradients(self._student.live, rules, take):
            losses = backward_entropies(
                batches, self._settings.entropy_positions, calibration=self._calibration, student=self._student
            )
        gradients = {group: total.float() for group, total in totals.items()}
        self._weights.zero_outside(gradients)
        refuse_not_finite(number, losses, gradients.values(), learning_rate=self._settings.learning_rate)
        self._optimizer.step(gradients)
        self._rules = self._weights.rules()
        self._student.set_rules(self._rules)
        self.course.history.append((losses, {}))

    def save(self) -> None:
        """Store the state, where checkpoints are wanted."""
        self.course.save(self._before)

    def finish(self) -> AdaResult:
        """Measure the result and leave it in the live model."""
        after = entropies(self._calibration, self._student)
        self._student.write()
        return AdaResult(
            recipe=self._weights.recipe(self._inputs.initial),
            before=self._before,
            after=after,
            forward_tokens=self._student.forward_tokens,
            gradient_tokens=self._student.gradient_tokens,
            steps=len(self.course.history),
            seconds=self.course.seconds,
            checkpoints=self.course.checkpoints,
        )

    def _vectors(self, tensors: RuleTensors) -> Iterator[tuple[int, list[Tensor]]]:
        """The pieces of the vectors that a tensor's coefficients weigh."""
        (name,) = tensors.names
        elected = ElectedVectors(tensors).of(name) if self._settings.variant == "plus_plus" else None
        for piece in tensors.pieces(name):
            yield piece.start, piece.task_vectors() if elected is None else elected(piece)
