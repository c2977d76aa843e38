"""Predictions of the sources on their texts: in full at every step, or cached as largest probabilities and a rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from evomerge.optimisation.batches import CalibrationBatches
from evomerge.optimisation.student import Student
from evomerge.training.dam import mse_by_position
from evomerge.training.dam_settings import DamSettings
from evomerge.training.predictions import kl_by_position, kl_of_scores


class Targets(Protocol):
    """A teacher at the N counted positions of a batch, in row-major order."""

    def kl(self, student_logits: Tensor, part: slice, temperature: float) -> Tensor:
        """KL(teacher ‖ student) of the positions of `part`, from their student logits [P, V]: [P]."""

    def mse(self, student_logits: Tensor, part: slice) -> Tensor:
        """The mean squared difference of the logits of the positions of `part`: [P]."""


@dataclass(frozen=True)
class FullTargets:
    """The logits [N, V]."""

    logits: Tensor

    def kl(self, student_logits: Tensor, part: slice, temperature: float) -> Tensor:
        return kl_by_position(student_logits, self.logits[part], temperature)

    def mse(self, student_logits: Tensor, part: slice) -> Tensor:
        return mse_by_position(student_logits, self.logits[part])


@dataclass(frozen=True)
class TopKTargets:
    """The k largest probabilities at one temperature, and the sum of all others: together they are 1.

    Attributes:
        log_probabilities: [N, k], float32.
        indices: [N, k], int32: entries of the vocabulary.
        log_rest: [N], the logarithm of the sum of the others; −inf where k is the whole vocabulary.
    """

    log_probabilities: Tensor
    indices: Tensor
    log_rest: Tensor

    def kl(self, student_logits: Tensor, part: slice, temperature: float) -> Tensor:
        """KL over k + 1 outcomes, the last of which is "any other": at most the full KL, equal to it where k = V."""
        indices = self.indices[part].long()
        student, student_rest = _top(student_logits, indices, temperature)
        teacher, teacher_rest = self.log_probabilities[part], self.log_rest[part]
        terms = kl_of_scores(student, teacher)
        if indices.shape[-1] == student_logits.shape[-1]:
            return terms
        rest = teacher_rest.exp() * (teacher_rest - student_rest)
        return terms + torch.where(teacher_rest.isneginf(), 0.0, rest)

    def to(self, device: torch.device) -> TopKTargets:
        return TopKTargets(self.log_probabilities.to(device), self.indices.to(device), self.log_rest.to(device))

    def mse(self, student_logits: Tensor, part: slice) -> Tensor:
        raise TypeError("logits are not cached; DamSettings allows no mse with a cached teacher")


def top_k_targets(logits: Tensor, k: int, temperature: float) -> TopKTargets:
    """The k largest probabilities of softmax(logits / T) at each position: from [N, V]; k is at most V."""
    indices = logits.topk(min(k, logits.shape[-1]), dim=-1).indices
    kept, rest = _top(logits, indices, temperature)
    return TopKTargets(kept, indices.int(), rest)


def _top(logits: Tensor, indices: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the indexed entries, and of all others together."""
    scaled = logits.float() / temperature
    total = scaled.logsumexp(-1, keepdim=True)
    kept = scaled.gather(-1, indices) - total
    if indices.shape[-1] == logits.shape[-1]:
        return kept, torch.full_like(total, -torch.inf).squeeze(-1)
    # 1 − sum of the kept ones would lose a small rest to rounding.
    rest = scaled.scatter(-1, indices, -torch.inf).logsumexp(-1)
    return kept, rest - total.squeeze(-1)


class Teachers:
    """The sources as teachers of the texts of a step."""

    def __init__(self, student: Student, calibration: CalibrationBatches, settings: DamSettings) -> None:
        self._student = student
        self._calibration = calibration
        self._settings = settings
        self._cached: dict[tuple[str, int], TopKTargets] = {}
        self._last_reads = _last_reads(calibration) if settings.teacher == "cached" else {}
        self._ready: dict[str, FullTargets] = {}

    def prepare(self, chosen: Mapping[str, Sequence[int]]) -> None:
        """Run the teachers that cannot run after the student's forward pass of a step, with the texts of all sources.

        Those are the sources that must be written into the live model, and texts whose targets are not cached yet.
        """
        for source, texts in chosen.items():
            if self._settings.teacher == "cached":
                self._cache(source, texts)
            elif not self._student.runs_in_place(source):
                self._ready[source] = self._full(source, texts)

    def targets(self, source: str, texts: Sequence[int]) -> Targets:
        """The targets of the texts of a source, after `prepare`; only cached ones are held any longer."""
        if self._settings.teacher == "cached":
            found = _concatenated([self._cached[source, text] for text in texts])
            return found.to(self._student.device)
        return self._ready.pop(source) if source in self._ready else self._full(source, texts)

    def forget(self, step: int) -> None:
        """Drop the cached targets that no step after this one reads; steps are counted from 0."""
        for key in self._last_reads.pop(step, ()):
            self._cached.pop(key, None)

    def _full(self, source: str, texts: Sequence[int]) -> FullTargets:
        batch = self._calibration.batch([self._calibration.texts[source][text] for text in texts], self._student.device)
        return FullTargets(self._student.logits_of_source(source, batch))

    def _cache(self, source: str, texts: Sequence[int]) -> None:
        """Run each text by itself, so that its cached targets do not depend on the other texts of its batch.

        They are kept on the CPU: those of all texts may take more memory than the models.
        """
        for text in texts:
            if (source, text) not in self._cached:
                logits = self._full(source, [text]).logits
                targets = top_k_targets(logits, self._settings.top_k, self._settings.temperature)
                self._cached[source, text] = targets.to(torch.device("cpu"))


def _last_reads(calibration: CalibrationBatches) -> dict[int, list[tuple[str, int]]]:
    """Step, counted from 0 -> source and index of the texts that no later step reads."""
    steps = range(calibration.steps)
    last = {
        (source, text): step for step in steps for source, texts in calibration.step(step).items() for text in texts
    }
    found: dict[int, list[tuple[str, int]]] = {step: [] for step in steps}
    for key, step in last.items():
        found[step].append(key)
    return found


def _concatenated(targets: Sequence[TopKTargets]) -> TopKTargets:
    return TopKTargets(
        torch.cat([each.log_probabilities for each in targets]),
        torch.cat([each.indices for each in targets]),
        torch.cat([each.log_rest for each in targets]),
    )
