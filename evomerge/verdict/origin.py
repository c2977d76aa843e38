"""The merge that the winner grew from, in a space that is made of other merges, and its sentence in the verdict."""

from __future__ import annotations

from dataclasses import dataclass, replace

from evomerge.verdict.verdict import Verdict


@dataclass(frozen=True)
class Origin:
    """The nearest corner of the space.

    Attributes:
        label: of that merge.
        is_corner: whether the trial is that merge itself, bit for bit.
    """

    label: str
    is_corner: bool

    def sentence(self, trial: str) -> str:
        """The origin of a trial, in plain words."""
        if self.is_corner:
            return f"{trial.capitalize()} is {self.label} itself: nothing better was found on the search items."
        return f"{trial.capitalize()} grew from {self.label}."


def with_origin(verdict: Verdict, origin: Origin | None) -> Verdict:
    """The verdict that says first where the winner comes from."""
    if origin is None:
        return verdict
    text = f"{origin.sentence(verdict.winner)} {verdict.sentence}"
    return replace(verdict, corner=origin.label, is_corner=origin.is_corner, sentence=text)
