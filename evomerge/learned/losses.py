"""The losses of a merge on items, and their gradients: in pieces, so that no temporary is as large as the logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.learned.forward_items import ForwardItems, Positions, passes
from evomerge.learned.learned_settings import LearnedSettings
from evomerge.learned.learning_items import Texts
from evomerge.optimisation.student import Student
from evomerge.training.dam_losses import position_parts
from evomerge.training.predictions import entropy_by_position
from evomerge.training.teacher import FullTargets


def item_losses(
    texts: Texts, *, student: Student, settings: LearnedSettings, weights: Mapping[str, float], gradients: bool = False
) -> dict[str, float]:
    """The loss of each source on its items; with `gradients` after a backward pass of their weighted sum.

    - answers: the mean over the items of -log p(right answer), a sum over its tokens; of an item with options that of
      -log softmax(log-likelihoods of the options), of the right one. So every item has one vote, as in an accuracy.
    - experts: the mean over the positions of T² KL(source ‖ merge), both at temperature T.
    - entropy: the mean over the positions of the entropy of the merge's prediction.

    A forward pass has at most `max_tokens` padded tokens, or is one item with all of its options.

    Args:
        weights: source -> factor of its loss in the sum.
    """
    totals = dict.fromkeys(texts, 0.0)
    shares = _Shares.of(texts, settings)
    for items in passes(texts, settings):
        forward = ForwardItems(items, settings, student.device)
        present = dict.fromkeys(item.source for item in items)
        targets = _targets(forward, present, student) if settings.losses.experts else {}
        logits, _ = student.logits(forward.batch, gradients=gradients)
        predictions = _Predictions(
            logits=logits.detach(),
            forward=forward,
            weights=weights,
            shares=shares,
            gradient=torch.zeros_like(logits) if gradients else None,
        )
        if settings.losses.answers:
            for source, loss in predictions.answers(settings.losses.answers):
                totals[source] += loss
        if settings.losses.experts or settings.losses.entropy:
            for source in present:
                totals[source] += predictions.looks(source, targets.get(source), settings)
        if predictions.gradient is not None:
            logits.backward(predictions.gradient)  # type: ignore[no-untyped-call]
    return totals


def _targets(forward: ForwardItems, sources: Mapping[str, None], student: Student) -> dict[str, FullTargets]:
    """The sources' own predictions. A source may have to be written into the live model, so they come first."""
    return {source: FullTargets(student.logits_of_source(source, forward.texts_of(source))) for source in sources}


@dataclass(frozen=True)
class _Shares:
    """Source -> 1 / its items, and 1 / its positions, in all passes."""

    item: Mapping[str, float]
    position: Mapping[str, float]

    @classmethod
    def of(cls, texts: Texts, settings: LearnedSettings) -> _Shares:
        positions = {
            source: sum(len(text.counted(settings.positions)) for text in each) for source, each in texts.items()
        }
        return cls(
            {source: 1 / len(each) for source, each in texts.items()},
            {source: 1 / count for source, count in positions.items() if count},
        )


@dataclass(frozen=True, kw_only=True)
class _Predictions:
    """The logits [R, K, V] of a forward pass, and where the gradient of the weighted losses goes, if it is wanted."""

    logits: Tensor
    forward: ForwardItems
    weights: Mapping[str, float]
    shares: _Shares
    gradient: Tensor | None

    def answers(self, factor: float) -> Iterator[tuple[str, float]]:
        """(source, part of its loss) of every item."""
        positions, tokens = self.forward.answers(self.logits.shape[1])
        likelihoods = self._likelihoods(positions, tokens)
        slopes = torch.zeros_like(likelihoods)  # of the loss in -log-likelihood, by row
        for index, item in enumerate(self.forward.items):
            rows = self.forward.rows_of(index)
            share = factor * self.shares.item[item.source]
            loss, slope = _item_loss(likelihoods[rows])
            slopes[rows] = slope * share * self.weights[item.source]
            yield item.source, share * loss
        if self.gradient is not None:
            self._descend(positions, tokens, slopes.to(self.logits.device))

    def _likelihoods(self, positions: Positions, tokens: Tensor) -> Tensor:
        """The log-likelihood of the answer of each row: float64 [R], on the CPU."""
        totals = torch.zeros(len(self.logits), dtype=torch.float64, device=self.logits.device)
        for part in position_parts(len(tokens), self.logits):
            rows = positions.rows[part]
            scores = _wide(self.logits[rows, positions.places[part]]).log_softmax(-1)
            totals.index_add_(0, rows, scores.gather(1, tokens[part, None]).squeeze(1).double())
        return totals.cpu()

    def _descend(self, positions: Positions, tokens: Tensor, slopes: Tensor) -> None:
        """Add slope * d(-log p(token)) / dlogits = slope * (softmax - one-hot), in place."""
        assert self.gradient is not None  # asked for
        for part in position_parts(len(tokens), self.logits):
            rows, places = positions.rows[part], positions.places[part]
            change = _wide(self.logits[rows, places]).softmax(-1)
            change.scatter_add_(1, tokens[part, None], torch.full_like(change[:, :1], -1.0))
            change *= slopes[rows, None].to(change.dtype)
            self.gradient[rows, places] += change.to(self.gradient.dtype)

    def looks(self, source: str, targets: FullTargets | None, settings: LearnedSettings) -> float:
        """The part of these items in the losses of a source that need no labels."""
        positions = self.forward.looked_at(source, self.logits.shape[1])
        share = self.shares.position[source]
        total = 0.0
        for part in position_parts(len(positions.rows), self.logits):
            rows, places = positions.rows[part], positions.places[part]
            piece = _wide(self.logits[rows, places]).requires_grad_(self.gradient is not None)
            with torch.set_grad_enabled(self.gradient is not None):
                loss = share * _unlabelled(piece, part, targets, settings)
            total += float(loss.detach())
            if self.gradient is not None:
                loss.backward()  # type: ignore[no-untyped-call]
                assert piece.grad is not None  # the loss depends on it
                self.gradient[rows, places] += (self.weights[source] * piece.grad).to(self.gradient.dtype)
        return total


def _item_loss(likelihoods: Tensor) -> tuple[float, Tensor]:
    """The loss of an item from the log-likelihoods of its rows, and its slope in each negative one."""
    if len(likelihoods) == 1:
        return -float(likelihoods[0]), torch.ones_like(likelihoods)
    scores = likelihoods.log_softmax(0)
    slope = -scores.exp()
    slope[0] += 1.0
    return -float(scores[0]), slope


def _unlabelled(piece: Tensor, part: slice, targets: FullTargets | None, settings: LearnedSettings) -> Tensor:
    """The losses at some positions, from their logits [P, V], summed."""
    loss = torch.zeros((), dtype=piece.dtype, device=piece.device)
    if targets is not None:
        temperature = settings.temperature
        loss = loss + settings.losses.experts * temperature**2 * targets.kl(piece, part, temperature).sum()
    if settings.losses.entropy:
        loss = loss + settings.losses.entropy * entropy_by_position(piece).sum()
    return loss


def _wide(logits: Tensor) -> Tensor:
    """In float32, or in float64 where they are, in memory of its own."""
    return logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32, copy=True)
