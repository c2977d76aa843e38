"""The settings of the trainer `learned`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from evomerge.documents import Frozen, Positive

Weight = Annotated[float, Field(ge=0)]
AboveZero = Annotated[float, Field(gt=0)]
Granularity = Literal["global", "groups", "tensor", "column"]

RATES: Final[Mapping[Granularity, float]] = {"global": 0.05, "groups": 0.05, "tensor": 0.05, "column": 0.1}


class LearnedLosses(Frozen):
    """Factor of each loss in their sum; without one it is off.

    Attributes:
        answers: negative log-likelihood of the right answer, in nats per item; of an item with several options, the
            cross-entropy over their log-likelihoods.
        experts: KL divergence from each source's predictions on its own texts, as in DAM. Needs no labels.
        entropy: of the predictions, as in AdaMerging. Needs no labels.
    """

    answers: Weight = 0.0
    experts: Weight = 0.0
    entropy: Weight = 0.0


class LearnedSettings(Frozen):
    """Settings of the trainer `learned`: theta = theta_0 + sum_i c_i tau_i, with coefficients c_i that are learned.

    Attributes:
        loss: weights of the losses; without them right answers, but under "chosen", where a source has fewer than 64
            texts and the labels are given, experts.
        granularity: one coefficient per source, per source and group of tensors, per source and tensor, or per source
            and input column (element of a norm, one of a bias); or "chosen" among `granularities` by items that are not
            trained on.
        granularities: to choose from, the fewest coefficients first; groups only where there are some.
        penalties: to choose from under "chosen" where folds are trained on, and their loss has not fallen for as long
            as the patience; the first one is that of the granularities.
        trial_steps: the most of the trainings that are compared under "chosen"; without it `steps` with folds, which
            also find how many are best, else 20.
        folds: into which the texts are divided under "chosen", each of them kept for stopping once, no more than the
            fewest texts of a source; 1 is one division; without it 4 where a source has fewer than 64 texts, else 1.
        groups: group -> its tensors; tensors of no group share one more coefficient. Filled in from the search space.
        basis: the vectors that are weighed: task vectors, those that TIES has trimmed and sign-elected, or those that
            DARE has dropped elements of and rescaled.
        density: share of the elements that TIES keeps, or that DARE does not drop.
        initial: of all coefficients; without it those of the initial recipe.
        steps: the most steps.
        batch_size: texts of each source in a step; of a source with fewer texts to train on, all of them.
        learning_rate: of Adam; without it 0.1 with `granularity: column`, else 0.05.
        penalty: factor of the squared distance from the start, a mean over the coefficients of each source.
        stop_share: share of each source's texts that are not trained on: the coefficients with the least loss on them
            are the result, the initial ones among them. 0: none, the last coefficients are the result.
        fold: the part of the texts that is kept for stopping, counted from 0: with `stop_share` 1/n there are n.
        stop_every: steps between measurements on these texts.
        patience: measurements in a row without a new least loss, after which the training ends.
        task_weights: source -> weight of its loss; 1 for a source without an entry. Filled in from the objective.
        labels: the answers of the items, or as a control those of other items of the same source.
        positions: where the losses `experts` and `entropy` look: at the positions that predict a token of the answer,
            at the first of these, which reads no token of an answer, or at all.
        temperature: of source and merge in the loss `experts`.
        max_length: longer texts lose their beginning.
        checkpoint_every: steps between checkpoints.
        measured_items: texts of each source on which the loss before and after is measured where none are kept for
            stopping.
        max_tokens: padded tokens of one forward pass.
    """

    loss: LearnedLosses | None = None
    granularity: Granularity | Literal["chosen"] = "tensor"
    granularities: Annotated[tuple[Granularity, ...], Field(min_length=1)] = ("global", "groups", "tensor", "column")
    penalties: Annotated[tuple[Weight, ...], Field(min_length=1)] = (0.0, 1.0)
    trial_steps: Positive | None = None
    folds: Positive | None = None
    groups: Mapping[str, tuple[str, ...]] = {}
    basis: Literal["task_vectors", "ties", "dare"] = "task_vectors"
    density: Annotated[float, Field(gt=0, le=1)] = 0.2
    initial: float | None = None
    steps: Positive = 60
    batch_size: Positive = 8
    learning_rate: AboveZero | None = None
    penalty: Weight = 0.0
    stop_share: Annotated[float, Field(ge=0, lt=1)] = 0.25
    fold: Annotated[int, Field(ge=0)] = 0
    stop_every: Positive = 5
    patience: Positive = 6
    task_weights: Mapping[str, AboveZero] = {}
    labels: Literal["given", "permuted"] = "given"
    positions: Literal["answer", "first", "all"] = "answer"
    temperature: AboveZero = 1.0
    max_length: Annotated[int, Field(gt=1)] = 2048
    checkpoint_every: Positive = 20
    measured_items: Positive = 128
    max_tokens: Positive = 8192

    @model_validator(mode="after")
    def _consistent(self) -> LearnedSettings:
        if not any(self.losses.model_dump().values()):
            raise ValueError("loss has no weight above 0; give answers, experts or entropy one")
        if self.groups and self.granularity not in {"groups", "chosen"}:
            raise ValueError("groups are given with granularity: groups, or with chosen")
        if self.granularity == "column" and self.basis != "task_vectors":
            raise ValueError("granularity: column weighs whole task vectors; use basis: task_vectors, or another one")
        if (self.fold + 1) * self.stop_share > 1 + 1e-9:
            raise ValueError(
                f"fold {self.fold} does not exist: parts of stop_share {self.stop_share:g} have numbers below "
                f"{int(1 / self.stop_share + 1e-9)}"
            )
        return self

    def is_measured(self, step: int) -> bool:
        """Whether the loss is measured after this step, counted from 1."""
        return step == self.steps or (self.stop_share > 0 and step % self.stop_every == 0)

    @property
    def losses(self) -> LearnedLosses:
        """The weights of the losses, right answers alone where none are given."""
        return LearnedLosses(answers=1.0) if self.loss is None else self.loss

    @property
    def rate(self) -> float:
        """The learning rate, with the default of the granularity filled in."""
        rate = RATES["tensor" if self.granularity == "chosen" else self.granularity]
        return rate if self.learning_rate is None else self.learning_rate

    @property
    def method(self) -> str:
        """Merge method of the result."""
        if self.granularity == "column":
            return "column_arithmetic"
        return {"task_vectors": "task_arithmetic", "ties": "elected_arithmetic", "dare": "dare_linear"}[self.basis]
