"""The settings of AdaMerging, with the published values as defaults."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from evomerge.documents import Frozen, Positive


class AdaSettings(Frozen):
    """Settings of an AdaMerging training (arXiv 2310.02575).

    Attributes:
        steps: number of steps.
        batch_size: texts of each source in a batch.
        batches: batches of each source in a step; the loss of a step is the sum over them.
        learning_rate: constant over all steps.
        granularity: one coefficient per source and tensor ("layer-wise" in the paper), per source and layer of the
            model, with one more for all tensors outside of the layers, or per source ("task-wise").
        initial: of all coefficients; null: those of the initial recipe, which has to be a merge by the same variant.
        clamp: a coefficient weighs as if it were within [0, 1], and has no gradient outside, where it cannot begin.
        variant: "plain", or "plus_plus" (AdaMerging++): task vectors are trimmed, to 20 % of their elements, and
            sign-elected first.
        entropy_positions: the positions whose prediction should be sure: those that predict a token of the answer, the
            first of these, which reads no token of an answer, or all.
        max_length: longer texts lose their beginning.
        checkpoint_every: steps between checkpoints.
        measured_items: texts of each source on which the entropy before and after is measured.
        max_tokens: padded tokens of one forward pass.
    """

    steps: Positive = 500
    batch_size: Positive = 16
    batches: Positive = 2
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    granularity: Literal["tensor", "layer", "task"] = "tensor"
    initial: Annotated[float, Field(allow_inf_nan=False)] | None = 0.3
    clamp: bool = True
    variant: Literal["plain", "plus_plus"] = "plain"
    entropy_positions: Literal["answer", "first", "all"] = "answer"
    max_length: Annotated[int, Field(gt=1)] = 2048
    checkpoint_every: Positive = 50
    measured_items: Positive = 128
    max_tokens: Positive = 8192

    @model_validator(mode="after")
    def _learns(self) -> AdaSettings:
        if self.clamp and self.initial is not None and not 0 <= self.initial <= 1:
            raise ValueError(
                f"initial {self.initial:g} is outside of [0, 1], where a clamped coefficient has no gradient and "
                "learns nothing; give one within, or clamp: false"
            )
        return self

    @property
    def method(self) -> str:
        """Merge method of the weighted sum; its other parameters and options have their defaults."""
        return "elected_arithmetic" if self.variant == "plus_plus" else "task_arithmetic"

    @property
    def epochs(self) -> None:
        """The steps are given; there is no number of passes."""

    @property
    def token_mask(self) -> str:
        """The positions that count."""
        return self.entropy_positions

    @property
    def measurements(self) -> int:
        """Passes over the measured texts: before and after."""
        return 2

    @property
    def teacher(self) -> str:
        """No source is run."""
        return "none"
