"""The training of DAM: coefficients that make one merge say what each source says to its own texts."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.errors import MergeError, unknown_name
from evomerge.evaluation.evaluator import CalibrationText
from evomerge.merging.column_linear import NONLINEARITIES
from evomerge.recipe import Recipe
from evomerge.training import dam
from evomerge.training.calibration import Calibration
from evomerge.training.checkpoint import State, checkpoint_path, load_state, save_state
from evomerge.training.coefficients import (
    Coefficients,
    Place,
    initial_coefficients,
    places_of,
)
from evomerge.training.gradients import factor_gradients, taken_at_once
from evomerge.training.mofo import Mofo, clip_gradients
from evomerge.training.settings import DamSettings
from evomerge.training.student import Student
from evomerge.training.teacher import FullTargets, Targets, Teachers

# Logits per piece of a loss. CPU: the temporaries stay in cache. Elsewhere: enough to hide kernel launches.
_CPU_PIECE = 1 << 18
_DEVICE_PIECE = 1 << 26


@dataclass(frozen=True)
class Step:
    """What one step says of itself.

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


@dataclass(frozen=True)
class Trained:
    """The result of a training.

    Attributes:
        recipe: the merge; its coefficients lie in the folder of files.
        before, after: source -> T² · KL per counted token on its first texts, of the uniform average of the recipe's
            sources (base excluded) and of the result.
        forward_tokens, gradient_tokens: tokens read without and with gradients, padding excluded.
        steps: that were made.
        seconds: that it took, those before an interruption up to the last checkpoint included.
        checkpoint: the file of the last state, which may now be deleted; None where none was kept.
    """

    recipe: Recipe
    before: Mapping[str, float]
    after: Mapping[str, float]
    forward_tokens: int
    gradient_tokens: int
    steps: int
    seconds: float
    checkpoint: Path | None


def train_dam(
    *,
    model: Any,
    live: Mapping[str, Tensor],
    weights: Mapping[str, Mapping[str, Tensor]],
    texts: Mapping[str, Sequence[CalibrationText]],
    initial: Recipe,
    settings: DamSettings,
    seed: int,
    files: Path,
    checkpoints: Path | None = None,
) -> Generator[Step, None, Trained]:
    """Train the coefficients of `column_linear`: DAM, arXiv 2410.08371.

    Each step compares the merge with every source on texts of that source, and moves the coefficients. There is no
    autograd graph through the merge: dL/dc_i is taken from dL/dW as soon as it is there, and dL/dW is freed. In memory
    are the sources once, the live model, and gradients of coefficients.

    After the last step, and whenever a step is given out, the live model belongs to the caller again; it needs no
    gradients, its mode is never changed, and no global random generator is used. At the end it holds the result, bit
    for bit as the recipe gives it.

    Args:
        model: the live causal language model of transformers.
        live: its tensors by name.
        weights: source name -> its resident tensors by name, for all sources of the recipe and its base.
        texts: source name -> texts that it is good at. A source without any teaches nothing, but is merged.
        initial: where the coefficients start: rules with linear, task_arithmetic or column_linear.
        settings: see there.
        seed: key of the order of the texts.
        files: folder where the coefficients are stored, and where those of `initial` lie.
        checkpoints: folder for the state of the training every so many steps. The same call finds it and goes on to
            the same numbers; the steps of before are given out again, without being made.

    Yields:
        A `Step` after each step.

    Raises:
        InvalidInput: texts or an initial recipe that cannot be trained with.
        MergeError: a loss is not finite.
    """
    for name in texts:
        if name not in weights:
            raise unknown_name("source with calibration texts", name, weights)
    training = _Training(model, live, weights, texts, initial, settings, seed, files, checkpoints)
    steps = training.calibration.steps
    for number, (losses, penalties) in enumerate(training.history, start=1):
        yield Step(number, steps, losses, penalties)
    while len(training.history) < steps:
        losses, penalties = training.step()
        number = len(training.history)
        if checkpoints is not None and (number % settings.checkpoint_every == 0 or number == steps):
            training.save()
        yield Step(number, steps, losses, penalties)
    return training.finish()


class _Training:
    def __init__(
        self,
        model: Any,
        live: Mapping[str, Tensor],
        weights: Mapping[str, Mapping[str, Tensor]],
        texts: Mapping[str, Sequence[CalibrationText]],
        initial: Recipe,
        settings: DamSettings,
        seed: int,
        files: Path,
        checkpoints: Path | None,
    ) -> None:
        self._began = time.perf_counter()
        self.calibration = Calibration(texts, settings, seed)
        self.history: list[tuple[dict[str, float], dict[str, float]]] = []
        self._settings = settings
        self._initial = initial
        self._files = files
        self._weights = weights
        self._student = Student(model, live, weights, initial)
        self._teachers = Teachers(self._student, self.calibration, settings)
        device = self._student.device
        self._path = (
            None
            if checkpoints is None
            else checkpoint_path(checkpoints, initial, settings, self.calibration.digest(), seed, device)
        )
        places = places_of(model, {name: live[name] for name in self._student.names})
        self._coefficients = initial_coefficients(
            initial,
            places,
            include_base=settings.include_base,
            uniform=settings.start == "uniform",
            trainable=settings.trainable,
            phi=settings.phi,
            files=files,
            device=device,
        )
        self._trained = {name: self._coefficients.values[name] for name in self._coefficients.trainable}
        self._sources = [weights[name] for name in self._coefficients.sources]
        self._penalties = _penalties(settings, places, self._coefficients, weights, initial.base.name)
        self._optimizer = Mofo(
            self._trained,
            learning_rate=settings.learning_rate,
            alpha=settings.alpha if settings.optimizer == "mofo" else None,
            weight_decay=settings.decay,
        )
        state = None if self._path is None else load_state(self._path, device)
        if state is None:
            self._student.become_average(
                [source.name for source in initial.sources if source.name != initial.base.name]
            )
            self._before = self._measure()
        else:
            self._restore(state)
        self._student.become(self._coefficients)

    def step(self) -> tuple[dict[str, float], dict[str, float]]:
        """One step; its losses and penalties before it."""
        chosen = self.calibration.step(len(self.history))
        factors = {name: torch.zeros_like(value) for name, value in self._trained.items()}

        def take(name: str, gradient: Tensor) -> None:
            weights = [source[name] for source in self._sources]
            factors[name] += factor_gradients(gradient, weights, factors[name].shape[1:])

        parameters = {name: self._student.live[name] for name in self._trained}
        with torch.enable_grad(), taken_at_once(parameters, take):
            losses = self._source_losses(chosen)
        slope = NONLINEARITIES[self._coefficients.phi].slope
        gradients = {name: factors[name] * slope(value) for name, value in self._trained.items()}
        penalties = self._add_penalties(gradients)
        norm = clip_gradients(gradients, self._settings.clip)
        if not torch.isfinite(norm + sum(losses.values())):
            raise MergeError(
                f"step {len(self.history) + 1} of the training is not finite (losses {losses}); "
                f"use a smaller learning_rate than {self._settings.learning_rate:g}, or the dtype bfloat16 or float32"
            )
        self._optimizer.step(gradients)
        self._student.become(self._coefficients, changed=self._trained)
        self.history.append((losses, penalties))
        return losses, penalties

    def save(self) -> None:
        """Store the state, where checkpoints are wanted."""
        if self._path is not None:
            tokens = self._student.forward_tokens, self._student.gradient_tokens
            optimizer = self._optimizer
            state = State(
                self._trained, optimizer.first, optimizer.second, self.history, self._before, *tokens, self._seconds
            )
            save_state(self._path, state)

    def finish(self) -> Trained:
        """Measure the result, leave it in the live model, and store its recipe."""
        after = self._measure()
        self._student.write()
        return Trained(
            self._coefficients.recipe(self._initial, self._files),
            self._before,
            after,
            self._student.forward_tokens,
            self._student.gradient_tokens,
            len(self.history),
            self._seconds,
            self._path if self._path is not None and self._path.exists() else None,
        )

    @property
    def _seconds(self) -> float:
        return time.perf_counter() - self._began

    def _restore(self, state: State) -> None:
        self._began -= state.seconds
        self.history = state.history
        self._before = state.before
        self._student.forward_tokens = state.forward_tokens
        self._student.gradient_tokens = state.gradient_tokens
        self._optimizer.steps = len(state.history)
        for name, value in self._trained.items():
            value.copy_(state.coefficients[name])
            self._optimizer.first[name].copy_(state.first[name])
            self._optimizer.second[name].copy_(state.second[name])

    def _source_losses(self, chosen: Mapping[str, Sequence[int]]) -> dict[str, float]:
        """The loss of each source, after a backward pass through the live model."""
        texts = {
            source: [self.calibration.texts[source][index] for index in indices] for source, indices in chosen.items()
        }
        self._teachers.prepare(chosen)
        every = [text for several in texts.values() for text in several]
        if len(every) * max(len(text.tokens) for text in every) <= self._settings.max_tokens:
            passes = [list(chosen)]
        else:
            passes = [[source] for source in chosen]
        losses: dict[str, float] = {}
        for together in passes:
            batch = self.calibration.batch(
                [text for source in together for text in texts[source]], self._student.device
            )
            logits, counted = self._student.logits(batch, gradients=True)
            gradient = torch.zeros_like(logits)
            for place, source in enumerate(together):
                rows = slice(place * self._settings.batch_size, (place + 1) * self._settings.batch_size)
                targets = self._teachers.targets(source, chosen[source])
                losses[source] = self._loss(logits.detach()[rows], counted[rows], targets, gradient[rows])
            logits.backward(gradient)  # type: ignore[no-untyped-call]
        return losses

    def _loss(self, logits: Tensor, counted: Tensor, targets: Targets, gradient: Tensor) -> float:
        """The loss of one source, its gradient written into `gradient`, piece by piece, so that no temporary is large.

        Args:
            logits, gradient: [B, K, V].
            counted: [B, K].
        """
        vocabulary = logits.shape[-1]
        flat, flat_gradient = logits.reshape(-1, vocabulary), gradient.view(-1, vocabulary)
        positions = counted.reshape(-1).nonzero().squeeze(1)
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        size = max(1, (_CPU_PIECE if logits.device.type == "cpu" else _DEVICE_PIECE) // vocabulary)
        for start in range(0, len(positions), size):
            part = slice(start, min(start + size, len(positions)))
            piece = flat[positions[part]].float().requires_grad_()
            loss = self._piece_loss(piece, part, targets) / len(positions)
            loss.backward()  # type: ignore[no-untyped-call]
            flat_gradient[positions[part]] = (
                torch.zeros_like(piece) if piece.grad is None else piece.grad.to(logits.dtype)
            )
            total += loss.detach()
        return float(total)

    def _piece_loss(self, piece: Tensor, part: slice, targets: Targets) -> Tensor:
        """The weighted losses of some positions, summed: those of `dam` before they are divided by the tokens."""
        weights, temperature = self._settings.losses, self._settings.temperature
        batch = self._settings.batch_size if self._settings.kl_norm == "tokens_and_batch" else 1
        loss = torch.zeros((), device=piece.device)
        if weights.kl:
            loss = loss + weights.kl * temperature**2 / batch * targets.kl(piece, part, temperature).sum()
        if weights.mse:
            loss = loss + weights.mse * targets.mse(piece, part).sum()
        if weights.entropy:
            loss = loss + weights.entropy * temperature**2 * dam.entropy_by_position(piece, temperature).sum()
        return loss

    def _add_penalties(self, gradients: Mapping[str, Tensor]) -> dict[str, float]:
        """The losses on the coefficients themselves, their gradients added to the given ones."""
        if not self._penalties:
            return {}
        with torch.enable_grad():
            leaves = {name: value.detach().clone().requires_grad_() for name, value in self._trained.items()}
            values = {name: penalty(leaves) for name, penalty in self._penalties.items()}
            total = sum(values.values(), torch.zeros((), device=self._student.device))
            if total.requires_grad:
                total.backward()  # type: ignore[no-untyped-call]
        for name, leaf in leaves.items():
            if leaf.grad is not None:
                gradients[name].add_(leaf.grad)
        return {name: float(value.detach()) for name, value in values.items()}

    def _measure(self) -> dict[str, float]:
        """Source -> T² · KL per counted token on its first texts, against what the student is now."""
        temperature = self._settings.temperature
        measured = {}
        for source in self.calibration.texts:
            total, tokens = 0.0, 0
            for batch in self.calibration.measured(source, self._student.device):
                targets = FullTargets(self._student.logits_of_source(source, batch))
                logits, counted = self._student.logits(batch)
                positions = counted.reshape(-1).nonzero().squeeze(1)
                flat = logits.reshape(-1, logits.shape[-1])
                size = max(1, (_CPU_PIECE if logits.device.type == "cpu" else _DEVICE_PIECE) // flat.shape[-1])
                for start in range(0, len(positions), size):
                    part = slice(start, min(start + size, len(positions)))
                    total += float(targets.kl(flat[positions[part]], part, temperature).sum())
                tokens += len(positions)
            measured[source] = temperature**2 * total / tokens
        return measured


def _penalties(
    settings: DamSettings,
    places: Mapping[str, Place],
    coefficients: Coefficients,
    weights: Mapping[str, Mapping[str, Tensor]],
    base: str,
) -> dict[str, Callable[[Mapping[str, Tensor]], Tensor]]:
    """Name -> weighted loss on the trained coefficients, for those that are switched on.

    Similarity and overlaps compare vectors, the weighted overlap those of linear layers and embeddings.
    """
    vectors = [name for name in coefficients.trainable if places[name].shape]
    found: dict[str, Callable[[Mapping[str, Tensor]], Tensor]] = {}
    if weight := settings.losses.similarity:
        found["similarity"] = lambda values: dam.similarity(_rows(values, vectors), weight)
    if overlap := settings.losses.overlap:
        found["overlap"] = lambda values: dam.overlap(_rows(values, vectors), overlap)
    if (weighted := settings.losses.weighted_overlap) and len(coefficients.sources) > 1:
        columns = [name for name in vectors if places[name].kind != "norm"]
        factors = [
            dam.between_columns(
                [_by_column(weights[source][name], places[name]) - _by_column(weights[base][name], places[name])
                 for source in coefficients.sources]
            )
            for name in columns
        ]  # fmt: skip
        found["weighted_overlap"] = lambda values: dam.overlap_at_angles(_rows(values, columns), factors, weighted)
    if both := settings.losses.l1_l2:
        found["l1_l2"] = lambda values: dam.l1_l2(_rows(values, coefficients.trainable), both, both)
    return found


def _rows(values: Mapping[str, Tensor], names: Sequence[str]) -> list[Tensor]:
    return [values[name].flatten(1) if values[name].ndim > 1 else values[name][:, None] for name in names]


def _by_column(weight: Tensor, place: Place) -> Tensor:
    """[out, in], also where the weight is stored [in, out]."""
    return weight.float() if len(place.shape) == 1 else weight.float().T
