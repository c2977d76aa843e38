"""Items as one forward pass reads them: a row for every text, and the positions that losses are taken at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.evaluation.evaluator import CalibrationText
from evomerge.learned.learned_settings import LearnedSettings
from evomerge.learned.learning_items import Texts
from evomerge.optimisation.batches import Batch


@dataclass(frozen=True)
class Item:
    """An item of a source."""

    source: str
    text: CalibrationText


@dataclass(frozen=True)
class Positions:
    """N positions in the logits of a forward pass: `rows` and `places`, both [N]."""

    rows: Tensor
    places: Tensor


class ForwardItems:
    """Some items, with all options where right answers count.

    Attributes:
        items: in the order of their rows.
        batch: the rows, padded; counted is every position that some loss is taken at.
    """

    def __init__(self, items: Sequence[Item], settings: LearnedSettings, device: torch.device) -> None:
        self.items = items
        self._settings = settings
        self._device = device
        self._rows = [row for item in items for row in read_rows(item, settings)]
        counts = [len(read_rows(item, settings)) for item in items]
        self._first = [sum(counts[:index]) for index in range(len(items) + 1)]
        self.batch = self._batch()

    def rows_of(self, index: int) -> slice:
        """The rows of an item, that with the right answer first."""
        return slice(self._first[index], self._first[index + 1])

    def answers(self, width: int) -> tuple[Positions, Tensor]:
        """The positions that predict a token of an answer, of all rows, and these tokens [N].

        Args:
            width: of the logits, which may have been kept only where something counts.
        """
        pairs = [(row, at) for row, text in enumerate(self._rows) for at in text.counted("answer")]
        tokens = [self._rows[row].tokens[at + 1] for row, at in pairs]
        return self._positions(pairs, width), torch.tensor(tokens, device=self._device)

    def looked_at(self, source: str, width: int) -> Positions:
        """The positions of the source's right texts where predictions are compared or should be sure."""
        firsts = [self._first[index] for index, item in enumerate(self.items) if item.source == source]
        pairs = [(row, at) for row in firsts for at in self._rows[row].counted(self._settings.positions)]
        return self._positions(pairs, width)

    def texts_of(self, source: str) -> Batch:
        """The source's right texts, counted at these positions."""
        texts = [item.text for item in self.items if item.source == source]
        return _padded(texts, [text.counted(self._settings.positions) for text in texts], self._device)

    def _batch(self) -> Batch:
        losses, positions = self._settings.losses, self._settings.positions
        counted = [set(row.counted("answer")) if losses.answers else set() for row in self._rows]
        if losses.experts or losses.entropy:
            for first in self._first[:-1]:
                counted[first] |= set(self._rows[first].counted(positions))
        return _padded(self._rows, [sorted(each) for each in counted], self._device)

    def _positions(self, pairs: Sequence[tuple[int, int]], width: int) -> Positions:
        rows, places = torch.tensor(pairs, device=self._device).T
        if width < self.batch.counted.shape[1]:
            places = (self.batch.counted.any(0).cumsum(0) - 1)[places]
        return Positions(rows, places)


def passes(texts: Texts, settings: LearnedSettings) -> Iterator[list[Item]]:
    """The items, in the order of their sources, with at most `max_tokens` padded tokens together, or one alone."""
    together: list[Item] = []
    rows, longest = 0, 0
    for item in (Item(source, text) for source, each in texts.items() for text in each):
        added = read_rows(item, settings)
        length = max(len(row.tokens) for row in added)
        if together and max(longest, length) * (rows + len(added)) > settings.max_tokens:
            yield together
            together, rows, longest = [], 0, 0
        together.append(item)
        rows, longest = rows + len(added), max(longest, length)
    if together:
        yield together


def read_rows(item: Item, settings: LearnedSettings) -> tuple[CalibrationText, ...]:
    """The texts that the model reads: that with the right answer, then with each other option where these count."""
    return (item.text, *item.text.others) if settings.losses.answers else (item.text,)


def _padded(texts: Sequence[CalibrationText], counted: Sequence[Sequence[int]], device: torch.device) -> Batch:
    length = max(len(text.tokens) for text in texts)
    tokens = torch.zeros(len(texts), length, dtype=torch.long)
    present, mask = (torch.zeros(len(texts), length, dtype=torch.bool) for _ in range(2))
    for row, (text, positions) in enumerate(zip(texts, counted, strict=True)):
        tokens[row, : len(text.tokens)] = torch.tensor(text.tokens)
        present[row, : len(text.tokens)] = True
        mask[row, list(positions)] = True
    return Batch(tokens.to(device), present.to(device), mask.to(device))
