"""Batches of calibration texts, in an order that depends on the seed, the epoch and the source alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from evomerge.errors import InvalidInput
from evomerge.evaluation.evaluator import CalibrationText
from evomerge.seeding import derive


class BatchSettings(Protocol):
    """The settings of a training that decide what it reads."""

    @property
    def steps(self) -> int | None:
        """Number of steps; None: as many as `epochs` have."""

    @property
    def epochs(self) -> int | None:
        """Passes over the shortest calibration set, without `steps`; None: 1."""

    @property
    def batch_size(self) -> int:
        """Texts of each source in a batch."""

    @property
    def batches(self) -> int:
        """Batches of each source in a step."""

    @property
    def token_mask(self) -> str:
        """The positions that count: "all", those that predict a token of the "answer", or the "first" of these."""

    @property
    def max_length(self) -> int:
        """Longer texts lose their beginning."""

    @property
    def measured_items(self) -> int:
        """Texts of each source on which the loss before and after is measured."""

    @property
    def measurements(self) -> int:
        """Passes over the measured texts in the whole training."""

    @property
    def max_tokens(self) -> int:
        """Padded tokens of one forward pass."""

    @property
    def teacher(self) -> str:
        """Whether sources run at every step ("live"), once on each text ("cached"), or never ("none")."""


@dataclass(frozen=True)
class Batch:
    """Texts, padded on the right to the longest.

    Attributes:
        tokens: [B, L] token ids.
        present: [B, L], false where there is padding.
        counted: [B, L], true where the loss counts.
    """

    tokens: Tensor
    present: Tensor
    counted: Tensor

    @property
    def size(self) -> int:
        """The number of tokens without the padding."""
        return int(self.present.sum())


class CalibrationBatches:
    """The texts of the sources that teach, cut to the longest allowed length.

    Attributes:
        texts: source name -> its texts; sources without any are skipped.
    """

    def __init__(self, texts: Mapping[str, Sequence[CalibrationText]], settings: BatchSettings, seed: int) -> None:
        self.texts = {name: [text.cut(settings.max_length) for text in given] for name, given in texts.items() if given}
        self._settings = settings
        self._seed = seed
        if not self.texts:
            raise InvalidInput("no source has calibration texts; name `calibration` for at least one of them")
        for name, given in self.texts.items():
            if len(given) < settings.batch_size:
                raise InvalidInput(
                    f"source {name!r} has {len(given)} calibration texts, fewer than batch_size {settings.batch_size}"
                )
            if not all(text.counted(settings.token_mask) for text in given):
                raise InvalidInput(
                    f"source {name!r} has a calibration text in which nothing counts where the positions are "
                    f"{settings.token_mask!r}; leave such texts out"
                )

    @property
    def steps(self) -> int:
        """The steps of the whole training."""
        if self._settings.steps is not None:
            return self._settings.steps
        return self._epoch * (self._settings.epochs or 1) // self._settings.batches

    def step(self, number: int) -> dict[str, list[int]]:
        """Source name -> indices of its texts in a step of one batch; counted from 0, over all batches of a step."""
        epoch, place = divmod(number, self._epoch)
        size = self._settings.batch_size
        return {
            name: self._order(name, epoch)[place * size : (place + 1) * size] for name in self.texts
        }  # fmt: skip

    def batch(self, texts: Sequence[CalibrationText], device: torch.device) -> Batch:
        """The texts as tensors."""
        length = max(len(text.tokens) for text in texts)
        tokens = torch.zeros(len(texts), length, dtype=torch.long)
        present = torch.zeros(len(texts), length, dtype=torch.bool)
        counted = torch.zeros(len(texts), length, dtype=torch.bool)
        for row, text in enumerate(texts):
            tokens[row, : len(text.tokens)] = torch.tensor(text.tokens)
            present[row, : len(text.tokens)] = True
            counted[row, list(text.counted(self._settings.token_mask))] = True
        return Batch(tokens.to(device), present.to(device), counted.to(device))

    def measured(self, source: str, device: torch.device) -> Iterator[Batch]:
        """The first texts of a source, in batches of at most `max_tokens`."""
        texts = self.texts[source][: self._settings.measured_items]
        for part in self.passes(texts):
            yield self.batch(texts[part], device)

    def passes(self, texts: Sequence[CalibrationText]) -> Iterator[slice]:
        """Slices of texts that have at most `max_tokens` padded tokens together, or are one text."""
        start = 0
        while start < len(texts):
            count, longest = 0, 0
            for text in texts[start:]:
                longest = max(longest, len(text.tokens))
                if count and longest * (count + 1) > self._settings.max_tokens:
                    break
                count += 1
            yield slice(start, start + count)
            start += count

    def digest(self) -> str:
        """Digest of all texts, in their order."""
        content = {name: [(text.tokens, text.answer) for text in texts] for name, texts in self.texts.items()}
        return hashlib.sha256(repr(sorted(content.items())).encode()).hexdigest()

    @property
    def _epoch(self) -> int:
        return min(len(texts) for texts in self.texts.values()) // self._settings.batch_size

    def _order(self, source: str, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(derive(self._seed, "calibration", source, epoch))
        return [int(index) for index in torch.randperm(len(self.texts[source]), generator=generator)]


@dataclass(frozen=True)
class PlannedTokens:
    """Steps of a training, and the tokens that it reads with and without gradients, padding excluded."""

    steps: int
    gradient_tokens: int
    forward_tokens: int


def planned_tokens(texts: Mapping[str, Sequence[CalibrationText]], settings: BatchSettings, seed: int) -> PlannedTokens:
    """Count the tokens that a training will read: student and teachers at every step, both at the measurements.

    Raises:
        InvalidInput: no texts, or fewer than a batch needs.
    """
    calibration = CalibrationBatches(texts, settings, seed)
    lengths = {name: [len(text.tokens) for text in given] for name, given in calibration.texts.items()}
    read = sum(
        lengths[name][index]
        for number in range(calibration.steps * settings.batches)
        for name, chosen in calibration.step(number).items()
        for index in chosen
    )
    measured = sum(sum(each[: settings.measured_items]) for each in lengths.values())
    taught = {"live": read, "cached": sum(sum(each) for each in lengths.values()), "none": 0}[settings.teacher]
    return PlannedTokens(calibration.steps, read, taught + settings.measurements * measured)
