"""The best of a training by its loss on items that it is not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from torch import Tensor

from evomerge.learned.learned_settings import LearnedSettings
from evomerge.learned.learning_items import LearningItems
from evomerge.learned.losses import item_losses
from evomerge.optimisation.course import Course, Losses
from evomerge.optimisation.student import Student

STOP_LOSS: Final = "stop loss"
OF: Final = f"{STOP_LOSS} of "


class StopRule(Protocol):
    """The end of a training: after so many steps, or without a new best one."""

    @property
    def steps(self) -> int:
        """The most steps that it has."""

    @property
    def stop_every(self) -> int:
        """Steps between two measurements."""

    @property
    def patience(self) -> int:
        """Measurements in a row without a new least loss, after which it ends."""


class KeptBest:
    """The values with the least loss on the items kept for stopping, and when a training without new ones ends.

    Without such items the last values are the result, and the losses before and after are those on the first items.

    Args:
        shares: source -> factor of its loss; they sum to 1.
        rule: when the training ends.
        copies: copies the values of the moment.

    Attributes:
        before: source -> loss at the start.
        values: the best values; empty without items kept for stopping.
        losses: source -> loss of the best values.
    """

    def __init__(
        self,
        items: LearningItems,
        settings: LearnedSettings,
        shares: Mapping[str, float],
        *,
        rule: StopRule,
        student: Student,
        course: Course,
        copies: Callable[[], Mapping[str, Tensor]],
    ) -> None:
        self._items = items
        self._settings = settings
        self._shares = shares
        self._rule = rule
        self._student = student
        self._course = course
        self._copies = copies
        state = course.state
        self.before: Losses = self.measured() if state is None else state.before
        self.losses: Mapping[str, float] = self.before if state is None else dict(state.best_losses)
        self.values: Mapping[str, Tensor] = self._taken() if state is None else dict(state.best)

    @property
    def is_kept(self) -> bool:
        """Whether there are items kept for stopping."""
        return bool(self._items.stop)

    @property
    def step(self) -> int:
        """The step with the least loss on the items kept for stopping; 0 is the start, the last one without any."""
        history = self._course.history
        if not self.is_kept:
            return len(history)
        curve = [self.total(self.before), *(others[STOP_LOSS] for _, others in history if STOP_LOSS in others)]
        return curve.index(min(curve))

    @property
    def ended(self) -> bool:
        """Whether there is no step left, or the patience is over."""
        made = len(self._course.history)
        if made == self._rule.steps:
            return True
        return self.is_kept and made - self.step >= self._rule.patience * self._rule.stop_every

    def note(self, number: int) -> Losses:
        """The latest losses on the items kept for stopping, in all and of every source, after a step.

        Where they are measured, and are the least, the values of the moment are kept.

        Args:
            number: of the step that was just made, whose losses are not in the history yet.
        """
        if not self.is_kept:
            return {}
        if not self._settings.is_measured(number):
            return self._latest()
        latest = self.measured()
        if self.total(latest) < self.total(self.losses):
            self.values, self.losses = self._taken(), latest
        return self._named(latest)

    def measured(self) -> Losses:
        """Source -> its loss on the items that are measured."""
        return item_losses(self._items.measured, student=self._student, settings=self._settings, weights=self._shares)

    def total(self, losses: Mapping[str, float]) -> float:
        """The weighted sum of the losses of the sources."""
        return math.fsum(self._shares[source] * loss for source, loss in losses.items())

    def _latest(self) -> Losses:
        history = self._course.history
        if not history:
            return self._named(self.before)
        return {name: loss for name, loss in history[-1][1].items() if name.startswith(STOP_LOSS)}

    def _named(self, losses: Mapping[str, float]) -> Losses:
        return {STOP_LOSS: self.total(losses), **{f"{OF}{source}": loss for source, loss in losses.items()}}

    def _taken(self) -> Mapping[str, Tensor]:
        return self._copies() if self.is_kept else {}


def stop_losses(others: Mapping[str, float]) -> Losses:
    """Source -> the latest loss on its items kept for stopping, of the other losses of a step."""
    return {name.removeprefix(OF): loss for name, loss in others.items() if name.startswith(OF)}
