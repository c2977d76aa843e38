"""The items that a training learns from, and those that it keeps to know when to stop."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import torch

from evomerge.errors import InvalidInput
from evomerge.evaluation.evaluator import CalibrationText
from evomerge.learned.learned_settings import LearnedSettings
from evomerge.learned.permuted_answers import permuted_answers
from evomerge.optimisation.batches import PlannedTokens
from evomerge.seeding import derive

Texts = Mapping[str, Sequence[CalibrationText]]
"""Source -> texts of it."""


class LearningItems:
    """The texts of each source, cut to the longest allowed length and divided in two by the seed alone.

    Attributes:
        learned: source -> texts to train on.
        stop: source -> texts on which the training is measured; empty without a `stop_share`.
    """

    def __init__(self, texts: Texts, settings: LearnedSettings, seed: int) -> None:
        texts = {source: _labelled(each, source, settings, seed) for source, each in texts.items() if each}
        given = {source: [text.cut(settings.max_length) for text in each] for source, each in texts.items()}
        if not given:
            raise InvalidInput("no source has calibration texts; name `calibration` for at least one of them")
        for source, each in given.items():
            _check(source, each, settings)
        self._seed = seed
        self._batch_size = settings.batch_size
        self._measured_items = settings.measured_items
        self.learned: dict[str, list[CalibrationText]] = {}
        self.stop: dict[str, list[CalibrationText]] = {}
        for source, each in given.items():
            kept = _fold(self._order("stop items", source, 0, len(each)), settings)
            self.learned[source] = [text for index, text in enumerate(each) if index not in kept]
            if kept:
                self.stop[source] = [text for index, text in enumerate(each) if index in kept]

    @property
    def measured(self) -> dict[str, list[CalibrationText]]:
        """Source -> texts on which the training is measured: those kept for stopping, or the first of the others."""
        return self.stop or {source: each[: self._measured_items] for source, each in self.learned.items()}

    def step(self, number: int) -> dict[str, list[CalibrationText]]:
        """Source -> its texts in a step, counted from 0: every text once before any text twice.

        A step may end one pass over the texts of a source and begin the next one.
        """
        return {source: list(self._batch(source, texts, number)) for source, texts in self.learned.items()}

    def digest(self) -> str:
        """Digest of all texts, in their order and division."""
        content = [sorted(each.items()) for each in (self.learned, self.stop)]
        return hashlib.sha256(repr(content).encode()).hexdigest()

    def _batch(self, source: str, texts: Sequence[CalibrationText], number: int) -> Iterator[CalibrationText]:
        size, count = min(self._batch_size, len(texts)), len(texts)
        start, stop = number * size, (number + 1) * size
        passes = range(start // count, (stop - 1) // count + 1)
        order = [index for epoch in passes for index in self._order("learned items", source, epoch, count)]
        skipped = passes.start * count
        return (texts[index] for index in order[start - skipped : stop - skipped])

    def _order(self, purpose: str, source: str, epoch: int, count: int) -> list[int]:
        generator = torch.Generator().manual_seed(derive(self._seed, purpose, source, epoch))
        return [int(index) for index in torch.randperm(count, generator=generator)]


def _labelled(
    texts: Sequence[CalibrationText], source: str, settings: LearnedSettings, seed: int
) -> Sequence[CalibrationText]:
    return permuted_answers(texts, source, seed) if settings.labels == "permuted" else texts


def _check(source: str, texts: Sequence[CalibrationText], settings: LearnedSettings) -> None:
    if settings.stop_share and len(texts) < 2:
        raise InvalidInput(
            f"source {source!r} has one calibration text, which cannot be trained on and kept for stopping; give more, "
            "or use stop_share: 0"
        )
    masks = [settings.positions] if settings.losses.experts or settings.losses.entropy else []
    masks += ["answer"] if settings.losses.answers else []
    for mask in masks:
        rows = [row for text in texts for row in (text, *(text.others if mask == "answer" else ()))]
        if not all(row.counted(mask) for row in rows):
            raise InvalidInput(
                f"source {source!r} has a calibration text in which nothing counts where the positions are {mask!r}; "
                "leave such texts out"
            )


def _fold(order: Sequence[int], settings: LearnedSettings) -> set[int]:
    """The indices of the texts that are kept for stopping: at least one, but never all."""
    if not settings.stop_share:
        return set()
    count = len(order)
    first, last = (round(part * settings.stop_share * count) for part in (settings.fold, settings.fold + 1))
    first = min(first, count - 1)
    return set(order[first : max(first + 1, min(last, first + count - 1))])


def planned_learning(texts: Texts, settings: LearnedSettings, seed: int) -> PlannedTokens:
    """Count the tokens that a training reads where nothing stops it early.

    Raises:
        InvalidInput: texts that cannot be trained on.
    """
    items = LearningItems(texts, settings, seed)
    read = [items.step(number) for number in range(settings.steps)]
    measured = [items.measured] * (1 + len([n for n in range(1, settings.steps + 1) if settings.is_measured(n)]))
    taught = [*read, *measured] if settings.losses.experts else []
    return PlannedTokens(
        steps=settings.steps,
        gradient_tokens=sum(_tokens(texts, options=settings.losses.answers > 0) for texts in read),
        forward_tokens=sum(_tokens(texts, options=settings.losses.answers > 0) for texts in measured)
        + sum(_tokens(texts, options=False) for texts in taught),
    )


def _tokens(texts: Texts, *, options: bool) -> int:
    rows = (row for each in texts.values() for text in each for row in (text, *(text.others if options else ())))
    return sum(len(row.tokens) for row in rows)
